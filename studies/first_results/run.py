"""Trains the runs of the README's table with three seeds, and writes the table.

    python studies/first_results/run.py

The script writes results.json and, from it, the table in README.md.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import json
import pathlib
from typing import Any

import numpy as np
import sklearn.linear_model
import sklearn.metrics
from absl import flags

from configs import breast_cancer, digits, heart_disease
from fairjax.data.federation import Splits
from fairjax.experiment import cli
from fairjax.experiment.config import build
from fairjax.experiment.evaluate import evaluate
from fairjax.experiment.io.workdir import provenance
from fairjax.experiment.train import train
from studies import experiment
from studies.experiment import fill, interval

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
SEEDS = (0, 1, 2)
RUNS = {
    "heart disease, four hospitals": lambda: heart_disease.get_config(),
    "heart disease, FLamby's split": lambda: heart_disease.get_config("flamby"),
    "breast cancer": lambda: breast_cancer.get_config(),
    "digits, Dirichlet 0.5": lambda: digits.get_config(),
}
BEGIN = "<!-- studies/first_results/results.json -->"


def pooled(splits: Splits) -> float:
    """Test AUROC of a logistic regression on the pooled records of all clients."""
    train, test = splits.train, splits.test
    model = sklearn.linear_model.LogisticRegression(max_iter=5000)
    model.fit(train.x.reshape(len(train.y), -1), train.y)
    p = model.predict_proba(test.x.reshape(len(test.y), -1))
    if p.shape[1] == 2:
        return sklearn.metrics.roc_auc_score(test.y, p[:, 1])
    return sklearn.metrics.roc_auc_score(test.y, p, multi_class="ovr")


def measure(config: Any) -> dict[str, Any]:
    """AUROCs with one seed: full model, smallest sub-model and the references."""
    with experiment.temporary() as folder:
        result = train(config, f"{folder}/run")
        run = build.run(config)
        _, (_, submodels) = evaluate(run, result.state, "test")
        config.submodel.name = "fedavg"
        fedavg = train(config, f"{folder}/fedavg")
    smallest, *_, largest = result.summary["tiers"]
    return {
        "hospitals": result.summary["data"]["clients"],
        "records": sum(result.summary["data"]["rows"].values()),
        "parameters": [smallest["parameters"], largest["parameters"]],
        "auroc": result.metrics["eval/auroc"],
        "smallest_auroc": float(submodels.pooled.auroc[0]),
        "fedavg_auroc": fedavg.metrics["eval/auroc"],
        "pooled_auroc": pooled(run.splits),
    }


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table of means and ranges over seeds."""
    heads = [
        "data",
        "hospitals",
        "records",
        "parameters, smallest tier / full",
        "pooled logistic regression",
        "every hospital full-size (FedAvg)",
        "**four budgets, full model**",
        "four budgets, smallest sub-model",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for name, seeds in results["runs"].items():
        first = seeds[0]
        cells = [name, first["hospitals"], f"{first['records']:,}"]
        cells.append(" / ".join(f"{n:,}" for n in first["parameters"]))
        for key in ("pooled_auroc", "fedavg_auroc", "auroc", "smallest_auroc"):
            values = [seed[key] for seed in seeds]
            text = interval(values)
            cells.append(f"**{text}**" if key == "auroc" else text)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n\n" + finding(results)


def finding(results: dict[str, Any]) -> str:
    """What four budgets cost, over all data, in a sentence."""

    def largest_cost(key: str) -> float:
        """The largest fall of the mean from FedAvg with the whole model."""
        return max(
            np.mean([seed["fedavg_auroc"] - seed[key] for seed in seeds])
            for seeds in results["runs"].values()
        )

    return (
        f"Four budgets cost the server's model at most {largest_cost('auroc'):.3f} of "
        f"AUROC against the whole model at every hospital, and the smallest sub-model "
        f"at most {largest_cost('smallest_auroc'):.3f}."
    )


def main(_: flags.FlagValues) -> None:
    """Trains all runs and writes the results and the page."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for name, make in RUNS.items():
        for seed in SEEDS:
            config = make()
            config.seed, config.selection_metric = seed, experiment.SELECT
            runs[name].append(measure(config))
    origin = provenance()
    results = {
        "command": "python studies/first_results/run.py",
        "seeds": SEEDS,
        "device": origin["device"],
        "machine": origin["machine"],
        "versions": origin["versions"],
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    path = ROOT / "README.md"
    path.write_text(fill(path.read_text(), BEGIN, table(results)))


if __name__ == "__main__":
    cli.run(main, lambda *_: None)
