"""One config per method: each runs, ends finite and has a cost for every tier."""

import importlib.util
import math
import pathlib

import pytest

from configs import default
from fairjax.experiment import costs, resume, train
from fairjax.experiment.config import build, registry

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


FIRST = "dynamicfl"
"""The config that `make test` trains; `make verify` trains all configs."""


def costs_rise(costs, config):
    assert len(costs) == len(config.tiers.budget)
    assert 0 < costs[0]["flops_train"] <= costs[-1]["flops_train"]


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if path.stem != FIRST],
    ids=lambda path: path.stem,
)
def test_a_config_is_built_and_has_costs(path):
    config = smoke(path)
    run = build.run(config)
    costs_rise(costs.tier_costs(run, resume.initial_state(run)), config)


@pytest.mark.usefixtures("unfinal")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem == FIRST else pytest.mark.slow)
        for path in CONFIGS
    ],
    ids=lambda path: path.stem,
)
def test_a_config_runs_two_rounds(path, tmp_path):
    config = smoke(path)
    result = train.train(config, tmp_path / "run")
    assert int(result.state.round) == 2
    costs_rise(result.summary["tiers"], config)
    for tier in range(len(config.tiers.budget)):
        accuracy = result.metrics[f"eval/accuracy/submodel_{tier}"]
        assert math.isfinite(accuracy)
        assert accuracy > 0


def test_every_method_has_a_config():
    assert {path.stem for path in CONFIGS} == set(registry.METHODS)
