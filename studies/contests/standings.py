"""Choices and claims that follow from the runs of a contest.

Learning rates, the combination of ours in the table and its rival are chosen on the
validation split; figures and claims are those of the test split.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from studies import experiment
from studies.contests.settings import Contest
from studies.experiment import Figure

FIGURES = (
    "score",
    "last",
    "selected",
    "accuracy",
    "poorest",
    "worst_tier",
    "own",
    "gap",
    "std",
)
"""The keys of `figures_of`."""

BASELINE = "smallest_adjusted"
"""The entry that is reported beside every claim: all clients train the smallest model,
whose logits are adjusted by the client's labels."""
MARGIN = 0.01
"""The least gain in score of the full model over the smallest one. Below it, model size
does not matter on a task."""

Run = dict[str, Any]
"""The result of `compare.measure`, with the fields of its `Job`."""


class Job(NamedTuple):
    """The identity of a run."""

    method: str
    ratio: str
    seed: int
    learning_rate: float


# ---------------------------------------------------------------------- figures of runs


def validation(contest: Contest, run: Run) -> float:
    """The mean of the validation score over a run's last evaluations."""
    return float(np.mean(validations(run)[-contest.last :]))


def validations(run: Run) -> np.ndarray:
    """The validation score of every evaluation; -inf for one that is not a number."""
    values = np.array([row["validation"] for row in run["evaluations"]], float)
    return np.where(np.isnan(values), -np.inf, values)


def figures_of(contest: Contest, run: Run) -> dict[str, float]:
    """The `FIGURES` of a run, as means over its last evaluations.

    Two figures are of single rounds: "last" is the score in the last round, "selected"
    the score in the evaluated round with the best validation score (the first one among
    equals). "poorest" is the score of tier 0's own sub-model on tier 0's clients, "own"
    the smallest such score of any tier. The worst tier is one whose score is known; an
    AUROC is unknown where only one class occurs. A tier that does not take part has no
    sub-model.
    """
    everything = run["evaluations"]
    rows = everything[-contest.last :]
    takes_part = np.asarray(run["bytes"]) > 0

    def mean(name: str) -> Any:
        values = np.array([row[name] for row in rows], float)
        return np.ma.masked_invalid(values).mean(axis=0)

    def as_float(value: Any) -> float:
        return float(np.ma.filled(np.ma.asarray(value, float), np.nan))

    best = int(np.argmax(validations(run)))
    return {
        "score": as_float(mean("score")),
        "last": as_float(everything[-1]["score"]),
        "selected": as_float(everything[best]["score"]),
        "accuracy": float(mean("accuracy")),
        "poorest": as_float(mean("own")[0]) if takes_part[0] else np.nan,
        "worst_tier": float(mean("tiers").min()),
        "own": float(mean("own")[takes_part].min()),
        "gap": float(mean("gap")),
        "std": float(mean("std")),
    }


# ---------------------------------------------------------------------------- the jobs


def runs_by_job(runs: Sequence[Run]) -> dict[Job, Run]:
    """The runs by their job."""
    return {Job(*(run[name] for name in Job._fields)): run for run in runs}


def fields_of(contest: Contest, method: str) -> dict[str, Any]:
    """The fields that a method changes in the contest's config, as JSON values."""
    return json.loads(json.dumps(dict(contest.entries[method].fields)))


def current_runs(contest: Contest, runs: Sequence[Run]) -> list[Run]:
    """The runs of methods whose fields have not changed since."""
    return [
        run
        for run in runs
        if run["method"] in contest.entries
        and run["fields"] == fields_of(contest, run["method"])
    ]


def job_of(contest: Contest, method: str, ratio: str, seed: int, rate: float) -> Job:
    """The job of a run; all ratios of a method with one tier share a job."""
    if len(contest.entries[method].fields.get("tiers.proportions", (1, 1))) == 1:
        ratio = next(iter(contest.ratios))
    return Job(method, ratio, seed, rate)


