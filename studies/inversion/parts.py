"""The attacks that `run` makes: their configs, settings and secrets."""

import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from configs import pbc_blood28
from fairjax.core.types import RunState
from fairjax.experiment.config import build
from fairjax.submodels import branches
from studies import experiment

SECRET = 7
"""The seed of the branches of DynamicFL's victims."""

HIDDEN = "hidden0"
"""The layer without branches, which leaves few enough branches to search through."""

MODEL = {
    "model.name": "two_conv",
    "model.two_conv.channels": (8, 16),
    "model.two_conv.hidden": (32,),
    "execution.form": "masked",
}

FEDAVG = {"submodel.name": "fedavg"}

HETEROFL = {"submodel.name": "heterofl", "submodel.heterofl.masked_loss": False}

DYNAMICFL = {
    "submodel.name": "dynamicfl",
    "tiers.branches": (0, 1, 2),
    "submodel.dynamicfl.skip": (HIDDEN,),
    "submodel.dynamicfl.moved": 0.0,
}

FEW = {"iterations": 300}


class Part(NamedTuple):
    """Attacks that share a config."""

    title: str
    fields: dict[str, Any]
    """The fields that the part changes in configs/pbc_blood28.py, beside `MODEL`."""
    settings: dict[str, Any]
    """Fields of `reconstruction.Inversion`."""
    rounds: int = 0
    """Rounds of training before the attacked round."""


def _noisy(multiplier: float) -> Part:
    """FedAvg under local DP, with noise of so many clips."""
    return Part(
        "FedAvg, local DP",
        FEDAVG
        | {
            "privacy.mechanism": "local_dp",
            "privacy.clip": 0.1,
            "privacy.noise_multiplier": multiplier,
            # The PLD of noise as weak as this does not fit into memory.
            "privacy.accountant": "rdp",
        },
        {"tier": (2,), "level": ("plain",)},
    )


PARTS = {
    "fedavg": Part("FedAvg", FEDAVG, {"tier": (2,), "level": ("plain",)}),
    "heterofl": Part(
        "HeteroFL", HETEROFL, {"tier": (0, 1), "level": ("plain", "tier")}
    ),
    "dynamicfl plain": Part(
        "DynamicFL", DYNAMICFL, {"tier": (0,), "level": ("plain",)}
    ),
    "dynamicfl": Part("DynamicFL", DYNAMICFL, {"tier": (1, 2)}),
    "fedavg steps": Part(
        "FedAvg",
        FEDAVG,
        {"observable": "steps", "tier": (2,), "level": ("plain",), **FEW},
    ),
    "dynamicfl steps": Part(
        "DynamicFL",
        DYNAMICFL,
        {"observable": "steps", "tier": (2,), "level": ("plain", "structure"), **FEW},
    ),
    "fedavg dlg": Part(
        "FedAvg",
        FEDAVG,
        {"variant": "dlg", "tier": (2,), "level": ("plain",), "iterations": 100},
    ),
    "fedavg trained": Part(
        "FedAvg, after 20 rounds", FEDAVG, {"tier": (2,), "level": ("plain",)}, 20
    ),
    "noise 0.001": _noisy(0.001),
    "noise 0.01": _noisy(0.01),
    "noise 0.1": _noisy(0.1),
}


def setting(part: Part) -> dict[str, Any]:
    """A part as JSON; rows with another setting are out of date."""
    return json.loads(json.dumps(part._asdict()))


def config_of(part: Part) -> Any:
    """The config of a part."""
    config: Any = pbc_blood28.get_config()
    config.selection_metric = experiment.SELECT
    config.update_from_flattened_dict(MODEL | part.fields)
    return config


def secrets(run: build.Run, state: RunState, victims: int) -> Any:
    """The memories of every tier's victims, with branches drawn uniformly.

    Args:
        run: the run of the attacked part.
        state: the state before the attacked round.
        victims: the number of victims of a tier.

    Returns:
        A list of memories by tier; None for a method without branches.
    """
    if not isinstance(state.memory, dict) or "alive" not in state.memory:
        return None
    layers = branches.layers(run.spec.local.model.axes, (HIDDEN,))
    exists = branches.existing_slots(state.params, layers, branches.Form())
    rng = np.random.default_rng(SECRET)
    memories = []
    for branch in run.branches:
        alive = np.zeros((victims, exists.size), np.float32)
        for row in alive:
            row[rng.permutation(np.flatnonzero(exists))[: branch * len(layers)]] = 1
        table = jnp.asarray(alive.reshape(victims, *exists.shape))
        memories.append({"alive": table, "sensitivity": jnp.zeros_like(table)})
    return memories
