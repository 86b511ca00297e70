"""What a run withstands, what was made to go wrong in it, and whom it left out."""

from collections.abc import Sequence

from fairjax.report import formats, markup
from fairjax.report.run import Row, Run

_FOLDS = {
    "mean": "Changes are averaged by weight: a single liar that is not bounded moves "
    "the model anywhere.",
    "median": "Every coordinate takes the median over the hospitals that hold it.",
    "trimmed_mean": "Every coordinate takes the mean over the hospitals that hold it, "
    "without the largest and the smallest changes.",
    "krum": "One hospital's change is taken, the one that lies closest to the others.",
    "multi_krum": "The changes that lie closest together are averaged by weight.",
}


def section(run: Run) -> str:
    """Defence, faults and who was left out; nothing of a run without any of them."""
    told = run.summary.get("robust") or {}
    defended = told.get("fold", "mean") != "mean" or told.get("norm_bound")
    if not run.finished or not (defended or told.get("faults") or told.get("refused")):
        return ""
    words = _FOLDS[told["fold"]]
    by_distance = told["fold"] in ("krum", "multi_krum")
    if by_distance:
        words += _of_a_cohort(run.config["robust"]["hostile"])
    if told.get("norm_bound"):
        words += (
            f" No change is longer than {told['norm_bound']:g} times what was usual in "
            "its tier."
        )
    return (
        markup.paragraph(words)
        + ("" if by_distance else _rings(told.get("rings") or ()))
        + _faults(told.get("faults") or ())
        + _refused(told.get("refused") or ())
    )


def _of_a_cohort(hostile: int) -> str:
    """What Krum and Multi-Krum assume, and what does not follow from it."""
    return (
        f" It is assumed that at most {hostile} of a round's hospitals lie; a round in "
        f"which fewer than {2 * hostile + 3} send numbers changes nothing. Changes are "
        "compared as wholes: one that lies near the others may be far from them in a "
        "single coordinate, so no number of liars is stated for any part of the model."
    )


def _rings(rings: Sequence[Row]) -> str:
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
        "fewest that hold one of them; a method that draws anew, or masks that follow "
        "from labels, leave single coordinates to fewer than their tiers have. In a "
        "cohort: how many of those are in one on average. Liars borne: how many of "
        "them may send anything without moving the result beyond what honest ones send."
    )
    head = ["tiers", "parameters", "hospitals", "in a cohort", "liars borne"]
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
    note = "What was made to go wrong in this run, to how many hospitals, how often."
    return markup.table(note, ["fault", "hospitals", "in a round", "strength"], rows)


def _refused(refused: Sequence[Row]) -> str:
    if not refused:
        return markup.paragraph("Every change of every hospital entered the model.")
    worst = sorted(refused, key=lambda row: row["entered"] / row["came"])
    rows = [
        [
            str(row["client"]),
            formats.count(row["came"]),
            formats.percent(row["entered"] / row["came"]),
        ]
        for row in worst
    ]
    note = (
        "Hospitals whose changes did not all enter the model as they were sent: not "
        "finite, lost on the way, bounded, or not chosen."
    )
    return markup.table(note, ["hospital", "rounds", "entered"], rows)
