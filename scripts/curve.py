"""What privacy of single records costs, and whom: epsilon against accuracy.

    python scripts/curve.py

Runs configs/heart_disease.py (four real hospitals) under `record_dp` at every epsilon
of `EPSILONS` on three seeds; infinity clips as the others do and adds no noise. Every
epsilon has the learning rate and the clip, of all pairs of `RATES` and `CLIPS`, whose
AUROC on the validation records is best in the last round, as a mean over the seeds:
that search is not accounted for. It trains all pairs of a seed in one vmapped program;
the runs that are shown are runs of `train`. Writes results/curve.json and the
page beside it.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float

from configs import heart_disease
from fairjax.core import layout, round
from fairjax.evaluation import deployed
from fairjax.experiment import cli, evaluate
from fairjax.experiment.config import build
from fairjax.experiment.io.workdir import write_json
from fairjax.experiment.train import initial, train
from scripts import experiment
from scripts.experiment import fill, interval

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "curve.json"
BEGIN = "<!-- results/curve.json -->"
SEEDS = (0, 1, 2)
EPSILONS = (1.0, 2.0, 4.0, 8.0, None)
"""Of a record, over the whole run; None: infinity."""
RATES = (0.03, 0.1, 0.3, 1.0)
CLIPS = (0.1, 0.3, 1.0, 3.0)


def config_of(
    epsilon: float | None, seed: int, rate: float = 1.0, clip: float = 1.0
) -> Any:
    """The config of one run."""
    config: Any = heart_disease.get_config()
    config.seed = seed
    config.select = experiment.SELECT
    config.rounds = config.eval_every = config.checkpoint.every = 20
    config.local.batch_size = 32
    config.local.learning_rate = rate
    config.submodel.heterofl.masked_loss = False
    config.privacy.mechanism = "record_dp"
    config.privacy.clip = clip
    if epsilon is None:
        config.privacy.noise_multiplier = 0.0
    else:
        config.privacy.epsilon = epsilon
    return config


def title(epsilon: float | None) -> str:
    """An epsilon as people write it."""
    return "∞" if epsilon is None else f"{epsilon:g}"


# ------------------------------------------------------------------------------- search


def search(seed: int) -> Float[np.ndarray, "epsilons rates clips"]:
    """Validation AUROC of every pair at every epsilon, side by side."""
    runs = [build.build(config_of(epsilon, seed)) for epsilon in EPSILONS]
    noise = [run.guarantee.records.noise_multiplier for run in runs]
    run = runs[0]
    start, members = initial(run), evaluate.representatives(run)
    data, val = jax.tree.map(jnp.asarray, (run.splits.train, run.splits.val))
    assert run.spec.local.dp is not None
    dp = run.spec.local.dp

    def one(sigma: Array, rate: Array, clip: Array) -> Array:
        local = run.spec.local._replace(
            dp=dp._replace(clip=clip, noise_multiplier=sigma)
        )
        # The config's learning rate is 1.
        spec = dataclasses.replace(run.spec, local=local, schedule=lambda _: rate)
        end = round.run(
            start,
            data,
            lambda state: run.draw(state.key, state.round),
            spec=spec,
            layout=layout.vmapped(),
            rounds=run.config["rounds"],
        )
        full, _ = deployed.evaluate(
            end, val, data, jnp.asarray(run.tiers), members, spec=spec
        )
        return full.pooled.auroc

    grid = np.array(list(itertools.product(noise, RATES, CLIPS)), np.float32)
    found = jax.jit(jax.vmap(one))(*jnp.asarray(grid).T)
    return np.asarray(found, np.float64).reshape(len(noise), len(RATES), len(CLIPS))


def best(
    found: Float[np.ndarray, "seeds epsilons rates clips"],
) -> list[tuple[float, float]]:
    """(learning rate, clip) of every epsilon: the best mean over seeds."""
    means = found.mean(0).reshape(len(EPSILONS), -1)
    pairs = list(itertools.product(RATES, CLIPS))
    return [pairs[int(np.argmax(row))] for row in means]


def measured(config: Any) -> dict[str, Any]:
    """One run: figures of all test records, and of every hospital."""
    with experiment.temporary() as folder:
        result = train(config, f"{folder}/run")
    last, privacy = result.summary["final"]["last"], result.summary["privacy"]
    names = ("auroc", "accuracy", "balanced_accuracy", "loss")
    return {
        "noise_multiplier": privacy["noise_multiplier"],
        "spent": privacy["hospitals"],
        "pooled": {name: last["pooled"][name]["value"] for name in names},
        "hospitals": {
            row["client"]: {"tier": row["tier"], **{name: row[name] for name in names}}
            for row in last["clients"]
        },
    }


# ---------------------------------------------------------------------------- the table


def gap(run: Mapping[str, Any]) -> float:
    """Accuracy of the best hospital minus that of the worst."""
    each = [row["accuracy"] for row in run["hospitals"].values()]
    return max(each) - min(each)


def lost(
    runs: Sequence[Sequence[Mapping[str, Any]]], at: int
) -> dict[str, dict[str, float]]:
    """What an epsilon takes from every hospital's accuracy: over seeds, in points."""
    return {
        name: experiment.extent(
            [
                100
                * (
                    free["hospitals"][name]["accuracy"]
                    - private["hospitals"][name]["accuracy"]
                )
                for free, private in zip(runs[-1], runs[at], strict=True)
            ]
        )
        for name in runs[-1][0]["hospitals"]
    }


