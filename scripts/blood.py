"""Trains methods on blood cells, at two tier ratios on three seeds, and judges claims.

    python scripts/blood.py

Runs configs/pbc_blood28.py, whose data set is a file that you need to have. Every
method has the learning rate of `RATES` that is best on the validation split, on the
first seed of the first ratio. Writes results/blood.json after every run, and the page
beside it from the seeds of a ratio for which all methods have run. The same command
again goes on with the runs that are missing; another config or other versions begin
anew. A run takes two to four minutes of one CPU core: two processes that have a part of
the methods each (--methods=fedavg,heterofl) share the files.
"""

import pathlib
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from configs import pbc_blood28
from fairjax import checks, command, specs
from fairjax.checkpoint import newest
from fairjax.data import federation
from fairjax.measure import evaluator
from fairjax.train import about, train
from fairjax.workdir import write_json
from scripts import experiment
from scripts.experiment import Figure
from scripts.results import fill, interval

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "blood.json"
BEGIN = "<!-- results/blood.json -->"
RATIOS = {"7:2:1": "", "4:3:3": "ratio433"}
"""Hospitals of the tiers, smallest first -> preset of the config."""
SEEDS = (0, 1, 2)
RATES = (0.03, 0.1, 0.3)
LAST = 3
"""Evaluations at the end of a run that are averaged."""


class Entry(NamedTuple):
    """A row of the table."""

    title: str
    fields: dict[str, Any]
    """What it changes in configs/pbc_blood28.py."""
    own: bool = False
    """Whether what a run ends with is the smallest sub-model, not the whole."""


# Slices save nothing where all train the whole model, and less than branches in three
# programs take to compile.
MASKED = {"execution.form": "masked"}

METHODS = {
    "fedavg": Entry(
        "FedAvg: every hospital the whole model", {"submodel.name": "fedavg", **MASKED}
    ),
    # What lies outside the smallest prefix is never trained.
    "smallest": Entry(
        "FedAvg: every hospital the smallest",
        {"submodel.name": "fedavg", "submodel.fedavg.mode": "smallest"},
        own=True,
    ),
    "heterofl": Entry("HeteroFL", {"submodel.name": "heterofl"}),
    "fedrolex": Entry("FedRolex", {"submodel.name": "fedrolex"}),
    "dynamicfl": Entry(
        "DynamicFL: the whole model, 0, 1 and 2 branches beside it",
        {"submodel.name": "dynamicfl", "tiers.branches": (0, 1, 2), **MASKED},
    ),
    "matched": Entry(
        "the same learning rates without branches",
        {
            "submodel.name": "dynamicfl",
            "tiers.branches": (0, 1, 2),
            "submodel.dynamicfl.branch_form": "matched",
            **MASKED,
        },
    ),
    "ladder": Entry(
        "ladder: quarter, half, whole with 2 branches",
        {
            "submodel.name": "ladder",
            "submodel.ladder.kinds": ("width", "width", "plain"),
            "tiers.branches": (0, 0, 2),
            **MASKED,
        },
    ),
}

FIGURES = ("balanced_accuracy", "last", "accuracy", "worst_tier", "worst_tier_own")


def figure(name: str, of: str = "balanced_accuracy") -> Figure:
    """Of a method in one seed, see `figures_of`."""
    return lambda runs: figures_of(runs[name])[of]


CLAIMS: dict[str, tuple[Figure, Figure]] = {
    "DynamicFL > FedAvg": (figure("dynamicfl"), figure("fedavg")),
    "DynamicFL > its learning rates without branches": (
        figure("dynamicfl"),
        figure("matched"),
    ),
    "DynamicFL > HeteroFL": (figure("dynamicfl"), figure("heterofl")),
    "ladder > HeteroFL": (figure("ladder"), figure("heterofl")),
    "HeteroFL > FedRolex": (figure("heterofl"), figure("fedrolex")),
    "HeteroFL > smallest": (figure("heterofl"), figure("smallest")),
    "worst tier of DynamicFL > worst tier of FedAvg": (
        figure("dynamicfl", "worst_tier"),
        figure("fedavg", "worst_tier"),
    ),
}
"""Claim "A > B" -> (A, B), judged at every ratio; shown if it holds for every seed."""


def config_of(method: str, ratio: str, seed: int, learning_rate: float) -> Any:
    """The config of one run."""
    config: Any = pbc_blood28.get_config(RATIOS[ratio])
    config.update_from_flattened_dict(METHODS[method].fields)
    config.seed = seed
    config.local.learning_rate = learning_rate
    return config


