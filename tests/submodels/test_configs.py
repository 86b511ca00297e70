"""One config per method: each can run and bills every tier; one of a kind runs."""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import default
from fairjax import checks, measure, names, round, specs, train
from fairjax.types import Cohort

RUN = ("heterofl", "depthfl", "ladder", "lora")
"""Compiling is most of a run: the rounds of the others are traced here, compiled in
tests of their own, and run by `make verify`."""
CONFIGS = sorted((pathlib.Path(default.__file__).parent / "submodels").glob("*.py"))


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smoke(path):
    module = loaded(path)
    command = f"scripts/train.py --config=configs/submodels/{path.stem}.py --workdir="
    assert command in module.__doc__
    config = module.get_config("smoke")
    assert config.submodel.name == path.stem
    # One program instead of one per tier: what they compute is the same.
    config.execution.form = "masked"
    config.execution.batching = "vmap"
    config.data.partition.num_clients = 4
    return config


@pytest.mark.usefixtures("unfinal")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem in RUN else [pytest.mark.slow])
        for path in CONFIGS
    ],
    ids=lambda path: path.stem,
)
def test_a_config_runs_two_rounds(path, tmp_path):
    config = smoke(path)
    result = train.train(config, tmp_path / "run")
    assert int(result.state.round) == 2
    assert len(result.summary["tiers"]) == len(config.tiers.budget)
    for tier in range(len(config.tiers.budget)):
        accuracy = result.metrics[f"eval/accuracy/submodel_{tier}"]
        assert math.isfinite(accuracy)
        assert accuracy > 0


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if path.stem not in RUN],
    ids=lambda path: path.stem,
)
def test_a_config_bills_its_tiers_and_traces_its_rounds(path):
    """A round leads from a state to one of its kind, and every sub-model answers."""
    run = specs.build(smoke(path))
    state = train.initial(run)
    everyone = jnp.arange(4, dtype=jnp.int32)
    cohort = Cohort(everyone, jnp.asarray(run.tiers), jnp.ones(4, bool))
    data = run.splits.train

    def one_round(state):
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)[0]

    after = jax.eval_shape(one_round, state)
    assert checks.describe(after) == checks.describe(state)
    members = measure.representatives(run)
    answers = functools.partial(round.answers, spec=run.spec)
    x = {"test": run.splits.test.x}
    full, own = jax.eval_shape(answers, state, x, data, cohort.tier, members)
    assert full["test"].shape == (len(x["test"]), len(run.splits.classes))
    assert own["test"].shape == (len(run.budget), *full["test"].shape)
    bills = train.bills(run, state)
    assert len(bills) == len(run.budget)
    assert all(0 < bill["parameters"] for bill in bills)
    assert bills[0]["flops_train"] <= bills[-1]["flops_train"]


def test_every_method_has_a_config():
    assert {path.stem for path in CONFIGS} == set(names.METHODS)
