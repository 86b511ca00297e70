"""Rules out of rules: several at once, with a cap, after a warm-up, over tiers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.types import Cohort, Objective, Params, Rule, Scores

_ONE = {
    "weigh": "weights",
    "combine": "a direction",
    "keeps": "leaves that stay",
    "personal": "a personal model",
}
"""What only one rule of a composition may have."""


def compose(rules: Sequence[tuple[str, Rule]]) -> Rule:
    """The rule `a+b+...`: the weights of one, the objective of another.

    Objectives are wrapped from the left: a's lies innermost. Where none weighs, records
    do.

    Args:
        rules: (name, rule).

    Raises:
        InputError: two rules give the same thing; names both.
    """
    parts: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, rule in rules:
        for field, what in _ONE.items():
            value = getattr(rule, field)
            if value is None:
                continue
            if field in owners:
                got = f"{owners[field]}+{name}"
                require.fail("fairness.rule", f"one rule that gives {what}", got)
            owners[field], parts[field] = name, value
            if field == "weigh":
                parts |= {"init": rule.init, "tell": rule.tell}

    def wrap(objective: Objective) -> Objective:
        for _, rule in rules:
            objective = rule.wrap(objective)
        return objective

    return Rule(
        needs=frozenset().union(*(rule.needs for _, rule in rules)),
        everyone=any(rule.everyone for _, rule in rules),
        wrap=wrap,
        **parts,
    )


Shares = Callable[[Scores, Bool[Array, "K"]], Float[Array, "K"]]
"""(scores, who is valid) -> a simplex point over the valid clients."""


def capped(
    rule: Rule,
    cap: float,
    *,
    shares: Shares = simplex.by_records,
    field: str = "fairness.cap",
) -> Rule:
    """No client weighs more than `cap` times its share of the cohort.

        w <- the nearest point of {x : sum x = 1, 0 <= x_k <= cap p_k}

    (Euclidean), p_k by default the share of the records, n_k / n: cap = 1 is then
    FedAvg. What is carried by the rule does not know of it.

    Args:
        rule: one that weighs.
        cap: from 1.
        shares: p.
        field: of the config.

    Raises:
        InputError: `cap` is below 1, or the rule does not weigh or has a direction.
    """
    require.in_range(field, cap, 1)
    inner = _weights_of(rule, field, cap)

    def weigh(
        state: PyTree, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        weights, state = inner(state, cohort, scores)
        # A client that the rule gives nothing because its loss is no number gets none.
        valid = cohort.valid
        if scores.loss is not None:
            valid = simplex.known(scores, valid)
        high = jnp.minimum(cap * shares(scores, valid), 1)
        low = jnp.zeros_like(weights)
        return simplex.project(weights, low, high.astype(weights.dtype)), state

    return rule._replace(weigh=weigh)


def over_tiers(rule: Rule, records: Sequence[int]) -> Rule:
    """The rule as one that is shown tiers in place of hospitals.

    Every cohort it weighs is that of all tiers, so it needs no round with everybody.

    Args:
        rule: one that weighs by losses.
        records: training records of every tier.
    """

    def init(params: Params, counts: Int[Array, "N"], tiers: int) -> PyTree:
        return rule.init(params, jnp.asarray(records), tiers)

    return rule._replace(init=init, everyone=False)


class _Waiting(NamedTuple):
    round: Int[Array, ""]
    rule: Any


def after(rule: Rule, rounds: int) -> Rule:
    """Weighs by records for a number of rounds; the rule begins after them.

    Args:
        rule: one that weighs; what it carries stands still until then.
        rounds: of warm-up.

    Raises:
        InputError: the rule does not weigh, or has a direction.
    """
    require.in_range("fairness.warmup", rounds, 0)
    inner = _weights_of(rule, "fairness.warmup", rounds)

    def init(params: Params, counts: Int[Array, "N"], tiers: int) -> _Waiting:
        return _Waiting(jnp.zeros((), jnp.int32), rule.init(params, counts, tiers))

    def weigh(
        state: _Waiting, cohort: Cohort, scores: Scores
    ) -> tuple[Float[Array, "K"], PyTree]:
        begun = state.round >= rounds
        weights, moved = inner(state.rule, cohort, scores)
        by_records = simplex.by_records(scores, cohort.valid).astype(weights.dtype)
        held = jax.tree.map(
            lambda new, old: jnp.where(begun, new, old), moved, state.rule
        )
        return jnp.where(begun, weights, by_records), _Waiting(state.round + 1, held)

    def tell(state: _Waiting, cohort: Cohort, scores: Scores) -> PyTree:
        return rule.tell(state.rule, cohort, scores)

    return rule._replace(init=init, weigh=weigh, tell=tell)


def _weights_of(rule: Rule, field: str, value: float | int) -> Any:
    if rule.weigh is None or rule.combine is not None:
        what = "0 without a rule that gives weights, and for one that gives a direction"
        require.fail(field, what, value)
    return rule.weigh
