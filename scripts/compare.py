"""Trains methods on the same hospitals under equal budgets, and judges claims on them.

    python scripts/compare.py --data=blood

Who competes is in `scripts/contests.py`, what runs come to in `scripts/standings.py`.
All methods of a seed have the same records, cohorts and initial values of what they
share. Every one has the learning rate that is best on the validation split, of as many
trials as the others, on the first seed of the first ratio; so is the combination of
ours that is shown. Its rival at a ratio is the published method that is best on the
validation split there, over its seeds. Writes results/<data>.json after every run, and
from the seeds of a ratio for which all methods have run the pages and
results/<data>.png. The same command again goes on with the runs that are missing;
another setting or other versions begin anew, and a method that has changed is run
again. A run on blood cells takes two minutes of a CPU core, all of them five hours:
processes that have a part of the methods each (--methods=fedavg,heterofl) share the
files.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.io.workdir import write_json
from fairjax.experiment.train import train
from scripts import experiment
from scripts.contest_page import draw, sentence, table
from scripts.contests import CONTESTS, Contest
from scripts.experiment import fill
from scripts.standings import Job, Run, current, done, fields_of, judged, missing

ROOT = pathlib.Path(__file__).resolve().parent.parent


def config_of(contest: Contest, job: Job) -> Any:
    """The config of one run."""
    config = contest.config()
    config.tiers.share = contest.ratios[job.ratio]
    config.update_from_flattened_dict(dict(contest.entries[job.method].fields))
    config.seed = job.seed
    config.local.learning_rate = job.learning_rate
    return config


def measure(config: Any, score: str) -> Run:
    """One run: its evaluations on the test split, and what the tiers spent.

    "evaluations" has a row of `evaluation` per evaluated round. "bytes" (received and
    sent) and "flops" are those of all hospitals of a tier together over the run; a tier
    that takes no part has none.
    """
    config.checkpoint.every, config.checkpoint.keep = config.eval_every, 2
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with experiment.temporary() as folder, experiment.without_intervals():
        result = train(config, f"{folder}/run", log=lambda _, row: rows.append(row))
    tiers = len(config.tiers.budget)
    spent = result.summary["principles"]["sustainability"]
    return {
        "evaluations": [
            evaluation(row, tiers, score) for row in rows if "eval/accuracy" in row
        ],
        "parameters": [bill["parameters"] for bill in result.summary["tiers"]],
        "bytes": np.add(spent["bytes_down"], spent["bytes_up"]).tolist(),
        "flops": spent["flops_train"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def evaluation(row: Mapping[str, Any], tiers: int, score: str) -> dict[str, Any]:
    """What is kept of a row of metrics.jsonl.

    "tiers" is the score of the model at the server at a tier's hospitals, "own" that of
    the tier's sub-model there, and "submodels" of the latter on everybody's records.
    """

    def each(name: str) -> list[float]:
        return [row[f"eval/{score}/{name.format(tier)}"] for tier in range(tiers)]

    return {
        "round": row["round"],
        "validation": row[f"val/{score}"],
        "score": row[f"eval/{score}"],
        "accuracy": row["eval/accuracy"],
        "gap": row["eval/accuracy/tier_gap"],
        "std": row["eval/accuracy/client_std"],
        "tiers": each("tier_{}"),
        "own": each("tier_{}/own"),
        "submodels": each("submodel_{}"),
    }


def add(data: str, same: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Writes runs beside those that are there, and the page's table and figure."""
    contest, folder = CONTESTS[data], ROOT / "results"
    with experiment.alone(folder):
        path = folder / f"{data}.json"
        before = current(contest, experiment.continued(path, same) or [])
        results = judged(contest, {**same, "runs": [*before, *runs]})
        write_json(path, results)
        begin = f"<!-- results/{data}.json -->"
        for page, said in ((folder.parent, sentence), (folder, table)):
            text = (page / "README.md").read_text()
            if begin in text:
                text = fill(text, begin, said(contest, results))
                (page / "README.md").write_text(text)
        if results["complete_seeds"]:
            draw(contest, results, folder / f"{data}.png")


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("data", "blood", "Which contest.", flag_values=values)
    what = "Methods of this process; all of them if empty."
    flags.DEFINE_list("methods", [], what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes the files."""
    contest = CONTESTS[require.one_of("--data", options.data, CONTESTS)]
    for name in options.methods:
        require.one_of("--methods", name, contest.entries)
    methods = options.methods or list(contest.entries)
    same = {
        "command": f"python scripts/compare.py --data={options.data}",
        "setting": experiment.changes(contest.config()),
        **experiment.surroundings(),
    }
    path = ROOT / "results" / f"{options.data}.json"
    while True:
        made = done(current(contest, experiment.continued(path, same) or []))
        job = next(missing(contest, made, methods), None)
        if job is None:
            break
        run = measure(config_of(contest, job), contest.score)
        fields = fields_of(contest, job.method)
        add(options.data, same, [{**job._asdict(), "fields": fields, **run}])
    add(options.data, same, [])


if __name__ == "__main__":
    cli.run(main, define)
