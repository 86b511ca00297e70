"""Options of fairness rules, one dataclass per rule of the registry that has some."""

import dataclasses

from fairjax.experiment.config.options.fields import option


@dataclasses.dataclass(frozen=True)
class QFFL:
    """Options of `q_ffl`."""

    q: float = option(1.0, "0 is FedAvg; larger moves weight to high losses")


@dataclasses.dataclass(frozen=True)
class Term:
    """Options of `term`."""

    t: float = option(1.0, "tilt, per nat; 0 is FedAvg")


@dataclasses.dataclass(frozen=True)
class CVaR:
    """Options of `cvar`."""

    alpha: float = option(0.5, "share of the records trained for; 1 is FedAvg")


@dataclasses.dataclass(frozen=True)
class Ordered:
    """Options of `ordered`."""

    power: float = option(0.5, "1 is FedAvg; smaller moves weight to high losses")


@dataclasses.dataclass(frozen=True)
class GIFAIR:
    """Options of `gifair`."""

    c: float = option(0.5, "share of the largest admissible strength; 0 is FedAvg")
    groups: str = option(
        "client", "whose losses are levelled: client, tier or client_group"
    )


@dataclasses.dataclass(frozen=True)
class AFL:
    """Options of `afl`."""

    rate: float = option(0.1, "step size of the ascent, per nat; 0 is FedAvg")


@dataclasses.dataclass(frozen=True)
class Agnostic:
    """Options of `agnostic`."""

    rate: float = option(0.1, "step size of the ascent, per nat; 0 is FedAvg")
    domain: str = option(
        "tier", "tier, client, client_group or group (of patients, by fairness.group)"
    )


@dataclasses.dataclass(frozen=True)
class TierAFL:
    """Options of `tier_afl`."""

    rate: float = option(0.1, "as for afl")


@dataclasses.dataclass(frozen=True)
class TierTerm:
    """Options of `tier_term`."""

    t: float = option(1.0, "as for term")


@dataclasses.dataclass(frozen=True)
class TierEqual:
    """Options of `tier_equal`."""

    strength: float = option(1.0, "1: every tier the same; 0 is FedAvg")


@dataclasses.dataclass(frozen=True)
class TierGap:
    """Options of `tier_gap`."""

    rate: float = option(1.0, "per round and unit of accuracy; 0 is FedAvg")


@dataclasses.dataclass(frozen=True)
class FairFed:
    """Options of `fairfed`."""

    beta: float = option(1.0, "per round and unit of the gap; 0 is FedAvg")


@dataclasses.dataclass(frozen=True)
class FedCE:
    """Options of `fedce`."""

    mode: str = option("plus", "directions and errors added (plus) or multiplied")


@dataclasses.dataclass(frozen=True)
class QFedAvg:
    """Options of `q_fedavg`."""

    q: float = option(
        1.0,
        "0 is the plain mean over clients; for plain sgd, with decay and FedProx if "
        "wanted",
    )


@dataclasses.dataclass(frozen=True)
class FedMGDA:
    """Options of `fedmgda`."""

    epsilon: float = option(0.1, "how far weights may move from records' shares")


@dataclasses.dataclass(frozen=True)
class FedFV:
    """Options of `fedfv`."""

    alpha: float = option(
        0.1, "share of the clients, the worst served, whose updates stay as they are"
    )
    tau: int = option(1, "rounds that an absent client's update is remembered")


@dataclasses.dataclass(frozen=True)
class PropFair:
    """Options of `propfair`."""

    bound: float = option(2.0, "nats; above typical losses")
    epsilon: float = option(0.2, "nats; below this utility the plain loss")


@dataclasses.dataclass(frozen=True)
class LogitAdjust:
    """Options of `logit_adjust`."""

    tau: float = option(1.0, "strength of the class prior; 0 is FedAvg")


@dataclasses.dataclass(frozen=True)
class Ditto:
    """Options of `ditto`."""

    strength: float = option(0.1, "strength of the pull to the plain model")
