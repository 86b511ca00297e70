"""Inverts updates on blood cells: who gives an image away, to whom, and what helps?

    python scripts/inversion.py

The small CNN of `config_of` sees one image of configs/pbc_blood28.py, whose data set is
a file that you need to have; twenty images are attacked, the same ones by everybody, on
the same first model. DynamicFL's victims have branches drawn uniformly from all that
fit, which is more of a secret than the method's own rule makes of them. Nothing is
tuned to a victim. Writes results/inversion.json after every part, and README.md and
results/inversion.png in the end. The same command again goes on with the parts that are
missing; another setting or other versions begin anew. `--part=dynamicfl` runs some of
them: two processes share the files.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import pbc_blood28
from fairjax import attack, checks, command, specs
from fairjax.submodels import branches
from fairjax.train import initial, train
from fairjax.types import RunState
from fairjax.workdir import number, write_json
from scripts import experiment
from scripts.results import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "inversion.json"
FIGURE = ROOT / "results" / "inversion.png"
BEGIN = "<!-- results/inversion.json -->"
SECRET = 7
"""Seed of the branches that DynamicFL's victims have."""
HIDDEN = "hidden0"
"""The layer without branches, so that the others' can be searched through."""

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
    """What it changes in configs/pbc_blood28.py, beside `MODEL`."""
    settings: dict[str, Any]
    """Of `attack.Inversion`."""
    rounds: int = 0
    """Of training before the round that is attacked."""


def _noisy(multiplier: float) -> Part:
    return Part(
        "FedAvg, local DP",
        FEDAVG
        | {
            "privacy.mechanism": "local_dp",
            "privacy.clip": 0.1,
            "privacy.noise_multiplier": multiplier,
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
    "heterofl steps": Part(
        "HeteroFL",
        HETEROFL,
        {"observable": "steps", "tier": (0,), "level": ("tier",), **FEW},
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


def config_of(part: Part) -> Any:
    """The config of a part."""
    config: Any = pbc_blood28.get_config()
    config.update_from_flattened_dict(MODEL | part.fields)
    return config


def secrets(run: specs.Run, state: RunState, victims: int) -> Any:
    """What the victims of every tier remember: branches drawn uniformly."""
    if not isinstance(state.memory, dict) or "alive" not in state.memory:
        return None
    layers = branches.layers(run.spec.local.model.axes, (HIDDEN,))
    exists = branches.admitted(state.params, layers, branches.Form())
    rng = np.random.default_rng(SECRET)
    memories = []
    for branch in run.branches:
        alive = np.zeros((victims, exists.size), np.float32)
        for row in alive:
            row[rng.permutation(np.flatnonzero(exists))[: branch * len(layers)]] = 1
        table = jnp.asarray(alive.reshape(victims, *exists.shape))
        memories.append({"alive": table, "sensitivity": jnp.zeros_like(table)})
    return memories


def measure(name: str, pictures: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a part; what was found goes to `pictures`."""
    part = PARTS[name]
    config = config_of(part)
    run = specs.build(config)
    state = initial(run)
    if part.rounds:
        config.rounds = part.rounds
        with tempfile.TemporaryDirectory() as folder:
            state = jax.device_get(train(config, f"{folder}/run").state)
    settings = attack.Inversion(**part.settings)
    made = attack.invert(
        run, state, settings, memories=secrets(run, state, settings.images)
    )
    rows = []
    for (tier, level), one in made.items():
        each = attack.scores(run, settings, one)
        rows.append(
            {
                "part": name,
                "tier": tier,
                "level": level,
                "epsilon": number(run.guarantee.epsilon(1)),
                **attack.judge(run, settings, one),
                "victims": {n: np.round(v, 4).tolist() for n, v in each.items()},
            }
        )
    pictures.mkdir(parents=True, exist_ok=True)
    shown = {f"{tier} {level}": one.found[:, 0] for (tier, level), one in made.items()}
    true = next(iter(made.values())).true[:, 0]
    np.savez_compressed(pictures / f"{name}.npz", original=true, **shown)
    return rows


# ---------------------------------------------------------------------------- the table


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The Markdown tables, and what they say."""
    return ""


# ---------------------------------------------------------------------------- the files


def add(same: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows beside those that are there; with all, the README's table."""
    with experiment.alone(RESULTS.parent):
        every = [*(experiment.continued(RESULTS, same) or []), *rows]
        write_json(RESULTS, same | {"runs": every})
        if {row["part"] for row in every} == set(PARTS):
            path = ROOT / "README.md"
            path.write_text(fill(path.read_text(), BEGIN, table(every)))


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    what = "Parts of this process."
    flags.DEFINE_list("part", list(PARTS), what, flag_values=values)
    what = "Folder for what was found, of which the figure is drawn."
    flags.DEFINE_string("workdir", "runs/inversion", what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes the files."""
    for name in options.part:
        checks.one_of("--part", name, PARTS)
    pictures = pathlib.Path(options.workdir)
    same = {
        "command": "python scripts/inversion.py",
        "attack": dataclasses.asdict(attack.Inversion()),
        "parts": {name: part._asdict() for name, part in PARTS.items()},
        "model": MODEL,
        **experiment.surroundings(),
    }
    for name in options.part:
        made = experiment.continued(RESULTS, same) or []
        if name not in {row["part"] for row in made}:
            add(same, measure(name, pictures))
    add(same, [])


if __name__ == "__main__":
    command.run(main, define)
