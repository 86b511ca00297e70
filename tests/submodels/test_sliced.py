"""A masked sub-model and its dense network train alike, for every method."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import client
from fairjax.core.types import ClientData
from fairjax.experiment.config import registry
from fairjax.models import resnet, vit
from tests import fakes
from tests.submodels import matrix

# What has no network of a smaller size, or is no method of its own.
UNSTRUCTURED = {"fiarse"}
COVER = matrix.cover()


def cheapest():
    """A few cases that have every value of the cover, on small models if possible."""
    met, chosen = set(), []
    order = list(matrix.MODELS)
    for case in sorted(COVER, key=lambda case: order.index(case[1])):
        if not met.issuperset(enumerate(case)):
            met |= set(enumerate(case))
            chosen.append(case)
    return chosen


FEW = cheapest()
"""The cases that `make test` runs; `make verify` runs the whole cover."""


@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_masked_is_sliced(case):
    difference, change = matrix.gap(*case)
    assert difference < 1e-9
    assert change > 1e-3


def test_the_cover_and_the_tables_are_whole():
    """The cover has every possible pair of values and every named method."""
    covered = [case for case in matrix.CASES if matrix.VARIANTS.isdisjoint(case)]
    for one, other in itertools.combinations(range(4), 2):
        met = {(case[one], case[other]) for case in COVER}
        assert met == {(case[one], case[other]) for case in covered}
    assert {*map(frozenset, COVER)} > {*map(frozenset, FEW)}
    assert {name for case in FEW for name in case} == {
        name for case in COVER for name in case
    }
    assert {*matrix.METHODS, *matrix.MODELS} > matrix.VARIANTS
    short = {"federated_dropout": "dropout"}
    named = {short.get(name, name) for name in registry.METHODS}
    assert named - UNSTRUCTURED <= set(matrix.METHODS)


TINY = {"width": 192, "depth": 12, "heads": 3, "patch": 16}
FULL = {
    "resnet18": (lambda: resnet(classes=3, lowering="xla"), (32, 32, 3)),
    "vit-tiny": (lambda: vit(classes=3, **TINY), (224, 224, 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["heterofl", "fedrolex", "dropout"])
@pytest.mark.parametrize("name", FULL)
def test_masked_is_sliced_at_full_size(name, method):
    """One step in float64, where rounding flips no ReLU, agrees to 1e-9."""
    build, shape = FULL[name]
    model = build()
    rule = matrix.METHODS[method](model.axes)
    spec = fakes.spec(model, rule, counts=(4,), epochs=1, batch_size=4)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        data = fakes.federation(shape, counts=(4,), dtype=np.float64)
        member, number = fakes.member(0, 1, data), jnp.asarray(matrix.ROUND)
        examples = ClientData(data.x, data.y, data.offset[0], data.count[0])
        settings = {"member": member, "round": number, "local": spec.local}

        @jax.jit
        def both(params):
            kept = rule.submodel(jax.random.key(2), number, params, member)
            given = jax.random.key(5), params, None, kept, examples
            masked, *_ = client.update(*given, **settings)
            sliced, *_ = client.update_sliced(*given, size=rule.size(1), **settings)
            return masked, sliced

        masked, sliced = both(fakes.drawn(model, data.x[:1], np.float64))
        zero = jax.tree.map(jnp.zeros_like, masked)
        assert fakes.gap(masked, sliced) < 1e-9 * fakes.gap(masked, zero)


@pytest.mark.slow
def test_the_committed_table_is_whole_and_small():
    table = json.loads(matrix.RESULTS.read_text())
    cases = [
        (row["method"], row["model"], row["optimizer"], row["clip"])
        for row in table["rows"]
    ]
    assert cases == matrix.CASES
    assert table["largest_difference"] == max(r["difference"] for r in table["rows"])
    assert table["largest_difference"] < 1e-9
    assert all(row["change"] > 1e-3 for row in table["rows"])
