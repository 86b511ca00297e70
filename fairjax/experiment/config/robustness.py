"""From a config to the defences of a run and the faults that are injected into it.

`robust.aggregator`, `norm_bound` and `weight_cap` are the defences; `robust.faults`
lists what goes wrong. Combinations that contradict each other are refused. A median,
for instance, reads single uploads, which a secure sum hides. Some aggregators ignore
the weights of a rule.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.protocols import Protection
from fairjax.core.rule import Rule
from fairjax.core.types import Params
from fairjax.experiment.config import compatibility, paths
from fairjax.experiment.config.options.robust import Robust
from fairjax.experiment.config.schema import Config
from fairjax.fairness import compose, weights
from fairjax.robust import aggregators, breakdown, norm_bound
from fairjax.robust import faults as injected
from fairjax.robust.faults import Deadline, Fault


def check(c: Config, rules: Mapping[str, Rule], fairness_rule: Rule) -> None:
    """Refuses what no data could make hold, by the name of the field.

    Args:
        c: a config.
        rules: the rules that it names.
        fairness_rule: these rules as one.

    Raises:
        InputError: names the field, what was expected and what came.
    """
    r, aggregator = c.robust, c.robust.aggregator
    if r.weight_cap:
        require.in_range("robust.weight_cap", r.weight_cap, 1)
    _check_faults(c, fairness_rule)
    for field, neutral in (("aggregator", "mean"), ("norm_bound", 0.0)):
        value = getattr(r, field)
        if value != neutral:
            _check_privacy(c, f"robust.{field}", value, neutral)
            _check_rule(c, fairness_rule, f"robust.{field}", value, neutral)
    if aggregator != "mean" and c.fairness.denominator == "fixed":
        expected = f"cover with robust.aggregator {aggregator}, which is no sum over "
        expected += "all hospitals"
        require.fail("fairness.denominator", expected, "fixed")
    if aggregator not in aggregators.UNWEIGHTED:
        return
    condition = compatibility.CONDITIONS[aggregator]
    for name, rule in rules.items():
        if not condition.allows(rule):
            choices = compatibility.names_of(condition.allows)
            expected = f"one of {', '.join(choices)} with robust.aggregator "
            expected += f"{aggregator}, {condition.reason}"
            require.fail("fairness.rule", expected, name)


def _check_privacy(c: Config, field: str, value: Any, neutral: Any) -> None:
    if c.privacy.secure_sum != "off":
        expected = (
            f"{neutral} with privacy.secure_sum, under which nobody sees an upload"
        )
        require.fail(field, expected, value)
    if c.privacy.mechanism == "client_dp":
        expected = f"{neutral} with client_dp, whose clip and noise are those of a sum"
        require.fail(field, expected, value)
    if c.privacy.mechanism == "local_dp" and field == "robust.norm_bound":
        expected = f"{neutral} with local_dp: it measures norms before their noise"
        require.fail(field, expected, value)


def _check_rule(
    c: Config, fairness_rule: Rule, field: str, value: Any, neutral: Any
) -> None:
    if not c.robust.finite_guard:
        expected = f"True with {field} {value}, in which a NaN has no place"
        require.fail("robust.finite_guard", expected, False)
    # A direction is refused beside every aggregator, also one without weights.
    condition = compatibility.CONDITIONS["norm_bound"]
    if not condition.allows(fairness_rule):
        expected = f"{neutral} with rule {c.fairness.rule}, {condition.reason}"
        require.fail(field, expected, value)


def _check_faults(c: Config, fairness_rule: Rule) -> None:
    where = "robust.faults"
    fault_names = [entry[0] for entry in c.robust.faults]
    for name in fault_names:
        if fault_names.count(name) > 1:
            require.fail(where, "every fault once", name)
        if name in injected.CLAIMS and c.privacy.mechanism == "client_dp":
            expected = f"no {name} with client_dp, whose weights are public"
            require.fail(where, expected, name)
        if name == "corrupted" and c.privacy.mechanism == "record_dp":
            expected = (
                "no corrupted with record_dp: it deals one record's values to many"
            )
            require.fail(where, expected, name)
    if "inflated_loss" in fault_names and "losses" not in fairness_rule.reads:
        expected = "a rule that reads losses for inflated_loss in robust.faults"
        require.fail("fairness.rule", expected, c.fairness.rule)


def check_used(path: str, c: Config) -> None:
    """Refuses a robust field that the user set and that nothing reads.

    Args:
        path: the field's path.
        c: a config.
    """
    r = c.robust
    _, group, *subfields = path.split(".")
    fault_names = [entry[0] for entry in r.faults]
    if group == "strength" and subfields[0] not in fault_names:
        require.fail(path, "robust.faults with it for this option", tuple(r.faults))
    if group == "deadline" and "straggler" not in fault_names:
        require.fail(path, "a straggler in robust.faults", tuple(r.faults))
    if group == "trimmed_mean" and r.aggregator != "trimmed_mean":
        require.fail(
            path, "robust.aggregator 'trimmed_mean' for this option", r.aggregator
        )
    if group == "weight_cap" and not _is_weight_sensitive(r):
        expected = (
            "robust.aggregator 'multi_krum', or a norm bound of a mean, for this option"
        )
        require.fail(path, expected, r.aggregator)
    if group == "num_byzantine" and r.aggregator not in aggregators.BY_DISTANCE:
        expected = (
            f"robust.aggregator {' or '.join(aggregators.BY_DISTANCE)} for this option"
        )
        require.fail(path, expected, r.aggregator)


# ----------------------------------------------------------------------------- defences


_ARGUMENTS = {
    "beta": "robust.trimmed_mean.beta",
    "num_byzantine": "robust.num_byzantine",
    "factor": "robust.norm_bound",
}
"""{argument of an aggregator or the norm bound: config field}."""


@paths.field_names(_ARGUMENTS)
def protection(c: Config, inner: Protection, cohort: int) -> Protection:
    """What stands between updates and model: privacy, an aggregator, a norm bound.

    Args:
        c: a checked config.
        inner: the protection of the run's privacy mechanism.
        cohort: K.

    Raises:
        InputError: the cohort is too small for the Byzantine clients that the
            aggregator is to bear.
    """
    r = c.robust
    if r.aggregator in aggregators.BY_DISTANCE and cohort < 2 * r.num_byzantine + 3:
        expected = (
            f"at most {(cohort - 3) // 2} with a cohort of {cohort}: K >= 2 f + 3"
        )
        require.fail("robust.num_byzantine", expected, r.num_byzantine)
    if r.aggregator == "median":
        inner = aggregators.with_aggregator(inner, aggregators.median())
    elif r.aggregator == "trimmed_mean":
        inner = aggregators.with_aggregator(
            inner, aggregators.trimmed_mean(beta=r.trimmed_mean.beta)
        )
    elif r.aggregator in aggregators.BY_DISTANCE:
        make = aggregators.krum if r.aggregator == "krum" else aggregators.multi_krum
        inner = aggregators.with_aggregator(inner, make(num_byzantine=r.num_byzantine))
    if r.norm_bound:
        tiers = len(c.tiers.budget)
        inner = norm_bound.with_norm_bound(inner, factor=r.norm_bound, tiers=tiers)
    return inner


def rule(c: Config, fairness_rule: Rule) -> Rule:
    """A fairness rule whose weights no client can raise above the cap.

    A rule without weights averages by sizes, and the cap holds for these too.

    Args:
        c: a checked config.
        fairness_rule: the fairness rule of this config.
    """
    r = c.robust
    if not r.weight_cap or not _is_weight_sensitive(r):
        return fairness_rule
    if fairness_rule.weights is None:
        fairness_rule = fairness_rule._replace(weights=weights.size().weights)
    with paths.field_names({"cap": "robust.weight_cap"}):
        return compose.with_cap(
            fairness_rule, r.weight_cap, shares=simplex.uniform_weights
        )


def _is_weight_sensitive(r: Robust) -> bool:
    """Whether a defence is in force that a large weight can defeat."""
    return r.aggregator == "multi_krum" or (r.aggregator == "mean" and r.norm_bound > 0)


class Ring(NamedTuple):
    """Coordinates that the same tiers train, and the Byzantine clients they bear."""

    tiers: tuple[int, ...]
    parameters: int
    hospitals: int
    """The fewest clients that train one of these coordinates."""
    holders: int
    """The number of these clients in an average cohort, rounded down."""
    breakdown: int
    """Byzantine clients that the aggregator bears, see `breakdown.breakdown`."""


def rings(
    c: Config,
    params: Params,
    holders: PyTree[Int[np.ndarray, "T ..."]],
    clients: int,
    cohort: int,
) -> list[Ring]:
    """The coverage rings of a round, the one that most tiers train first.

    Args:
        c: a checked config.
        params: the plain model.
        holders: how many clients of every tier train a coordinate, [T, ...] a leaf.
        clients: N.
        cohort: K.
    """
    coverage_rings = []
    for tiers, parameters, hospitals in breakdown.rings(params, holders):
        cohort_holders = hospitals * cohort // clients
        breakdown_point = breakdown.breakdown(
            c.robust.aggregator, cohort_holders, beta=c.robust.trimmed_mean.beta
        )
        coverage_rings.append(
            Ring(tiers, parameters, hospitals, cohort_holders, breakdown_point)
        )
    return coverage_rings


# ------------------------------------------------------------------------------- faults


def faults(c: Config, clients: int, seed: int) -> list[Fault]:
    """The faults of a checked config.

    Args:
        c: a checked config.
        clients: N.
        seed: decides which clients are faulty.
    """
    return [
        Fault(
            name,
            injected.faulty_clients(share, clients, seed),
            float(rate),
            float(getattr(c.robust.strength, name, 1.0)),
        )
        for name, share, rate in c.robust.faults
    ]


def deadline(c: Config) -> Deadline:
    """The deadline that stragglers of a checked config may miss."""
    late = c.robust.deadline
    return Deadline(max_time=late.most, log_std=late.spread)
