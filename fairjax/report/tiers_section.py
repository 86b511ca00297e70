"""The section "Cost per tier": what a hospital pays, and the accuracy that it gets."""

from fairjax.report import formats, markup
from fairjax.report.run import Run


def section(run: Run) -> str:
    """The table of costs and accuracies by tier, and the cost of the simulation."""
    costs = [
        ("parameters", "parameters", formats.count),
        ("flops_forward", "FLOPs forward", formats.si),
        ("flops_train", "FLOPs training", formats.si),
        ("activation_floats", "activation floats", formats.si),
        ("optimizer_floats", "optimiser floats", formats.si),
        ("bytes_down", "bytes down", lambda value: formats.si(value, "B")),
        ("bytes_up", "bytes up", lambda value: formats.si(value, "B")),
    ]
    # Some costs are not counted for every model.
    required_keys = ("parameters", "bytes_down", "bytes_up")
    costs = [
        cost
        for cost in costs
        if cost[0] in required_keys
        or any(tier.get(cost[0]) is not None for tier in run.tiers)
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
    return markup.table(note, head, rows) + _simulation_cost(run)


def _simulation_cost(run: Run) -> str:
    """The cost to the computer that simulated all hospitals; "" if it is unknown."""
    costs = {name: run.summary.get(name) or {} for name in ("simulation", "time")}
    if not run.finished or not any(costs.values()):
        return ""
    text = "What it cost this computer to simulate all hospitals."
    return markup.paragraph(text) + markup.pairs(costs)
