import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import trees
from tests import fakes

TREE = {
    "a": jnp.arange(6.0).reshape(2, 3),
    "b": [jnp.asarray([1.0, -2.0], jnp.bfloat16)],
}


def test_multiply_broadcasts_masks_and_keeps_the_dtype():
    masks = {"a": jnp.asarray([[1], [0]]), "b": [jnp.asarray([True])]}
    got = trees.multiply(TREE, masks)
    np.testing.assert_array_equal(got["a"], [[0, 1, 2], [0, 0, 0]])
    assert fakes.equal(got["b"], TREE["b"])
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [
        leaf.dtype for leaf in jax.tree.leaves(TREE)
    ]


def test_subtract_is_new_minus_old():
    got = trees.subtract({"a": jnp.asarray([5.0])}, {"a": jnp.asarray([3.0])})
    assert got["a"] == 2


@pytest.mark.parametrize("where", [True, False])
def test_select_takes_one_tree_whole_whatever_its_dtypes(where):
    def state(seed):
        return {
            "moment": jnp.full(3, jnp.nan if seed else 1.0),
            "steps": jnp.asarray(seed),
            "key": jax.random.key(seed),
            "empty": (),
        }

    got = trees.select(jnp.asarray(where), state(1), state(0))
    expected = state(1) if where else state(0)
    assert got["key"] == expected["key"]
    np.testing.assert_array_equal(got["moment"], expected["moment"])
    assert got["steps"] == expected["steps"]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_bad_entry_makes_a_tree_not_finite(bad):
    assert trees.all_finite(TREE)
    assert not trees.all_finite(TREE | {"a": TREE["a"].at[1, 2].set(bad)})
    assert not trees.all_finite(TREE | {"b": [jnp.asarray([0, bad], jnp.bfloat16)]})


def test_a_tree_is_bounded_if_its_norm_is():
    assert trees.is_bounded(TREE)
    assert trees.is_bounded({"a": jnp.asarray([2.0**49, -(2.0**49)])})
    assert not trees.is_bounded({"a": jnp.full(9, 2.0**49)})
    for bad in (jnp.nan, jnp.inf, 1e30):
        assert not trees.is_bounded(TREE | {"b": [jnp.asarray([0, bad], jnp.bfloat16)]})


def test_sum_first_and_pick_act_on_the_leading_axis():
    np.testing.assert_array_equal(trees.sum_first(TREE)["a"], [3, 5, 7])
    np.testing.assert_array_equal(trees.pick(TREE, 1)["a"], [3, 4, 5])
    rows = trees.pick(TREE, jnp.asarray([1, 1, 0]))
    np.testing.assert_array_equal(rows["b"][0].astype(jnp.float32), [-2, -2, 1])


def test_map_named_gives_paths_with_slashes():
    assert trees.map_with_path(
        lambda path, leaf: (path, leaf), {"a": {"k": 1}, "b": [2]}
    )["a"] == {"k": ("a/k", 1)}
    names = trees.map_with_path(lambda path, leaf: path, TREE)
    assert names == {"a": "a", "b": ["b/0"]}
