"""A fairness rule as a value: what it reads of a cohort, and the weights it gives."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int, PyTree

from fairjax.core import require
from fairjax.core.types import (
    Cohort,
    GroupStats,
    Masks,
    Objective,
    Params,
)


class CohortStats(NamedTuple):
    """Statistics of a cohort that a rule may read; None for those that it does not."""

    count: Int[Array, "K"]
    """Number of training records of each client."""
    loss: Float[Array, "K"] | None = None
    """Mean training loss of each client's own sub-model at the incoming model."""
    group_stats: GroupStats | None = None
    """The sums that `loss` is a mean of, [K, ...] a leaf."""
    lr_scale: Float[Array, ""] | float = 1.0
    """The round's factor on the local learning rate."""
    delta: Params | None = None
    """All deltas, [K, ...] a leaf, with 0 at leaves that a client or a tier keeps for
    itself; 0 for a client that is not valid."""
    cover: Masks | None = None
    """The coordinates that `delta` speaks for."""
    incoming: Params | None = None
    """The plain model before training, where `delta` is read."""
    errors: Callable[[Params], Float[Array, "K"]] | None = None
    """(deltas of the incoming model, [K, ...] a leaf) -> share of each client's
    validation records that the updated model predicts wrongly; NaN for a client without
    any."""


class FederationFacts(NamedTuple):
    """What a rule knows of the whole federation when a run begins."""

    count: Int[Array, "N"]
    """Number of training records of each client."""
    num_tiers: int
    """T."""
    num_groups: int = 0
    """G, the values of the patient attribute that the rule reads; 0: it reads none."""


class Rule(NamedTuple):
    """One fairness rule: how the cohort's deltas are weighted or combined.

    Example:
        >>> import jax.numpy as jnp
        >>> from fairjax.core import simplex
        >>> def worst_first(state, cohort, stats):
        ...     return simplex.softmax(9.0 * stats.loss, cohort.valid), state
        >>> rule = Rule(worst_first, reads=frozenset({"losses"}), weights_from="losses")
        >>> cohort = Cohort(jnp.arange(2), jnp.zeros(2, int), jnp.ones(2, bool))
        >>> stats = CohortStats(jnp.array([5, 5]), loss=jnp.array([0.1, 1.0]))
        >>> [round(float(w), 3) for w in rule.weights((), cohort, stats)[0]]
        [0.0, 1.0]
    """

    weights: (
        Callable[[PyTree, Cohort, CohortStats], tuple[Float[Array, "K"], PyTree]] | None
    ) = None
    """(state, cohort, stats) -> (weights on the simplex over valid clients, state);
    None: weights by records."""
    reads: frozenset[str] = frozenset()
    """What of the clients the rule must see.

    - "losses": how the incoming model does at every client, `CohortStats.loss` and
      `CohortStats.group_stats`.
    - "labels": which class a record has. Beside "losses" these are the classes and the
      correct predictions in `CohortStats.group_stats`; a rule without "labels" works if
      those cells are NaN. Alone they are a client's own label counts, which its
      objective uses and which stay at the client.
    - "updates": `CohortStats.delta` and `cover`, the whole stack of deltas at once.
    - "validation", beside "updates": `CohortStats.errors`.
    """
    weights_from: str = "records"
    """What `weights` follow from; protections decide by it. Each value includes those
    before it.

    - "public": which clients are valid.
    - "records": how many training records each client has.
    - "losses": how the incoming model does at the clients, `CohortStats.loss` or
      `CohortStats.group_stats`.
    - "updates": the clients' deltas.
    """
    reads_gradients: bool = False
    """The rule reads a client's delta over its learning rate as a gradient, which
    holds for plain SGD steps along the loss alone."""
    full_participation: bool = False
    """The rule means something only if every client is in every round's cohort."""
    init: Callable[[Params, FederationFacts], PyTree] = lambda params, facts: ()
    """(plain model, facts of the federation) -> state."""
    broadcast: Callable[[PyTree, Cohort, CohortStats], PyTree[Array]] = (
        lambda state, cohort, stats: None
    )
    """(state, cohort, stats before any training) -> the message to every client of the
    cohort, [K, ...] a leaf: its `Context.message`."""
    wrap: Callable[[Objective], Objective] = lambda objective: objective
    """Changes the client's objective (PropFair, logit adjustment)."""
    combine: (
        Callable[
            [PyTree, Cohort, CohortStats, Float[Array, "K"]],
            tuple[Params, Masks, PyTree],
        ]
        | None
    ) = None
    """(state, cohort, stats, weights) -> (num, den, state) from the whole stack of
    deltas; None: the weighted sums."""
    local_leaves: Callable[[str], bool] | None = None
    """Path of a leaf -> whether every client keeps that leaf for itself; None: no leaf
    is kept."""
    personal: "Personal | None" = None

    @property
    def changes_objective(self) -> bool:
        """Whether clients minimise something else than without the rule."""
        return self.wrap is not type(self)._field_defaults["wrap"]

    @property
    def has_state(self) -> bool:
        """Whether the rule carries something from round to round."""
        return self.init is not type(self)._field_defaults["init"]

    @property
    def sends_message(self) -> bool:
        """Whether clients are told something that the rule makes of the cohort."""
        return self.broadcast is not type(self)._field_defaults["broadcast"]


READS = ("losses", "labels", "updates", "validation")
"""Words of `Rule.reads`."""
WEIGHTS_FROM = ("public", "records", "losses", "updates")
"""Words of `Rule.weights_from`; each includes those before it."""


def check(name: str, rule: Rule) -> None:
    """Refuses a rule whose properties contradict each other.

    Protections decide by the properties, so a misspelt one must not pass for none.

    Args:
        name: the rule's, for the message.
        rule: a fairness rule.

    Raises:
        InputError: an unknown word; weights from losses or updates that the rule does
            not read; validation without updates.
    """
    for word in sorted(rule.reads):
        require.one_of(f"rule {name}: reads", word, READS)
    require.one_of(f"rule {name}: weights_from", rule.weights_from, WEIGHTS_FROM)
    source = rule.weights_from
    if source in READS and source not in rule.reads:
        require.fail(f"rule {name}: reads", f"{source!r}, as weights_from", rule.reads)
    if "validation" in rule.reads and "updates" not in rule.reads:
        require.fail(f"rule {name}: reads", "'updates' beside 'validation'", rule.reads)


class Personal(NamedTuple):
    """A model that every client trains for itself beside its part of the plain one.

    It starts as the first plain model, trains on the same batches at the same
    coordinates, and never leaves the client.
    """

    wrap: Callable[[Objective], Objective]
    """The client's objective -> the objective of the personal model. In its context,
    `incoming` is the plain model as it arrived."""
