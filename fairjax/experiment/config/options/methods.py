"""Options of sub-model methods, one dataclass per method of the registry."""

import dataclasses

from fairjax.core import require
from fairjax.experiment.config.options.fields import interval, one_of, option
from fairjax.submodels import dynamicfl, families, fedavg, mixed, partial, structures


@dataclasses.dataclass(frozen=True)
class FedAvg:
    """Options of `fedavg`."""

    mode: str = option(
        "full",
        '"full": all clients train the whole model; "smallest": all train tier 0\'s '
        'width; "exclusive": the clients that can carry one tier\'s width train it; '
        '"decoupled": one model per tier',
        check=one_of(fedavg.MODES),
    )
    tier: int = option(0, 'tier of "exclusive"; poorer clients take no part')


@dataclasses.dataclass(frozen=True)
class HeteroFL:
    """Options of `heterofl`."""

    scaler: bool = option(True, "divide activations by the tier's share")
    masked_loss: bool = option(True, "leave absent classes out of loss and head")
    dynamic: bool = option(False, "draw every client's tier anew each round")


@dataclasses.dataclass(frozen=True)
class FederatedDropout:
    """Options of `federated_dropout`."""

    shared: bool = option(False, "one draw per round for all clients")
    scaler: bool = option(True, "as for heterofl")
    masked_loss: bool = option(True, "as for heterofl")


@dataclasses.dataclass(frozen=True)
class FedRolex:
    """Options of `fedrolex`."""

    scaler: bool = option(True, "as for heterofl")
    masked_loss: bool = option(True, "as for heterofl")
    overlap: float | None = option(
        None,
        "share of a tier's window that stays in the next round; not given: the window "
        "moves on by one unit",
        check=interval(0, 1),
    )


@dataclasses.dataclass(frozen=True)
class FjORD:
    """Options of `fjord`."""

    distill: bool = option(True, "the client's widest sub-model teaches narrow ones")


@dataclasses.dataclass(frozen=True)
class FIARSE:
    """Options of `fiarse`."""

    layerwise: bool = option(
        False, "keep the largest weights of every layer, not those of the whole model"
    )


@dataclasses.dataclass(frozen=True)
class Partial:
    """Options of `partial`."""

    mode: str = option(
        "top",
        'which blocks a client trains: the last ones ("top"), a window that moves on '
        '("rolling"), or drawn anew each round ("random")',
        check=one_of(partial.MODES),
    )


@dataclasses.dataclass(frozen=True)
class DepthFL:
    """Options of `depthfl`."""

    stages: tuple[int, ...] = option((), "exits per tier; (): ceil(budget * exits)")
    distill: bool = option(True, "the exits of a client teach each other")
    ramp: int = option(
        300, "rounds until they teach at full strength", check=require.positive
    )
    ensemble: bool = option(True, "predict with the mean of the exits")
    feddyn: float = option(0.0, "FedDyn alpha; 0: without", check=interval(0))
    exclusive: int | None = option(
        None,
        "tier whose depth all clients train that can, while poorer clients take no "
        "part; not given: every tier trains its own depth",
    )


@dataclasses.dataclass(frozen=True)
class InclusiveFL:
    """Options of `inclusivefl`."""

    stages: tuple[int, ...] = option((), "as for depthfl")
    beta: float = option(
        0.2, "share of the richer tier in a last block", check=interval(0, 1)
    )


@dataclasses.dataclass(frozen=True)
class ScaleFL:
    """Options of `scalefl`."""

    width: tuple[float, ...] = option(
        (),
        "share of every width per tier; (): sqrt(budget)",
        check=interval(0, 1, open_low=True),
    )
    exits: tuple[int, ...] = option((), "exits per tier; (): ceil(budget * exits)")
    gamma: float = option(
        0.5, "strength of the last exit's teaching; 0: none", check=interval(0)
    )
    temperature: float = option(
        3.0, "temperature of the distillation", check=require.positive
    )
    warmup: float = option(
        0.25, "share of the rounds before distillation begins", check=interval(0, 1)
    )


@dataclasses.dataclass(frozen=True)
class NeFL:
    """Options of `nefl`."""

    width: tuple[float, ...] = option(
        (),
        "share of the parameters that narrowing leaves, per tier; (): tiers.budget",
        check=interval(0, 1, open_low=True),
    )
    dropped: tuple[int | tuple[int, ...], ...] = option(
        (),
        "identity blocks dropped per tier: how many from the end, or a tuple of "
        "positions",
    )


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Options of `lora`."""

    rank: int = option(
        8,
        "rank of the richest tier; every other tier has its budget's share of this "
        "rank",
        check=require.count,
    )
    alpha: float = option(
        16.0,
        "kernels change by alpha / rank * a b, at every tier",
        check=require.positive,
    )
    head: bool = option(True, "train the whole head beside the factors")


@dataclasses.dataclass(frozen=True)
class DynamicFL:
    """Options of `dynamicfl`, and of `mixed` for its tiers with branches."""

    branch_form: str = option(
        "collapsed",
        'what a client trains: base and branches, whose sum is one kernel ("collapsed")'
        "; the plain model by gradients that equal those of branches at no cost, for "
        'families of one map under sgd ("preconditioned"); or the plain model by '
        'gradients of branches as drawn ("matched", the control)',
        check=one_of(dynamicfl.FORMS),
    )
    families: tuple[str, ...] = option(
        ("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale", "linear", "lowrank"),
        "family of every slot of a layer that fits it: 1x1, 1x1-KxK, 1x1-avg, 1xK, "
        "Kx1, KxK beside convolutions, linear and lowrank beside matrices, scale "
        "beside both",
        check=one_of(families.FAMILIES),
    )
    rank: int = option(4, "inner width of lowrank", check=require.count)
    inner: float = option(
        1.0,
        "inner width of 1x1-KxK, as a share of its inputs; in (0, 1]",
        check=interval(0, 1, open_low=True),
    )
    structure: str = option(
        "auto",
        'what decides which branches are alive: "sensitivity", "random" numbers, or '
        '"fixed" (the first ones of every layer all the time); "auto": fixed for vit, '
        "else sensitivity",
        check=one_of(("auto", *structures.STRUCTURES)),
    )
    sensitivity: str = option(
        "product",
        '"product": |g psi|; "gradient": g^2; "signed": g psi',
        check=one_of(structures.SENSITIVITIES),
    )
    moved: float = option(
        0.25, "share of the branches that move between rounds", check=interval(0, 1)
    )
    skip: tuple[str, ...] = option(
        ("attention", "patch"), "layers without branches, by a part of their path"
    )


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Options of `mixed`, which takes those of `dynamicfl` too."""

    kinds: tuple[str, ...] = option(
        (),
        "kind of every tier: width, depth (its budget's share) or plain (the whole "
        "model); (): width everywhere",
        check=one_of(mixed.KINDS),
    )
    cut: tuple[str, ...] = option(
        (), "axes that width tiers narrow; (): every hidden one"
    )
    blocks: tuple[int, ...] = option(
        (), "blocks of depth tiers; (): ceil(budget * blocks)"
    )
