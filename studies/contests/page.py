"""The page of a contest: its table, a summary in a sentence, and its figure."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from fairjax.report.comparison import student_interval
from studies import experiment
from studies.contests.settings import Contest
from studies.contests.standings import (
    BASELINE,
    FIGURES,
    MARGIN,
    claims_of,
    complete_seeds,
    figures_of,
    headroom,
    runs_by_job,
    table_methods,
    trials,
    tuning,
    validation,
)
from studies.experiment import interval

HEADS = {
    "score": "{score}",
    "last": "in the last round",
    "selected": "in the selected round",
    "accuracy": "accuracy",
    "poorest": "poorest tier, own sub-model",
    "worst_tier": "worst tier",
    "own": "worst tier, own sub-model",
    "gap": "gap between tiers",
    "std": "deviation over hospitals",
}
"""Key of `figures_of` -> head of its column."""
NAMES = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
"""`Contest.score` -> the name of the score in the text."""
BRACKETS = (
    "In square brackets: the score of the poorest tier's own sub-model at its own "
    "hospitals, for the two methods of the claim, and after the semicolon for the "
    "baseline, which gives everybody the smallest model and adjusts its logits."
)
TIER_FIGURES = ("poorest", "worst_tier", "own", "gap", "std")
"""Figures that do not exist for a single client with all records."""


def table(contest: Contest, results: Mapping[str, Any]) -> str:
    """A Markdown table per ratio over its complete seeds, and verdicts on claims."""
    run_by_job, blocks = runs_by_job(results["runs"]), []
    if not results["complete_seeds"]:
        return (
            f"{contest.title}: {len(run_by_job)} runs are made; no seed has all "
            "methods yet."
        )
    score = NAMES[contest.score]
    heads = ["method", "learning rate"]
    heads += [HEADS[name].format(score=score) for name in FIGURES]
    heads += ["parameters", "MB of the tiers", "GFLOPs of the tiers"]
    names = table_methods(contest, run_by_job)
    for ratio in results["complete_seeds"]:
        seeds = list(complete_seeds(contest, run_by_job, ratio).values())
        blocks.append(
            f"{contest.title}, tiers {ratio}, smallest first; {seed_count(len(seeds))}:"
        )
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
        for name in names:
            entry, first_run = contest.entries[name], seeds[0][name]
            figures = [figures_of(contest, runs[name]) for runs in seeds]
            rate = results["learning_rates"][name]
            unknown = set(TIER_FIGURES) if len(first_run["parameters"]) == 1 else set()
            if 0 in first_run["bytes"]:
                unknown |= {"own", "poorest"}
            mark = "**" if entry.role == "ours" else ""
            cells = [
                f"{mark}{entry.title}{mark}",
                f"{rate:g}" + " \\*" * (rate in (contest.rates[0], contest.rates[-1])),
                *(
                    ""
                    if figure in unknown
                    else interval([values[figure] for values in figures])
                    for figure in FIGURES
                ),
                " / ".join(
                    f"{count if byte_count else 0:,}"
                    for count, byte_count in zip(
                        first_run["parameters"], first_run["bytes"], strict=True
                    )
                ),
                " / ".join(f"{count / 1e6:.0f}" for count in first_run["bytes"]),
                " / ".join(f"{count / 1e9:,.0f}" for count in first_run["flops"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
        blocks += experiment.verdicts(
            results["claims"][ratio],
            len(seeds),
            suffix=_claim_suffix(contest, results, ratio),
        )
        blocks += [BRACKETS, *limits(contest, seeds)]
    blocks.append("\\* The largest or the smallest learning rate that was tried.")
    blocks.append(search_note(contest, results))
    return "\n\n".join(blocks)


def _claim_suffix(
    contest: Contest, results: Mapping[str, Any], ratio: str
) -> Callable[[Mapping[str, Any]], str]:
    """Makes the end of a claim's line: the difference, and the poorest tier's scores.

    The scores in square brackets are those of the poorest tier's own sub-model on its
    own clients, for both methods of the claim and then for the baseline, because a gain
    elsewhere may leave these clients with less than the simplest model gives them.
    """
    seeds = list(complete_seeds(contest, runs_by_job(results["runs"]), ratio).values())
    rival = results["best_published"][ratio]

    def poorest(name: str) -> str:
        runs = [figures_of(contest, seed[name])["poorest"] for seed in seeds]
        return f"{np.mean(runs):.3f}" if np.isfinite(runs).all() else "none"

    names = {
        claim.title(contest): (claim.better, claim.worse)
        for claim in claims_of(contest, results["best_of_ours"], rival)
    }

    def suffix(claim: Mapping[str, Any]) -> str:
        scores = ", ".join(map(poorest, names[claim["claim"]]))
        return f": {difference(claim['numbers'])} [{scores}; {poorest(BASELINE)}]"

    return suffix


def limits(contest: Contest, seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on the differences that these seeds and this task can show."""
    sentences = []
    if len(seeds) > 1:
        scores = [
            [figures_of(contest, runs[name])["score"] for runs in seeds]
            for name in seeds[0]
        ]
        half = experiment.resolution(scores)
        sentences.append(experiment.resolution_note(len(seeds), half))
    pairs = headroom(seeds, contest)
    if np.mean([full - small for full, small in pairs]) < MARGIN:
        full, small = np.mean(pairs, axis=0)
        sentences.append(
            f"Model size buys nothing on this task: FedAvg has {full:.3f} with the "
            f"whole model and {small:.3f} with the smallest one, so it cannot show "
            "what sub-models are worth."
        )
    return sentences


