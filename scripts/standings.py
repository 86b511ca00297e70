"""What the runs of a contest come to: choices by the validation split, and claims.

Learning rates, the combination of ours that is shown and its rival are chosen on the
validation split; figures and claims are those of the test split.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scripts import experiment
from scripts.contests import Contest
from scripts.experiment import Figure

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
"""What `figures_of` has of a run."""

BASELINE = "smallest_adjusted"
"""The entry that stands beside every claim: everybody has the smallest model, whose
logits are adjusted by the hospital's labels."""
MARGIN = 0.01
"""A score that whole models gain over the smallest ones below which a task is one where
model size buys nothing."""

Run = dict[str, Any]
"""What `compare.measure` made, with the fields of its `Job`."""


class Job(NamedTuple):
    """What a run is identified by."""

    method: str
    ratio: str
    seed: int
    learning_rate: float


# ----------------------------------------------------------------------------- of a run


def validation(contest: Contest, run: Run) -> float:
    """What a run is chosen by: mean over its last evaluations."""
    return float(np.mean(validations(run)[-contest.last :]))


def validations(run: Run) -> np.ndarray:
    """By evaluation; of a model whose answers are no numbers less than any."""
    values = np.array([row["validation"] for row in run["evaluations"]], float)
    return np.where(np.isnan(values), -np.inf, values)


def figures_of(contest: Contest, run: Run) -> dict[str, float]:
    """A run as `FIGURES`: means over its last evaluations, but for two rounds.

    "last" is the score in the last round, "selected" in the evaluated one with the best
    validation figure, the first of equals. "poorest" is the score of tier 0's own
    sub-model at tier 0's hospitals, "own" the smallest such score of any tier. A tier
    none of whose hospitals can be judged (an AUROC of one class) is no worst tier; one
    that takes no part has no sub-model.
    """
    everything = run["evaluations"]
    rows = everything[-contest.last :]
    takes_part = np.asarray(run["bytes"]) > 0

    def mean(name: str) -> Any:
        values = np.array([row[name] for row in rows], float)
        return np.ma.masked_invalid(values).mean(axis=0)

    def known(value: Any) -> float:
        return float(np.ma.filled(np.ma.asarray(value, float), np.nan))

    best = int(np.argmax(validations(run)))
    return {
        "score": known(mean("score")),
        "last": known(everything[-1]["score"]),
        "selected": known(everything[best]["score"]),
        "accuracy": float(mean("accuracy")),
        "poorest": known(mean("own")[0]) if takes_part[0] else np.nan,
        "worst_tier": float(mean("tiers").min()),
        "own": float(mean("own")[takes_part].min()),
        "gap": float(mean("gap")),
        "std": float(mean("std")),
    }


# --------------------------------------------------------------------------- which runs


def done(runs: Sequence[Run]) -> dict[Job, Run]:
    """The runs by their job."""
    return {Job(*(run[name] for name in Job._fields)): run for run in runs}


def fields_of(contest: Contest, method: str) -> dict[str, Any]:
    """What a method changes in the contest's config, as JSON has it."""
    return json.loads(json.dumps(dict(contest.entries[method].fields)))


def current(contest: Contest, runs: Sequence[Run]) -> list[Run]:
    """The runs of methods that are still what they were."""
    return [
        run
        for run in runs
        if run["method"] in contest.entries
        and run["fields"] == fields_of(contest, run["method"])
    ]


def job_of(contest: Contest, method: str, ratio: str, seed: int, rate: float) -> Job:
    """The run that stands for these; a ratio means nothing where there is one tier."""
    if len(contest.entries[method].fields.get("tiers.share", (1, 1))) == 1:
        ratio = next(iter(contest.ratios))
    return Job(method, ratio, seed, rate)


def tuning(contest: Contest, method: str) -> list[Job]:
    """The runs that decide a method's learning rate."""
    ratio, seed = next(iter(contest.ratios)), contest.seeds[0]
    return [Job(method, ratio, seed, rate) for rate in contest.rates]


def chosen(contest: Contest, made: Mapping[Job, Run]) -> dict[str, float]:
    """The learning rate of every method that is tuned; the smaller one of equals."""
    rates = {}
    for method in contest.entries:
        jobs = tuning(contest, method)
        if all(job in made for job in jobs):
            scores = [validation(contest, made[job]) for job in jobs]
            rates[method] = contest.rates[int(np.argmax(scores))]
    return rates


def best_of_ours(contest: Contest, made: Mapping[Job, Run]) -> str | None:
    """The combination that the validation split prefers, the first of equals.

    By the runs that decide learning rates; None before all are tuned.
    """
    names = [name for name, entry in contest.entries.items() if entry.role == "ours"]
    jobs = [tuning(contest, name) for name in names]
    if not names or any(job not in made for each in jobs for job in each):
        return None
    scores = [max(validation(contest, made[job]) for job in each) for each in jobs]
    return names[int(np.argmax(scores))]


def best_published(contest: Contest, seeds: Collection[Mapping[str, Run]]) -> str:
    """The published method that the validation split prefers over the seeds of a ratio.

    The first of equals.
    """
    scores = {
        name: np.mean([validation(contest, runs[name]) for runs in seeds])
        for name, entry in contest.entries.items()
        if entry.role == "published"
    }
    return max(scores, key=scores.__getitem__)