def said(runs: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """What the table shows, in words that follow from it."""

    def auroc(at: int) -> list[float]:
        return [run["pooled"]["auroc"] for run in runs[at]]

    def points(at: int) -> str:
        each = lost(runs, at)
        order = sorted(each, key=lambda name: -each[name]["mean"])
        return ", ".join(f"{name} {each[name]['mean']:+.1f}" for name in order)

    claims = {
        f"AUROC at epsilon {title(None)} > at {title(epsilon)}": (
            lambda seed: seed[-1]["pooled"]["auroc"],
            lambda seed, at=at: seed[at]["pooled"]["auroc"],
        )
        for at, epsilon in enumerate(EPSILONS[:-1])
    } | {
        f"AUROC at epsilon {title(EPSILONS[-2])} > at {title(EPSILONS[0])}": (
            lambda seed: seed[-2]["pooled"]["auroc"],
            lambda seed: seed[0]["pooled"]["auroc"],
        ),
        f"gap between hospitals at epsilon {title(EPSILONS[0])} > at {title(None)}": (
            lambda seed: gap(seed[0]),
            lambda seed: gap(seed[-1]),
        ),
    }
    judged = experiment.judge(claims, list(zip(*runs, strict=True)))
    price = np.mean(auroc(-1)) - np.mean(auroc(0))
    return "\n\n".join(
        [
            f"From epsilon {title(None)} to {title(EPSILONS[0])} the AUROC of all test "
            f"records falls by {price:.3f}; hospitals lose unlike shares of accuracy, "
            f"in points: {points(0)} (at epsilon {title(EPSILONS[-2])}: "
            f"{points(-2)}).",
            *experiment.verdicts(judged, len(SEEDS)),
        ]
    )


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown: the seeds' mean, lowest and highest."""
    runs = results["runs"]
    hospitals = list(runs[0][0]["hospitals"])
    heads = ["epsilon", "noise multiplier", "learning rate", "clip"]
    heads += ["AUROC, all test records", *(f"accuracy, {name}" for name in hospitals)]
    heads += ["gap between hospitals"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    for epsilon, pair, seeds in zip(EPSILONS, results["best"], runs, strict=True):
        noise = [run["noise_multiplier"] for run in seeds]
        cells = [title(epsilon), f"{np.mean(noise):.2f}", *(f"{v:g}" for v in pair)]
        cells.append(interval([run["pooled"]["auroc"] for run in seeds]))
        cells += [
            interval([run["hospitals"][name]["accuracy"] for run in seeds])
            for name in hospitals
        ]
        cells.append(interval([gap(run) for run in seeds]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + said(runs)


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """There are no flags."""


def main(options: flags.FlagValues) -> None:
    """Searches, runs, and writes both files."""
    found = np.stack([search(seed) for seed in SEEDS])
    pairs = best(found)
    runs = [
        [measured(config_of(epsilon, seed, *pair)) for seed in SEEDS]
        for epsilon, pair in zip(EPSILONS, pairs, strict=True)
    ]
    results = {
        "command": "python scripts/curve.py",
        "seeds": SEEDS,
        "epsilons": EPSILONS,
        "setting": experiment.changes(config_of(EPSILONS[0], SEEDS[0])),
        "rates": RATES,
        "clips": CLIPS,
        "validation_auroc": found.tolist(),
        "best": pairs,
        "runs": runs,
        **experiment.surroundings(),
    }
    with experiment.alone(RESULTS.parent):
        write_json(RESULTS, results)
        path = RESULTS.parent / "README.md"
        path.write_text(fill(path.read_text(), BEGIN, table(results)))


if __name__ == "__main__":
    cli.run(main, define)
