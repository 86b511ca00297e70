"""The section "Five principles": a row per figure, with its formula."""

from collections.abc import Callable
from typing import Any

from fairjax.report import formats, markup
from fairjax.report.run import Run

NOTE = (
    "The names of the principles are those of Zhang et al. 2025; the definitions are "
    "this project's operational ones. r runs over rounds, p over the P parameters of "
    "the plain model, i over hospitals, t and s over tiers. m_t is the update mask of "
    "tier t, taken from its first hospital after the last round, without what the "
    "tier keeps to itself. A budget is a sub-model's size in its method's own terms: "
    "outputs that are never cut and units rounded up can lift a cost above it."
)


def section(run: Run) -> str:
    """The table of principles; "" for a run that does not record them.

    An unfinished run has none: its summary may be that of an earlier, shorter run.
    """
    if not run.finished or not run.summary.get("principles"):
        return ""
    formula = "formula"
    head = ["measure", *(f"tier {tier['tier']}" for tier in run.tiers), "all", formula]
    return markup.table(NOTE, head, rows(run), text=formula)


def rows(run: Run) -> list[list[str]]:
    """The table's rows: name, every tier, all tiers, formula; or a principle's name.

    A cell is empty where the formula is not defined for a tier, or for all tiers.

    Args:
        run: a finished run.
    """
    return [
        ["Equal opportunity"],
        *_opportunity_rows(run),
        ["Fair contribution"],
        *_contribution_rows(run),
        ["Shared fruits"],
        *_shared_fruits_rows(run),
        ["Equal accuracy"],
        *_equal_accuracy_rows(run),
        ["Sustainability"],
        *_sustainability_rows(run),
    ]


def _opportunity_rows(run: Run) -> list[list[str]]:
    opportunity = run.summary["principles"]["opportunity"]

    def cost_row(title: str, name: str) -> list[str]:
        shares = zip(
            opportunity["cost"][name], opportunity["within"][name], strict=True
        )
        formula = f"{title} / those of the plain model, within: ≤ budget"
        return _tier_row(title, formula, list(shares), _budget_cell)

    return [
        _tier_row(
            "participation",
            "Σ_r slots whose change entered the model / Σ_r slots drawn",
            opportunity["participation"],
            formats.percent,
        ),
        _tier_row(
            "hospitals reached",
            "hospitals whose change entered at least once / hospitals of t",
            opportunity["hospitals"],
            formats.percent,
        ),
        _tier_row(
            "budget",
            "tiers.budget; 1 for a tier with branches",
            opportunity["budget"],
            formats.percent,
        ),
        cost_row("parameters", "parameters"),
        cost_row("training FLOPs", "flops_train"),
        cost_row("activation floats", "activation_floats"),
    ]


def _contribution_rows(run: Run) -> list[list[str]]:
    contribution = run.summary["principles"]["contribution"]
    return [
        _tier_row(
            "weight W_t",
            "mean over r of the aggregation weights of t, added up",
            contribution["weight"],
            formats.percent,
        ),
        _tier_row(
            "effective weight",
            "mean over p of W_t m_t[p] / Σ_s W_s m_s[p], where some tier covers p",
            contribution["effective_weight"],
            formats.percent,
        ),
        _tier_row(
            "coverage", "Σ_p m_t[p] / P", contribution["coverage"], formats.percent
        ),
    ]


def _shared_fruits_rows(run: Run) -> list[list[str]]:
    fruits = run.summary["principles"]["shared_fruits"]
    return [
        _tier_row(
            "plain model deployed",
            "bytes of what t deploys = bytes of the plain model",
            fruits["identical"],
            lambda is_identical: "yes" if is_identical else "no",
        ),
        _overall_row(
            run,
            "hospitals with it",
            "hospitals of these tiers / all hospitals",
            formats.percent(fruits["hospitals"]),
        ),
        _overall_row(
            run,
            "plain model",
            "SHA-256 of its parameters; summary.json holds all of it",
            formats.shorten(fruits["sha256"], 13),
        ),
    ]


def _equal_accuracy_rows(run: Run) -> list[list[str]]:
    accuracy = run.summary["principles"]["equal_accuracy"]
    size_note = f", with ≥ {run.min_test_records} test records"
    return [
        _overall_row(
            run,
            "standard deviation",
            "over i of a_i, the full model's accuracy at i after the last round",
            formats.percent(accuracy["std"]),
        ),
        _overall_row(
            run,
            "worst hospital",
            f"min_i a_i{size_note}",
            formats.percent(accuracy["worst"]),
        ),
        _overall_row(
            run,
            "worst tenth",
            f"mean of the lowest tenth of a_i, rounded up{size_note}",
            formats.percent(accuracy["worst10"]),
        ),
        _overall_row(
            run,
            "Jain's index",
            "(Σ a_i)² / (N Σ a_i²)",
            formats.decimal(accuracy["jain"]),
        ),
        _overall_row(
            run,
            "entropy",
            "Σ q_i log(1 / q_i) / log N, with q_i = a_i / Σ a_i",
            formats.decimal(accuracy["entropy"]),
        ),
        _overall_row(
            run,
            "range over tiers",
            "largest less smallest mean of a_i over the hospitals of a tier"
            f"{size_note}",
            formats.percent(accuracy["tier_range"]),
        ),
    ]


def _sustainability_rows(run: Run) -> list[list[str]]:
    sustainability = run.summary["principles"]["sustainability"]
    return [
        *(
            _tier_row(
                name,
                "Σ_r slots trained · bytes of one hospital in one round",
                sustainability[key],
                lambda value: formats.si(value, "B"),
            )
            for name, key in (("bytes down", "bytes_down"), ("bytes up", "bytes_up"))
        ),
        _tier_row(
            "training FLOPs",
            "Σ_r records · FLOPs of one record + local steps · FLOPs of one step",
            sustainability["flops_train"],
            formats.si,
        ),
        _overall_row(
            run,
            "rounds to 95 %",
            "first r with ≥ 95 % of the best accuracy on all test records",
            formats.count(sustainability["rounds_to_95_percent"]),
        ),
    ]


def _tier_row(
    name: str, formula: str, values: list[Any], show: Callable[[Any], str]
) -> list[str]:
    """A figure with a value per tier and none for all tiers together."""
    return [name, *map(show, values), "", formula]


def _overall_row(run: Run, name: str, formula: str, value: str) -> list[str]:
    """A figure with one value for all tiers together and none per tier."""
    return [name, *[""] * len(run.tiers), value, formula]


def _budget_cell(cost: tuple[float | None, bool | None]) -> str:
    share, is_within = cost
    if share is None:
        return formats.MISSING
    # The comparison is written in words because a rounded share just above a budget
    # reads like the budget.
    return f"{formats.percent(share)} {'within' if is_within else 'over'}"