# ------------------------------------------------------------------------------ one run


def measure(
    config: Any, *, own: bool = False, validate: bool = False, last: int = LAST
) -> dict[str, Any]:
    """One run: its last evaluations on the test split, and what the tiers spent.

    "evaluations" has the rows of `deployed`; "validation" the balanced accuracy on the
    validation split in the same rounds, if asked for. "bytes" (received and sent) and
    "flops" are those of all clients of a tier together over the run, every step counted
    as a full batch.
    """
    tiers = len(config.tiers.budget)
    config.checkpoint.every, config.checkpoint.keep = config.eval_every, max(last, 2)
    rows, validation = [], None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, f"{folder}/run", log=lambda _, row: rows.append(row))
        rows = [row for row in rows if "eval/accuracy" in row][-last:]
        if validate:
            run = specs.build(config)
            measured, steps = evaluator(run, "val"), result.workdir / "checkpoints"
            validation = []
            for row in rows:
                number = row["round"]
                found = newest(steps, result.state, about(run), round=number)
                assert found is not None
                values = {"round": number} | measured(found.state)[0]
                made = deployed(values, tiers, own=own)
                validation.append(made["balanced_accuracy"])
    bills = result.summary["tiers"]
    clients = np.repeat(np.arange(tiers), [bill["clients"] for bill in bills])
    slots = federation.slots(clients, tiers, config.cohort, config.execution.slots)
    steps = config.rounds * config.local.steps
    return {
        "evaluations": [deployed(row, tiers, own=own) for row in rows],
        "validation": validation,
        "parameters": [bill["parameters"] for bill in bills],
        "bytes": [
            count * config.rounds * (bill["bytes_down"] + bill["bytes_up"])
            for count, bill in zip(slots, bills, strict=True)
        ],
        "flops": [
            count
            * steps
            * (config.local.batch_size * bill["flops_train"] + bill["flops_step"])
            for count, bill in zip(slots, bills, strict=True)
        ],
        "seconds": round(time.perf_counter() - started, 1),
    }


def deployed(row: dict[str, Any], tiers: int, *, own: bool) -> dict[str, Any]:
    """The model that a run ends with and every tier's sub-model, from evaluation keys.

    "tiers" is the balanced accuracy of that model on the tier's clients, "own" that of
    the tier's sub-model on them, and "submodels" of the latter on everybody's records.
    """
    pooled, here = ("/submodel_0", "/own") if own else ("", "")

    def each(name: str) -> list[float]:
        return [
            row[f"eval/balanced_accuracy/{name.format(tier)}"] for tier in range(tiers)
        ]

    return {
        "round": row["round"],
        "accuracy": row[f"eval/accuracy{pooled}"],
        "balanced_accuracy": row[f"eval/balanced_accuracy{pooled}"],
        "tiers": each("tier_{}" + here),
        "own": each("tier_{}/own"),
        "submodels": each("submodel_{}"),
    }


def figures_of(run: dict[str, Any]) -> dict[str, float]:
    """A run as `FIGURES`: means over its evaluations, but for "last"."""
    rows = run["evaluations"]

    def mean(name: str) -> Any:
        return np.mean([row[name] for row in rows], axis=0)

    return {
        "balanced_accuracy": float(mean("balanced_accuracy")),
        "last": rows[-1]["balanced_accuracy"],
        "accuracy": float(mean("accuracy")),
        "worst_tier": float(mean("tiers").min()),
        "worst_tier_own": float(mean("own").min()),
    }


# ----------------------------------------------------------------------------- all runs


class Job(NamedTuple):
    """What a run is identified by."""

    method: str
    ratio: str
    seed: int
    learning_rate: float


def done(runs: Sequence[dict[str, Any]]) -> dict[Job, dict[str, Any]]:
    """The runs by their job."""
    return {Job(*(run[name] for name in Job._fields)): run for run in runs}


def tuning(method: str) -> list[Job]:
    """The runs that decide a method's learning rate."""
    return [Job(method, next(iter(RATIOS)), SEEDS[0], rate) for rate in RATES]


def chosen(made: dict[Job, dict[str, Any]]) -> dict[str, float]:
    """The learning rate of every method that is tuned; the smaller one of equals."""
    rates = {}
    for method in METHODS:
        jobs = tuning(method)
        if all(job in made for job in jobs):
            scores = [np.mean(made[job]["validation"]) for job in jobs]
            rates[method] = RATES[int(np.argmax(scores))]
    return rates


