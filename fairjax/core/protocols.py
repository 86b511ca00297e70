"""What a round is given from outside a method or a rule: protection and layout.

A `Protection` stands between the clients' deltas and the server's model, and a `Layout`
places the cohort on the hardware. The round passes every argument of the protocols
below by position: their names document, and an implementation may choose its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core.rule import CohortStats, Rule
from fairjax.core.types import ClientView, Cohort, Upload

# --------------------------------------------------------------------------- protection


@runtime_checkable
class Protect(Protocol):
    """What reaches the server of one client; the round sums it over the cohort."""

    def __call__(
        self,
        key: Key[Array, ""],
        state: PyTree[Array],
        cohort: Cohort,
        client: ClientView,
        upload: Upload,
        weight: Float[Array, ""],
        denominator_weight: Float[Array, ""],
        /,
    ) -> PyTree[Array]:
        """Protects the upload of one client; the sensitivity is fixed here.

        Args:
            key: the round's key of protections, the same for every client; fold in
                `client.client` for draws of one client.
            state: the protection's state.
            cohort: the clients of the round.
            client: the client that sends. `valid` is False for a client that sends
                nothing; all numbers of its upload and its weights are then 0.
            upload: what the client sends, with w = b = 1.
            weight: w, its weight in the numerator.
            denominator_weight: b, its weight in the denominator.

        Returns:
            The client's addend: a tree of any structure that `Protection.release`
            understands.
        """
        ...


@runtime_checkable
class Release(Protocol):
    """What the server may see of a cohort's sum."""

    def __call__(
        self,
        key: Key[Array, ""],
        state: PyTree[Array],
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: PyTree[Array],
        public_sums: Upload | None,
        /,
    ) -> tuple[Upload, PyTree[Array]]:
        """Releases a cohort's sum to the server.

        Args:
            key: the round's key of protections.
            state: the protection's state.
            cohort: the clients of the round.
            valid: the clients whose uploads count.
            sums: the sum of what `Protection.protect` returned, or what
                `Protection.fold` made of the stack.
            public_sums: what follows from the population alone. `num` counts the
                clients that hold a coordinate, in the shapes of masks; `den` is
                q sum_k w_k m_k, what a cohort sends on average. None where
                `Protection.population` is None.

        Returns:
            (what the server may see, new state).
        """
        ...


@runtime_checkable
class AcceptedShares(Protocol):
    """How much of every client's delta is in the sums."""

    def __call__(
        self,
        state: PyTree[Array],
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: PyTree[Array],
        /,
    ) -> Float[Array, "K"]:
        """The share of every client's delta that is in the sums, 0 for none of it.

        Args:
            state: the protection's state before the round.
            cohort: the clients of the round.
            valid: the clients whose uploads count.
            sums: as `Release` is given them.
        """
        ...


@runtime_checkable
class ProtectedWeights(Protocol):
    """Weights of a rule whose view of the cohort is restricted."""

    def __call__(
        self,
        key: Key[Array, ""],
        state: PyTree[Array],
        rule: Rule,
        rule_state: PyTree[Array],
        cohort: Cohort,
        stats: CohortStats,
        /,
    ) -> tuple[Float[Array, "K"], Float[Array, "K"], PyTree[Array]]:
        """Weighs the cohort in the rule's place.

        Args:
            key: the round's key of protections.
            state: the protection's state.
            rule: the rule.
            rule_state: the rule's state.
            cohort: the clients that are weighed.
            stats: what a rule without protection would see.

        Returns:
            (weights w, denominator weights b, the rule's new state).
        """
        ...


class Population(NamedTuple):
    """What everybody may know of a federation whose clients' data are protected."""

    tier: Int[Array, "N"]
    weight: Float[Array, "N"]
    """Weights that do not depend on who is in a cohort: at least 0, and 0 for clients
    that the method leaves out."""
    sampling_rate: float
    """q, the probability with which each client is in a cohort."""


class Protection(NamedTuple):
    """What stands between the clients' deltas and the server's model."""

    protect: Protect
    """See `Protect`."""
    release: Release
    """See `Release`."""
    init: Callable[[], PyTree] = tuple
    """The state before the first round (a clipping norm that adapts)."""
    fold: Callable[[PyTree], PyTree] | None = None
    """Combines what `protect` returned for every client, [K, ...] a leaf, into what
    `release` is given in place of the sum (a median); None: the sum, for which the
    round keeps no stack."""
    accepted: AcceptedShares | None = None
    """See `AcceptedShares`; None: the whole delta of every client that counts."""
    hides_failure: bool = False
    """Whether a client whose training failed, so that its delta is not finite, sends
    what a client with a delta of 0 sends. A failure follows from the client's records,
    and a round that hides it looks alike whatever those are. False: such a client sends
    nothing."""
    population: Population | None = None
    """None: no public sums."""
    weights: ProtectedWeights | None = None
    """See `ProtectedWeights`; None: the rule sees all statistics that it reads."""


# ------------------------------------------------------------------------------- layout


PerClient = Callable[[Any, int | None], Any]
"""(slot, tier) -> result of one client. The tier is static and shared by all clients of
a call, which then run sliced; None: clients of any tier, masked."""


class Layout(NamedTuple):
    """How a cohort is laid on the hardware; slots have [K, ...] leaves.

    Example:
        >>> from fairjax.core import layout
        >>> layout.vmapped("vmap: a small model").reason
        'vmap: a small model'
    """

    stack: Callable[[PerClient, Any], Any]
    """(per_client, slots) -> every client's result, [K, ...] a leaf."""
    total: Callable[[PerClient, Any], tuple[Any, Any]]
    """(per_client, slots) -> (sum of the addends, stacked reports), where `per_client`
    returns (addend, report)."""
    reason: str = ""
    """Why this layout was chosen."""