def tuning(contest: Contest, method: str) -> list[Job]:
    """The jobs that decide a method's learning rate."""
    ratio, seed = next(iter(contest.ratios)), contest.seeds[0]
    return [Job(method, ratio, seed, rate) for rate in contest.rates]


def learning_rates(contest: Contest, run_by_job: Mapping[Job, Run]) -> dict[str, float]:
    """The learning rate of every tuned method; the smallest one among equals."""
    rates = {}
    for method in contest.entries:
        jobs = tuning(contest, method)
        if all(job in run_by_job for job in jobs):
            scores = [validation(contest, run_by_job[job]) for job in jobs]
            rates[method] = contest.rates[int(np.argmax(scores))]
    return rates


def best_of_ours(contest: Contest, run_by_job: Mapping[Job, Run]) -> str | None:
    """The combination that is best on the validation split, the first among equals.

    The choice uses the runs that decide learning rates; None before all are tuned.
    """
    names = [name for name, entry in contest.entries.items() if entry.role == "ours"]
    jobs = [tuning(contest, name) for name in names]
    if not names or any(
        job not in run_by_job for method_jobs in jobs for job in method_jobs
    ):
        return None
    scores = [
        max(validation(contest, run_by_job[job]) for job in method_jobs)
        for method_jobs in jobs
    ]
    return names[int(np.argmax(scores))]


def best_published(contest: Contest, seeds: Collection[Mapping[str, Run]]) -> str:
    """The published method that is best on the validation split over a ratio's seeds.

    It is the first one among equals.
    """
    scores = {
        name: np.mean([validation(contest, runs[name]) for runs in seeds])
        for name, entry in contest.entries.items()
        if entry.role == "published"
    }
    return max(scores, key=scores.__getitem__)


def table_methods(contest: Contest, run_by_job: Mapping[Job, Run]) -> list[str]:
    """The methods of the table, with only the best combination of ours if known."""
    our_method = best_of_ours(contest, run_by_job)
    return [
        name
        for name, entry in contest.entries.items()
        if entry.role != "ours" or name == our_method
    ]


def missing_jobs(
    contest: Contest, run_by_job: Mapping[Job, Run], methods: Collection[str]
) -> Iterator[Job]:
    """The missing jobs, in order; those that decide learning rates come first."""
    for method in methods:
        yield from (job for job in tuning(contest, method) if job not in run_by_job)
    rates = learning_rates(contest, run_by_job)
    for ratio in contest.ratios:
        for seed in contest.seeds:
            for method in table_methods(contest, run_by_job):
                if method in methods:
                    job = job_of(contest, method, ratio, seed, rates[method])
                    if job not in run_by_job:
                        yield job


def complete_seeds(
    contest: Contest, run_by_job: Mapping[Job, Run], ratio: str
) -> dict[int, dict[str, Run]]:
    """Seed -> method -> run, for the seeds with which all methods have run."""
    rates, names = (
        learning_rates(contest, run_by_job),
        table_methods(contest, run_by_job),
    )
    if len(rates) < len(contest.entries):
        return {}
    seeds = {}
    for seed in contest.seeds:
        jobs = {name: job_of(contest, name, ratio, seed, rates[name]) for name in names}
        if all(job in run_by_job for job in jobs.values()):
            seeds[seed] = {name: run_by_job[job] for name, job in jobs.items()}
    return seeds


# ------------------------------------------------------------- resolution of the runs


def trials(contest: Contest) -> dict[str, int]:
    """The number of trials on the validation split among which each side chooses."""
    combinations = sum(entry.role == "ours" for entry in contest.entries.values())
    rates = len(contest.rates)
    return {"published": rates, "ours": rates * combinations}


