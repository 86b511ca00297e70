"""Figures with one dot per hospital: accuracy in the last evaluated round, records."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from fairjax.report import formats
from fairjax.report.canvas import (
    ACCURACY,
    GREY,
    HEIGHT,
    INK,
    RULE,
    VERMILION,
    Image,
    axis_limits,
    blank_figure,
    png,
    tier_colour,
)
from fairjax.report.lettering import Names, literal
from fairjax.report.run import Run


def accuracy_by_client(run: Run) -> Image | None:
    """One row per hospital, grouped by tier, worst first."""
    client_rows = run.by_accuracy
    if not client_rows:
        return None
    worst = run.ranked_clients[:1]
    names = Names(str(row["client"]) for row in run.clients)
    missing_rows = [row for row in run.clients if row.get("accuracy") is None]
    tiers = sorted({row["tier"] for row in run.clients})
    rows = len(run.clients) + 0.8 * (len(tiers) - 1)
    title = "How well does the full model serve each hospital?"
    figure, axes = blank_figure(title, max(HEIGHT, 1.2 + 0.19 * rows))
    low, high = _accuracy_axis(axes, run)
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for tier in tiers:
        members = [row for row in client_rows + missing_rows if row["tier"] == tier]
        for row in members:
            ticks.append((y, names.short(str(row["client"]), 22)))
            accuracy = row.get("accuracy")
            axes.axhline(y, color=RULE, linewidth=0.5, zorder=0)
            if accuracy is None:
                axes.text(low, y, f" {formats.MISSING}", va="center", color=GREY)
            else:
                colour = tier_colour(run, tier)
                face = "none" if run.is_small(row) else colour
                look = {"color": colour, "markerfacecolor": face, "markersize": 6}
                axes.plot(100 * accuracy, y, "o", **look)
                if row in worst:
                    _ring(axes, 100 * accuracy, y)
                    style = _annotation_style(100 * accuracy, (low, high))
                    text = f"worst {formats.percent(accuracy)}"
                    axes.annotate(text, (100 * accuracy, y), **style)
            y += 1
        axes.text(
            1.02,
            y - (len(members) + 1) / 2,
            f"tier {tier}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8.5,
            color=INK,
        )
        y += 0.8
    axes.set_ylim(y - 1.1, -0.7)
    axes.set_yticks(
        [y for y, _ in ticks], labels=[literal(name) for _, name in ticks], fontsize=8
    )
    _mark_mean(axes, run, (low, high))
    caption = (
        "Full model on each hospital's own test records, grouped by tier, worst first. "
        "The ring marks the worst hospital, the dashed line the mean over hospitals."
        f"{_hollow_note(run)}{names.key}"
    )
    return Image("hospitals", caption, _client_alt(title, run), png(figure))


def distribution(run: Run) -> Image | None:
    """One row per tier, with a dot for every hospital and the quartiles as a box."""
    client_rows = run.by_accuracy
    if not client_rows:
        return None
    worst = run.ranked_clients[:1]
    names = Names(str(row["client"]) for row in worst)
    tiers = sorted({row["tier"] for row in client_rows})
    title = "How far apart are the hospitals of each tier?"
    figure, axes = blank_figure(title, max(HEIGHT, 1.2 + 0.75 * len(tiers)))
    low, high = _accuracy_axis(axes, run)
    labels = []
    for y, tier in enumerate(tiers):
        members = [row for row in client_rows if row["tier"] == tier]
        values = np.array([100 * row["accuracy"] for row in members])
        offsets = 0.5 * _jitter(len(values))
        colour = tier_colour(run, tier)
        faces = ["none" if run.is_small(row) else colour for row in members]
        axes.scatter(
            values, y + offsets, s=11, c=faces, edgecolors=[colour], alpha=0.55, lw=0.5
        )
        first, median, third = np.quantile(values, [0.25, 0.5, 0.75])
        axes.fill_betweenx(
            [y - 0.32, y + 0.32], first, third, color=colour, alpha=0.14, linewidth=0
        )
        axes.plot([median] * 2, [y - 0.32, y + 0.32], color=INK, linewidth=1.6)
        labels.append(f"tier {tier}\n({len(members)})")
        if members[0] in worst:
            _ring(axes, values[0], y + offsets[0])
            name = literal(names.short(str(members[0]["client"]), 24))
            text = f"worst {formats.percent(members[0]['accuracy'])} ({name})"
            # The text stands above the dots of its tier, where it hides none of them.
            axes.annotate(
                text, (values[0], y - 0.46), **_annotation_style(values[0], (low, high))
            )
    axes.set_ylim(len(tiers) - 0.4, -0.6)
    axes.set_yticks(range(len(tiers)), labels=labels, fontsize=8.5)
    _mark_mean(axes, run, (low, high))
    caption = (
        "Every dot is a hospital (how many in brackets); the box holds the middle "
        "half, the bar is the median. The ring marks the worst hospital, the dashed "
        f"line the mean over hospitals.{_hollow_note(run)}{names.key}"
    )
    return Image("hospitals", caption, _client_alt(title, run), png(figure))


def budgets(run: Run) -> Image | None:
    """One column per tier: accuracies of the full model and of the tier's sub-model."""
    client_rows = run.by_accuracy
    if not client_rows:
        return None
    title = "What does a hospital get for its budget?"
    figure, axes = blank_figure(title, HEIGHT + 0.3)
    keys = {"accuracy": "full model", "own_accuracy": "own sub-model"}
    values = [row[k] for row in run.clients for k in keys if row.get(k) is not None]
    resolution = run.resolution.client
    axes.set_ylim(*axis_limits(min(values), max(values), ACCURACY, resolution))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    mean_labels = []
    for position, tier in enumerate(run.tiers):
        t = tier["tier"]
        members = [row for row in run.clients if row["tier"] == t]
        for (key, model), marker, side in zip(
            keys.items(), "os", (-0.2, 0.2), strict=True
        ):
            accuracies = np.array(
                [row[key] for row in members if row.get(key) is not None]
            )
            if not len(accuracies):
                continue
            axes.scatter(
                position + side + 0.26 * _jitter(len(accuracies)),
                100 * accuracies,
                s=10 if len(client_rows) > len(run.tiers) * 10 else 26,
                marker=marker,
                facecolors=tier_colour(run, t) if key == "accuracy" else "none",
                edgecolors=[tier_colour(run, t)],
                alpha=0.75,
            )
            mean = float(np.mean(accuracies))
            mean_labels.append(f"tier {t} {model} {formats.percent(mean)}")
            if len(accuracies) > 1:
                ends = [position + side - 0.17, position + side + 0.17]
                axes.plot(ends, [100 * mean] * 2, color=INK, linewidth=1.6)
    axes.set_xlim(-0.5, len(run.tiers) - 0.5)
    labels = [
        f"{formats.plain(tier.get('budget'))}\ntier {tier['tier']}"
        for tier in run.tiers
    ]
    axes.set_xticks(range(len(run.tiers)), labels=labels, fontsize=8.5)
    axes.set_xlabel("budget (share of the model, by tier)", fontsize=9, color=INK)
    axes.set_ylabel(ACCURACY.label, fontsize=9, color=INK)
    caption = (
        "Every mark is a hospital on its own test records: a disc under the full "
        "model, an open square under the sub-model that its tier can carry. Bars are "
        "means over the hospitals of a tier, where it has several."
    )
    alt = f"{title} Accuracy of hospitals by tier; means: {', '.join(mean_labels)}."
    return Image("budgets", caption, alt, png(figure))


