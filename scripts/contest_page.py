"""The pages of a contest: its table, the sentence that sums it up, and its figure."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from fairjax.report.comparison import student
from scripts import experiment
from scripts.contests import Contest
from scripts.experiment import interval
from scripts.standings import (
    BASELINE,
    FIGURES,
    MARGIN,
    claims_of,
    complete,
    done,
    figures_of,
    headroom,
    shown,
    trials,
    tuning,
    validation,
)

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
"""What `figures_of` has -> head of its column."""
NAMES = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
"""`Contest.score` -> as it is written."""
BRACKETS = (
    "In square brackets: the score of the poorest tier's own sub-model at its own "
    "hospitals, for the two methods of the claim, and after the semicolon for the "
    "baseline, which gives everybody the smallest model and adjusts its logits."
)
OF_TIERS = ("poorest", "worst_tier", "own", "gap", "std")
"""Figures that one hospital alone does not have."""


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
                unknown |= {"own", "poorest"}
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
            results["claims"][ratio], len(seeds), by=_beside(contest, results, ratio)
        )
        parts += [BRACKETS, *limits(contest, seeds)]
    parts.append("\\* The largest or the smallest learning rate that was tried.")
    parts.append(searched(contest, results))
    return "\n\n".join(parts)


def _beside(
    contest: Contest, results: Mapping[str, Any], ratio: str
) -> Callable[[Mapping[str, Any]], str]:
    """What a claim's line ends with: its size, and what the poorest tier gets.

    In square brackets stand the poorest tier's own sub-model at its own hospitals, by
    both methods of the claim, and then by the baseline: a gain elsewhere may leave
    these hospitals with less than the simplest model.
    """
    seeds = list(complete(contest, done(results["runs"]), ratio).values())
    rival = results["best_published"][ratio]

    def poorest(name: str) -> str:
        runs = [figures_of(contest, seed[name])["poorest"] for seed in seeds]
        return f"{np.mean(runs):.3f}" if np.isfinite(runs).all() else "none"

    names = {
        claim.title(contest): (claim.better, claim.worse)
        for claim in claims_of(contest, results["best_of_ours"], rival)
    }

    def said(claim: Mapping[str, Any]) -> str:
        both = ", ".join(map(poorest, names[claim["claim"]]))
        return f": {difference(claim['numbers'])} [{both}; {poorest(BASELINE)}]"

    return said


def limits(contest: Contest, seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what so many seeds, and this task, can show at all."""
    said = []
    if len(seeds) > 1:
        scores = [
            [figures_of(contest, runs[name])["score"] for runs in seeds]
            for name in seeds[0]
        ]
        half = experiment.resolution(scores)
        said.append(experiment.told_apart(len(seeds), half))
    pairs = headroom(seeds, contest)
    if np.mean([whole - small for whole, small in pairs]) < MARGIN:
        whole, small = np.mean(pairs, axis=0)
        said.append(
            f"Model size buys nothing on this task: FedAvg has {whole:.3f} with the "
            f"whole model and {small:.3f} with the smallest one, so it cannot show "
            "what sub-models are worth."
        )
    return said


def difference(pairs: Sequence[Sequence[float]]) -> str:
    """Mean of A - B over the seeds' (A, B), and Student's 95 % interval for it."""
    values = [a - b for a, b in pairs]
    text = f"{np.mean(values):+.3f}"
    if len(values) > 1:
        low, high = student(values)
        text += f" ({low:+.3f} to {high:+.3f})"
    return text


def counted(seeds: int) -> str:
    """How many seeds speak."""
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def searched(contest: Contest, results: Mapping[str, Any]) -> str:
    """How often each side tried, and what the validation split made of our trials."""
    made = done(results["runs"])
    tried = [
        f"{entry.title}: "
        f"{max(validation(contest, made[job]) for job in tuning(contest, name)):.3f}"
        for name, entry in contest.entries.items()
        if entry.role == "ours"
    ]
    sides = trials(contest)
    return (
        f"Trials on the validation split of one seed: {sides['published']} for every "
        f"published method, {sides['ours']} for ours, which is the best of "
        f"{len(tried)} combinations: {'; '.join(tried)}."
    )


def sentence(contest: Contest, results: Mapping[str, Any]) -> str:
    """Whether, by how much and for whom ours beat the best published method."""
    made, parts = done(results["runs"]), []
    ours = results["best_of_ours"]
    if not results["complete_seeds"]:
        return table(contest, results)
    for ratio, rival in results["best_published"].items():
        seeds = list(complete(contest, made, ratio).values())

        def pairs(
            of: str, seeds: Any = seeds, names: Sequence[str] = (ours, rival)
        ) -> list[list[float]]:
            return [
                [figures_of(contest, runs[name])[of] for name in names]
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
            f"tier by {difference(pairs('worst_tier'))}"
        )
        names = list(dict.fromkeys((ours, rival, BASELINE)))
        values = np.mean(pairs("poorest", names=names), axis=0)
        listed = "; ".join(
            f"{contest.entries[name].title}, "
            f"{f'{value:.3f}' if np.isfinite(value) else 'none'}"
            for name, value in zip(names, values, strict=True)
        )
        within = [
            name
            for name in seeds[0]
            if contest.entries[name].role != "reference"
            and np.isfinite(pairs("poorest", names=[name])).all()
        ]
        every = np.mean(pairs("poorest", names=within), axis=0)
        best = int(np.argmax(every))
        parts.append(
            f"The poorest hospitals' own sub-model has, at these hospitals: {listed}. "
            f"Of all within the budgets {contest.entries[within[best]].title} serves "
            f"them best, with {every[best]:.3f}"
        )
        parts += [line.removesuffix(".") for line in limits(contest, seeds)]
    sides = trials(contest)
    parts.append(
        f"Ours is the best of {sides['ours']} trials, a published method of "
        f"{sides['published']}"
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    path.write_bytes(buffer.getvalue())
    plt.close(figure)
