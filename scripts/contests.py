"""What `scripts/compare.py` compares: data sets, methods, and combinations of ours.

Budgets are equal in parameters: what a hospital of a tier trains and sends is no more
than what HeteroFL gives it there. References are not held to that.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from configs import pbc_blood28

Role = Literal["reference", "published", "ours"]


class Entry(NamedTuple):
    """A row of the table."""

    title: str
    fields: Mapping[str, Any]
    """What it changes in the contest's config."""
    role: Role = "published"
    """"reference": not within the budgets; "published"; "ours": one of several
    combinations, of which the validation split chooses one."""


class Contest(NamedTuple):
    """A data set, its hospitals, and who competes."""

    title: str
    config: Callable[[], Any]
    score: str
    """A figure of metrics.jsonl that is known per tier: what is chosen by."""
    ratios: Mapping[str, tuple[float, ...]]
    """Hospitals of the tiers, smallest first, by name."""
    entries: Mapping[str, Entry]
    rates: tuple[float, ...]
    """Learning rates that every entry is tuned over."""
    seeds: tuple[int, ...] = (0, 1, 2)
    last: int = 3
    """Evaluations at the end of a run that are averaged."""


MASKED = {"execution.form": "masked"}
"""Slices save nothing where all train the whole model, and less than branches in three
programs take to compile."""
BRANCHES = {"tiers.branches": (0, 1, 2), **MASKED}
WIDTHS = {
    "submodel.name": "heterofl",
    "submodel.heterofl.masked_loss": False,
}
"""HeteroFL's sub-models under the whole loss, which an objective can then adjust."""
LADDER = {
    "submodel.name": "ladder",
    "submodel.ladder.kinds": ("width", "width", "plain"),
    "tiers.branches": (0, 0, 2),
    **MASKED,
}
ADJUSTED = {"fairness.rule": "logit_adjust"}
ADAM = {"server.optimizer": "adam", "server.learning_rate": 0.01}

BLOOD = {
    "central": Entry(
        "one hospital with all records",
        {
            "submodel.name": "fedavg",
            "data.partition.name": "iid",
            "data.partition.num_clients": 1,
            "tiers.budget": (1.0,),
            "tiers.share": (1.0,),
            "cohort": 1,
            # As many as the nine hospitals of a round make together.
            "local.steps": 9 * 12,
            **MASKED,
        },
        "reference",
    ),
    "fedavg": Entry(
        "FedAvg: every hospital the whole model",
        {"submodel.name": "fedavg", **MASKED},
        "reference",
    ),
    "fedavg_adjusted": Entry(
        "FedAvg, logits adjusted by the hospital's labels",
        {"submodel.name": "fedavg", **ADJUSTED, **MASKED},
        "reference",
    ),
    "dynamicfl": Entry(
        "DynamicFL: the whole model, 0, 1 and 2 branches beside it",
        {"submodel.name": "dynamicfl", **BRANCHES},
        "reference",
    ),
    "matched": Entry(
        "the same learning rates without branches",
        {
            "submodel.name": "dynamicfl",
            "submodel.dynamicfl.branch_form": "matched",
            **BRANCHES,
        },
        "reference",
    ),
    "smallest": Entry(
        "FedAvg: every hospital the smallest model",
        {"submodel.name": "fedavg", "model.cnn.channels": (8, 8, 16), **MASKED},
    ),
    "exclusive": Entry(
        "FedAvg: the richest tier alone",
        {
            "submodel.name": "fedavg",
            "submodel.fedavg.mode": "exclusive",
            "submodel.fedavg.tier": 2,
            **MASKED,
        },
    ),
    "heterofl": Entry("HeteroFL", {"submodel.name": "heterofl"}),
    "fjord": Entry("FjORD", {"submodel.name": "fjord"}),
    "fedrolex": Entry("FedRolex", {"submodel.name": "fedrolex"}),
    "depthfl": Entry("DepthFL", {"submodel.name": "depthfl"}),
    "fiarse": Entry(
        "FIARSE",
        # Of the kernels; biases and norms are whole.
        {"submodel.name": "fiarse", "tiers.budget": (0.0809, 0.2565, 1.0), **MASKED},
    ),
    "ladder": Entry("DynamicFL's branches above a ladder of widths", LADDER),
    "adjusted": Entry("widths, adjusted logits", {**WIDTHS, **ADJUSTED}, "ours"),
    "adjusted_tiers": Entry(
        "widths, adjusted logits, tiers weighed by loss",
        {**WIDTHS, "fairness.rule": "tier_term+logit_adjust"},
        "ours",
    ),
    "adjusted_branches": Entry(
        "branches above widths, adjusted logits", {**LADDER, **ADJUSTED}, "ours"
    ),
    "adjusted_adam": Entry(
        "widths, adjusted logits, Adam at the server",
        {**WIDTHS, **ADJUSTED, **ADAM},
        "ours",
    ),
}

CONTESTS = {
    "blood": Contest(
        "Blood cells at 30 hospitals",
        pbc_blood28.get_config,
        "balanced_accuracy",
        {"7:2:1": (7.0, 2.0, 1.0), "4:3:3": (4.0, 3.0, 3.0)},
        BLOOD,
        rates=(0.03, 0.1, 0.3),
    ),
}
