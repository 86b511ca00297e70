"""Sections on final figures, at the last round and at the selected round.

`quality` is the section "Final figures", `baselines` "Together or alone", `groups`
"Patient groups" and `missing_counts` "Not estimated".
"""

from collections.abc import Callable
from typing import Any

from fairjax.report import formats, markup
from fairjax.report.run import Row, Run

_STATISTICS = {
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
    """Figures on all test records, over hospitals and by tier."""
    rows = _metric_rows(run, "pooled", formats.estimate)
    thresholds = [figures.get("threshold") for _, figures in run.final_rounds]
    if any(threshold is not None for threshold in thresholds):
        rows.append(["threshold", *map(formats.estimate, thresholds)])
    if not rows:
        return ""
    caption = (
        "The full model on all test records, with intervals where they were estimated. "
        "Validation records select the round, test records never do."
        f"{positive_class_note(run.final_rounds[0][1])}"
    )
    content = markup.table(caption, ["figure", *(n for n, _ in run.final_rounds)], rows)
    if note := run.summary["final"].get("note"):
        content += markup.paragraph(f"{note}.".capitalize())
    renderers = (_over_clients, _by_tier)
    return content + "".join(
        render(*final_round) for render in renderers for final_round in run.final_rounds
    )


def positive_class_note(figures: Row) -> str:
    """Names the positive class of the figures; "" with more than two classes."""
    if figures.get("positive") is None:
        return ""
    metric_names = "Sensitivity, specificity, AUPRC and calibration"
    return f' {metric_names} are of the class "{figures["positive"]}".'


_MODELS = {
    "full": "the model at the server",
    "own": "its tier's own sub-model",
    "personal": "its personalised model",
    "tuned": "the model after one more round of local training",
    "alone": "trained alone, for as many rounds",
}


def baselines(run: Run) -> str:
    """Figures of models trained together, beside those of a model trained alone."""
    results = run.summary.get("baselines") or {} if run.finished else {}
    means, worse = results.get("mean") or {}, results.get("worse_off") or {}
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
    """Figures of every patient group, and the gaps between groups."""
    return "".join(
        render(*final_round)
        for render in (_group_table, _gaps)
        for final_round in run.final_rounds
    )


def missing_counts(run: Run) -> str:
    """The number of figures that were not estimated, by reason."""
    rows = _metric_rows(run, "not_estimated", formats.count)
    if not rows:
        return ""
    caption = "How many figures were not estimated, and why."
    return markup.table(
        caption, ["reason", *(name for name, _ in run.final_rounds)], rows
    )


def _metric_rows(run: Run, section: str, show: Callable[[Any], str]) -> list[list[str]]:
    """Table rows of one part of the final figures: a row per key, a cell per round."""
    sections = [figures.get(section) or {} for _, figures in run.final_rounds]
    keys = dict.fromkeys(key for values in sections for key in values)
    return [
        [formats.metric(key), *(show(values.get(key)) for values in sections)]
        for key in keys
    ]


def _eligibility_note(figures: Row) -> str:
    """Which hospitals may be the worst; "" for a run that does not record it."""
    headlines = figures.get("headlines")
    if not headlines:
        return ""
    small_clients = ", ".join(
        f"{row['client']} ({row['n']})" for row in headlines["below"]["clients"][:20]
    )
    return (
        " Worst and best are of hospitals with at least "
        f"{headlines['min_test_records']} test records"
        + (f", that is without {small_clients}" if small_clients else "")
        + "; the interval is over the worst hospital's patients."
    )


def _over_clients(name: str, figures: Row) -> str:
    """Statistics over hospitals at one round."""
    rows = [
        [formats.metric(key), *(_statistic_cell(row, k) for k in _STATISTICS)]
        for key, row in (figures.get("over_clients") or {}).items()
    ]
    if not rows:
        return ""
    caption = (
        f"Over hospitals, {name}: worst and best tenth as means, with the number of "
        "hospitals rounded up; where all are equal Jain's index is 1 and Gini's 0."
        f"{_eligibility_note(figures)}"
        f"{positive_class_note(figures)}"
    )
    return markup.table(caption, ["figure", *_STATISTICS.values()], rows)


def _statistic_cell(row: Row, key: str) -> str:
    """One statistic; the worst one with the hospital's name, records and interval."""
    text, worst_client = formats.decimal(row.get(key)), row.get("worst_client")
    if key != "worst" or not worst_client:
        return text
    client_text = (
        f"{worst_client['client']}, {formats.count(worst_client['n'])} records"
    )
    return f"{formats.estimate(worst_client)}, {client_text}"


def _by_tier(name: str, figures: Row) -> str:
    """Two rows per tier: the full model and, where known, the tier's own sub-model."""
    tiers = figures.get("tiers") or []
    excluded_keys = ("tier", "n", "own")
    keys = dict.fromkeys(
        key for row in tiers for key in row if key not in excluded_keys
    )
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
        f"records of the tier's hospitals.{positive_class_note(figures)}"
    )
    heads = ["tier", "test records", *map(formats.metric, keys)]
    return markup.table(caption, heads, rows)


def _group_table(name: str, figures: Row) -> str:
    """A heading row per attribute, and a row per group with its figures."""
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
        "hospitals, with intervals where they were estimated."
        f"{positive_class_note(figures)}"
    )
    heads = ["group", *_COUNTS.values(), *map(formats.metric, keys)]
    return markup.table(caption, heads, rows)


def _gaps(name: str, figures: Row) -> str:
    """Differences and ratios between the groups of every attribute."""
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
        "a ratio 1. Groups that are too small are left out."
        f"{positive_class_note(figures)}"
    )
    return markup.table(caption, ["attribute", *map(formats.metric, keys)], rows)
