"""Every layout is the Python loop over clients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import layout, require
from tests import fakes

K = 7
# Whole numbers, so that sums in any order have the same bits.
SLOTS = {
    "x": jnp.arange(K * 6.0).reshape(K, 3, 2),
    "who": jnp.asarray([3, 1, 4, 0, 5, 9, 2]),
    "nothing": None,
}
LAYOUTS = {
    "vmap": layout.vmapped(),
    "scan": layout.scanned(),
    "sliced": layout.sliced(layout.vmapped(), (2, 0, 4, 1)),
    "sliced scan": layout.sliced(layout.scanned(), (3, 4)),
    **{f"chunk{size}": layout.chunked(size) for size in (1, 2, 3, 6, 7, 8, 50)},
}


def one(slot, tier):
    """((addend, report)) of mixed ranks and dtypes."""
    matrix = slot["x"] @ jnp.ones((2, 2)) * slot["who"].astype(jnp.float32)
    return (matrix, {"n": slot["who"]}), (slot["who"] + 100, matrix[0], slot["who"] > 2)


def loop():
    """(the addends' sum, the stacked reports)."""
    results = [
        one({"x": SLOTS["x"][k], "who": SLOTS["who"][k]}, None) for k in range(K)
    ]
    addends, reports = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
    return jax.tree.map(lambda leaf: leaf.sum(0, dtype=leaf.dtype), addends), reports


def loops(laid) -> bool:
    """True if the compiled total contains a loop."""
    return "scan" in str(jax.make_jaxpr(lambda slots: laid.total(one, slots))(SLOTS))


@pytest.mark.parametrize("name", LAYOUTS)
def test_total_is_the_loop(name):
    got = jax.jit(lambda slots: LAYOUTS[name].total(one, slots))(SLOTS)
    assert fakes.equal(got, loop())
    assert require.describe(got) == require.describe(loop())


@pytest.mark.parametrize("name", LAYOUTS)
def test_stack_is_the_loop_in_the_order_of_the_slots(name):
    got = jax.jit(lambda slots: LAYOUTS[name].stack(lambda *s: one(*s)[1], slots))(
        SLOTS
    )
    assert fakes.equal(got, loop()[1])


def test_only_vmap_runs_all_clients_side_by_side():
    assert not loops(LAYOUTS["vmap"])
    assert loops(LAYOUTS["scan"])
    assert loops(LAYOUTS["chunk3"])


ABOVE = layout.SCAN_ABOVE + 1


@pytest.mark.parametrize(
    ("batching", "backend", "parameters", "reason", "looped"),
    [
        ("auto", "cpu", ABOVE, "scan: on CPU", True),
        ("auto", "cpu", ABOVE - 1, "vmap", False),
        ("auto", "gpu", ABOVE, "vmap", False),
        ("auto", "tpu", 10**9, "vmap", False),
        ("vmap", "cpu", ABOVE, "vmap: asked for", False),
        ("scan", "gpu", 1, "scan: asked for", True),
        ("chunk", "cpu", 1, "chunks of 4: asked for", True),
    ],
)
def test_auto_chooses_by_backend_and_size_and_says_why(
    batching, backend, parameters, reason, looped
):
    laid = layout.choose_batching(
        batching,
        chunk=4,
        backend=backend,
        parameters=parameters,
        convolutional=False,
        clients=K,
    )
    assert laid.reason.startswith(reason)
    assert loops(laid) == looped
    if batching == "auto":
        assert str(parameters) in laid.reason


def chosen(batching, **given):
    settings = {"backend": "cpu", "parameters": 1, "convolutional": False, "clients": K}
    return layout.choose_batching(batching, **settings | given)


def test_convolutions_are_scanned_on_cpu_alone():
    """There vmapped kernels cost more, at every size."""
    small = {"chunk": 1, "convolutional": True}
    assert chosen("auto", **small).reason == "scan: on CPU, convolutions"
    assert chosen("auto", backend="gpu", **small).reason.startswith("vmap")
    assert chosen("vmap", **small).reason == "vmap: asked for"


def test_a_chunk_never_exceeds_the_cohort():
    laid = chosen("chunk", chunk=64)
    assert laid.reason == f"chunks of {K}: asked for"
    assert fakes.equal(laid.total(one, SLOTS), loop())


def test_names_and_sizes_that_mean_nothing_are_refused():
    with pytest.raises(require.InputError, match=r'^batching: .*"scan"'):
        chosen("scna", chunk=1)
    for size in (0, -2):
        with pytest.raises(require.InputError, match=r"^size: .* > 0"):
            layout.chunked(size)
        with pytest.raises(require.InputError, match=r"^chunk: .* > 0"):
            chosen("chunk", chunk=size)


def test_a_sliced_layout_names_the_tier_of_every_slot():
    laid = layout.sliced(layout.vmapped(), (2, 0, 4, 1))

    def name(slot, tier):
        return slot["who"] * 0 + tier

    assert laid.stack(name, SLOTS).tolist() == [0, 0, 2, 2, 2, 2, 3]
    assert layout.vmapped().stack(lambda s, t: s["who"] * int(t is None), SLOTS).any()


@pytest.mark.parametrize(
    ("asked", "obstacle", "parameters", "form", "reason"),
    [
        ("auto", None, layout.SLICE_ABOVE + 1, "sliced", "sliced: 32769"),
        ("auto", None, layout.SLICE_ABOVE, "masked", "masked: 32768"),
        ("auto", "no size", 10**9, "masked", "masked: no size"),
        ("sliced", None, 1, "sliced", "sliced: asked for"),
        ("masked", "no size", 1, "masked", "masked: asked for"),
    ],
)
def test_the_form_is_chosen_and_explained(asked, obstacle, parameters, form, reason):
    got = layout.choose_form(asked, obstacle=obstacle, parameters=parameters)
    assert got[0] == form
    assert got[1].startswith(reason)


def test_what_cannot_be_sliced_is_refused_when_asked_for():
    with pytest.raises(require.InputError, match=r"^form: .*no size"):
        layout.choose_form("sliced", obstacle="no size", parameters=1)
