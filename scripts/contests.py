"""What `scripts/compare.py` compares: data sets, methods, and combinations of ours.

Budgets are equal in parameters: what a hospital of a tier trains and sends is no more
than what HeteroFL gives it there. References are not held to that. DepthFL cannot fill
the smallest budgets: what its first exit leaves over is too little for another stage.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from configs import diabetes130, heart_disease, pbc_blood28
from scripts import experiment

Role = Literal["reference", "published", "control", "ours"]


class Entry(NamedTuple):
    """A row of the table."""

    title: str
    fields: Mapping[str, Any]
    """What it changes in the contest's config."""
    role: Role = "published"
    """"reference": not within the budgets; "published"; "control": what a part of ours
    does by itself; "ours": one of several combinations, of which the validation split
    chooses one."""


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
WIDTHS = {"submodel.name": "heterofl", "submodel.heterofl.masked_loss": False}
"""HeteroFL's sub-models under the whole loss, which an objective can then adjust."""
LADDER = {
    "submodel.name": "ladder",
    "submodel.ladder.kinds": ("width", "width", "plain"),
    "tiers.branches": (0, 0, 2),
    **MASKED,
}
ADJUSTED = {"fairness.rule": "logit_adjust"}
ADAM = {"server.optimizer": "adam", "server.learning_rate": 0.01}


def entries(
    *,
    rounds: int,
    smallest: Mapping[str, Any],
    stages: tuple[int, ...],
    shares: tuple[float, ...],
) -> dict[str, Entry]:
    """The methods on three tiers.

    Args:
        rounds: of a run; after a third of them DepthFL's exits teach at full strength.
        smallest: what makes the plain model as large as HeteroFL's smallest.
        stages: exits that DepthFL's tiers keep.
        shares: FIARSE's budgets.
    """
    dynamicfl = {"submodel.name": "dynamicfl", "tiers.branches": (0, 1, 2), **MASKED}
    fedavg = {"submodel.name": "fedavg", **MASKED}
    matched = {**dynamicfl, "submodel.dynamicfl.branch_form": "matched"}
    exclusive = {"submodel.fedavg.mode": "exclusive", "submodel.fedavg.tier": 2}
    reference = {
        "fedavg": Entry("FedAvg: every hospital the whole model", fedavg),
        "fedavg_adjusted": Entry(
            "FedAvg, logits adjusted by the hospital's labels", {**fedavg, **ADJUSTED}
        ),
        "dynamicfl": Entry(
            "DynamicFL: the whole model, 0, 1 and 2 branches beside it", dynamicfl
        ),
        "matched": Entry("the same learning rates without branches", matched),
    }
    published = {
        "smallest": Entry(
            "FedAvg: every hospital the smallest model", {**fedavg, **smallest}
        ),
        "exclusive": Entry("FedAvg: the richest tier alone", {**fedavg, **exclusive}),
        "heterofl": Entry("HeteroFL", {"submodel.name": "heterofl"}),
        "fjord": Entry("FjORD", {"submodel.name": "fjord"}),
        "fedrolex": Entry("FedRolex", {"submodel.name": "fedrolex"}),
        "depthfl": Entry(
            "DepthFL",
            {
                "submodel.name": "depthfl",
                "submodel.depthfl.stages": stages,
                "submodel.depthfl.ramp": rounds // 3,
            },
        ),
        "fiarse": Entry(
            "FIARSE", {"submodel.name": "fiarse", "tiers.budget": shares, **MASKED}
        ),
    }
    control = {
        "smallest_adjusted": Entry(
            "the smallest model, adjusted logits", {**fedavg, **smallest, **ADJUSTED}
        ),
        "widths": Entry("HeteroFL under the whole loss", WIDTHS),
        "ladder": Entry("DynamicFL's branches above a ladder of widths", LADDER),
    }
    ours = {
        "adjusted": Entry("widths, adjusted logits", {**WIDTHS, **ADJUSTED}),
        "adjusted_tiers": Entry(
            "widths, adjusted logits, tiers weighed by loss",
            {**WIDTHS, "fairness.rule": "tier_term+logit_adjust"},
        ),
        "adjusted_branches": Entry(
            "branches above widths, adjusted logits", {**LADDER, **ADJUSTED}
        ),
        "adjusted_adam": Entry(
            "widths, adjusted logits, Adam at the server",
            {**WIDTHS, **ADJUSTED, **ADAM},
        ),
    }
    roles: dict[Role, dict[str, Entry]] = {
        "reference": reference,
        "published": published,
        "control": control,
        "ours": ours,
    }
    return {
        name: entry._replace(role=role)
        for role, some in roles.items()
        for name, entry in some.items()
    }


