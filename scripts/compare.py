"""Trains methods on the same hospitals under equal budgets, and judges claims on them.

    python scripts/compare.py --data=blood

Who competes is in `scripts/contests.py`. All methods of a seed have the same records,
cohorts and initial values of what they share. Every one has the learning rate that is
best on the validation split, of as many trials as the others, on the first seed of the
first ratio; so is the combination of ours that is shown. Its rival at a ratio is the
published method that is best on the validation split there, over its seeds. Writes
results/<data>.json after every run, and from the seeds of a ratio for which all methods
have run the pages and results/<data>.png. The same command again goes on with the runs
that are missing; another setting or other versions begin anew, and a method that has
changed is run again. A run on blood cells takes two minutes of a CPU core, all of them
five hours: processes that have a part of the methods each (--methods=fedavg,heterofl)
share the files.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from fairjax import checks, command
from fairjax.report.comparison import student
from fairjax.train import train
from fairjax.workdir import write_json
from scripts import experiment
from scripts.contests import CONTESTS, Contest
from scripts.experiment import Figure, fill, interval

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ("score", "last", "selected", "accuracy", "worst_tier", "own", "gap", "std")
HEADS = {
    "score": "{score}",
    "last": "in the last round",
    "selected": "in the selected round",
    "accuracy": "accuracy",
    "worst_tier": "worst tier",
    "own": "worst tier, own sub-model",
    "gap": "gap between tiers",
    "std": "deviation over hospitals",
}
"""What `figures_of` has -> head of its column."""
NAMES = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
"""`Contest.score` -> as it is written."""
OF_TIERS = ("worst_tier", "own", "gap", "std")
"""Figures that one hospital alone does not have."""

Run = dict[str, Any]
"""What `measure` made, with the fields of its `Job`."""


class Job(NamedTuple):
    """What a run is identified by."""

    method: str
    ratio: str
    seed: int
    learning_rate: float


# ------------------------------------------------------------------------------ one run


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
    with tempfile.TemporaryDirectory() as folder:
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
    validation figure, the first of equals. A tier none of whose hospitals can be judged
    (an AUROC of one class) is no worst tier; one that takes no part has no sub-model.
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
        "worst_tier": float(mean("tiers").min()),
        "own": float(mean("own")[takes_part].min()),
        "gap": float(mean("gap")),
        "std": float(mean("std")),
    }


# ----------------------------------------------------------------------------- all runs


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


# ------------------------------------------------------------------------------- claims


def claims_of(
    contest: Contest, ours: str | None, rival: str
) -> dict[str, tuple[Figure, Figure]]:
    """Claim "A > B" -> (A, B), of a ratio at which `rival` is the best published."""
    titles = {name: entry.title for name, entry in contest.entries.items()}

    def figure(name: str, of: str) -> Figure:
        return lambda runs: figures_of(contest, runs[name])[of]

    def pair(a: str, b: str, of: str = "score", what: str = ""):
        claim = f"{what}{titles[a]} > {what}{titles[b]}"
        return claim, (figure(a, of), figure(b, of))

    claims = [
        pair(*names)
        for names in (
            ("dynamicfl", "fedavg"),
            ("dynamicfl", "matched"),
            ("dynamicfl", "heterofl"),
            ("ladder", "heterofl"),
            ("heterofl", "fedrolex"),
            ("heterofl", "smallest"),
            ("heterofl", "exclusive"),
        )
        if all(name in titles for name in names)
    ]
    if ours:
        claims.append(pair(ours, rival))
        claims.append(pair(ours, rival, "worst_tier", "worst tier of "))
        claims.append(pair(ours, rival, "own", "own sub-model at the worst tier of "))
        others = ("fedavg", "fedavg_adjusted", "smallest_adjusted", "widths")
        claims += [pair(ours, other) for other in others]
    return dict(claims)


def difference(pairs: Sequence[Sequence[float]]) -> str:
    """Mean of A - B over the seeds' (A, B), and Student's 95 % interval for it."""
    values = [a - b for a, b in pairs]
    text = f"{np.mean(values):+.3f}"
    if len(values) > 1:
        low, high = student(values)
        text += f" ({low:+.3f} to {high:+.3f})"
    return text


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
                claims_of(contest, ours, rivals[ratio]), list(runs.values())
            )
            for ratio, runs in seeds.items()
        },
    }


# ----------------------------------------------------------------- the table and figure


def table(contest: Contest, results: Mapping[str, Any]) -> str:
    """Per ratio a Markdown table of its complete seeds, and what its claims became."""
    made, parts = done(results["runs"]), []
    if not results["complete_seeds"]:
        return (
            f"{contest.title}: {len(made)} runs are made; no seed has all methods yet."
        )
    score = NAMES[contest.score]
    heads = ["method", "learning rate"]
    heads += [HEADS[name].format(score=score) for name in FIGURES]
    heads += ["parameters", "MB of the tiers", "GFLOPs of the tiers"]
    names = shown(contest, made)
    for ratio in results["complete_seeds"]:
        seeds = list(complete(contest, made, ratio).values())
        parts.append(
            f"{contest.title}, tiers {ratio}, smallest first; {counted(len(seeds))}:"
        )
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
        for name in names:
            entry, spent = contest.entries[name], seeds[0][name]
            found = [figures_of(contest, runs[name]) for runs in seeds]
            rate = results["learning_rates"][name]
            unknown = set(OF_TIERS) if len(spent["parameters"]) == 1 else set()
            if 0 in spent["bytes"]:
                unknown |= {"own"}
            mark = "**" if entry.role == "ours" else ""
            cells = [
                f"{mark}{entry.title}{mark}",
                f"{rate:g}" + " \\*" * (rate in (contest.rates[0], contest.rates[-1])),
                *(
                    "" if of in unknown else interval([values[of] for values in found])
                    for of in FIGURES
                ),
                " / ".join(
                    f"{count if sent else 0:,}"
                    for count, sent in zip(
                        spent["parameters"], spent["bytes"], strict=True
                    )
                ),
                " / ".join(f"{count / 1e6:.0f}" for count in spent["bytes"]),
                " / ".join(f"{count / 1e9:,.0f}" for count in spent["flops"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
        parts += experiment.verdicts(
            results["claims"][ratio],
            len(seeds),
            by=lambda claim: f": {difference(claim['numbers'])}",
        )
    parts.append("\\* The largest or the smallest learning rate that was tried.")
    parts.append(searched(contest, results))
    return "\n\n".join(parts)


def counted(seeds: int) -> str:
    """How many seeds speak."""
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def searched(contest: Contest, results: Mapping[str, Any]) -> str:
    """The combinations of ours that were tried, by the figure that chose among them."""
    made = done(results["runs"])
    tried = [
        f"{entry.title}: "
        f"{max(validation(contest, made[job]) for job in tuning(contest, name)):.3f}"
        for name, entry in contest.entries.items()
        if entry.role == "ours"
    ]
    return f"Combinations tried, on the validation split: {'; '.join(tried)}."


def sentence(contest: Contest, results: Mapping[str, Any]) -> str:
    """Whether, by how much and for whom ours beat the best published method."""
    made, parts = done(results["runs"]), []
    ours = results["best_of_ours"]
    if not results["complete_seeds"]:
        return table(contest, results)
    for ratio, rival in results["best_published"].items():
        seeds = complete(contest, made, ratio).values()

        def pairs(of: str, seeds: Any = seeds, rival: str = rival) -> list[list[float]]:
            return [
                [figures_of(contest, runs[name])[of] for name in (ours, rival)]
                for runs in seeds
            ]

        wins = all(a > b for a, b in pairs("score"))
        mine, theirs = np.mean(pairs("score"), axis=0)
        parts.append(
            f"Tiers {ratio}, {counted(len(seeds))}: "
            f"{contest.entries[ours].title}, {mine:.3f}, "
            f"{'beats' if wins else 'does not beat at every seed'} "
            f"{contest.entries[rival].title}, {theirs:.3f}, the best published method "
            f"under the same budgets, by {difference(pairs('score'))}; at the worst "
            f"tier by {difference(pairs('worst_tier'))}, with that tier's own "
            f"sub-model by {difference(pairs('own'))}"
        )
    return f"{contest.title}, {NAMES[contest.score]}. {'. '.join(parts)}."


def draw(contest: Contest, results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Every tier's own sub-model against what its hospitals train, by method."""
    made, ratios = done(results["runs"]), list(results["complete_seeds"])
    names = [
        name
        for name in shown(contest, made)
        if contest.entries[name].role != "reference"
    ]
    figure, panels = plt.subplots(
        1, len(ratios), figsize=(1.5 + 4.5 * len(ratios), 4.2), sharey=True
    )
    for panel, ratio in zip(np.atleast_1d(panels), ratios, strict=True):
        seeds = list(complete(contest, made, ratio).values())

        def submodels(name: str, seeds: Any = seeds) -> np.ndarray:
            rows = [runs[name]["evaluations"][-contest.last :] for runs in seeds]
            return np.mean([[row["submodels"] for row in each] for each in rows], 1)

        for i, name in enumerate(names):
            own = contest.entries[name].role == "ours"
            values, x = submodels(name), seeds[0][name]["parameters"]
            trains = np.asarray(seeds[0][name]["bytes"]) > 0
            middle, x = values.mean(0)[trains], np.asarray(x)[trains]
            spread = np.abs(
                np.stack([values.min(0)[trains], values.max(0)[trains]]) - middle
            )
            panel.errorbar(
                x * (1 + 0.03 * (i - len(names) / 2)),
                middle,
                spread,
                marker="o" if own else "^v<>sPXDd"[i % 9],
                linewidth=2.5 if own else 1,
                capsize=2,
                color="black" if own else f"C{i}",
                label=contest.entries[name].title,
            )
        for name, style in (("central", ":"), ("fedavg", "--")):
            if name not in seeds[0]:
                continue
            value = np.mean(
                [figures_of(contest, runs[name])["score"] for runs in seeds]
            )
            title = contest.entries[name].title
            panel.axhline(value, color="grey", linestyle=style, label=title)
        panel.set(
            xscale="log",
            xlabel="parameters that a hospital trains and sends",
            title=f"{contest.title}\ntiers {ratio}, smallest first",
        )
        panel.grid(alpha=0.3)
    np.atleast_1d(panels)[0].set_ylabel(
        f"{NAMES[contest.score]} of the tier's own sub-model,\n"
        "all test records; mean, lowest and highest of the seeds"
    )
    handles, labels = np.atleast_1d(panels)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(0.91, 0.5))
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


# ---------------------------------------------------------------------------- the files


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
    contest = CONTESTS[checks.one_of("--data", options.data, CONTESTS)]
    for name in options.methods:
        checks.one_of("--methods", name, contest.entries)
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
    command.run(main, define)
