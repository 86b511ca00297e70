"""The headline figures of a run, and the cautions that go with them."""

from collections.abc import Callable
from typing import NamedTuple

from fairjax.report import clients_section, formats
from fairjax.report.run import Run


class Card(NamedTuple):
    """One figure of the headline."""

    label: str
    value: str
    note: str = ""
    """An explanation that only the page shows."""
    detail: str = ""
    """A qualification that is shown wherever the value is shown."""


def cards(run: Run) -> list[Card]:
    """The headline figures, most important first."""
    final, planned_rounds = run.final, run.config.get("rounds")
    round_count = formats.count(len(run.metrics))
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
            detail=_worst_client(run),
        ),
        Card(
            "tier gap",
            formats.points(final.get("eval/accuracy/tier_gap")),
            "lowest minus highest tier",
            _tier_gap(run),
        ),
        Card(
            "rounds",
            round_count
            if run.finished
            else f"{round_count} of {formats.plain(planned_rounds)}",
        ),
        Card("rounds/s", formats.MISSING if speed is None else f"{speed:.3g}"),
    ]
    untrained = run.summary.get("untrained") or {}
    if untrained.get("share"):
        share = formats.percent(untrained["share"])
        result.append(Card("untrained", share, "of the full model"))
    if "privacy/epsilon" in final:
        guarantee = run.summary.get("privacy") or {}
        epsilon, unit = final["privacy/epsilon"], guarantee.get("unit")
        value = "none holds" if epsilon is None else f"{epsilon:.3g}"
        value += f" of one {unit}" if unit and epsilon is not None else ""
        note = (
            f"δ = {formats.plain(guarantee.get('delta'))}; what it covers: see Privacy"
        )
        result.append(Card("ε", value, note))
    return result


def _worst_client(run: Run) -> str:
    """The worst hospital's name, its number of test records and the interval."""
    if not run.ranked_clients:
        return (
            f"no hospital has {run.min_test_records} test records"
            if run.clients
            else ""
        )
    row = run.ranked_clients[0]
    details = [str(row["client"]), f"{row['n']} test records"]
    return ", ".join(details + _interval(run, "client_worst", formats.percent))


def _tier_gap(run: Run) -> str:
    """The two tiers' numbers of test records and the interval, or why there is none."""
    headline = run.headlines.get("tier_gap") or {}
    if "why" in headline:
        return headline["why"]
    details = []
    if headline:
        details = [f"{' and '.join(map(str, headline['n']))} test records"]
    return ", ".join(details + _interval(run, "tier_gap", formats.points))


def _interval(run: Run, name: str, show: Callable[[formats.Number], str]) -> list[str]:
    """A headline's interval in words; an empty list if it was not estimated."""
    headline = run.headlines.get(name) or {}
    if headline.get("low") is None:
        return []
    return [f"{show(headline['low'])} to {show(headline['high'])}"]


def cautions(run: Run) -> list[str]:
    """Sentences that a reader of the headline must know; most runs have none."""
    small_clients = [row for row in run.clients if run.is_small(row)]
    sentences = []
    if small_clients:
        limit = clients_section.WORST
        labels = [f"{row['client']} ({row['n']})" for row in small_clients[:limit]]
        remainder = (
            [f"{len(small_clients) - limit} more"] if len(small_clients) > limit else []
        )
        sentences.append(
            f"Fewer than {run.min_test_records} test records, so never called the "
            f"worst: {', '.join(labels + remainder)}."
        )
    if run.small_tiers:
        tiers = ", ".join(map(str, run.small_tiers))
        sentences.append(
            f"Fewer than {run.min_test_records} test records together, so in no gap: "
            f"tier {tiers}."
        )
    return sentences