def difference(pairs: Sequence[Sequence[float]]) -> str:
    """The mean of A - B over the seeds' (A, B), and its Student 95 % interval."""
    values = [a - b for a, b in pairs]
    text = f"{np.mean(values):+.3f}"
    if len(values) > 1:
        low, high = student_interval(values)
        text += f" ({low:+.3f} to {high:+.3f})"
    return text


def seed_count(seeds: int) -> str:
    """The number of seeds in words."""
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def search_note(contest: Contest, results: Mapping[str, Any]) -> str:
    """The number of trials of each side, and the validation scores of ours."""
    run_by_job = runs_by_job(results["runs"])

    def best_score(name: str) -> float:
        return max(
            validation(contest, run_by_job[job]) for job in tuning(contest, name)
        )

    best_scores = [
        f"{entry.title}: {best_score(name):.3f}"
        for name, entry in contest.entries.items()
        if entry.role == "ours"
    ]
    sides = trials(contest)
    return (
        f"Trials on the validation split of one seed: {sides['published']} for every "
        f"published method, {sides['ours']} for ours, which is the best of "
        f"{len(best_scores)} combinations: {'; '.join(best_scores)}."
    )


def sentence(contest: Contest, results: Mapping[str, Any]) -> str:
    """Whether, by how much and for which clients ours beats the best published method.

    Before a seed is complete this is the sentence of `table`.
    """
    run_by_job, sentences = runs_by_job(results["runs"]), []
    our_method = results["best_of_ours"]
    if not results["complete_seeds"]:
        return table(contest, results)
    for ratio, rival in results["best_published"].items():
        seeds = list(complete_seeds(contest, run_by_job, ratio).values())

        def pairs(
            figure: str, seeds: Any = seeds, names: Sequence[str] = (our_method, rival)
        ) -> list[list[float]]:
            return [
                [figures_of(contest, runs[name])[figure] for name in names]
                for runs in seeds
            ]

        wins = all(a > b for a, b in pairs("score"))
        our_score, rival_score = np.mean(pairs("score"), axis=0)
        sentences.append(
            f"Tiers {ratio}, {seed_count(len(seeds))}: "
            f"{contest.entries[our_method].title}, {our_score:.3f}, "
            f"{'beats' if wins else 'does not beat at every seed'} "
            f"{contest.entries[rival].title}, {rival_score:.3f}, the best published "
            f"method under the same budgets, by {difference(pairs('score'))}; at the "
            f"worst tier by {difference(pairs('worst_tier'))}"
        )
        names = list(dict.fromkeys((our_method, rival, BASELINE)))
        values = np.mean(pairs("poorest", names=names), axis=0)
        listed = "; ".join(
            f"{contest.entries[name].title}, "
            f"{f'{value:.3f}' if np.isfinite(value) else 'none'}"
            for name, value in zip(names, values, strict=True)
        )
        eligible = [
            name
            for name in seeds[0]
            if contest.entries[name].role != "reference"
            and np.isfinite(pairs("poorest", names=[name])).all()
        ]
        means = np.mean(pairs("poorest", names=eligible), axis=0)
        best = int(np.argmax(means))
        title = contest.entries[eligible[best]].title
        sentences.append(
            f"The poorest hospitals' own sub-model has, at these hospitals: {listed}. "
            f"Among all methods within the budgets {title} serves them best, with "
            f"{means[best]:.3f}"
        )
        sentences += [line.removesuffix(".") for line in limits(contest, seeds)]
    sides = trials(contest)
    sentences.append(
        f"Ours is the best of {sides['ours']} trials, a published method of "
        f"{sides['published']}"
    )
    return f"{contest.title}, {NAMES[contest.score]}. {'. '.join(sentences)}."


def draw(contest: Contest, results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws scores of the tiers' own sub-models against their parameters, by method."""
    run_by_job, ratios = runs_by_job(results["runs"]), list(results["complete_seeds"])
    names = [
        name
        for name in table_methods(contest, run_by_job)
        if contest.entries[name].role != "reference"
    ]
    figure, panels = plt.subplots(
        1, len(ratios), figsize=(1.5 + 4.5 * len(ratios), 4.2), sharey=True
    )
    for panel, ratio in zip(np.atleast_1d(panels), ratios, strict=True):
        seeds = list(complete_seeds(contest, run_by_job, ratio).values())

        def submodels(name: str, seeds: Any = seeds) -> np.ndarray:
            rows = [runs[name]["evaluations"][-contest.last :] for runs in seeds]
            return np.mean(
                [[row["submodels"] for row in run_rows] for run_rows in rows], 1
            )

        for i, name in enumerate(names):
            is_ours = contest.entries[name].role == "ours"
            values, x = submodels(name), seeds[0][name]["parameters"]
            trains = np.asarray(seeds[0][name]["bytes"]) > 0
            middle, x = values.mean(0)[trains], np.asarray(x)[trains]
            deviations = np.abs(
                np.stack([values.min(0)[trains], values.max(0)[trains]]) - middle
            )
            panel.errorbar(
                x * (1 + 0.03 * (i - len(names) / 2)),
                middle,
                deviations,
                marker="o" if is_ours else "^v<>sPXDd"[i % 9],
                linewidth=2.5 if is_ours else 1,
                capsize=2,
                color="black" if is_ours else f"C{i}",
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    path.write_bytes(buffer.getvalue())
    plt.close(figure)
