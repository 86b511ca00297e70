"""Presets "published": the numbers of their sources, and two small rounds of each.

The numbers below come from the sources, not from the configs.
"""

import importlib
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from fairjax.experiment import compilation, resume
from fairjax.experiment.config import build, conversion, optimizers
from tests import fakes


class Recipe(NamedTuple):
    """The recipe of a source."""

    source: str
    """Where the source has the numbers."""
    hospitals: tuple[int, int]
    """(all clients, clients of a round)."""
    training: tuple[int | None, int | None, int]
    """(local epochs or None, local steps or None, records of a batch)."""
    sgd: tuple[float, float, float]
    """(momentum, weight decay, largest norm of a gradient)."""
    rates: dict[int, float]
    """{round from 1: local learning rate}; the last key is the run's last round."""
    tiers: tuple[float, ...]
    others: dict[str, Any]


RECIPES = {
    "heterofl": Recipe(
        "diaoenmao/HeteroFL, src/utils.py 172-187, src/config.yml, README",
        (100, 10),
        (5, None, 10),
        (0.9, 5e-4, 1.0),
        {1: 0.1, 300: 0.1, 301: 0.01, 500: 0.01, 501: 0.001, 800: 0.001},
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        {"submodel.heterofl.dynamic": True, "data.partition.shards": 2},
    ),
    "fedrolex": Recipe(
        "AIoT-MLSys-Lab/FedRolex, README 37-49, utils.py 183-198",
        (100, 10),
        (1, None, 10),
        (0.9, 1e-3, 1.0),
        {1: 2e-4, 1199: 2e-4, 1200: 5e-5, 3200: 5e-5},
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        {"submodel.fedrolex.overlap": None, "data.partition.shards": 2},
    ),
    "federated_dropout": Recipe(
        "AIoT-MLSys-Lab/FedRolex, --algo random of README 37-49",
        (100, 10),
        (1, None, 10),
        (0.9, 1e-3, 1.0),
        {1: 2e-4, 1199: 2e-4, 1200: 5e-5, 3200: 5e-5},
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
        {"submodel.federated_dropout.shared": False},
    ),
    "fjord": Recipe(
        "adap/flower, baselines/fjord/fjord/conf/common.yaml, fjord_kd.yaml",
        (100, 10),
        (1, None, 32),
        (0.0, 1e-4, 0.0),
        {1: 0.1, 500: 0.1},
        (0.2, 0.4, 0.6, 0.8, 1.0),
        {"submodel.fjord.distill": True, "fairness.rule": "size"},
    ),
    "fiarse": Recipe(
        "HarliWu/FIARSE, README 21",
        (100, 10),
        (None, 100, 20),
        (0.0, 0.0, 0.0),
        {1: 0.1, 800: 0.1},
        (1 / 64, 1 / 16, 1 / 4, 1.0),
        {"data.partition.alpha": 0.3, "server.learning_rate": 1.0},
    ),
    "depthfl": Recipe(
        "adap/flower, baselines/depthfl/depthfl/conf/config.yaml, client.py, models.py",
        (100, 10),
        (5, None, 50),
        (0.0, 1e-3, 0.0),
        {n: 0.1 * 0.998 ** (n - 1) for n in (1, 2, 300, 1000)},
        (0.25, 0.5, 0.75, 1.0),
        {
            "submodel.depthfl.stages": (1, 2, 3, 4),
            "submodel.depthfl.feddyn": 0.1,
            "submodel.depthfl.ramp": 300,
            "data.name": "cifar100",
        },
    ),
    "scalefl": Recipe(
        "git-disl/scale-fl, config.py 32-40, args.py 97-113",
        (100, 10),
        (5, None, 16),
        (0.9, 5e-4, 0.0),
        {1: 0.1, 100: 0.1, 101: 0.01, 200: 0.01, 201: 0.001, 300: 0.001},
        (0.25, 0.5, 0.75, 1.0),
        {
            "submodel.scalefl.width": (0.7, 0.7, 0.75, 1.0),
            "submodel.scalefl.temperature": 3.0,
            "submodel.scalefl.warmup": 0.25,
            "model.resnet.blocks": (18, 18, 18),
        },
    ),
    "nefl": Recipe(
        "honggkang/nested-federated-learning, NeFL-toy.py 30-42, 271-274; its page",
        (100, 10),
        (5, None, 32),
        (0.0, 0.0, 0.0),
        {1: 0.1, 249: 0.1, 250: 0.01, 374: 0.01, 375: 0.001, 500: 0.001},
        (0.2, 0.4, 0.6, 0.8, 1.0),
        {
            "submodel.nefl.width": (0.34, 0.4, 0.6, 0.8, 1.0),
            "submodel.nefl.dropped": (1, 0, 0, 0, 0),
            "model.resnet.moments": "per_tier",
        },
    ),
    "inclusivefl": Recipe(
        "Rachelxuan11/InclusiveFL, run_fl.py 120-176, README 9",
        (1000, 20),
        (1, None, 64),
        (0.0, 0.0, 0.0),
        {1: 5e-5, 1000: 5e-5},
        (0.333, 0.667, 1.0),
        {
            "submodel.inclusivefl.stages": (4, 8, 12),
            "submodel.inclusivefl.beta": 0.2,
            "fairness.rule": "size",
            "local.optimizer": "adam",
        },
    ),
    "fedavg": Recipe(
        "McMahan et al. 2017, section 3, table 3, figure 4",
        (100, 10),
        (5, None, 50),
        (0.0, 0.0, 0.0),
        {n: 0.1 * 0.99 ** (n - 1) for n in (1, 2, 280, 2000)},
        (0.25, 0.5, 0.75, 1.0),
        {"submodel.fedavg.mode": "full", "fairness.rule": "size"},
    ),
    "dynamicfl": Recipe(
        "paridis-11/DynamicFL, Args.py 15-69, README 53 and 87, Node/Node.py 33",
        (30, 30),
        (5, None, 16),
        (0.0, 5e-4, 0.0),
        {n: 5e-4 * (1 + np.cos(np.pi * (n - 1) / 100)) for n in (1, 2, 51, 100)},
        (1.0, 1.0, 1.0),
        {"tiers.branches": (0, 1, 2), "tiers.proportions": (7.0, 2.0, 1.0)},
    ),
}
WITHOUT = {"partial", "lora", "mixed"}
"""Methods whose sources give no recipe."""


