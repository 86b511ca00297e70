"""The page of one run: its header, and the order of its sections."""

import html
from collections.abc import Mapping

from fairjax.report import (
    cards,
    clients_section,
    data_section,
    final_section,
    formats,
    markup,
    principles_section,
    privacy_section,
    robust_section,
    tiers_section,
)
from fairjax.report.canvas import Image
from fairjax.report.markup import Section
from fairjax.report.run import Row, Run


def render(run: Run, images: Mapping[str, list[Image]]) -> str:
    """The HTML of the page.

    Args:
        run: the run's files, see `run.read_run`.
        images: the figures of a section by its id.
    """
    figures_by_section = {
        key: markup.figures(section_images) for key, section_images in images.items()
    }
    header = (
        f"{markup.paragraph(_subtitle(run))}"
        f"{_unfinished_notice(run)}"
        f"{_divergence_notice(run)}"
        f"{_notes(run)}"
        f"{_cards(run)}"
        f"{markup.paragraph(' '.join([_round_note(run), *cards.cautions(run)]))}"
    )
    sections = [
        Section(
            "learning",
            "Learning curves",
            _learning(run, figures_by_section["learning"]),
        ),
        Section("final", "Final figures", final_section.quality(run), optional=True),
        Section(
            "hospitals",
            "Hospitals and fairness",
            markup.figures(images["hospitals"], "figures columns")
            + clients_section.section(run),
        ),
        Section(
            "alone", "Together or alone", final_section.baselines(run), optional=True
        ),
        Section("groups", "Patient groups", final_section.groups(run), optional=True),
        Section(
            "calibration",
            "Calibration",
            figures_by_section["calibration"],
            optional=True,
        ),
        Section("weights", "Weights over time", figures_by_section["weights"]),
        Section(
            "tiers",
            "Cost per tier",
            figures_by_section["tiers"] + tiers_section.section(run),
        ),
        Section(
            "privacy",
            "Privacy",
            privacy_section.section(run) + figures_by_section["privacy"],
            optional=True,
        ),
        Section(
            "robust",
            "Faults and Byzantine hospitals",
            robust_section.section(run),
            optional=True,
        ),
        Section(
            "principles",
            "Five principles",
            principles_section.section(run),
            optional=True,
        ),
        Section("data", "Data", data_section.section(run, figures_by_section["data"])),
        Section(
            "unknown", "Not estimated", final_section.missing_counts(run), optional=True
        ),
        Section("configuration", "Configuration", _configuration(run.config)),
        Section("provenance", "Provenance", markup.pairs(run.provenance)),
    ]
    return markup.document(run.workdir.resolve().name, header, sections)


def _subtitle(run: Run) -> str:
    def name(group: str, field: str) -> str:
        return formats.plain(run.config.get(group, {}).get(field))

    return (
        f"Data {name('data', 'name')}, sub-models {name('submodel', 'name')}, "
        f"fairness rule {name('fairness', 'rule')}"
    )


def _unfinished_notice(run: Run) -> str:
    if run.finished:
        return ""
    return (
        '<p class="notice"><strong>This run is unfinished.</strong> The page shows the '
        f"{len(run.metrics)} of {html.escape(formats.plain(run.config.get('rounds')))} "
        "rounds that are logged; figures that need the finished run are missing.</p>\n"
    )


def _divergence_notice(run: Run) -> str:
    divergence = run.diverged
    if divergence is None:
        return ""
    text = (
        f"Since round {divergence['round']} {divergence['why']}. What usually helps is "
        "a smaller local.learning_rate, or local.max_grad_norm."
    )
    return (
        '<p class="notice"><strong>This run has diverged.</strong> '
        f"{html.escape(text)}</p>\n"
    )


def _notes(run: Run) -> str:
    return "".join(f'<p class="notice">{html.escape(n)}</p>\n' for n in run.notes)


def _cards(run: Run) -> str:
    items = "\n".join(
        f'<div><dt>{html.escape(card.label)}</dt><dd class="value">'
        f"{html.escape(card.value)}</dd>"
        f"<dd>{html.escape('; '.join(filter(None, card[2:])))}</dd></div>"
        for card in cards.cards(run)
    )
    return f'<dl class="cards">\n{items}\n</dl>'


def _round_note(run: Run) -> str:
    if not run.final:
        return ""
    text = f"The full model after round {run.final['round']}, the last one evaluated."
    if run.headlines:
        text += (
            " Intervals beside the worst hospital and the tier gap are over the "
            "patients of these hospitals; the lowest of several noisy figures looks "
            "worse than it is."
        )
    return text


def _learning(run: Run, figures_html: str) -> str:
    if not run.final:
        return figures_html + markup.paragraph("No round has been evaluated yet.")
    if not len(run.series("eval/auroc")[0]):
        return figures_html + markup.paragraph(
            "AUROC could not be estimated in this run."
        )
    return figures_html


def _configuration(config: Row) -> str:
    fields = len(markup.flatten(config))
    return markup.collapsible(f"All {fields} fields, as resolved", markup.pairs(config))
