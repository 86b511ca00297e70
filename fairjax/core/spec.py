"""What a round is built from, and what it reports."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import optax
from jaxtyping import Array, Bool, Float, Int, Key

from fairjax.core import aggregate
from fairjax.core.problem import ClientInfo, LocalProblem
from fairjax.core.protocols import Protection
from fairjax.core.rule import Rule
from fairjax.core.types import ClientView, Masks, Params

LrSchedule = Callable[[Int[Array, ""]], Float[Array, ""] | float]
"""Rounds finished -> factor on a learning rate."""


# Tests check annotations of functions and dataclasses, which needs a runtime protocol.
@runtime_checkable
class Transmission(Protocol):
    """The way of a delta from a client to the server, where faults may strike."""

    def __call__(
        self,
        key: Key[Array, ""],
        client: ClientView,
        delta: Params,
        cover: Masks,
        info: ClientInfo,
    ) -> tuple[Params, ClientInfo, Bool[Array, ""], Bool[Array, ""]]:
        """What reaches the server.

        Args:
            key: the round's key of faults.
            client: the client that sends.
            delta: its delta, without the leaves that it keeps for itself.
            cover: the coordinates that the delta speaks for.
            info: its report.

        Returns:
            (delta, info, whether they arrive, whether the client finished its training,
            so that its own state moves).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a run does in every round. Hyper-parameters inside may be traced values."""

    local: LocalProblem
    rule: Rule
    server: optax.GradientTransformation
    protection: Protection = aggregate.OPEN
    schedule: LrSchedule = lambda round: 1.0
    """Factor on the local learning rate."""
    server_schedule: LrSchedule = lambda round: 1.0
    """Factor on the server's updates; its optimiser state is not scaled."""
    finite_guard: bool = True
    """Leave out a client whose delta or loss is not finite (`ClientInfo.finite`)."""
    transmission: Transmission | None = None
    """None: deltas arrive as they are."""
    denominator: str = "cover"
    """What a coordinate's deltas are divided by, see `fairjax.core.aggregate`: "cover"
    or "fixed". A protection may have weights and denominators of its own."""
    attribute: int | None = None
    """Column of `FederatedData.group` whose groups the rule tells apart."""
    groups: int = 0
    """G of that attribute."""
    max_validation_records: int | None = None
    """Validation records of the largest client; None: at most all of them."""

    @property
    def needs_stack(self) -> bool:
        """Whether the rule or the protection needs all deltas at once."""
        return (
            bool(self.rule.reads - {"losses", "labels"})
            or self.protection.fold is not None
        )


class RoundInfo(NamedTuple):
    """What one round reports; arrays over the cohort's slots are in cohort order."""

    loss: Float[Array, ""]
    """Mean training objective, each client by its weight; NaN without any client."""
    weights: Float[Array, "K"]
    """Weights in force, 0 for padded and refused clients. They sum to 1, or to 0 where
    only refused clients had weight: such a round changes nothing."""
    valid: Bool[Array, "K"]
    """Clients whose delta, or a part of it, entered the model. Where a protection hides
    failures, clients whose training failed are among them."""
    coverage: Float[Array, ""]
    """Share of the parameter coordinates that at least one client covered."""
    clients: ClientInfo
    incoming_losses: Float[Array, "K"] | None
    """Losses at the incoming model, where the rule needs them; NaN for clients that
    took no part."""
