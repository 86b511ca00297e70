"""The cost of record-level privacy for every client: accuracy against epsilon.

    python studies/privacy_curve/run.py

The script runs configs/heart_disease.py (four real hospitals) under `record_dp` at
every epsilon of `EPSILONS` with three seeds. An infinite epsilon clips as the others do
and adds no noise. For every epsilon a search over all pairs of `RATES` and `CLIPS`
takes the learning rate and the clip with the best AUROC on the validation records in
the last round, averaged over the seeds. The privacy accounting does not include this
search. The search trains all pairs of a seed in one vmapped program; the reported runs
are runs of `train`. The script writes results.json and the page beside it.
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
from fairjax.experiment.resume import initial_state
from fairjax.experiment.train import train
from studies import experiment
from studies.experiment import fill, interval

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
BEGIN = "<!-- studies/privacy_curve/results.json -->"
SEEDS = (0, 1, 2)
EPSILONS = (1.0, 2.0, 4.0, 8.0, None)
"""The epsilons of one record over the whole run; None stands for infinity."""
RATES = (0.03, 0.1, 0.3, 1.0)
CLIPS = (0.1, 0.3, 1.0, 3.0)


def config_of(
    epsilon: float | None, seed: int, rate: float = 1.0, clip: float = 1.0
) -> Any:
    """The config of one run."""
    config: Any = heart_disease.get_config()
    config.seed = seed
    config.selection_metric = experiment.SELECT
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


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon in words, with ∞ for None."""
    return "∞" if epsilon is None else f"{epsilon:g}"


# ------------------------------------------------------------------------------- search


def search(seed: int) -> Float[np.ndarray, "epsilons rates clips"]:
    """Validation AUROC of every pair at every epsilon, from one vmapped program."""
    runs = [build.run(config_of(epsilon, seed)) for epsilon in EPSILONS]
    noise = [run.dpsgd.noise_multiplier for run in runs]
    run = runs[0]
    start, members = initial_state(run), evaluate.representatives(run)
    data, val = jax.tree.map(jnp.asarray, (run.splits.train, run.splits.val))
    assert run.spec.local.dp is not None
    dp = run.spec.local.dp

    def train_and_score(sigma: Array, rate: Array, clip: Array) -> Array:
        local = run.spec.local._replace(
            dp=dp._replace(clip=clip, noise_multiplier=sigma)
        )
        # The config's learning rate is 1, so the schedule's factor is the rate.
        spec = dataclasses.replace(run.spec, local=local, schedule=lambda _: rate)
        end = round.run(
            start,
            data,
            lambda state: run.draw(state.key, state.round),
            spec=spec,
            layout=layout.vmapped(),
            rounds=run.config.rounds,
        )
        full, _ = deployed.evaluate(
            end, val, data, jnp.asarray(run.tiers), members, spec=spec
        )
        return full.pooled.auroc

    grid = np.array(list(itertools.product(noise, RATES, CLIPS)), np.float32)
    auroc = jax.jit(jax.vmap(train_and_score))(*jnp.asarray(grid).T)
    return np.asarray(auroc, np.float64).reshape(len(noise), len(RATES), len(CLIPS))


def best_pairs(
    auroc: Float[np.ndarray, "seeds epsilons rates clips"],
) -> list[tuple[float, float]]:
    """(learning rate, clip) of every epsilon with the best mean AUROC over seeds."""
    means = auroc.mean(0).reshape(len(EPSILONS), -1)
    pairs = list(itertools.product(RATES, CLIPS))
    return [pairs[int(np.argmax(row))] for row in means]


def measure(config: Any) -> dict[str, Any]:
    """Figures of one run on all test records and on those of every client."""
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
    """Accuracy of the best client minus that of the worst."""
    accuracies = [row["accuracy"] for row in run["hospitals"].values()]
    return max(accuracies) - min(accuracies)


def accuracy_losses(
    runs: Sequence[Sequence[Mapping[str, Any]]], index: int
) -> dict[str, dict[str, float]]:
    """Every client's loss of accuracy at an epsilon, over seeds, in percentage points.

    Args:
        runs: epsilon -> seed -> run; the last epsilon is infinite.
        index: the index of the epsilon.
    """
    return {
        name: experiment.extent(
            [
                100
                * (
                    free["hospitals"][name]["accuracy"]
                    - private["hospitals"][name]["accuracy"]
                )
                for free, private in zip(runs[-1], runs[index], strict=True)
            ]
        )
        for name in runs[-1][0]["hospitals"]
    }


