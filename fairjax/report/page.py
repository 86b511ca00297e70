"""The page of one run."""

import html
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fairjax.report import figures, final, formats, markup, principles, privacy, robust
from fairjax.report.canvas import Image
from fairjax.report.markup import Section
from fairjax.report.run import Row, Run

WORST, BEST = 20, 5
"""Hospitals that the table keeps from each end when there are too many to list."""
MARK = "\N{DAGGER}"
"""Beside numbers of records that are too few."""

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
    detail: str = ""
    """What belongs to the value wherever it is shown."""


def cards(run: Run) -> list[Card]:
    """What the run came to, most important first."""
    final, planned = run.final, run.config.get("rounds")
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
            detail=_worst(run),
        ),
        Card(
            "tier gap",
            formats.points(final.get("eval/accuracy/tier_gap")),
            "lowest minus highest tier",
            _gap(run),
        ),
        Card("rounds", done if run.finished else f"{done} of {formats.plain(planned)}"),
        Card("rounds/s", formats.MISSING if speed is None else f"{speed:.3g}"),
    ]
    untrained = run.summary.get("untrained") or {}
    if untrained.get("share"):
        share = formats.percent(untrained["share"])
        result.append(Card("untrained", share, "of the full model"))
    if "privacy/epsilon" in final:
        told = run.summary.get("privacy") or {}
        spent, unit = final["privacy/epsilon"], told.get("unit")
        value = "none holds" if spent is None else f"{spent:.3g}"
        value += f" of one {unit}" if unit and spent is not None else ""
        note = f"δ = {formats.plain(told.get('delta'))}; what it covers: see Privacy"
        result.append(Card("ε", value, note))
    return result


def _worst(run: Run) -> str:
    """Which hospital it is, by how many records, and how sure that is."""
    if not run.judged:
        return f"no hospital has {run.least} test records" if run.clients else ""
    row = run.judged[0]
    said = [str(row["client"]), f"{row['n']} test records"]
    return ", ".join(said + _interval(run, "client_worst", formats.percent))


def _gap(run: Run) -> str:
    found = run.headlines.get("tier_gap") or {}
    if "why" in found:
        return found["why"]
    said = []
    if found:
        said = [f"{' and '.join(map(str, found['n']))} test records"]
    return ", ".join(said + _interval(run, "tier_gap", formats.points))


def _interval(run: Run, name: str, show: Callable[[formats.Number], str]) -> list[str]:
    found = run.headlines.get(name) or {}
    if found.get("low") is None:
        return []
    return [f"{show(found['low'])} to {show(found['high'])}"]


def cautions(run: Run) -> list[str]:
    """What a reader of the headline must know besides: sentences, most without one."""
    few = [row for row in run.clients if run.small(row)]
    said = []
    if few:
        named = [f"{row['client']} ({row['n']})" for row in few[:WORST]]
        more = [f"{len(few) - WORST} more"] if len(few) > WORST else []
        said.append(
            f"Fewer than {run.least} test records, so never called the worst: "
            f"{', '.join(named + more)}."
        )
    if run.small_tiers:
        tiers = ", ".join(map(str, run.small_tiers))
        said.append(
            f"Fewer than {run.least} test records together, so in no gap: tier {tiers}."
        )
    return said


def render(run: Run, images: Mapping[str, list[Image]]) -> str:
    """The page as text.

    Args:
        run: what the run left behind.
        images: section id -> its figures.
    """
    drawn = {key: markup.figures(of_section) for key, of_section in images.items()}
    header = (
        f"{markup.paragraph(_subtitle(run))}{_unfinished(run)}{_diverged(run)}"
        f"{_notes(run)}"
        f"{_cards(run)}"
        f"{markup.paragraph(' '.join([_which_round(run), *cautions(run)]))}"
    )
    sections = [
        Section("learning", "Learning curves", _learning(run, drawn["learning"])),
        Section("final", "Final figures", final.quality(run), optional=True),
        Section(
            "hospitals",
            "Hospitals and fairness",
            markup.figures(images["hospitals"], "figures columns") + _hospitals(run),
        ),
        Section("alone", "Together or alone", final.baselines(run), optional=True),
        Section("groups", "Patient groups", final.groups(run), optional=True),
        Section("calibration", "Calibration", drawn["calibration"], optional=True),
        Section("weights", "Weights over time", drawn["weights"]),
        Section("tiers", "Cost per tier", drawn["tiers"] + _tiers(run)),
        Section(
            "privacy",
            "Privacy",
            privacy.section(run) + drawn["privacy"],
            optional=True,
        ),
        Section("robust", "Faults and liars", robust.section(run), optional=True),
        Section("principles", "Five principles", _principles(run), optional=True),
        Section("data", "Data", _data(run, drawn["data"])),
        Section("unknown", "Not estimated", final.not_estimated(run), optional=True),
        Section("configuration", "Configuration", _configuration(run.config)),
        Section("provenance", "Provenance", markup.pairs(run.provenance)),
    ]
    return markup.document(run.workdir.resolve().name, header, sections)


# ----------------------------------------------------------------------------- sections


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


def _diverged(run: Run) -> str:
    found = run.diverged
    if found is None:
        return ""
    said = (
        f"Since round {found['round']} {found['why']}. What usually helps is a smaller "
        "local.learning_rate, or local.clip."
    )
    return (
        '<p class="notice"><strong>This run has diverged.</strong> '
        f"{html.escape(said)}</p>\n"
    )


