import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given

from fairjax.core import axes, require
from fairjax.core.types import Axes, LeafAxes, Size, Units

AXES = Axes(
    {
        "conv": LeafAxes((None, None, None, "c")),
        "norm": LeafAxes(("c",)),
        "block": LeafAxes(("c", "h"), ("stage", 1)),
        "head": LeafAxes(("h", "classes")),
    },
    {"c": 3, "h": 4, "classes": 2},
    {"stage": 2},
)


def params(key=0):
    shapes = {"conv": (3, 3, 1, 6), "norm": (6,), "block": (6, 4), "head": (4, 2)}
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return {
        name: jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


kept_units = st.fixed_dictionaries(
    {
        "c": st.sets(st.integers(0, 2), min_size=1),
        "h": st.sets(st.integers(0, 3), min_size=1),
    }
)


def units_of(kept):
    return Units(
        {
            name: jnp.asarray([i in kept[name] for i in range(AXES.units[name])])
            for name in kept
        },
        {},
    )


def part_of(kept):
    index = {name: jnp.asarray(sorted(kept[name]), jnp.int32) for name in kept}
    return axes.Part(index, {})


@given(kept_units)
def test_mask_is_the_outer_product_of_kept_units(kept):
    """Written with loops over coordinates, two channels per unit of axis c."""
    masks = axes.masks(params(), AXES, units_of(kept))
    for name, leaf in params().items():
        mask = np.broadcast_to(masks[name], leaf.shape)
        for where in np.ndindex(leaf.shape):
            expected = True
            for dim, axis in enumerate(AXES.tree[name].dims):
                if axis in kept:
                    width = leaf.shape[dim] // AXES.units[axis]
                    expected &= where[dim] // width in kept[axis]
            assert mask[where] == expected


@given(kept_units)
def test_put_is_the_adjoint_of_take_and_inverts_it_on_the_mask(kept):
    full, inside = params(), part_of(kept)
    small = axes.take(full, AXES, inside)
    assert small["block"].shape == (2 * len(kept["c"]), len(kept["h"]))
    back = axes.scatter(small, AXES, inside, full)
    masked = jax.tree.map(jnp.multiply, full, axes.masks(full, AXES, units_of(kept)))
    for name in full:
        np.testing.assert_array_equal(back[name], masked[name])
    other = axes.take(params(1), AXES, inside)
    left = sum(float(jnp.vdot(small[n], other[n])) for n in small)
    put = axes.scatter(other, AXES, inside, full)
    right = sum(float(jnp.vdot(full[n], put[n])) for n in full)
    np.testing.assert_allclose(left, right, rtol=1e-5)


@given(kept_units)
def test_a_part_comes_from_the_masks(kept):
    size = Size({name: len(kept[name]) for name in kept}, {"stage": (1,)})
    found = axes.locate_slice(units_of(kept), size)
    assert found.blocks == {"stage": (1,)}
    for name, index in part_of(kept).index.items():
        np.testing.assert_array_equal(found.index[name], index)


@given(kept_units, kept_units)
def test_restricting_is_taking_from_the_mask(kept, narrower):
    """The mask of the sliced network is the plain network's mask, sliced."""
    full, inside = params(), part_of(kept)
    small = axes.take(full, AXES, inside)
    shrunk = AXES._replace(
        units={
            name: len(kept[name]) if name in kept else units
            for name, units in AXES.units.items()
        }
    )
    units = units_of(narrower)
    masks = axes.masks(full, AXES, units)
    whole = jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), masks, full)
    got = axes.masks(small, shrunk, axes.restrict(units, inside))
    for name, mask in axes.take(whole, AXES, inside).items():
        np.testing.assert_array_equal(
            np.broadcast_to(got[name], small[name].shape), mask
        )


def test_leaves_of_dropped_blocks_are_not_taken_and_come_back_as_zeros():
    tree = {
        name: {"kernel": LeafAxes((None, None), ("stage", i))}
        for i, name in enumerate(("first", "second", "third"))
    }
    tree["head"] = LeafAxes((None,))
    deep = Axes(tree, {}, {"stage": 3})
    full = {name: {"kernel": jnp.full((2, 2), 2.0)} for name in tree if name != "head"}
    full["head"] = jnp.ones(3)
    inside = axes.Part({}, {"stage": (0, 2)})
    small = axes.take(full, deep, inside)
    assert small.keys() == {"first", "third", "head"}
    back = axes.scatter(small, deep, inside, full)
    kept = Units({}, {"stage": jnp.asarray([1.0, 0.0, 1.0])})
    fits = jax.tree.map(jnp.multiply, full, axes.masks(full, deep, kept))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, fits)))
    assert axes.restrict(kept, inside).blocks["stage"].tolist() == [1.0, 1.0]


def test_a_dropped_block_masks_its_leaves_whole():
    units = Units({}, {"stage": jnp.asarray([1.0, 0.0])})
    masks = axes.masks(params(), AXES, units)
    assert not np.any(masks["block"])
    assert np.all(masks["head"] == 1)


def test_no_units_means_the_whole_model_without_copying_it():
    masks = axes.masks(params(), AXES, None)
    assert all(leaf.size == 1 for leaf in jax.tree.leaves(masks))


@pytest.mark.parametrize(
    ("budget", "expected"), [(0.1, 3), (0.01, 1), (0.34, 11), (1.0, 30)]
)
def test_prefix_sizes_round_up_and_keep_one(budget, expected):
    wide = Axes({}, {"a": 30, "classes": 2}, {})
    assert axes.prefix_sizes(wide, budget) == {"a": expected}


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (LeafAxes(("c",)), r"head.*expected 2 axis names"),
        (LeafAxes(("h", "klasses")), r"head.*Did you mean \"classes\""),
        (LeafAxes((None, "c")), r"head.*multiple of the 3 units"),
        (LeafAxes(("h", None), ("stag", 0)), r"head.*Did you mean \"stage\""),
    ],
)
def test_axes_that_do_not_fit_are_refused_by_name(leaf, message):
    wrong = AXES._replace(tree=AXES.tree | {"head": leaf})
    with pytest.raises(require.InputError, match=message):
        axes.check("model x", params(), wrong)


def test_axes_must_describe_every_leaf():
    missing = AXES._replace(tree={k: v for k, v in AXES.tree.items() if k != "norm"})
    with pytest.raises(
        require.InputError, match=r"^model x: expected axes for every parameter"
    ):
        axes.check("model x", params(), missing)
    axes.check("model x", params(), AXES)


def test_annotations_are_checked_here():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'size'"):
        axes.locate_slice(None, {"c": 1})
