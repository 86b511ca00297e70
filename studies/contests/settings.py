"""The contests of `run`: data sets, methods and combinations of ours.

Budgets are equal in parameters: a client of a tier trains and sends at most as many
parameters as HeteroFL's client of that tier. References may exceed this budget. DepthFL
leaves part of the smallest budgets unused, because the rest beyond its first exit is
too small for another stage.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from configs import diabetes130, heart_disease, pbc_blood28
from studies import experiment

Role = Literal["reference", "published", "control", "ours"]


class Entry(NamedTuple):
    """A row of the table."""

    title: str
    fields: Mapping[str, Any]
    """The fields that the entry changes in the contest's config."""
    role: Role = "published"
    """"reference": not within the budgets; "published": a published method; "control":
    one component of ours by itself; "ours": one of several combinations, from which the
    validation split chooses one."""


class Contest(NamedTuple):
    """A data set, its clients and the competing methods."""

    title: str
    config: Callable[[], Any]
    score: str
    """The figure of metrics.jsonl, known per tier, by which choices are made."""
    ratios: Mapping[str, tuple[float, ...]]
    """Name of a ratio -> relative numbers of clients in the tiers, smallest first."""
    entries: Mapping[str, Entry]
    rates: tuple[float, ...]
    """The learning rates that are tried for every entry."""
    seeds: tuple[int, ...] = (0, 1, 2)
    last: int = 3
    """The number of evaluations at the end of a run that are averaged."""


MASKED = {"execution.form": "masked"}
"""Sliced execution saves nothing where all clients train the whole model. With branches
it saves less time than its three programs take to compile."""
WIDTHS = {"submodel.name": "heterofl", "submodel.heterofl.masked_loss": False}
"""HeteroFL's sub-models with an unmasked loss, which a fairness rule can adjust."""
MIXED = {
    "submodel.name": "mixed",
    "submodel.mixed.kinds": ("width", "width", "plain"),
    "tiers.branches": (0, 0, 2),
    **MASKED,
}
ADJUSTED = {"fairness.rule": "logit_adjust"}
ADAM = {"server.optimizer": "adam", "server.learning_rate": 0.01}
COMBINATIONS = {
    "adjusted": Entry("widths, adjusted logits", {**WIDTHS, **ADJUSTED}),
    "adjusted_tiers": Entry(
        "widths, adjusted logits, tiers weighed by loss",
        {**WIDTHS, "fairness.rule": "tier_term+logit_adjust"},
    ),
    "adjusted_branches": Entry(
        "branches above widths, adjusted logits", {**MIXED, **ADJUSTED}
    ),
    "adjusted_adam": Entry(
        "widths, adjusted logits, Adam at the server",
        {**WIDTHS, **ADJUSTED, **ADAM},
    ),
}
"""The combinations of ours that compete in every contest."""


def entries(
    *,
    rounds: int,
    smallest: Mapping[str, Any],
    stages: tuple[int, ...],
    shares: tuple[float, ...],
) -> dict[str, Entry]:
    """The methods on three tiers.

    Args:
        rounds: the rounds of a run; DepthFL's distillation reaches full strength after
            a third of them.
        smallest: the config fields that make the plain model as large as HeteroFL's
            smallest sub-model.
        stages: the number of exits that each of DepthFL's tiers keeps.
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
        "mixed": Entry("DynamicFL's branches above a ladder of widths", MIXED),
    }
    roles: dict[Role, dict[str, Entry]] = {
        "reference": reference,
        "published": published,
        "control": control,
        "ours": COMBINATIONS,
    }
    return {
        name: entry._replace(role=role)
        for role, group in roles.items()
        for name, entry in group.items()
    }


def blood() -> Contest:
    """Images at 30 clients with skewed labels, 9 of them in a round."""

    def cells(preset: str = "") -> Any:
        c = pbc_blood28.get_config(preset)
        c.selection_metric = experiment.SELECT
        return c

    methods = entries(
        rounds=60,
        smallest={"model.cnn.channels": (8, 8, 16)},
        stages=(1, 2, 3),
        # FIARSE never masks the parameters of norms.
        shares=(0.0809, 0.2565, 1.0),
    )
    central = {
        **methods["fedavg"].fields,
        "data.partition.name": "iid",
        "data.partition.num_clients": 1,
        "tiers.budget": (1.0,),
        "tiers.proportions": (1.0,),
        "clients_per_round": 1,
        # As many steps as the nine clients of a round take together.
        "local.steps": 9 * 12,
    }
    central_entry = Entry("one hospital with all records", central, "reference")
    methods = {"central": central_entry, **methods}
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
    """A contest on tabular records, with a residual network and full participation.

    The width tiers have a third and more than a half of the parameters, which is at
    least what one and two of four blocks have.

    Args:
        title: the title of the contest.
        config: the module in configs/ with the data set's config.
        rounds: the rounds of a run.
        shares: FIARSE's budgets.
        steps: the local steps of every client, where clients differ much in size; None
            takes the config's epochs.
    """

    def resmlp() -> Any:
        c = config.get_config()
        c.selection_metric = experiment.SELECT
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
    # Label frequencies identify clients that admit the ill. Adjusted logits remove this
    # information, so combinations without them compete as well.
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
