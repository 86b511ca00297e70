"""Trains the methods of configs/trend.py with three seeds, and judges claims on them.

    python studies/trend/run.py

The script writes results.json after every run, and the page beside it from the seeds
with which all methods have run. The same command again continues with the missing runs;
it starts anew after a change of config or versions. A run takes about a minute on 2 CPU
cores.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import pathlib
import time
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from configs import trend
from fairjax.experiment import cli
from fairjax.experiment.io.workdir import write_json
from fairjax.experiment.train import train
from studies import experiment
from studies.experiment import Figure, fill, interval

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
BEGIN = "<!-- studies/trend/results.json -->"
SEEDS = (0, 1, 2)
SINCE = 20
"""The first round whose evaluation enters the averages."""


class Entry(NamedTuple):
    """A row of the table."""

    title: str
    fields: dict[str, Any]
    """The fields that the method changes in configs/trend.py."""
    deployed: str = "eval/accuracy"
    """The metric of the server's final model."""
    tiers: bool = True
    """Whether tiers deploy different models."""
    poorest: bool = True
    """Whether the poorest tier takes part."""


def _fedavg(**options: Any) -> dict[str, Any]:
    fields = {f"submodel.fedavg.{name}": value for name, value in options.items()}
    return {"submodel.name": "fedavg", **fields}


METHODS = {
    "full": Entry(
        "full: every hospital the whole model (FedAvg)", _fedavg(), tiers=False
    ),
    "depthfl": Entry("DepthFL", {"submodel.name": "depthfl"}),
    "heterofl": Entry("HeteroFL", {"submodel.name": "heterofl"}),
    "exclusive": Entry(
        "richest tier alone",
        _fedavg(mode="exclusive", tier=4),
        tiers=False,
        poorest=False,
    ),
    "fedrolex": Entry("FedRolex", {"submodel.name": "fedrolex"}),
    "federated_dropout": Entry(
        "Federated Dropout", {"submodel.name": "federated_dropout"}
    ),
    # The parameters outside the smallest prefix are never trained.
    "smallest": Entry(
        "smallest: every hospital the smallest",
        _fedavg(mode="smallest"),
        deployed="eval/accuracy/submodel_0",
        tiers=False,
    ),
}


def accuracy(name: str) -> Figure:
    """The accuracy of the server's model."""
    return lambda runs: runs[name]["accuracy"]


def poorest(name: str) -> Figure:
    """The accuracy of the smallest tier's sub-model."""
    return lambda runs: runs[name]["tiers"][0]


def tier_spread(name: str) -> Figure:
    """The difference of accuracy between the best and the worst sub-model."""
    return lambda runs: float(np.ptp(runs[name]["tiers"]))


def least_gain(name: str) -> Figure:
    """The least gain in accuracy of a tier over the next smaller one."""
    return lambda runs: float(np.diff(runs[name]["tiers"]).min())


CLAIMS: dict[str, tuple[Figure, Figure]] = {
    "full > DepthFL": (accuracy("full"), accuracy("depthfl")),
    "DepthFL > HeteroFL": (accuracy("depthfl"), accuracy("heterofl")),
    "HeteroFL > richest tier alone": (accuracy("heterofl"), accuracy("exclusive")),
    "HeteroFL > smallest": (accuracy("heterofl"), accuracy("smallest")),
    "spread of HeteroFL's tiers > spread of DepthFL's": (
        tier_spread("heterofl"),
        tier_spread("depthfl"),
    ),
    "smallest tier of DepthFL > smallest": (poorest("depthfl"), accuracy("smallest")),
    "smallest tier of HeteroFL > smallest": (
        poorest("heterofl"),
        accuracy("smallest"),
    ),
    "gain of every HeteroFL tier over the next smaller one > 0": (
        least_gain("heterofl"),
        lambda runs: 0.0,
    ),
}
"""Claim "A > B" -> (A, B). A claim is shown if it holds with every seed."""
NOT_ASSERTED = (
    "FedRolex > HeteroFL: published for non-IID records and thousands of rounds",
)


def config_of(name: str, seed: int) -> Any:
    """The config of one run."""
    config = trend.get_config()
    config.update_from_flattened_dict(METHODS[name].fields)
    config.seed = seed
    return config


def measure(
    config: Any, *, deployed: str = "eval/accuracy", since: int = SINCE
) -> dict[str, Any]:
    """Mean test accuracies of one run over the evaluations from round `since` on.

    "accuracy" is the metric `deployed`. "tiers" are the accuracies of every tier's own
    sub-model on the test records of all clients, smallest tier first; for a method
    whose sub-models change by round it is the sub-model of the evaluated round.
    "poorest" is the accuracy of the smallest tier's sub-model on its own clients, and
    "parameters" are the numbers of parameters of the sub-models.

    Args:
        config: the config of the run.
        deployed: the metric of the server's final model.
        since: the first round that is averaged.
    """
    rows = []
    started = time.perf_counter()
    with experiment.temporary() as folder:
        result = train(
            config, f"{folder}/run", log=lambda number, row: rows.append(row)
        )
    seconds = time.perf_counter() - started
    rows = [row for row in rows if row["round"] >= since and deployed in row]

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    tiers = range(len(config.tiers.budget))
    return {
        "accuracy": mean(deployed),
        "tiers": [mean(f"eval/accuracy/submodel_{tier}") for tier in tiers],
        "poorest": mean("eval/accuracy/tier_0/own"),
        "parameters": [bill["parameters"] for bill in result.summary["tiers"]],
        "seconds": round(seconds, 1),
    }