def headroom(
    seeds: Collection[Mapping[str, Run]], contest: Contest
) -> list[list[float]]:
    """Scores of FedAvg with the full and with the smallest model, seed by seed.

    Their difference is the value of model size on the task without any budget.
    """
    return [
        [figures_of(contest, runs[name])["score"] for name in ("fedavg", "smallest")]
        for runs in seeds
    ]


# ------------------------------------------------------------------------------- claims


class Claim(NamedTuple):
    """The claim that one method has a higher figure than another."""

    better: str
    worse: str
    """`better` and `worse` are names of entries of the contest."""
    figure: str = "score"
    """One of `FIGURES`."""

    def title(self, contest: Contest) -> str:
        """The claim in words."""
        prefix = FIGURE_PREFIXES.get(self.figure, "")
        return " > ".join(
            prefix + contest.entries[name].title for name in (self.better, self.worse)
        )

    def figures(self, contest: Contest) -> tuple[Figure, Figure]:
        """The two compared figures, as functions of the runs of a seed."""

        def figure(name: str) -> Figure:
            return lambda runs: figures_of(contest, runs[name])[self.figure]

        return figure(self.better), figure(self.worse)

    def is_known(self, contest: Contest, seeds: Iterable[Mapping[str, Run]]) -> bool:
        """Whether both methods have the figure with every seed.

        For instance, `exclusive` has no sub-model of the poorest tier.
        """
        values = [figure(runs) for runs in seeds for figure in self.figures(contest)]
        return bool(np.all(np.isfinite(values)))


FIGURE_PREFIXES = {
    "worst_tier": "worst tier of ",
    "own": "own sub-model at the worst tier of ",
    "poorest": "poorest tier's own sub-model of ",
}
"""Figure -> the words that precede a method's title in a claim."""


def claims_of(contest: Contest, our_method: str | None, rival: str) -> list[Claim]:
    """The claims at a ratio at which `rival` is the best published method."""
    claims = [
        Claim("dynamicfl", "fedavg"),
        Claim("dynamicfl", "matched"),
        Claim("dynamicfl", "heterofl"),
        Claim("mixed", "heterofl"),
        Claim("heterofl", "fedrolex"),
        Claim("heterofl", "smallest"),
        Claim("heterofl", "exclusive"),
    ]
    if our_method:
        claims.append(Claim(our_method, rival))
        claims += [
            Claim(our_method, rival, figure)
            for figure in ("worst_tier", "own", "poorest")
        ]
        claims.append(Claim(our_method, BASELINE, "poorest"))
        references = ("fedavg", "fedavg_adjusted", BASELINE, "widths")
        claims += [Claim(our_method, reference) for reference in references]
    entries = contest.entries.keys()
    return [claim for claim in claims if {claim.better, claim.worse} <= entries]


def with_verdicts(contest: Contest, results: Mapping[str, Any]) -> dict[str, Any]:
    """The results together with the rates, choices and claims from their runs."""
    run_by_job = runs_by_job(results["runs"])
    our_method, seeds = best_of_ours(contest, run_by_job), {}
    for ratio in contest.ratios:
        if complete_runs := complete_seeds(contest, run_by_job, ratio):
            seeds[ratio] = complete_runs
    rivals = {
        ratio: best_published(contest, runs.values()) for ratio, runs in seeds.items()
    }
    return {
        **results,
        "seeds": list(contest.seeds),
        "learning_rates_tried": list(contest.rates),
        "evaluations_averaged": contest.last,
        "learning_rates": learning_rates(contest, run_by_job),
        "best_of_ours": our_method,
        "best_published": rivals,
        "complete_seeds": {ratio: list(runs) for ratio, runs in seeds.items()},
        "claims": {
            ratio: experiment.judge(
                {
                    claim.title(contest): claim.figures(contest)
                    for claim in claims_of(contest, our_method, rivals[ratio])
                    if claim.is_known(contest, runs.values())
                },
                list(runs.values()),
            )
            for ratio, runs in seeds.items()
        },
    }
