"""Tiers that change in mid-run: branches, slots, and refusals by name."""

import re

import jax
import numpy as np
import pytest

from configs import default
from fairjax.core import require, round
from fairjax.data import cohorts
from fairjax.experiment.config import build
from fairjax.experiment.resume import initial_state


def test_budgets_may_change_in_mid_run():
    """A richer client gains branches, a poorer one loses them; the model stays."""
    config = default.get_config()
    config.submodel.name = "dynamicfl"
    config.submodel.dynamicfl.families = ("linear", "lowrank", "linear")
    config.model.mlp.hidden = (8, 8)
    config.local.learning_rate = 0.0
    config.data.partition.num_clients = 4
    run = build.run(config)
    poor, rich = (int(np.argmax(run.tiers == tier)) for tier in (0, 3))
    # Round numbers count from 1.
    config.tiers.changes = ((2, poor, 3), (3, rich, 0))
    run = build.run(config)
    tiers = [np.asarray(run.tiers_at(finished)) for finished in range(3)]
    assert np.array_equal(tiers[0], run.tiers)
    assert (tiers[1][poor], tiers[1][rich]) == (3, 3)
    assert (tiers[2][poor], tiers[2][rich]) == (3, 0)

    @jax.jit
    def step(state):
        cohort = cohorts.sample(
            state.key, state.round, run.tiers_at(state.round), run.cohort
        )
        return round.step(
            state, run.splits.train, cohort, spec=run.spec, layout=run.layout
        )[0]

    state, alive = initial_state(run), []
    first = state.params
    for _ in range(3):
        state = step(state)
        alive.append(np.asarray(state.memory["alive"]).sum((1, 2))[[poor, rich]])
        # At rate 0 the plain model keeps its bytes, whatever branches clients have.
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(state.params), jax.tree.leaves(first), strict=True
            )
        )
    assert np.array_equal(alive, [[0, 6], [6, 6], [6, 0]])


def test_a_schedule_keeps_a_slot_for_whoever_comes():
    config = default.get_config()
    config.execution.form = "sliced"
    before = build.run(config).slots
    config.tiers.changes = ((2, 0, 3), (2, 1, 3))
    run = build.run(config)
    moved = np.bincount(np.asarray(run.tiers_at(1)), minlength=4)
    assert run.slots == tuple(np.maximum(before, moved))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tiers.changes", ((0, 0, 0),), "tiers.changes round"),
        ("tiers.changes", ((1, 0),), "(round, hospital, tier) for every change"),
        ("tiers.changes", ((1, 0, 4),), "tiers.changes tier"),
        ("tiers.changes", ((1, 8, 0),), "tiers.changes hospital"),
        ("tiers.branches", (0, 1), "4 values, as tiers.budget"),
        ("tiers.branches", (0, 2, 1, 3), "tiers.branches"),
        ("tiers.branches", (0, 0, 0, 1), "dynamicfl or mixed"),
        ("submodel.dynamicfl.families", ("2x2",), "1x1"),
        ("submodel.dynamicfl.structure", "fix", "fixed"),
    ],
)
def test_bad_branches_and_schedules_are_named(field, value, words):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(require.InputError, match=re.escape(words)):
        build.run(config)
