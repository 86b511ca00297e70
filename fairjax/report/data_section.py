"""The section "Data": the source of the records, and how many each hospital has."""

import html

from fairjax.report import figures, formats, markup
from fairjax.report.run import Run

_NORMALISATION = {
    "pooled": "Features are standardised by all training records together.",
    "client": "Features are standardised by each hospital's own training records.",
    "none": "Features are used as they are, without normalisation.",
}


def section(run: Run, figures_html: str) -> str:
    """Records of all hospitals and of each one; "" before the run has ended.

    Args:
        run: what the run left behind.
        figures_html: the section's figures, which go between the two tables.
    """
    data = run.summary.get("data", {})
    if not data:
        return ""
    normalisation = formats.plain(data.get("normalise"))
    sentence = _NORMALISATION.get(normalisation, f"Normalisation: {normalisation}.")
    splits = data.get("rows", {})
    rows = [[name, formats.count(splits.get(name))] for name in splits]
    facts = {
        "data set": data.get("name"),
        "source": data.get("source"),
        "partition": data.get("partition"),
        "hospitals": data.get("clients"),
        "classes": data.get("classes"),
        "assignment hash": data.get("hash"),
    }
    notes = "".join(
        f"<li>{html.escape(str(note))}</li>" for note in data.get("notes", [])
    )
    return (
        f"<p>{html.escape(sentence)}</p>\n"
        + markup.table("Records of all hospitals", ["split", "records"], rows)
        + figures_html
        + _client_counts(run)
        + markup.pairs(facts)
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _client_counts(run: Run) -> str:
    """Records of every hospital, in a collapsed table where there are many."""
    if not run.client_counts:
        return ""
    splits = ("train", "val", "test")
    classes = list(run.client_counts[0].get("classes") or ())
    groups = {
        f"{attribute}: {value}": (attribute, value)
        for row in run.client_counts
        for attribute, values in (row.get("groups") or {}).items()
        for value in values
    }
    rows = []
    for row in run.client_counts:
        cells = [row.get(split) for split in splits]
        cells += [(row.get("classes") or {}).get(name) for name in classes]
        group_counts = row.get("groups") or {}
        cells += [
            group_counts.get(name, {}).get(value) for name, value in groups.values()
        ]
        rows.append(
            [
                str(row["client"]),
                formats.plain(row.get("tier")),
                *map(formats.count, cells),
            ]
        )
    head = ["hospital", "tier", *splits, *classes, *groups]
    caption = (
        "Records of every hospital by split; its training records by class and by "
        "patient group."
    )
    table = markup.table(caption, head, rows)
    if len(rows) <= figures.MAX_NAMED:
        return table
    return markup.collapsible(f"Records of all {len(rows)} hospitals", table)