def shown(contest: Contest, made: Mapping[Job, Run]) -> list[str]:
    """The methods of the table: of ours the best alone, once it is known."""
    ours = best_of_ours(contest, made)
    return [
        name
        for name, entry in contest.entries.items()
        if entry.role != "ours" or name == ours
    ]


def missing(
    contest: Contest, made: Mapping[Job, Run], methods: Collection[str]
) -> Iterator[Job]:
    """What is still to be run, in order: first what decides the learning rates."""
    for method in methods:
        yield from (job for job in tuning(contest, method) if job not in made)
    rates = chosen(contest, made)
    for ratio in contest.ratios:
        for seed in contest.seeds:
            for method in shown(contest, made):
                if method in methods:
                    job = job_of(contest, method, ratio, seed, rates[method])
                    if job not in made:
                        yield job


def complete(
    contest: Contest, made: Mapping[Job, Run], ratio: str
) -> dict[int, dict[str, Run]]:
    """The runs of every method, of the seeds for which all have run at a ratio."""
    rates, names = chosen(contest, made), shown(contest, made)
    if len(rates) < len(contest.entries):
        return {}
    seeds = {}
    for seed in contest.seeds:
        jobs = {name: job_of(contest, name, ratio, seed, rates[name]) for name in names}
        if all(job in made for job in jobs.values()):
            seeds[seed] = {name: made[job] for name, job in jobs.items()}
    return seeds


# ------------------------------------------------------------------- what runs can tell


def trials(contest: Contest) -> dict[str, int]:
    """Runs on the validation split that each side's choice was made among."""
    combinations = sum(entry.role == "ours" for entry in contest.entries.values())
    rates = len(contest.rates)
    return {"published": rates, "ours": rates * combinations}


def headroom(
    seeds: Collection[Mapping[str, Run]], contest: Contest
) -> list[list[float]]:
    """Scores of FedAvg with the whole and with the smallest model, seed by seed.

    What a larger model is worth on the task, where nobody's budget is in the way.
    """
    return [
        [figures_of(contest, runs[name])["score"] for name in ("fedavg", "smallest")]
        for runs in seeds
    ]


# ------------------------------------------------------------------------------- claims


class Claim(NamedTuple):
    """That one method has a higher figure than another."""

    better: str
    worse: str
    """Both by their names in the contest."""
    of: str = "score"
    """Of `FIGURES`."""

    def title(self, contest: Contest) -> str:
        """As it is written."""
        prefix = OF_TIERS.get(self.of, "")
        return " > ".join(
            prefix + contest.entries[name].title for name in (self.better, self.worse)
        )

    def figures(self, contest: Contest) -> tuple[Figure, Figure]:
        """What is compared, as functions of the runs of a seed."""

        def figure(name: str) -> Figure:
            return lambda runs: figures_of(contest, runs[name])[self.of]

        return figure(self.better), figure(self.worse)

    def known(self, contest: Contest, seeds: Iterable[Mapping[str, Run]]) -> bool:
        """Whether both have the figure: of `exclusive` the poorest tier has none."""
        values = [of(runs) for runs in seeds for of in self.figures(contest)]
        return bool(np.all(np.isfinite(values)))


OF_TIERS = {
    "worst_tier": "worst tier of ",
    "own": "own sub-model at the worst tier of ",
    "poorest": "poorest tier's own sub-model of ",
}
"""What a figure of `FIGURES` is called before the method that it is of."""


def claims_of(contest: Contest, ours: str | None, rival: str) -> list[Claim]:
    """What is judged at a ratio at which `rival` is the best published method."""
    claims = [
        Claim("dynamicfl", "fedavg"),
        Claim("dynamicfl", "matched"),
        Claim("dynamicfl", "heterofl"),
        Claim("ladder", "heterofl"),
        Claim("heterofl", "fedrolex"),
        Claim("heterofl", "smallest"),
        Claim("heterofl", "exclusive"),
    ]
    if ours:
        claims.append(Claim(ours, rival))
        claims += [Claim(ours, rival, of) for of in ("worst_tier", "own", "poorest")]
        claims.append(Claim(ours, BASELINE, "poorest"))
        others = ("fedavg", "fedavg_adjusted", BASELINE, "widths")
        claims += [Claim(ours, other) for other in others]
    known = contest.entries.keys()
    return [claim for claim in claims if {claim.better, claim.worse} <= known]


def judged(contest: Contest, results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with what follows from their runs: rates, choices, claims."""
    made = done(results["runs"])
    ours, seeds = best_of_ours(contest, made), {}
    for ratio in contest.ratios:
        if found := complete(contest, made, ratio):
            seeds[ratio] = found
    rivals = {
        ratio: best_published(contest, runs.values()) for ratio, runs in seeds.items()
    }
    return {
        **results,
        "seeds": list(contest.seeds),
        "learning_rates_tried": list(contest.rates),
        "evaluations_averaged": contest.last,
        "learning_rates": chosen(contest, made),
        "best_of_ours": ours,
        "best_published": rivals,
        "complete_seeds": {ratio: list(runs) for ratio, runs in seeds.items()},
        "claims": {
            ratio: experiment.judge(
                {
                    claim.title(contest): claim.figures(contest)
                    for claim in claims_of(contest, ours, rivals[ratio])
                    if claim.known(contest, runs.values())
                },
                list(runs.values()),
            )
            for ratio, runs in seeds.items()
        },
    }
