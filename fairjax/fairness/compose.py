"""Rules made from rules: several at once, with a cap, after a warm-up, over tiers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.core.types import Cohort, Objective, Params

_EXCLUSIVE = {
    "weights": "weights",
    "combine": "a direction",
    "local_leaves": "leaves that stay",
    "personal": "a personal model",
}
"""Field -> description of what only one rule of a composition may give."""


def compose(rules: Sequence[tuple[str, Rule]]) -> Rule:
    """The rule `a+b+...`: the weights of one, the objective of another.

    Objectives are wrapped from the left: that of `a` lies innermost. The composition
    reads what any of the rules reads, and `weights_from` is that of the rule that gives
    weights. If no rule gives weights, they follow from records.

    Args:
        rules: (name, rule).

    Raises:
        InputError: two rules give the same thing; the message names both.
    """
    fields: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, rule in rules:
        for field, description in _EXCLUSIVE.items():
            value = getattr(rule, field)
            if value is None:
                continue
            if field in owners:
                rule_names = f"{owners[field]}+{name}"
                require.fail("rules", f"one rule that gives {description}", rule_names)
            owners[field], fields[field] = name, value
            if field == "weights":
                fields["weights_from"] = rule.weights_from
        if rule.has_state or rule.sends_message:
            if "a state" in owners:
                rule_names = f"{owners['a state']}+{name}"
                expected = "one rule that keeps a state or sends a message"
                require.fail("rules", expected, rule_names)
            owners["a state"] = name
            fields |= {"init": rule.init, "broadcast": rule.broadcast}

    def wrap(objective: Objective) -> Objective:
        for _, rule in rules:
            objective = rule.wrap(objective)
        return objective

    if any(rule.changes_objective for _, rule in rules):
        fields["wrap"] = wrap
    return Rule(
        reads=frozenset().union(*(rule.reads for _, rule in rules)),
        reads_gradients=any(rule.reads_gradients for _, rule in rules),
        full_participation=any(rule.full_participation for _, rule in rules),
        **fields,
    )


Shares = Callable[[CohortStats, Bool[Array, "K"]], Float[Array, "K"]]
"""(stats, valid clients) -> a simplex point over the valid clients."""


def with_cap(
    rule: Rule, cap: float, *, shares: Shares = simplex.record_weights
) -> Rule:
    """The rule with no client above `cap` times its share of the cohort.

        w <- the nearest point of {x : sum x = 1, 0 <= x_k <= cap p_k}

    (Euclidean), p_k by default the share of the records, n_k / n: cap = 1 is then
    FedAvg. The cap does not change the rule's state.

    Args:
        rule: a rule that gives weights.
        cap: from 1.
        shares: p.

    Raises:
        InputError: `cap` is below 1, or the rule gives no weights or a direction.
    """
    require.in_range("cap", cap, 1)
    inner = _require_weights(rule, "cap", cap)

    def weigh(
        state: PyTree, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        weights, state = inner(state, cohort, stats)
        # A client without a finite loss, which the rule gives weight 0, stays at 0.
        valid = cohort.valid
        if stats.loss is not None:
            valid = simplex.has_finite_loss(stats, valid)
        high = jnp.minimum(cap * shares(stats, valid), 1)
        low = jnp.zeros_like(weights)
        return simplex.project(weights, low, high.astype(weights.dtype)), state

    return rule._replace(weights=weigh, weights_from=_at_least_records(rule))


def tier_rule(rule: Rule, records: Sequence[int]) -> Rule:
    """The rule as one that sees tiers instead of clients.

    Every cohort that it sees consists of all tiers, so it needs no full participation.

    Args:
        rule: a rule whose weights follow from losses.
        records: training records of every tier.
    """

    def init(params: Params, facts: FederationFacts) -> PyTree:
        return rule.init(params, facts._replace(count=jnp.asarray(records)))

    return rule._replace(init=init, full_participation=False)


class _WarmupState(NamedTuple):
    round: Int[Array, ""]
    """Rounds so far."""
    rule_state: Any


def with_warmup(rule: Rule, rounds: int) -> Rule:
    """Weights by records for a number of rounds, after which the rule begins.

    Args:
        rule: a rule that gives weights; its state stays as it is during the warm-up.
        rounds: rounds of the warm-up.

    Raises:
        InputError: `rounds` is negative, or the rule gives no weights or a direction.
    """
    require.in_range("rounds", rounds, 0)
    inner = _require_weights(rule, "rounds", rounds)

    def init(params: Params, facts: FederationFacts) -> _WarmupState:
        return _WarmupState(jnp.zeros((), jnp.int32), rule.init(params, facts))

    def weigh(
        state: _WarmupState, cohort: Cohort, stats: CohortStats
    ) -> tuple[Float[Array, "K"], PyTree]:
        has_begun = state.round >= rounds
        weights, rule_state = inner(state.rule_state, cohort, stats)
        by_records = simplex.record_weights(stats, cohort.valid).astype(weights.dtype)
        next_state = jax.tree.map(
            lambda new, old: jnp.where(has_begun, new, old),
            rule_state,
            state.rule_state,
        )
        return jnp.where(has_begun, weights, by_records), _WarmupState(
            state.round + 1, next_state
        )

    def broadcast(state: _WarmupState, cohort: Cohort, stats: CohortStats) -> PyTree:
        return rule.broadcast(state.rule_state, cohort, stats)

    return rule._replace(
        init=init,
        weights=weigh,
        weights_from=_at_least_records(rule),
        broadcast=broadcast,
    )


def _at_least_records(rule: Rule) -> str:
    """`weights_from` of a rule whose weights are changed by numbers of records."""
    return "records" if rule.weights_from == "public" else rule.weights_from


def _require_weights(rule: Rule, where: str, value: float | int) -> Any:
    if rule.weights is None or rule.combine is not None:
        requirement = (
            "0 without a rule that gives weights, and for one that gives a direction"
        )
        require.fail(where, requirement, value)
    return rule.weights