def with_verdicts(results: dict[str, Any]) -> dict[str, Any]:
    """The results together with the figures and verdicts from their runs."""
    runs = results["runs"]
    complete = min(len(done) for done in runs.values())
    seeds = [{name: done[i] for name, done in runs.items()} for i in range(complete)]

    figures = {}
    for name in METHODS if seeds else ():
        tier_values = zip(*(seed[name]["tiers"] for seed in seeds), strict=True)
        figures[name] = {
            "accuracy": experiment.extent([seed[name]["accuracy"] for seed in seeds]),
            "tiers": [experiment.extent(values) for values in tier_values],
        }
    return results | {
        "complete_seeds": list(SEEDS[:complete]),
        "figures": figures,
        "claims": experiment.judge(CLAIMS, seeds) if seeds else [],
        "not_asserted": list(NOT_ASSERTED),
    }


def finding(results: dict[str, Any]) -> str:
    """What the complete seeds say, in a sentence each."""
    complete = len(results["complete_seeds"])

    def figure(name: str, key: str) -> str:
        return f"{np.mean([r[key] for r in results['runs'][name][:complete]]):.3f}"

    servers = ", ".join(
        f"{METHODS[name].title} {figure(name, 'accuracy')}"
        for name in ("depthfl", "heterofl", "fedrolex", "federated_dropout")
    )
    poorest = ", ".join(
        f"{figure(name, 'poorest')} under {METHODS[name].title}"
        for name in ("depthfl", "heterofl")
    )
    return (
        f"The whole model at every hospital reaches {figure('full', 'accuracy')}; "
        f"under budgets down to 1/16 of every width the server's model reaches: "
        f"{servers}. The poorest tier's own sub-model has {poorest}, and "
        f"{figure('smallest', 'poorest')} if all train the smallest model."
    )


def table(results: dict[str, Any]) -> str:
    """The complete seeds as a Markdown table, and the verdicts on the claims."""
    complete = len(results["complete_seeds"])
    budgets = [f"{budget:g}" for budget in results["setting"]["tiers.budget"]]
    heads = [
        "method",
        "model at the server",
        "poorest tier, own sub-model",
        *(f"budget {budget}" for budget in budgets[::-1]),
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for name, entry in METHODS.items():
        runs = results["runs"][name][:complete]
        cells = [entry.title, interval([run["accuracy"] for run in runs])]
        poorest = interval([run["poorest"] for run in runs])
        cells.append(poorest if entry.poorest else "")
        tiers = zip(*(run["tiers"] for run in runs), strict=True)
        tier_cells = [interval(values) for values in tiers]
        cells += tier_cells[::-1] if entry.tiers else [""] * len(budgets)
        lines.append("| " + " | ".join(cells) + " |")
    sizes = {
        METHODS[name].title: results["runs"][name][0]["parameters"]
        for name in ("heterofl", "depthfl")
    }
    texts = [
        f"{title} {', '.join(f'{size:,}' for size in tiers[::-1])}"
        for title, tiers in sizes.items()
    ]
    lines += ["", f"Parameters of a tier, not alike: {'; '.join(texts)}."]
    sentences = experiment.verdicts(
        results["claims"], complete, results["not_asserted"]
    )
    smallest = results["runs"]["smallest"][:complete]
    sentences.append(
        "Beside every claim: the smallest model for everybody gives the poorest "
        f"hospitals {interval([run['poorest'] for run in smallest])}. Every method ran "
        "once a seed; nothing was tuned."
    )
    if complete > 1:
        half = experiment.resolution(
            [
                [run["accuracy"] for run in runs[:complete]]
                for runs in results["runs"].values()
            ]
        )
        sentences.append(experiment.resolution_note(complete, half))
    for line in sentences:
        lines += ["", line]
    return "\n".join(lines)


def write(results: dict[str, Any]) -> None:
    """Writes the results, and the page once a seed is complete."""
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, results)
    if results["complete_seeds"]:
        path = RESULTS.parent / "README.md"
        path.write_text(fill(path.read_text(), BEGIN, table(results)))


def main(_: flags.FlagValues) -> None:
    """Runs the missing methods and writes the results and the page."""
    setup = {
        "command": "python studies/trend/run.py",
        "seeds": list(SEEDS),
        "rounds_averaged_since": SINCE,
        "methods": {name: entry.fields for name, entry in METHODS.items()},
        "setting": experiment.changes(trend.get_config()),
        **experiment.surroundings(),
    }
    runs = experiment.load_runs(RESULTS, setup) or {name: [] for name in METHODS}
    for i, seed in enumerate(SEEDS):
        for name, entry in METHODS.items():
            if len(runs[name]) == i:
                config = config_of(name, seed)
                runs[name].append(measure(config, deployed=entry.deployed))
                write(with_verdicts(setup | {"runs": runs}))
    write(with_verdicts(setup | {"runs": runs}))


if __name__ == "__main__":
    cli.run(main, lambda *_: None)