def missing(made: dict[Job, dict[str, Any]], methods: Collection[str]) -> Iterator[Job]:
    """What is still to be run, in order: first what decides the learning rates."""
    for method in methods:
        yield from (job for job in tuning(method) if job not in made)
    rates = chosen(made)
    for ratio in RATIOS:
        for seed in SEEDS:
            for method in methods:
                job = Job(method, ratio, seed, rates[method])
                if job not in made:
                    yield job


def complete(
    made: dict[Job, dict[str, Any]], ratio: str
) -> dict[int, dict[str, dict[str, Any]]]:
    """The runs of every method, of the seeds for which all have run at a ratio."""
    rates = chosen(made)
    seeds = {}
    for seed in SEEDS:
        jobs = {name: Job(name, ratio, seed, rate) for name, rate in rates.items()}
        if jobs.keys() == METHODS.keys() and all(job in made for job in jobs.values()):
            seeds[seed] = {name: made[job] for name, job in jobs.items()}
    return seeds


def judged(results: dict[str, Any]) -> dict[str, Any]:
    """The results with what follows from their runs: rates, figures and claims."""
    made = done(results["runs"])
    seeds = {ratio: complete(made, ratio) for ratio in RATIOS}
    seeds = {ratio: runs for ratio, runs in seeds.items() if runs}
    return results | {
        "learning_rates": chosen(made),
        "complete_seeds": {ratio: list(runs) for ratio, runs in seeds.items()},
        "figures": {
            ratio: {
                name: {
                    of: experiment.extent([figure(name, of)(s) for s in runs.values()])
                    for of in FIGURES
                }
                for name in METHODS
            }
            for ratio, runs in seeds.items()
        },
        "claims": {
            ratio: experiment.judge(CLAIMS, list(runs.values()))
            for ratio, runs in seeds.items()
        },
    }


# ---------------------------------------------------------------------------- the table


def table(results: dict[str, Any]) -> str:
    """Per ratio a Markdown table of its complete seeds, and what its claims became."""
    made, parts = done(results["runs"]), []
    heads = [
        "method",
        "learning rate",
        "balanced accuracy",
        "in the last round",
        "accuracy",
        "worst tier",
        "worst tier, own sub-model",
        "MB of the tiers",
        "TFLOPs of the tiers",
    ]
    for ratio in results["complete_seeds"]:
        seeds = list(complete(made, ratio).values())
        parts.append(f"Tiers {ratio}, smallest first; {len(seeds)} seeds:")
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
        for name, entry in METHODS.items():
            spent = seeds[0][name]
            cells = [
                entry.title,
                f"{results['learning_rates'][name]:g}",
                *(
                    interval([figure(name, of)(runs) for runs in seeds])
                    for of in FIGURES
                ),
                " / ".join(f"{count / 1e6:.0f}" for count in spent["bytes"]),
                " / ".join(f"{count / 1e12:.2f}" for count in spent["flops"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
        parts += experiment.verdicts(results["claims"][ratio], len(seeds))
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------- the files


def add(same: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Writes runs beside those that are there, and the page's tables."""
    with experiment.alone(RESULTS.parent):
        before = experiment.continued(RESULTS, same) or []
        results = judged(same | {"runs": [*before, *runs]})
        write_json(RESULTS, results)
        if results["complete_seeds"]:
            path = RESULTS.parent / "README.md"
            path.write_text(fill(path.read_text(), BEGIN, table(results)))


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    what = "Methods of this process."
    flags.DEFINE_list("methods", list(METHODS), what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes both files."""
    for name in options.methods:
        checks.one_of("--methods", name, METHODS)
    same = {
        "command": "python scripts/blood.py",
        "seeds": list(SEEDS),
        "learning_rates_tried": list(RATES),
        "evaluations_averaged": LAST,
        "methods": {name: entry.fields for name, entry in METHODS.items()},
        "setting": experiment.changes(pbc_blood28.get_config()),
        **experiment.surroundings(),
    }
    while True:
        made = done(experiment.continued(RESULTS, same) or [])
        job = next(missing(made, options.methods), None)
        if job is None:
            break
        entry = METHODS[job.method]
        validate = job in tuning(job.method)
        run = measure(config_of(*job), own=entry.own, validate=validate)
        add(same, [job._asdict() | run])
    add(same, [])


if __name__ == "__main__":
    command.run(main, define)
