"""One page that holds the whole run: no network, no script, every text escaped."""

import base64
import html
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fairjax.report import figures, formats, principles
from fairjax.report.canvas import Image
from fairjax.report.run import Row, Run

WORST, BEST = 20, 5
"""Hospitals that the table keeps from each end when there are too many to list."""

_NORMALISATION = {
    "pooled": "Features are standardised by all training records together.",
    "client": "Features are standardised by each hospital's own training records.",
    "none": "Features are used as they are, without normalisation.",
}


class Card(NamedTuple):
    """One figure of the headline."""

    label: str
    value: str
    note: str = ""


def cards(run: Run) -> list[Card]:
    """What the run came to, most important first."""
    final, planned = run.final, run.config.get("rounds")
    worst = run.by_accuracy[0]["client"] if run.by_accuracy else ""
    done = formats.count(len(run.metrics))
    speed = run.summary.get("time", {}).get("rounds_per_s") if run.finished else None
    result = [
        Card(
            "accuracy", formats.percent(final.get("eval/accuracy")), "all test records"
        ),
        Card("AUROC", formats.decimal(final.get("eval/auroc")), "all test records"),
        Card("loss", formats.decimal(final.get("eval/loss")), "nats per record"),
        Card(
            "worst hospital",
            formats.percent(final.get("eval/accuracy/client_worst")),
            str(worst),
        ),
        Card(
            "tier gap",
            formats.points(final.get("eval/accuracy/tier_gap")),
            "lowest minus highest tier",
        ),
        Card("rounds", done if run.finished else f"{done} of {formats.plain(planned)}"),
        Card("rounds/s", formats.MISSING if speed is None else f"{speed:.3g}"),
    ]
    if final.get("privacy/epsilon") is not None:
        delta = run.summary.get("privacy", {}).get("delta")
        note = f"δ = {formats.plain(delta)}"
        result.append(Card("ε", f"{final['privacy/epsilon']:.3g}", note))
    return result