def sizes(run: Run) -> Image | None:
    """One row per tier, with a dot at each hospital's number of training records."""
    rows = [row for row in run.client_counts if row.get("train")]
    if not rows:
        return None
    tiers = sorted({row["tier"] for row in rows})
    title = "How many records does a hospital of each tier hold?"
    figure, axes = blank_figure(title, max(HEIGHT, 1.2 + 0.75 * len(tiers)))
    median_labels = []
    for y, tier in enumerate(tiers):
        counts = np.array([row["train"] for row in rows if row["tier"] == tier])
        colour = tier_colour(run, tier)
        offsets = 0.5 * _jitter(len(counts))
        axes.scatter(counts, y + offsets, s=11, color=colour, alpha=0.55, linewidths=0)
        median = float(np.median(counts))
        axes.plot([median] * 2, [y - 0.32, y + 0.32], color=INK, linewidth=1.6)
        median_labels.append(f"tier {tier} {formats.count(median)}")
    axes.set_xscale("log")
    axes.set_xlabel("training records (logarithmic)", fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    labels = [
        f"tier {tier}\n({sum(row['tier'] == tier for row in rows)})" for tier in tiers
    ]
    axes.set_ylim(len(tiers) - 0.4, -0.6)
    axes.set_yticks(range(len(tiers)), labels=labels, fontsize=8.5)
    caption = "Every dot is a hospital (how many in brackets); the bar is the median."
    alt = f"{title} Training records by tier; medians: {', '.join(median_labels)}."
    return Image("sizes", caption, alt, png(figure))


def _jitter(count: int) -> np.ndarray:
    """`count` fixed offsets in [-0.5, 0.5), the first 0, that separate neighbours."""
    # Steps of the golden ratio spread any number of offsets evenly.
    return (np.arange(count) * 0.618034 + 0.5) % 1 - 0.5


def _hollow_note(run: Run) -> str:
    """A sentence that explains hollow dots; "" where there are none."""
    if not any(map(run.is_small, run.clients)):
        return ""
    return (
        f" A hollow dot is a hospital with fewer than {run.min_test_records} test "
        "records: it may lie anywhere, and is not called the worst."
    )


def _accuracy_axis(axes: Axes, run: Run) -> tuple[float, float]:
    values = [row["accuracy"] for row in run.by_accuracy]
    low, high = axis_limits(min(values), max(values), ACCURACY, run.resolution.client)
    axes.set_xlim(low, high)
    axes.set_xlabel(ACCURACY.label, fontsize=9, color=INK)
    return low, high


def _ring(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", markersize=10, markerfacecolor="none", color=VERMILION, mew=1.5
    )


def _annotation_style(x: float, limits: tuple[float, float]) -> dict[str, Any]:
    """Style of a text at x that runs towards the wider side of the axis."""
    right = x < sum(limits) / 2
    return {
        "xytext": (9 if right else -9, 0),
        "textcoords": "offset points",
        "horizontalalignment": "left" if right else "right",
        "verticalalignment": "center",
        "fontsize": 8.5,
        "color": INK,
        "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
    }


def _mark_mean(axes: Axes, run: Run, limits: tuple[float, float]) -> None:
    mean = run.final.get("eval/accuracy/client_mean")
    if mean is None:
        return
    axes.axvline(100 * mean, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    position = (100 * mean - limits[0]) / (limits[1] - limits[0])
    side = "left" if position < 0.2 else "right" if position > 0.8 else "center"
    axes.text(
        100 * mean,
        1.02,
        f"mean {formats.percent(mean)}",
        transform=axes.get_xaxis_transform(),
        horizontalalignment=side,
        fontsize=8.5,
        color=INK,
    )


def _client_alt(title: str, run: Run) -> str:
    mean = formats.percent(run.final.get("eval/accuracy/client_mean"))
    ends = [
        f", {word} {row['client']} {formats.percent(row['accuracy'])}"
        for word, rows in (
            ("worst", run.ranked_clients[:1]),
            ("best", run.ranked_clients[-1:]),
        )
        for row in rows
    ]
    return (
        f"{title} Accuracy of {len(run.by_accuracy)} hospitals as dots, by tier: "
        f"mean {mean}{''.join(ends)}."
    )