def findings(runs: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The findings of the table in words."""

    def auroc(index: int) -> list[float]:
        return [run["pooled"]["auroc"] for run in runs[index]]

    def points(index: int) -> str:
        losses = accuracy_losses(runs, index)
        order = sorted(losses, key=lambda name: -losses[name]["mean"])
        return ", ".join(f"{name} {losses[name]['mean']:+.1f}" for name in order)

    strictest, weakest = epsilon_text(EPSILONS[0]), epsilon_text(EPSILONS[-2])
    claims = {
        f"AUROC at epsilon {epsilon_text(None)} > at {epsilon_text(epsilon)}": (
            lambda seed: seed[-1]["pooled"]["auroc"],
            lambda seed, index=index: seed[index]["pooled"]["auroc"],
        )
        for index, epsilon in enumerate(EPSILONS[:-1])
    } | {
        f"AUROC at epsilon {weakest} > at {strictest}": (
            lambda seed: seed[-2]["pooled"]["auroc"],
            lambda seed: seed[0]["pooled"]["auroc"],
        ),
        f"gap between hospitals at epsilon {strictest} > at {epsilon_text(None)}": (
            lambda seed: gap(seed[0]),
            lambda seed: gap(seed[-1]),
        ),
    }
    verdicts = experiment.judge(claims, list(zip(*runs, strict=True)))
    price = np.mean(auroc(-1)) - np.mean(auroc(0))
    return "\n\n".join(
        [
            f"From epsilon {epsilon_text(None)} to {strictest} the AUROC of all test "
            f"records falls by {price:.3f}; hospitals lose unlike shares of accuracy, "
            f"in points: {points(0)} (at epsilon {weakest}: "
            f"{points(-2)}).",
            *experiment.verdicts(verdicts, len(SEEDS)),
        ]
    )


def finding(results: Mapping[str, Any]) -> str:
    """The AUROC at the strictest, the weakest and no epsilon."""

    def figure(index: int) -> str:
        auroc = [run["pooled"]["auroc"] for run in results["runs"][index]]
        return f"{interval(auroc)} at epsilon {epsilon_text(EPSILONS[index])}"

    return f"AUROC of the four heart hospitals: {', '.join(map(figure, (0, -2, -1)))}."


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table of means and ranges over seeds, and findings."""
    runs = results["runs"]
    hospitals = list(runs[0][0]["hospitals"])
    heads = ["epsilon", "noise multiplier", "learning rate", "clip"]
    heads += ["AUROC, all test records", *(f"accuracy, {name}" for name in hospitals)]
    heads += ["gap between hospitals"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    for epsilon, pair, seeds in zip(EPSILONS, results["best"], runs, strict=True):
        noise = [run["noise_multiplier"] for run in seeds]
        cells = [
            epsilon_text(epsilon),
            f"{np.mean(noise):.2f}",
            *(f"{v:g}" for v in pair),
        ]
        cells.append(interval([run["pooled"]["auroc"] for run in seeds]))
        cells += [
            interval([run["hospitals"][name]["accuracy"] for run in seeds])
            for name in hospitals
        ]
        cells.append(interval([gap(run) for run in seeds]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + findings(runs)


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Defines no flags; the script has none."""


def main(options: flags.FlagValues) -> None:
    """Searches, runs, and writes the results and the page."""
    auroc = np.stack([search(seed) for seed in SEEDS])
    pairs = best_pairs(auroc)
    runs = [
        [measure(config_of(epsilon, seed, *pair)) for seed in SEEDS]
        for epsilon, pair in zip(EPSILONS, pairs, strict=True)
    ]
    results = {
        "command": "python studies/privacy_curve/run.py",
        "seeds": SEEDS,
        "epsilons": EPSILONS,
        "setting": experiment.changes(config_of(EPSILONS[0], SEEDS[0])),
        "rates": RATES,
        "clips": CLIPS,
        "validation_auroc": auroc.tolist(),
        "best": pairs,
        "runs": runs,
        **experiment.surroundings(),
    }
    with experiment.locked(RESULTS.parent):
        write_json(RESULTS, results)
        path = RESULTS.parent / "README.md"
        path.write_text(fill(path.read_text(), BEGIN, table(results)))


if __name__ == "__main__":
    cli.run(main, define)