def render(run: Run, images: Mapping[str, list[Image]]) -> str:
    """The page as text.

    Args:
        run: what the run left behind.
        images: section id -> its figures.
    """
    name = run.workdir.resolve().name
    style = pathlib.Path(__file__).with_name("page.css").read_text()
    sections = [
        ("learning", "Learning curves", _learning(run, images["learning"])),
        ("tiers", "Tiers", _tiers(run)),
        ("hospitals", "Hospitals and fairness", _hospitals(run, images["hospitals"])),
        ("privacy", "Privacy", _pairs(run.summary.get("privacy", {}))),
        ("principles", "Five principles", _principles(run)),
        ("data", "Data", _data(run.summary.get("data", {}))),
        ("configuration", "Configuration", _configuration(run.config)),
        ("provenance", "Provenance", _pairs(run.provenance)),
    ]
    optional = ("privacy", "principles")
    body = "\n".join(
        f'<section id="{key}">\n<h2>{title}</h2>\n{content or _NOTHING}\n</section>'
        for key, title, content in sections
        if content or key not in optional
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)} &ndash; fairjax</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{html.escape(name)}</h1>
<p class="soft">{html.escape(_subtitle(run))}</p>
{_unfinished(run)}{_cards(run)}
</header>
<main>
{body}
</main>
<footer><p class="soft">“&ndash;” stands for a value that was not estimated or not \
recorded.</p></footer>
</body>
</html>
"""


# ----------------------------------------------------------------------------- sections


_NOTHING = '<p class="soft">Nothing recorded.</p>'


def _subtitle(run: Run) -> str:
    def name(group: str, field: str) -> str:
        return formats.plain(run.config.get(group, {}).get(field))

    return (
        f"Data {name('data', 'name')}, sub-models {name('submodel', 'name')}, "
        f"fairness rule {name('fairness', 'rule')}"
    )


def _unfinished(run: Run) -> str:
    if run.finished:
        return ""
    return (
        '<p class="notice"><strong>This run is unfinished.</strong> The page shows the '
        f"{len(run.metrics)} of {html.escape(formats.plain(run.config.get('rounds')))} "
        "rounds that are logged; what is only known at the end is left open.</p>\n"
    )


def _cards(run: Run) -> str:
    items = "\n".join(
        f'<div><dt>{html.escape(card.label)}</dt><dd class="value">'
        f"{html.escape(card.value)}</dd><dd>{html.escape(card.note)}</dd></div>"
        for card in cards(run)
    )
    return f'<dl class="cards">\n{items}\n</dl>'


def _learning(run: Run, images: list[Image]) -> str:
    note = ""
    if not run.final:
        note = '<p class="soft">No round has been evaluated yet.</p>\n'
    elif not len(run.series("eval/auroc")[0]):
        note = '<p class="soft">AUROC could not be estimated in this run.</p>\n'
    return _figures(images) + note


def _hospitals(run: Run, images: list[Image]) -> str:
    drawn = _figures(images, "figures columns")
    if not run.clients:
        return drawn
    known = run.by_accuracy
    unknown = [row for row in run.clients if row.get("accuracy") is None]
    round = run.clients[0]["round"]
    note = f"Full model on each hospital's own test records after round {round}"
    if len(run.clients) <= figures.NAMED:
        rows = [_hospital(row) for row in known + unknown]
        note += ", worst accuracy first."
    else:
        skipped = known[WORST : max(len(known) - BEST, WORST)]
        rows = [_hospital(row) for row in known[:WORST]]
        if skipped:
            rows.append([f"… {len(skipped)} hospitals in between"])
        rows += [_hospital(row) for row in known[WORST + len(skipped) :]]
        note += (
            f": the {WORST} worst and the {BEST} best of {len(run.clients)} hospitals "
            "by accuracy. clients.jsonl holds all of them."
        )
        if unknown:
            note += f" {len(unknown)} have no estimate."
    note += (
        " Weight: in the average of that round, unknown for a hospital not in its "
        "cohort. Own sub-model: the one that its tier can carry."
    )
    head = ["hospital", "tier", "test records", "weight", "accuracy"]
    head += ["own sub-model", "AUROC", "loss"]
    return drawn + _table(note, head, rows)


def _hospital(row: Row) -> list[str]:
    return [
        str(row["client"]),
        formats.plain(row.get("tier")),
        formats.count(row.get("n")),
        formats.percent(row.get("weight")),
        formats.percent(row.get("accuracy")),
        formats.percent(row.get("own_accuracy")),
        formats.decimal(row.get("auroc")),
        formats.decimal(row.get("loss")),
    ]


def _tiers(run: Run) -> str:
    costs = [
        ("parameters", "parameters", formats.count),
        ("flops_forward", "FLOPs forward", formats.si),
        ("flops_train", "FLOPs training", formats.si),
        ("activation_floats", "activation floats", formats.si),
        ("optimizer_floats", "optimiser floats", formats.si),
        ("bytes_down", "bytes down", lambda value: formats.si(value, "B")),
        ("bytes_up", "bytes up", lambda value: formats.si(value, "B")),
    ]
    # Not every method has branches and not every cost is counted for every model.
    needed = ("parameters", "bytes_down", "bytes_up")
    costs = [
        cost
        for cost in costs
        if cost[0] in needed or any(tier.get(cost[0]) is not None for tier in run.tiers)
    ]
    head = [
        "tier",
        "budget",
        "branches",
        "hospitals",
        *(title for _, title, _ in costs),
    ]
    head += ["full model, local", "sub-model, local", "sub-model, pooled"]
    rows = [
        [
            str(tier["tier"]),
            formats.plain(tier.get("budget")),
            formats.plain(tier.get("branches")),
            formats.count(tier.get("clients")),
            *(show(tier.get(key)) for key, _, show in costs),
            *(formats.percent(value) for value in run.tier_accuracies(tier)),
        ]
        for tier in run.tiers
    ]
    note = (
        "What one hospital of a tier pays (bytes: in one round) and the accuracy it "
        "gets from the full model and from the tier's own sub-model. Local: mean over "
        "the tier's hospitals; pooled: all test records. Tier 0 is the smallest."
    )
    return _table(note, head, rows)


def _principles(run: Run) -> str:
    # In an unfinished run the summary may be that of its shorter past.
    if not run.finished or not run.summary.get("principles"):
        return ""
    formula = "formula"
    head = ["measure", *(f"tier {tier['tier']}" for tier in run.tiers), "all", formula]
    return _table(principles.NOTE, head, principles.rows(run), text=formula)


def _data(data: Row) -> str:
    if not data:
        return ""
    way = formats.plain(data.get("normalise"))
    sentence = _NORMALISATION.get(way, f"Normalisation: {way}.")
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
        + _table("Records of all hospitals", ["split", "records"], rows)
        + _pairs(facts)
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _configuration(config: Row) -> str:
    fields = len(_flat(config))
    return (
        f"<details><summary>All {fields} fields, as resolved</summary>\n"
        f"{_pairs(config)}</details>"
    )


# ------------------------------------------------------------------------------- pieces


def _figures(images: list[Image], layout: str = "figures") -> str:
    def one(image: Image) -> str:
        source = base64.b64encode(image.png).decode()
        return (
            f'<figure><img src="data:image/png;base64,{source}" '
            f'alt="{html.escape(image.alt)}">'
            f"<figcaption>{html.escape(image.caption)}</figcaption></figure>"
        )

    if not images:
        return ""
    return f'<div class="{layout}">\n' + "\n".join(map(one, images)) + "\n</div>\n"


def _table(
    caption: str, head: list[str], rows: list[list[str]], text: str | None = None
) -> str:
    """A table in its own scrolling box; a row of one cell spans all columns.

    `text` is the column of words, if there is one.
    """
    style = [' class="text"' if name == text else "" for name in head]

    def one(row: list[str]) -> str:
        if len(row) == 1 < len(head):
            cell = html.escape(row[0])
            return f'<tr><td class="gap" colspan="{len(head)}">{cell}</td></tr>'
        cells = "".join(
            f"<td{kind}>{html.escape(cell)}</td>"
            for kind, cell in zip(style[1:], row[1:], strict=True)
        )
        return f'<tr><th scope="row">{html.escape(row[0])}</th>{cells}</tr>'

    heads = "".join(
        f'<th scope="col"{kind}>{html.escape(cell)}</th>'
        for kind, cell in zip(style, head, strict=True)
    )
    body = "\n".join(map(one, rows))
    return (
        f'<p class="soft">{html.escape(caption)}</p>\n'
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n"
    )


def _pairs(values: Row) -> str:
    """Names and values of a nested mapping as a table; nothing for an empty one."""
    if not values:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f'<td class="text">{html.escape(formats.plain(value))}</td></tr>'
        for name, value in _flat(values).items()
    )
    return (
        '<div class="scroll" tabindex="0"><table><tbody>\n'
        f"{rows}\n</tbody></table></div>\n"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups under dotted names, as they are written on the command line."""
    result = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result
