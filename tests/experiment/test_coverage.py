"""Parameters that are called untrained before the first round never change."""

import jax
import numpy as np
import pytest

from fairjax import report
from fairjax.core import scopes, trees
from fairjax.experiment import compilation, coverage
from fairjax.experiment.config import build
from fairjax.experiment.resume import initial_state
from fairjax.experiment.train import train
from tests.trained import small
from tests.workdirs import fake_run

HALF = {"tiers__budget": (0.25, 0.5), "tiers__proportions": (1.0, 1.0)}
ONE = {"data__partition__num_clients": 1, "clients_per_round": 0}
CASES = {
    "one hospital, which is rich": ONE,
    "a tier without hospitals": {"tiers__proportions": (1.0, 1.0, 1.0, 0.0)},
    "a hospital that becomes rich": {
        "tiers__proportions": (1.0, 1.0, 1.0, 0.0),
        "tiers__changes": ((3, 0, 3), (3, 1, 3)),
    },
    "a window that does not come round": {"submodel__name": "fedrolex", **HALF},
    "the smallest model": {
        "submodel__name": "fedavg",
        "submodel__fedavg__mode": "smallest",
    },
    "no client is admitted": {
        "submodel__name": "fedavg",
        "submodel__fedavg__mode": "exclusive",
        "submodel__fedavg__tier": 3,
        "tiers__proportions": (1.0, 1.0, 1.0, 0.0),
    },
    "a model for every tier": {
        "submodel__name": "fedavg",
        "submodel__fedavg__mode": "decoupled",
        "clients_per_round": 0,
    },
    # Masks that follow from the model are those of the first round: one round.
    "a secure sum": {
        "submodel__name": "fiarse",
        "tiers__budget": (0.4, 0.6, 0.8, 1.0),
        "privacy__secure_sum": "quantized",
        "clients_per_round": 0,
        "rounds": 1,
    },
    "a secure sum of noised changes": {
        "submodel__heterofl__masked_loss": False,
        "privacy__mechanism": "client_dp",
        "privacy__noise_multiplier": 0.1,
        "privacy__accountant": "rdp",
        "privacy__secure_sum": "quantized",
        "privacy__secure__minimum": 2,
        "fairness__denominator": "fixed",
    },
    "a head at every hospital": {"fairness__rule": "private_head"},
}


@pytest.fixture(scope="module", params=CASES)
def ended(request):
    """(run, its first state, where of the full model it moved)."""
    run = build.run(small(**CASES[request.param]))
    state = start = initial_state(run)
    once = jax.jit(compilation.round_step(run, run.spec))
    for _ in range(run.config.rounds):
        state, _ = once(state, run.splits.train, None)
    before, after = (
        trees.leaves_by_path(scopes.top_tier_model(each.leaf_copies, each.params))
        for each in (start, state)
    )
    return run, start, {p: np.asarray(before[p] != after[p]) for p in before}


def test_untrained_is_what_no_round_moved(ended):
    run, start, moved = ended
    left = coverage.untrained(run, start)
    total = sum(where.size for where in moved.values())
    still = total - sum(int(where.sum()) for where in moved.values())
    assert left.parameters == still
    assert left.share == still / total
    assert (left.reason is None) == (still == 0)


def test_a_run_says_what_is_untrained_wherever_its_figures_are(tmp_path, capsys):
    """It does so at the start, in summary.json, on the terminal and on the page."""
    fields = {
        "tiers__proportions": (1.0, 1.0, 1.0, 0.0),
        "rounds": 1,
        "clients_per_round": 0,
    }
    summary = train(small(**fields), tmp_path).summary
    assert summary["untrained"] == {
        "share": 66 / 266,
        "parameters": 66,
        "reason": "no hospital trains it",
    }
    said = capsys.readouterr().out
    (note,) = summary["notes"]
    assert note.startswith("24.8% of the full model (66 parameters) stays as it was")
    start, _, end = said.partition("round 1/1")
    assert note in start
    assert " ".join(note.split()) in " ".join(end.split())
    assert "untrained 24.8%" in end
    assert note in (tmp_path / "report.html").read_text()


def test_a_run_that_trains_everything_has_no_notes(tmp_path):
    run = build.run(small())
    assert coverage.notes(run, initial_state(run)) == (
        coverage.Untrained(0.0, 0, None),
        [],
    )
    page = report.write(fake_run(tmp_path / "run", ["a", "b"])).read_text()
    assert "untrained" not in page


NARROW = {"tiers__budget": (0.05, 1.0), "tiers__proportions": (1.0, 1.0)}
DEEP = {"model__mlp__hidden": (40, 40), **NARROW}
RESIDUAL = {"model__name": "resmlp", **NARROW}


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        (DEEP, "400 times"),
        ({**DEEP, "submodel__name": "fedrolex"}, "400 times"),
        ({**DEEP, "submodel__heterofl__scaler": False}, None),
        ({**DEEP, "tiers__budget": (0.25, 1.0)}, None),
        ({**DEEP, "tiers__proportions": (0.0, 1.0)}, None),
        ({**DEEP, "submodel__name": "fjord"}, None),
        ({**RESIDUAL, "model__resmlp__norm": "batch"}, None),
        ({**RESIDUAL, "model__resmlp__norm": "none"}, "times"),
    ],
)
def test_a_small_scaler_without_a_norm_is_warned_of(fields, times):
    """It is the model that is asked, not its name."""
    run = build.run(small(**fields))
    said = coverage.scaler_warnings(run, initial_state(run))
    assert len(said) == (times is not None)
    for line in said:
        assert line.startswith("tier 0 divides activations by 0.05 and no norm")
        assert str(times) in line
