"""Several runs in one program: each is what it would be alone."""

import itertools
import json

import jax
import numpy as np
import pytest

from configs import default
from fairjax.core import require
from fairjax.experiment import vmapped
from fairjax.experiment.compilation import round_step
from fairjax.experiment.config import build, conversion
from fairjax.experiment.resume import initial_state
from fairjax.experiment.train import train
from tests import fakes
from tests.trained import rows, small

SHARED = {"data__partition__seed": 5}


def values(path):
    """The figures of metrics.jsonl that depend on the training, by round and key."""
    return {
        (row["round"], key): value
        for row in rows(path / "metrics.jsonl")
        for key, value in row.items()
        if not key.startswith("time/") and value is not None
    }


@pytest.fixture
def quick(monkeypatch, unfinal):
    monkeypatch.setattr("fairjax.report.write", lambda workdir: workdir)


@pytest.mark.usefixtures("quick")
def test_every_run_of_a_program_is_what_it_would_be_alone(tmp_path):
    """Three seeds and learning rates; one run has ended before, and one goes on."""
    fields = [
        {"seed": seed, "local__learning_rate": rate, "fairness__q_ffl__q": q}
        for seed, rate, q in ((0, 0.2, 1.0), (1, 0.05, 0.0), (2, 0.4, 3.0))
    ]
    configs = [small(fairness__rule="q_ffl", **SHARED, **each) for each in fields]
    alone = [train(c, tmp_path / f"alone{i}") for i, c in enumerate(configs)]
    train(
        small(fairness__rule="q_ffl", rounds=2, **SHARED, **fields[1]), tmp_path / "1"
    )
    train(configs[2], tmp_path / "2")
    ended = vmapped.train_all(configs, [tmp_path / str(i) for i in range(3)])
    for config, one, other in zip(configs, alone, ended, strict=True):
        ours, theirs = values(one.workdir), values(other.workdir)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(
            list(ours.values()), list(theirs.values()), rtol=1e-4, atol=1e-5
        )
        assert fakes.gap(one.state.params, other.state.params) < 1e-5
        saved = json.loads((other.workdir / "config.json").read_text())
        assert saved == conversion.to_plain(config)
    params = [each.state.params for each in ended]
    assert all(fakes.gap(a, b) > 1e-3 for a, b in itertools.combinations(params, 2))


@pytest.mark.usefixtures("quick")
def test_a_run_that_fails_stops_no_other(tmp_path):
    configs = [small(seed=seed, **SHARED) for seed in range(2)]
    (tmp_path / "0").write_text("not a folder")
    broken, whole = vmapped.train_all(configs, [tmp_path / "0", tmp_path / "1"])
    assert isinstance(broken, require.InputError)
    assert whole.summary["metrics"]["round"] == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"fairness__rule": "term"},
        {
            "submodel__name": "fedavg",
            "privacy__mechanism": "client_dp",
            "privacy__noise_multiplier": 1.0,
            "fairness__denominator": "fixed",
            "server__optimizer": "momentum",
        },
        pytest.param(
            {
                "submodel__name": "fedavg",
                "privacy__mechanism": "record_dp",
                "privacy__noise_multiplier": 1.0,
                "data__partition__num_clients": 4,
            },
            marks=pytest.mark.slow,
        ),
        {"fairness__rule": "q_fedavg"},
    ],
)
def test_a_spec_with_other_values_is_that_of_the_config(fields):
    """With all of `VALUES` traced the next state is that of the built run."""
    config = small(**fields)
    names = [n for n in build.VALUES if n != "privacy.noise_multiplier"]
    if config.privacy.noise_multiplier is not None:
        names.append("privacy.noise_multiplier")
    other = small(**{**fields, **{n.replace(".", "__"): 0.7 for n in names}})
    run, expected = build.run(config), build.run(other)
    state = initial_state(run)

    def traced(values, train):
        return round_step(run, run.with_values(values))(state, train, None)[0]

    got = jax.jit(traced)(dict.fromkeys(names, 0.7), run.splits.train)
    whole = jax.jit(
        lambda train: round_step(expected, expected.spec)(state, train, None)
    )
    assert fakes.gap(got.params, whole(run.splits.train)[0].params) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([{}, {"rounds": 4}], r"rounds: expected the same in all runs"),
        ([{}, {"local__momentum": 0.5}], r"local\.momentum: expected the same"),
        (
            [
                {"data__partition__seed": None},
                {"seed": 1, "data__partition__seed": None},
            ],
            r"data\.partition\.seed: expected a number",
        ),
        ([{"execution__devices": 2}] * 2, r"execution\.devices: expected 1"),
        ([{"execution__records": "host"}] * 2, r"execution\.records: expected device"),
    ],
)
def test_what_one_program_cannot_train_is_refused(fields, message):
    configs = [small(**{**SHARED, **each}) for each in fields]
    with pytest.raises(require.InputError, match=f"^{message}"):
        vmapped.VmappedRuns(configs)


def test_runs_that_can_share_a_program_have_one_key():
    key = vmapped.program_key(default.get_config())
    assert vmapped.program_key(small()) != key
    for field, value in (("seed", 3), ("local__learning_rate", 0.5)):
        assert vmapped.program_key(small(**{field: value})) == vmapped.program_key(
            small()
        )