def _notes(run: Run) -> str:
    return "".join(f'<p class="notice">{html.escape(n)}</p>\n' for n in run.notes)


def _cards(run: Run) -> str:
    items = "\n".join(
        f'<div><dt>{html.escape(card.label)}</dt><dd class="value">'
        f"{html.escape(card.value)}</dd>"
        f"<dd>{html.escape('; '.join(filter(None, card[2:])))}</dd></div>"
        for card in cards(run)
    )
    return f'<dl class="cards">\n{items}\n</dl>'


def _which_round(run: Run) -> str:
    if not run.final:
        return ""
    said = f"The full model after round {run.final['round']}, the last one evaluated."
    if run.headlines:
        said += (
            " Intervals beside the worst hospital and the gap are of these hospitals' "
            "patients; the lowest of several noisy figures looks worse than it is."
        )
    return said


def _learning(run: Run, drawn: str) -> str:
    if not run.final:
        return drawn + markup.paragraph("No round has been evaluated yet.")
    if not len(run.series("eval/auroc")[0]):
        return drawn + markup.paragraph("AUROC could not be estimated in this run.")
    return drawn


def _hospitals(run: Run) -> str:
    if not run.clients:
        return ""
    finals = run.reported[0][1].get("clients") or () if run.reported else ()
    more = {row["client"]: row for row in finals}
    keys = dict.fromkeys(key for row in finals for key in row)
    extra = [key for key in keys if key not in run.clients[0]]
    known = run.by_accuracy
    unknown = [row for row in run.clients if row.get("accuracy") is None]
    round = run.clients[0]["round"]

    def cells(row: Row) -> list[str]:
        rest = more.get(row["client"], {})
        return _hospital(run, row) + [formats.estimate(rest.get(key)) for key in extra]

    note = f"Full model on each hospital's own test records after round {round}"
    if len(run.clients) <= figures.NAMED:
        rows = [cells(row) for row in known + unknown]
        note += ", worst accuracy first."
    else:
        large = run.judged
        skipped = large[WORST : max(len(large) - BEST, WORST)]
        rows = [cells(row) for row in large[:WORST]]
        if skipped:
            rows.append([f"… {len(skipped)} hospitals in between"])
        rows += [cells(row) for row in large[WORST + len(skipped) :]]
        if few := len(known) - len(large):
            rows.append([f"… {few} hospitals with fewer than {run.least} records"])
        note += (
            f": the {WORST} worst and the {BEST} best of {len(run.clients)} hospitals "
            "by accuracy. clients.jsonl holds all of them."
        )
        if unknown:
            note += f" {len(unknown)} have no estimate."
    if any(map(run.small, run.clients)):
        note += (
            f" Those marked {MARK} have fewer than {run.least} test records: their "
            "figures say little, and they are last."
        )
    if extra:
        note += final.of_positive(run.reported[0][1])
    note += (
        " Weight: in the average of that round, unknown for a hospital not in its "
        "cohort. Own sub-model: the one that its tier can carry."
    )
    head = ["hospital", "tier", "test records", "weight", "accuracy"]
    head += ["own sub-model", "AUROC", "loss", *map(formats.metric, extra)]
    return markup.table(note, head, rows)


def _hospital(run: Run, row: Row) -> list[str]:
    mark = f" {MARK}" if run.small(row) else ""
    return [
        str(row["client"]),
        formats.plain(row.get("tier")),
        formats.count(row.get("n")) + mark,
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
    return markup.table(note, head, rows) + _simulated(run)


def _simulated(run: Run) -> str:
    """What the run cost the computer that simulated all hospitals."""
    spent = {name: run.summary.get(name) or {} for name in ("simulation", "time")}
    if not run.finished or not any(spent.values()):
        return ""
    said = "What simulating all hospitals cost this computer."
    return markup.paragraph(said) + markup.pairs(spent)


def _principles(run: Run) -> str:
    # In an unfinished run the summary may be that of its shorter past.
    if not run.finished or not run.summary.get("principles"):
        return ""
    formula = "formula"
    head = ["measure", *(f"tier {tier['tier']}" for tier in run.tiers), "all", formula]
    return markup.table(principles.NOTE, head, principles.rows(run), text=formula)


def _data(run: Run, drawn: str) -> str:
    data = run.summary.get("data", {})
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
        + markup.table("Records of all hospitals", ["split", "records"], rows)
        + drawn
        + _held(run)
        + markup.pairs(facts)
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _held(run: Run) -> str:
    """What every hospital holds; folded away where there are many."""
    if not run.hospitals:
        return ""
    splits = ("train", "val", "test")
    classes = list(run.hospitals[0].get("classes") or ())
    groups = {
        f"{attribute}: {value}": (attribute, value)
        for row in run.hospitals
        for attribute, values in (row.get("groups") or {}).items()
        for value in values
    }
    rows = []
    for row in run.hospitals:
        cells = [row.get(split) for split in splits]
        cells += [(row.get("classes") or {}).get(name) for name in classes]
        held = row.get("groups") or {}
        cells += [held.get(name, {}).get(value) for name, value in groups.values()]
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
    if len(rows) <= figures.NAMED:
        return table
    return markup.folded(f"Records of all {len(rows)} hospitals", table)


def _configuration(config: Row) -> str:
    fields = len(markup.flat(config))
    return markup.folded(f"All {fields} fields, as resolved", markup.pairs(config))
