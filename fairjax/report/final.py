"""The final figures: of the last round and, named apart, of the selected one."""

from collections.abc import Callable
from typing import Any

from fairjax.report import formats, markup
from fairjax.report.run import Row, Run

_OVER = {
    "mean": "mean",
    "std": "standard deviation",
    "worst": "worst",
    "worst10": "worst tenth",
    "best10": "best tenth",
    "jain": "Jain",
    "gini": "Gini",
}
_COUNTS = {"n": "test records", "positives": "positives"}


def quality(run: Run) -> str:
    """On all test records, over hospitals and by tier."""
    rows = _beside(run, "pooled", formats.estimate)
    thresholds = [figures.get("threshold") for _, figures in run.reported]
    if any(threshold is not None for threshold in thresholds):
        rows.append(["threshold", *map(formats.estimate, thresholds)])
    if not rows:
        return ""
    caption = (
        "The full model on all test records, with intervals where they were estimated. "
        "Validation records select the round, test records never do."
        f"{of_positive(run.reported[0][1])}"
    )
    content = markup.table(caption, ["figure", *(n for n, _ in run.reported)], rows)
    if note := run.summary["final"].get("note"):
        content += markup.paragraph(f"{note}.".capitalize())
    parts = (_over_hospitals, _by_tier)
    return content + "".join(part(*of) for part in parts for of in run.reported)


def of_positive(figures: Row) -> str:
    """Whose sensitivity final figures have; "" with more than two classes."""
    if figures.get("positive") is None:
        return ""
    what = "Sensitivity, specificity, AUPRC and calibration"
    return f' {what} are of the class "{figures["positive"]}".'


_MODELS = {
    "full": "the model at the server",
    "own": "its tier's own sub-model",
    "personal": "what it keeps for itself",
    "tuned": "the model after one more round at home",
    "alone": "trained alone, for as many rounds",
}


def baselines(run: Run) -> str:
    """What hospitals have together, and what each would have alone."""
    made = run.summary.get("baselines") or {} if run.finished else {}
    means, worse = made.get("mean") or {}, made.get("worse_off") or {}
    figures = dict.fromkeys(name for row in means.values() for name in row)
    if not figures:
        return ""
    rows = [
        [
            words,
            *(formats.decimal(means[model].get(name)) for name in figures),
            *(formats.percent(worse.get(model, {}).get(name)) for name in figures),
        ]
        for model, words in _MODELS.items()
        if model in means
    ]
    caption = (
        "Mean over hospitals of figures on their own test records, by model, and "
        "the share of hospitals that the model serves worse than one they would have "
        "trained alone, where both are known."
    )
    heads = ["model", *map(formats.metric, figures)]
    heads += [f"{formats.metric(name)}: worse off" for name in figures]
    return markup.table(caption, heads, rows)


def groups(run: Run) -> str:
    """By patient group, with the gaps between groups."""
    return "".join(part(*of) for part in (_members, _gaps) for of in run.reported)


def not_estimated(run: Run) -> str:
    """How many figures are unknown, by reason."""
    rows = _beside(run, "not_estimated", formats.count)
    if not rows:
        return ""
    caption = "How many figures were left open, and why."
    return markup.table(caption, ["reason", *(name for name, _ in run.reported)], rows)


def _beside(run: Run, part: str, show: Callable[[Any], str]) -> list[list[str]]:
    """A row for every key of a part, a cell for every round."""
    parts = [figures.get(part) or {} for _, figures in run.reported]
    keys = dict.fromkeys(key for of_round in parts for key in of_round)
    return [
        [formats.metric(key), *(show(of_round.get(key)) for of_round in parts)]
        for key in keys
    ]


def _large(figures: Row) -> str:
    """Who may be the worst; "" for a run that does not say."""
    headlines = figures.get("headlines")
    if not headlines:
        return ""
    few = ", ".join(
        f"{row['client']} ({row['n']})" for row in headlines["below"]["clients"][:20]
    )
    return (
        " Worst and best are of hospitals with at least "
        f"{headlines['min_test_records']} test records"
        + (f", that is without {few}" if few else "")
        + "; the interval is of the worst one's patients."
    )


def _over_hospitals(name: str, figures: Row) -> str:
    rows = [
        [formats.metric(key), *(_over_cell(row, k) for k in _OVER)]
        for key, row in (figures.get("over_clients") or {}).items()
    ]
    if not rows:
        return ""
    caption = (
        f"Over hospitals, {name}: worst and best tenth as means, with the number of "
        "hospitals rounded up; where all are equal Jain's index is 1 and Gini's 0."
        f"{_large(figures)}"
        f"{of_positive(figures)}"
    )
    return markup.table(caption, ["figure", *_OVER.values()], rows)


def _over_cell(row: Row, key: str) -> str:
    """A figure over hospitals; the worst with whose it is, its records and interval."""
    text, of = formats.decimal(row.get(key)), row.get("worst_client")
    if key != "worst" or not of:
        return text
    whose = f"{of['client']}, {formats.count(of['n'])} records"
    return f"{formats.estimate(of)}, {whose}"


def _by_tier(name: str, figures: Row) -> str:
    """Two rows a tier: the full model and, where it is known, the tier's own."""
    tiers = figures.get("tiers") or []
    named = ("tier", "n", "own")
    keys = dict.fromkeys(key for row in tiers for key in row if key not in named)
    rows = [
        [
            f"{row['tier']}, {model}",
            formats.count(row.get("n")),
            *(formats.estimate(values.get(key)) for key in keys),
        ]
        for row in tiers
        for model, values in (("full", row), ("own", row.get("own")))
        if values
    ]
    if not rows:
        return ""
    caption = (
        f"By tier, {name}: the full model and the tier's own sub-model on the test "
        f"records of the tier's hospitals.{of_positive(figures)}"
    )
    heads = ["tier", "test records", *map(formats.metric, keys)]
    return markup.table(caption, heads, rows)


def _members(name: str, figures: Row) -> str:
    attributes = figures.get("groups") or {}
    members = [row for values in attributes.values() for row in values.values()]
    keys = dict.fromkeys(key for row in members for key in row if key not in _COUNTS)
    rows = []
    for attribute, values in attributes.items():
        rows.append([attribute])
        for value, row in values.items():
            cells = [formats.count(row.get(key)) for key in _COUNTS]
            cells += [formats.estimate(row.get(key)) for key in keys]
            rows.append([value, *cells])
    if not rows:
        return ""
    caption = (
        f"Patient groups, {name}: the full model on the test records of a group in all "
        f"hospitals, with intervals where they were estimated.{of_positive(figures)}"
    )
    heads = ["group", *_COUNTS.values(), *map(formats.metric, keys)]
    return markup.table(caption, heads, rows)


def _gaps(name: str, figures: Row) -> str:
    gaps = figures.get("gaps") or {}
    keys = dict.fromkeys(key for values in gaps.values() for key in values)
    rows = [
        [attribute, *(formats.estimate(values.get(key)) for key in keys)]
        for attribute, values in gaps.items()
    ]
    if not rows:
        return ""
    caption = (
        f"Between the groups of an attribute, {name}: at parity a difference is 0 and "
        f"a ratio 1. Groups that are too small are left out.{of_positive(figures)}"
    )
    return markup.table(caption, ["attribute", *map(formats.metric, keys)], rows)
