"""Every rule declares `reads` and `weights_from`, and its declaration is true.

Protections decide by these properties which rule they can be combined with, so a rule
that understates them would break a guarantee.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core.rule import CohortStats, FederationFacts, Rule
from fairjax.experiment.config import registry
from fairjax.fairness import compose, weights
from fairjax.fairness.afl import afl
from fairjax.fairness.agnostic import agnostic
from fairjax.fairness.fairfed import fairfed
from fairjax.fairness.fedce import fedce
from fairjax.fairness.fedfv import fedfv
from fairjax.fairness.fedmgda import fedmgda
from fairjax.fairness.gifair import gifair
from fairjax.fairness.logit_adjust import logit_adjust
from fairjax.fairness.ordered_weights import cvar, ordered
from fairjax.fairness.personal import ditto, fedbn, private_head
from fairjax.fairness.propfair import propfair
from fairjax.fairness.q_fedavg import q_fedavg
from fairjax.fairness.q_ffl import q_ffl
from fairjax.fairness.tier_rules import tier_afl, tier_equal, tier_gap, tier_term
from fairjax.fairness.tilted import term
from tests.fairness.rules import BY_GROUP, K, T, cells, cohort

NOTHING, LOSSES = frozenset(), frozenset({"losses"})
LABELS, UPDATES = frozenset({"labels"}), frozenset({"updates"})
VALIDATION = frozenset({"validation"})

PROPERTIES = {
    # name: (rule, reads, weights_from)
    "size": (weights.size(), NOTHING, "records"),
    "uniform": (weights.uniform(), NOTHING, "public"),
    "q_ffl": (q_ffl(q=1.0), LOSSES, "losses"),
    "term": (term(t=2.0), LOSSES, "losses"),
    "cvar": (cvar(alpha=0.3), LOSSES, "losses"),
    "ordered": (ordered(power=0.5), LOSSES, "losses"),
    "gifair": (gifair(c=0.9, groups="tier"), LOSSES, "losses"),
    "afl": (afl(rate=0.5), LOSSES, "losses"),
    "agnostic": (agnostic(rate=0.5, domain="client"), LOSSES, "losses"),
    "tier_afl": (tier_afl(rate=0.5), LOSSES, "losses"),
    "tier_term": (tier_term(t=2.0), LOSSES, "losses"),
    # Losses only say which clients are valid.
    "tier_equal": (tier_equal(strength=1.0), LOSSES, "records"),
    # Accuracies, not losses, move its weights.
    "tier_gap": (tier_gap(rate=3.0), LOSSES | LABELS, "losses"),
    "fairfed": (fairfed(beta=1.0), LOSSES | LABELS, "losses"),
    "fedce": (fedce(mode="plus"), UPDATES | VALIDATION, "updates"),
    # The weights are powers of losses; the denominator follows from changes.
    "q_fedavg": (q_fedavg(q=1.0, learning_rate=0.1), LOSSES | UPDATES, "losses"),
    "fedmgda": (fedmgda(epsilon=1.0), UPDATES, "updates"),
    # The weights are uniform; the direction follows from losses and changes.
    "fedfv": (fedfv(alpha=0.1, tau=1), LOSSES | UPDATES, "public"),
    "propfair": (propfair(bound=9.0, epsilon=0.2), NOTHING, "records"),
    "logit_adjust": (logit_adjust(tau=1.0), LABELS, "records"),
    "ditto": (ditto(strength=0.5), NOTHING, "records"),
    "fedbn": (fedbn(), NOTHING, "records"),
    "private_head": (private_head(), NOTHING, "records"),
}
RULES = {name: entry[0] for name, entry in PROPERTIES.items()}
WEIGHTING = [name for name, rule in RULES.items() if rule.weights is not None]
ORDER = ("public", "records", "losses", "updates")
"""What weights may follow from; each value includes those before it."""

COUNT = np.array([3, 8, 4, 6, 5], np.int32)
LOSS = np.array([0.5, 2.0, 1.0, 0.25, 1.5], np.float32)
COLUMNS = ("records", "losses", "labels", "updates")


def stats(reads=None, **other) -> CohortStats:
    """Statistics of a cohort, restricted to what `reads` names.

    Args:
        reads: those of a rule; None: everything is known.
        other: {"records", "losses", "labels" or "updates": random seed}, for other
            numbers of records, losses, correct predictions or changes.
    """
    draws = {name: np.random.default_rng(other.get(name, 0)) for name in COLUMNS}
    count = COUNT + draws["records"].permutation(K).astype(np.int32)
    loss = jnp.asarray(LOSS * draws["losses"].uniform(0.5, 2, K).astype(np.float32))
    group_stats = cells(count, loss)
    correct = draws["labels"].uniform(0, 1, group_stats.count.shape)
    group_stats = group_stats._replace(
        correct=group_stats.count * correct.astype(np.float32)
    )
    if reads is not None and "labels" not in reads:
        group_stats = group_stats._replace(
            correct=jnp.full_like(group_stats.count, jnp.nan)
        )
    delta = {"a": jnp.asarray(draws["updates"].normal(size=(K, 6)), jnp.float32)}
    reads = {"losses", "updates", "validation"} if reads is None else reads
    has_losses, has_updates = "losses" in reads, "updates" in reads
    return CohortStats(
        jnp.asarray(count),
        loss if has_losses else None,
        group_stats if has_losses else None,
        delta=delta if has_updates else None,
        cover=jax.tree.map(jnp.ones_like, delta) if has_updates else None,
        incoming={"a": jnp.ones(6)} if has_updates else None,
        errors=(lambda changed: jax.nn.sigmoid(changed["a"].sum(1)))
        if "validation" in reads
        else None,
    )


def second_weights(rule: Rule, given: CohortStats) -> np.ndarray:
    """The weights of the second round: the first may follow from the state alone."""
    assert rule.weights is not None
    state = rule.init({"a": jnp.zeros(6)}, FederationFacts(given.count, T, 2))
    _, state = rule.weights(state, cohort(), given)
    return np.asarray(rule.weights(state, cohort(), given)[0])


# ------------------------------------------------------------------------ declarations


def test_every_rule_of_the_registry_is_here():
    assert set(RULES) == set(registry.RULES)


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_rule_declares(name):
    rule, reads, weights_from = PROPERTIES[name]
    assert (rule.reads, rule.weights_from) == (reads, weights_from)


@pytest.mark.parametrize("name", PROPERTIES)
def test_only_two_rules_and_agnostic_by_patient_group_change_the_objective(name):
    assert RULES[name].changes_objective == (name in ("propfair", "logit_adjust"))
    assert agnostic(rate=0.5, **BY_GROUP).changes_objective


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_rule_without_weights_follows_records(name):
    """The round then weights by records."""
    if RULES[name].weights is None:
        assert RULES[name].weights_from == "records"


# ---------------------------------------------------------------- declarations are true


@pytest.mark.parametrize("name", WEIGHTING)
def test_a_rule_works_with_what_it_reads_alone(name):
    """Without losses, changes or errors, and with NaN for correct predictions."""
    rule = RULES[name]
    got = second_weights(rule, stats(rule.reads))
    np.testing.assert_allclose(got.sum(), 1, rtol=1e-4)
    np.testing.assert_array_equal(got, second_weights(rule, stats()))


@pytest.mark.parametrize("name", WEIGHTING)
def test_weights_follow_from_no_more_than_they_say(name):
    """A rule by records has the same weights whatever losses and changes are."""
    rule = RULES[name]
    more = ORDER[ORDER.index(rule.weights_from) + 1 :]
    other = dict.fromkeys(more, 1) | ({"labels": 1} if "losses" in more else {})
    expected = second_weights(rule, stats())
    np.testing.assert_array_equal(second_weights(rule, stats(**other)), expected)


@pytest.mark.parametrize("name", WEIGHTING)
def test_weights_do_follow_from_what_they_say(name):
    """No property overstates: other losses, or changes, give other weights."""
    rule = RULES[name]
    source = rule.weights_from
    if source == "public":
        return
    if "labels" in rule.reads:
        source = "labels"
    before, after = (
        second_weights(rule, stats()),
        second_weights(rule, stats(**{source: 1})),
    )
    assert np.abs(after - before).max() > 1e-4


def first_round(rule: Rule, given: CohortStats) -> None:
    assert rule.weights is not None
    state = rule.init({"a": jnp.zeros(6)}, FederationFacts(given.count, T, 2))
    chosen, state = rule.weights(state, cohort(), given)
    if rule.combine is not None:
        rule.combine(state, cohort(), given, chosen)


@pytest.mark.parametrize("name", WEIGHTING)
def test_a_rule_fails_without_what_it_reads(name):
    """`reads` names nothing that the rule does not need."""
    rule = RULES[name]
    for missing in rule.reads - LABELS:
        given = stats(rule.reads - {missing})
        with pytest.raises((AssertionError, AttributeError, TypeError, ValueError)):
            first_round(rule, given)


# ------------------------------------------------------------------------- compositions


def test_a_composition_reads_the_union_and_weights_as_its_weighting_rule():
    rules = [(name, RULES[name]) for name in ("logit_adjust", "term", "fedbn")]
    for parts in (rules, rules[::-1]):
        rule = compose.compose(parts)
        assert rule.reads == LOSSES | LABELS
        assert rule.weights_from == "losses"
        assert rule.changes_objective
    rule = compose.compose([("uniform", RULES["uniform"]), ("ditto", RULES["ditto"])])
    assert (rule.reads, rule.weights_from) == (NOTHING, "public")
    assert not rule.changes_objective


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_composition_of_one_rule_has_its_properties(name):
    rule, composed = RULES[name], compose.compose([(name, RULES[name])])
    assert composed.reads == rule.reads
    assert composed.weights_from == rule.weights_from
    assert composed.changes_objective == rule.changes_objective
    assert composed.reads_gradients == rule.reads_gradients == (name == "q_fedavg")
    assert composed.full_participation == rule.full_participation
    assert composed.has_state == rule.has_state
    assert composed.sends_message == rule.sends_message


@pytest.mark.parametrize(
    "wrapper", [lambda r: compose.with_cap(r, 2.0), lambda r: compose.with_warmup(r, 2)]
)
def test_a_cap_and_a_warm_up_use_records(wrapper):
    assert wrapper(RULES["uniform"]).weights_from == "records"
    assert wrapper(RULES["term"]).weights_from == "losses"
    assert wrapper(RULES["term"]).reads == LOSSES
