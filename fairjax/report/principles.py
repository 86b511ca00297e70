"""The five principles as a table: a row per figure, with its formula."""

from collections.abc import Callable
from typing import Any

from fairjax.report import formats
from fairjax.report.run import Run

NOTE = (
    "The names of the principles are those of Zhang et al. 2025; the definitions are "
    "this project's operational ones. r runs over rounds, p over the P parameters of "
    "the plain model, i over hospitals, t and s over tiers. m_t is the update mask of "
    "tier t, taken from its first hospital after the last round, without what the "
    "tier keeps to itself. A budget is a sub-model's size in its method's own terms: "
    "outputs that are never cut and units rounded up can lift a cost above it."
)


def rows(run: Run) -> list[list[str]]:
    """The table's rows: name, every tier, all tiers, formula; or a principle's name.

    What a formula does not define for a tier, or for all of them, is left empty.

    Args:
        run: a finished run.
    """
    opportunity, contribution, fruits, accuracy, sustainability = (
        run.summary["principles"][name]
        for name in (
            "opportunity",
            "contribution",
            "shared_fruits",
            "equal_accuracy",
            "sustainability",
        )
    )

    large = f", with ≥ {run.least} test records"

    def tiers(
        name: str, formula: str, values: list[Any], show: Callable[[Any], str]
    ) -> list[str]:
        return [name, *map(show, values), "", formula]

    def one(name: str, formula: str, value: str) -> list[str]:
        return [name, *[""] * len(run.tiers), value, formula]

    def cost(title: str, name: str) -> list[str]:
        shares = zip(
            opportunity["cost"][name], opportunity["within"][name], strict=True
        )
        formula = f"{title} / those of the plain model, within: ≤ budget"
        return tiers(title, formula, list(shares), _held_against)

    return [
        ["Equal opportunity"],
        tiers(
            "participation",
            "Σ_r slots whose change entered the model / Σ_r slots drawn",
            opportunity["participation"],
            formats.percent,
        ),
        tiers(
            "hospitals reached",
            "hospitals whose change entered at least once / hospitals of t",
            opportunity["hospitals"],
            formats.percent,
        ),
        tiers(
            "budget",
            "tiers.budget; 1 for a tier with branches",
            opportunity["budget"],
            formats.percent,
        ),
        cost("parameters", "parameters"),
        cost("training FLOPs", "flops_train"),
        cost("activation floats", "activation_floats"),
        ["Fair contribution"],
        tiers(
            "weight W_t",
            "mean over r of the aggregation weights of t, added up",
            contribution["weight"],
            formats.percent,
        ),
        tiers(
            "effective weight",
            "mean over p of W_t m_t[p] / Σ_s W_s m_s[p], where some tier covers p",
            contribution["effective_weight"],
            formats.percent,
        ),
        tiers("coverage", "Σ_p m_t[p] / P", contribution["coverage"], formats.percent),
        ["Shared fruits"],
        tiers(
            "plain model deployed",
            "bytes of what t deploys = bytes of the plain model",
            fruits["identical"],
            lambda alike: "yes" if alike else "no",
        ),
        one(
            "hospitals with it",
            "hospitals of these tiers / all hospitals",
            formats.percent(fruits["hospitals"]),
        ),
        one(
            "plain model",
            "SHA-256 of its parameters; summary.json holds all of it",
            formats.shorten(fruits["sha256"], 13),
        ),
        ["Equal accuracy"],
        one(
            "standard deviation",
            "over i of a_i, the full model's accuracy at i after the last round",
            formats.percent(accuracy["std"]),
        ),
        one("worst hospital", f"min_i a_i{large}", formats.percent(accuracy["worst"])),
        one(
            "worst tenth",
            f"mean of the lowest tenth of a_i, rounded up{large}",
            formats.percent(accuracy["worst10"]),
        ),
        one("Jain's index", "(Σ a_i)² / (N Σ a_i²)", formats.decimal(accuracy["jain"])),
        one(
            "entropy",
            "Σ q_i log(1 / q_i) / log N, with q_i = a_i / Σ a_i",
            formats.decimal(accuracy["entropy"]),
        ),
        one(
            "range over tiers",
            f"largest less smallest mean of a_i over the hospitals of a tier{large}",
            formats.percent(accuracy["tier_range"]),
        ),
        ["Sustainability"],
        *(
            tiers(
                name,
                "Σ_r slots trained · bytes of one hospital in one round",
                sustainability[key],
                lambda value: formats.si(value, "B"),
            )
            for name, key in (("bytes down", "bytes_down"), ("bytes up", "bytes_up"))
        ),
        tiers(
            "training FLOPs",
            "Σ_r records · FLOPs of one record + local steps · FLOPs of one step",
            sustainability["flops_train"],
            formats.si,
        ),
        one(
            "rounds to 95 %",
            "first r with ≥ 95 % of the best accuracy on all test records",
            formats.count(sustainability["rounds_to_95_percent"]),
        ),
    ]


def _held_against(cost: tuple[float | None, bool | None]) -> str:
    share, within = cost
    if share is None:
        return formats.MISSING
    # In words: rounded, a share just above a budget reads like the budget.
    return f"{formats.percent(share)} {'within' if within else 'over'}"