def module(name):
    return importlib.import_module(f"configs.submodels.{name}")


def test_every_config_has_a_recipe_or_says_why_not():
    folder = pathlib.Path(default.__file__).parent / "submodels"
    assert {path.stem for path in folder.glob("*.py")} == RECIPES.keys() | WITHOUT
    for name in RECIPES:
        assert f"configs/submodels/{name}.py:published" in module(name).__doc__
    for name in WITHOUT:
        assert 'There is no preset "published"' in module(name).__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_numbers_of_its_source(name):
    recipe, config = RECIPES[name], module(name).get_config("published")
    local = config.local
    hospitals, cohort = recipe.hospitals
    assert config.data.partition.num_clients == hospitals
    assert config.clients_per_round in (
        (0, cohort) if cohort == hospitals else (cohort,)
    )
    epochs, steps, batch = recipe.training
    assert (local.steps, local.batch_size) == (steps, batch)
    assert epochs is None or local.epochs == epochs
    assert (local.momentum, local.weight_decay, local.max_grad_norm) == recipe.sgd
    assert config.rounds == max(recipe.rates)
    factor = optimizers.schedule(conversion.to_typed(config).local, config.rounds)
    for number, rate in recipe.rates.items():
        got = local.learning_rate * float(factor(jnp.asarray(number - 1)))
        np.testing.assert_allclose(got, rate, rtol=1e-4)
    assert config.tiers.budget == recipe.tiers
    expected = {
        "fairness.rule": "uniform",
        "local.optimizer": "sgd",
        "server.optimizer": "sgd",
        "server.learning_rate": 1.0,
        "server.schedule": "constant",
        **recipe.others,
    }
    fields = {path: config_at(config, path) for path in expected}
    assert fields == expected


def config_at(config, path):
    for part in path.split("."):
        config = config[part]
    return config


def test_recipes_join_with_other_presets():
    recipe = module("heterofl").get_config("published")
    both = module("heterofl").get_config("published+smoke")
    assert (both.rounds, both.eval_every) == (2, 1)
    both.rounds, both.eval_every = recipe.rounds, recipe.eval_every
    assert both.to_dict() == recipe.to_dict()


# ---------------------------------------------------------------------------- in small

SMALL = {
    "data.name": "npz",
    "data.partition.num_clients": 6,
    "clients_per_round": 3,
    "model.resnet.channels": (4,),
    "model.resnet.blocks": (2,),
    "model.lenet.channels": (4, 4),
    "model.lenet.hidden": (8, 8),
    # One program instead of one per tier: what they compute is the same.
    "execution.form": "masked",
    "execution.batching": "vmap",
}
TWO_STAGES = {"model.resnet.channels": (4, 4), "model.resnet.blocks": (1, 1)}
SHORT = {
    "fiarse": {"local.steps": 3},
    "depthfl": TWO_STAGES
    | {"submodel.depthfl.stages": (1, 2, 2, 2), "execution.batching": "scan"},
    "scalefl": TWO_STAGES | {"submodel.scalefl.exits": (1, 2, 2, 2)},
    # A ViT takes longer to compile than all the others.
    "inclusivefl": {
        "model.name": "resmlp",
        "model.resmlp.width": 4,
        "model.resmlp.hidden": 4,
        "model.resmlp.depth": 2,
        "submodel.inclusivefl.stages": (1, 2, 2),
    },
    "dynamicfl": {
        "clients_per_round": 0,
        "model.resnet.blocks": (1,),
        "execution.batching": "scan",
    },
}
"""Changes that the small network or the few records need."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A user's file of seventy-two 8 x 8 pictures in four classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 72), ("test", 24)):
        labels = np.arange(count) % 4
        images = (
            rng.integers(0, 128, (count, 8, 8, 3)) + 32 * labels[:, None, None, None]
        )
        arrays[f"{split}_images"] = images.astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, **arrays)
    return str(path)


SMALLEST = ("fedrolex", "fiarse", "heterofl")
"""Recipes that `make test` trains; `make verify` trains all recipes."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SMALLEST else pytest.mark.slow)
        for name in RECIPES
    ],
)
def test_a_recipe_trains_two_rounds_in_small(name, pictures):
    config = module(name).get_config("published")
    fields = SMALL | {"data.path": pictures} | SHORT.get(name, {})
    config.update_from_flattened_dict(fields)
    # optax's Adam does not promote strictly.
    with jax.numpy_dtype_promotion("standard"):
        run = build.run(config)
        first = resume.initial_state(run)
        step, _ = compilation.compile_round(run, first)
    state = first
    for _ in range(2):
        state, (_, info) = step(state)
        assert np.isfinite(float(info.loss))
        assert info.valid.any()
    assert int(state.round) == 2
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    assert not fakes.equal(state.params, first.params)