def blood() -> Contest:
    """Pictures, 30 hospitals of which 9 are in a round, labels skewed."""

    def cells(preset: str = "") -> Any:
        c = pbc_blood28.get_config(preset)
        c.select = experiment.SELECT
        return c

    methods = entries(
        rounds=60,
        smallest={"model.cnn.channels": (8, 8, 16)},
        stages=(1, 2, 3),
        # FIARSE keeps the norms whole.
        shares=(0.0809, 0.2565, 1.0),
    )
    central = {
        **methods["fedavg"].fields,
        "data.partition.name": "iid",
        "data.partition.num_clients": 1,
        "tiers.budget": (1.0,),
        "tiers.share": (1.0,),
        "cohort": 1,
        # As many as the nine hospitals of a round make together.
        "local.steps": 9 * 12,
    }
    alone = Entry("one hospital with all records", central, "reference")
    methods = {"central": alone, **methods}
    return Contest(
        "Blood cells at 30 hospitals",
        cells,
        "balanced_accuracy",
        {"7:2:1": (7.0, 2.0, 1.0), "4:3:3": (4.0, 3.0, 3.0)},
        methods,
        rates=(0.03, 0.1, 0.3),
    )


def tabular(
    title: str,
    config: Any,
    rounds: int,
    shares: tuple[float, ...],
    steps: int | None = None,
) -> Contest:
    """Records of a table, all hospitals in every round, on a residual network.

    Its width tiers have a third and more than a half of the parameters: what one and
    two of four blocks have at least. Hospitals of very different sizes take the same
    number of steps, if one is given.
    """

    def resmlp() -> Any:
        c = config.get_config()
        c.select = experiment.SELECT
        c.rounds, c.eval_every, c.local.steps = rounds, 5, steps
        c.model.name = "resmlp"
        c.model.resmlp.width, c.model.resmlp.hidden = 32, 64
        c.model.resmlp.norm = "none"
        c.submodel.heterofl.scaler = True
        c.tiers.budget = (0.55, 0.75, 1.0)
        return c

    methods = entries(
        rounds=rounds,
        smallest={"model.resmlp.width": 18, "model.resmlp.hidden": 36},
        stages=(1, 2, 4),
        shares=shares,
    )
    # Hospitals that admit the ill say so by their labels, which adjusted logits forget.
    methods |= {
        "tiers": Entry(
            "widths, tiers weighed by loss",
            {**WIDTHS, "fairness.rule": "tier_term"},
            "ours",
        ),
        "adam": Entry("widths, Adam at the server", {**WIDTHS, **ADAM}, "ours"),
    }
    return Contest(
        title,
        resmlp,
        "auroc",
        {"2:1:1": (2.0, 1.0, 1.0)},
        methods,
        rates=(0.01, 0.03, 0.1),
    )


CONTESTS = {
    "blood": blood(),
    "heart": tabular(
        "Heart disease at 4 hospitals", heart_disease, 60, (0.31, 0.57, 1.0)
    ),
    "diabetes": tabular(
        "Readmission at 16 specialties", diabetes130, 30, (0.33, 0.58, 1.0), steps=40
    ),
}
