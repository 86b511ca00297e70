"""NeFL: the units and own leaves of every tier, and one tier as FedAvg."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import layout, require, round, scopes
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.nefl import nefl
from tests import fakes
from tests.submodels.residual import agree, member, moved, residual, trained

MODEL = residual(ends=(), steps=True, fixed=(0, 2))
BUDGET = (0.25, 1.0)


def nested(model=MODEL, budget=BUDGET, width=(), dropped=(1, 0)):
    return nefl(model.axes, budget, width=width, dropped=dropped)


def after(method, cohort, model=MODEL):
    data = fakes.federation()
    spec = fakes.spec(model, method, epochs=1)
    state = fakes.start(spec, data, tiers=2)
    step = jax.jit(
        lambda s: round.step(s, data, cohort, spec=spec, layout=layout.vmapped())[0]
    )
    return state, step(state)


def test_a_tier_drops_its_last_identity_blocks_and_narrows_by_the_root():
    method = nested()
    assert method.size(0).blocks == {"blocks": (0, 2)}
    assert method.size(0).axes == {
        "hidden0": 3,
        "hidden1": 3,
        "hidden2": 3,
        "stream": 4,
    }
    assert method.size(1).blocks == {"blocks": (0, 1, 2)}
    kept = method.submodel(
        jax.random.key(0), jnp.asarray(0), {}, member(fakes.federation(), 0, 0)
    )
    assert kept.forward.blocks["blocks"].tolist() == [True, False, True]
    free = nested(residual(ends=(), steps=True), dropped=(2, 0))
    assert free.size(0).blocks == {"blocks": (0,)}


def test_a_dropped_block_gets_nothing_and_every_other_leaf_something():
    delta, _, _ = trained(fakes.spec(MODEL, nested(), epochs=1), 0)
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(delta)
    }
    assert moved(delta) == {path for path in paths if "block1" not in path}


def test_blocks_inside_the_network_are_dropped_where_they_stand():
    """Dropped blocks between others, as in the released tiers; sliced as masked."""
    model = residual(ends=(), steps=True, hidden=(6,) * 5, fixed=(0, 3))
    method = nested(model, budget=(0.25, 0.5, 1.0), dropped=((1, 4), (2,), 0))
    assert [method.size(tier).blocks["blocks"] for tier in range(3)] == [
        (0, 2, 3),
        (0, 1, 3, 4),
        (0, 1, 2, 3, 4),
    ]
    kept = method.submodel(
        jax.random.key(0), jnp.asarray(0), {}, member(fakes.federation(), 0, 0)
    )
    assert kept.forward.blocks["blocks"].tolist() == [True, False, True, True, False]
    agree(fakes.spec(model, method, epochs=1), 0)


def test_norms_and_steps_are_the_tier_s_and_nothing_else_is():
    method = nested()
    cohort = fakes.cohort(tiers=(0, 0, 1, 1))
    old, new = after(method, cohort)
    own = {f"block{i}/{leaf}" for i in range(3) for leaf in ("step", "norm/scale")}
    own |= {f"block{i}/norm/bias" for i in range(3)}
    assert new.leaf_copies["tier"].keys() == own
    steps = new.leaf_copies["tier"]["block0/step"]
    assert len({1.0, *steps.tolist()}) == 3
    # Tier 0 drops block 1, so its copy does not move.
    assert float(new.leaf_copies["tier"]["block1/step"][0]) == 1
    changed = jax.tree.map(jnp.subtract, new.params, old.params)
    assert not moved(changed) & own
    assert "block1/up/kernel" in moved(changed)


def test_a_block_that_nobody_holds_keeps_its_value():
    old, new = after(nested(), fakes.cohort(tiers=(0, 0, 0, 0)))
    assert fakes.equal(old.params["block1"], new.params["block1"])
    assert np.any(new.params["block1"]["up"]["kernel"])


def test_one_tier_of_full_size_is_fedavg():
    cohort = fakes.cohort(tiers=(0, 0, 0, 0))
    _, ours = after(nested(budget=(1.0,), dropped=()), cohort)
    _, theirs = after(fedavg(MODEL.axes), cohort)
    received = scopes.gather(
        ours.leaf_copies, ours.params, member(fakes.federation(), 0, 0)
    )
    assert fakes.gap(received, theirs.params) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropped": (2, 0)}, "^dropped: "),
        ({"dropped": (1,)}, "^dropped: "),
        ({"dropped": (1.0, 0)}, "^dropped: "),
        ({"dropped": ((0,), 0)}, r"^dropped: .* positions among \[1\]"),
        ({"dropped": ((1, 1), 0)}, "^dropped: .* each once"),
        ({"width": (0.5,)}, "^width: "),
    ],
)
def test_what_cannot_be_dropped_is_refused(options, message):
    with pytest.raises(require.InputError, match=message):
        nested(**options)
