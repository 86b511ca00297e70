"""Trains methods on the same clients under equal budgets, and judges claims on them.

    python studies/contests/run.py --data=blood

`settings.py` lists the methods, `standings.py` derives choices and claims from their
runs. All methods of a seed have the same records, cohorts and initial values of shared
parameters. The learning rate of every method is the best one on the validation split,
among as many trials as the others have, with the first seed of the first ratio. The
combination of ours in the table is chosen in the same way. Its rival at a ratio is the
published method that is best on the validation split over the ratio's seeds. The script
writes <data>.json after every run. It writes the pages and <data>.png from the seeds of
a ratio for which all methods have run. The same command again continues with the
missing runs. It starts anew after a change of setting or versions, and repeats the runs
of a method that has changed. A run on blood cells takes two minutes of a CPU core, all
of them five hours. Processes that run some of the methods each
(--methods=fedavg,heterofl) share the files.
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
from studies import experiment
from studies.contests.page import draw, sentence, table
from studies.contests.settings import CONTESTS, Contest
from studies.contests.standings import (
    Job,
    Run,
    current_runs,
    fields_of,
    missing_jobs,
    runs_by_job,
    with_verdicts,
)
from studies.experiment import fill

FOLDER = pathlib.Path(__file__).resolve().parent


def config_of(contest: Contest, job: Job) -> Any:
    """The config of one run."""
    config = contest.config()
    config.tiers.proportions = contest.ratios[job.ratio]
    config.update_from_flattened_dict(dict(contest.entries[job.method].fields))
    config.seed = job.seed
    config.local.learning_rate = job.learning_rate
    return config


def measure(config: Any, score: str) -> Run:
    """Evaluations on the test split of one run, and the costs of its tiers.

    "evaluations" has a row of `evaluation` per evaluated round. "bytes" (received and
    sent) and "flops" are totals over the run of all clients of a tier; they are 0 for a
    tier that does not take part.
    """
    config.checkpoint.every, config.checkpoint.keep = config.eval_every, 2
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with experiment.temporary() as folder, experiment.without_intervals():
        result = train(config, f"{folder}/run", log=lambda _, row: rows.append(row))
    tiers = len(config.tiers.budget)
    totals = result.summary["principles"]["sustainability"]
    return {
        "evaluations": [
            evaluation(row, tiers, score) for row in rows if "eval/accuracy" in row
        ],
        "parameters": [bill["parameters"] for bill in result.summary["tiers"]],
        "bytes": np.add(totals["bytes_down"], totals["bytes_up"]).tolist(),
        "flops": totals["flops_train"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def evaluation(row: Mapping[str, Any], tiers: int, score: str) -> dict[str, Any]:
    """The figures of a row of metrics.jsonl that the comparison uses.

    "tiers" has the score of the server's model on every tier's clients, "own" that of
    the tier's sub-model on these clients, and "submodels" that of the tier's sub-model
    on the records of all clients.
    """

    def tier_scores(name: str) -> list[float]:
        return [row[f"eval/{score}/{name.format(tier)}"] for tier in range(tiers)]

    return {
        "round": row["round"],
        "validation": row[f"val/{score}"],
        "score": row[f"eval/{score}"],
        "accuracy": row["eval/accuracy"],
        "gap": row["eval/accuracy/tier_gap"],
        "std": row["eval/accuracy/client_std"],
        "tiers": tier_scores("tier_{}"),
        "own": tier_scores("tier_{}/own"),
        "submodels": tier_scores("submodel_{}"),
    }


def add(data: str, setup: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Adds runs to the results file, and updates the pages and the figure."""
    contest = CONTESTS[data]
    with experiment.locked(FOLDER):
        path = FOLDER / f"{data}.json"
        earlier_runs = current_runs(contest, experiment.load_runs(path, setup) or [])
        results = with_verdicts(contest, {**setup, "runs": [*earlier_runs, *runs]})
        write_json(path, results)
        begin = f"<!-- studies/contests/{data}.json -->"
        pages = (
            (FOLDER, table),
            (FOLDER.parent, sentence),
            (FOLDER.parents[1], sentence),
        )
        for page, render in pages:
            text = (page / "README.md").read_text()
            if begin in text:
                text = fill(text, begin, render(contest, results))
                (page / "README.md").write_text(text)
        if results["complete_seeds"]:
            draw(contest, results, FOLDER / f"{data}.png")


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    flags.DEFINE_string("data", "blood", "The contest to run.", flag_values=values)
    description = "Methods that this process runs; all of them if empty."
    flags.DEFINE_list("methods", [], description, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs the missing jobs and writes the files."""
    contest = CONTESTS[require.one_of("--data", options.data, CONTESTS)]
    for name in options.methods:
        require.one_of("--methods", name, contest.entries)
    methods = options.methods or list(contest.entries)
    setup = {
        "command": f"python studies/contests/run.py --data={options.data}",
        "setting": experiment.changes(contest.config()),
        **experiment.surroundings(),
    }
    path = FOLDER / f"{options.data}.json"
    while True:
        run_by_job = runs_by_job(
            current_runs(contest, experiment.load_runs(path, setup) or [])
        )
        job = next(missing_jobs(contest, run_by_job, methods), None)
        if job is None:
            break
        run = measure(config_of(contest, job), contest.score)
        fields = fields_of(contest, job.method)
        add(options.data, setup, [{**job._asdict(), "fields": fields, **run}])
    add(options.data, setup, [])


if __name__ == "__main__":
    cli.run(main, define)
