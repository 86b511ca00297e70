"""The section "Faults and Byzantine hospitals".

It shows the aggregator and how many Byzantine clients it tolerates, the simulated
faults, and the clients whose updates did not all enter the model.
"""

from collections.abc import Sequence

from fairjax.report import formats, markup
from fairjax.report.run import Row, Run

_AGGREGATORS = {
    "mean": "Changes are averaged by weight: a single Byzantine hospital whose change "
    "is not bounded can move the model anywhere.",
    "median": "Every coordinate takes the median over the hospitals that hold it.",
    "trimmed_mean": "Every coordinate takes the mean over the hospitals that hold it, "
    "without the largest and the smallest changes.",
    "krum": "One hospital's change is taken, the one that lies closest to the others.",
    "multi_krum": "The changes that lie closest together are averaged by weight.",
}


def section(run: Run) -> str:
    """Defences, faults and rejected updates; "" for a run without any of them."""
    robustness = run.summary.get("robust") or {}
    is_defended = robustness.get("aggregator", "mean") != "mean" or robustness.get(
        "norm_bound"
    )
    if not run.finished or not (
        is_defended or robustness.get("faults") or robustness.get("refused")
    ):
        return ""
    words = _AGGREGATORS[robustness["aggregator"]]
    by_distance = robustness["aggregator"] in ("krum", "multi_krum")
    if by_distance:
        words += _krum_note(run.config["robust"]["num_byzantine"])
    if robustness.get("norm_bound"):
        words += (
            " The norm of a change is bounded by "
            f"{robustness['norm_bound']:g} times the usual norm in its tier."
        )
    return (
        markup.paragraph(words)
        + ("" if by_distance else _rings(robustness.get("rings") or ()))
        + _faults(robustness.get("faults") or ())
        + _rejections(robustness.get("refused") or ())
    )


def _krum_note(byzantine: int) -> str:
    """The assumption of Krum and Multi-Krum, and the limit of their guarantee."""
    return (
        f" It is assumed that at most {byzantine} hospitals of a round are Byzantine; "
        f"a round in which fewer than {2 * byzantine + 3} hospitals send finite "
        "changes leaves the model as it is. Whole changes are compared: one that lies "
        "near the others may be far from them in a single coordinate, so no number of "
        "tolerated hospitals is stated for any part of the model."
    )


def _rings(rings: Sequence[Row]) -> str:
    """How many Byzantine clients each group of coordinates tolerates."""
    if not rings:
        return ""
    rows = [
        [
            ", ".join(map(str, ring["tiers"])) or "none",
            *(formats.count(ring[name]) for name in ("parameters", "hospitals")),
            *(formats.count(ring[name]) for name in ("holders", "breakdown")),
        ]
        for ring in rings
    ]
    note = (
        "Coordinates by the tiers that hold them in the first round. Hospitals: the "
        "fewest that hold one of these coordinates; where a method draws new masks, or "
        "masks follow from labels, a coordinate may have fewer holders than its tiers "
        "have hospitals. In a cohort: the average number of these hospitals in a "
        "cohort. Byzantine tolerated: how many of them may send anything without "
        "moving the result beyond what honest hospitals send."
    )
    head = ["tiers", "parameters", "hospitals", "in a cohort", "Byzantine tolerated"]
    return markup.table(note, head, rows)


def _faults(faults: Sequence[Row]) -> str:
    if not faults:
        return ""
    rows = [
        [
            str(fault["name"]),
            formats.count(fault["hospitals"]),
            formats.percent(fault["rate"]),
            formats.plain(fault["strength"]),
        ]
        for fault in faults
    ]
    note = (
        "Faults that were simulated in this run: how many hospitals they affect, in "
        "what share of rounds, and how strongly."
    )
    return markup.table(note, ["fault", "hospitals", "in a round", "strength"], rows)


def _rejections(rejections: Sequence[Row]) -> str:
    if not rejections:
        return markup.paragraph("Every change of every hospital entered the model.")
    ranked_rows = sorted(rejections, key=lambda row: row["entered"] / row["came"])
    rows = [
        [
            str(row["client"]),
            formats.count(row["came"]),
            formats.percent(row["entered"] / row["came"]),
        ]
        for row in ranked_rows
    ]
    note = (
        "Hospitals whose changes did not all enter the model as they were sent: they "
        "were not finite, lost, bounded, or not chosen."
    )
    return markup.table(note, ["hospital", "rounds", "entered"], rows)
