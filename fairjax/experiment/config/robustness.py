"""From a config to what a run withstands, and to what it is made to withstand.

`robust.fold`, `norm_bound` and `weight_cap` are the defences, `robust.faults` what goes
wrong. Combinations that cannot hold are refused: a median of single uploads under a
secure sum, which shows nobody any of them, or a rule's weights in a fold without.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, PyTree

from fairjax.core import require, simplex
from fairjax.core.types import Params, Protection, Rule
from fairjax.fairness import compose, weights
from fairjax.robust import faults as injected
from fairjax.robust import folds
from fairjax.robust.faults import Deadline, Fault

UNWEIGHTED = ("median", "trimmed_mean", "krum")
"""Folds in which weights have no say."""
NEUTRAL = (
    "size", "uniform", "propfair", "logit_adjust", "ditto", "fedbn", "private_head",
)  # fmt: skip
"""Rules whose weights may be ignored: they are the default ones, or none."""


def check(c: Any, made: Rule) -> None:
    """Refuses what no data could make hold, by the name of the field.

    Args:
        c: a config.
        made: its fairness rule.
    """
    r = c.robust
    fold = require.one_of("robust.fold", r.fold, folds.FOLDS)
    require.in_range("robust.norm_bound", r.norm_bound, 0)
    if r.weight_cap:
        require.in_range("robust.weight_cap", r.weight_cap, 1)
    require.in_range("robust.hostile", r.hostile, 0)
    beta = r.trimmed_mean.beta
    require.in_range("robust.trimmed_mean.beta", beta, 0, 0.5, open_high=True)
    for name, strength in r.strength.items():
        require.in_range(f"robust.strength.{name}", strength, 0)
    require.positive("robust.deadline.most", r.deadline.most)
    require.in_range("robust.deadline.spread", r.deadline.spread, 0)
    _check_faults(c, made)
    for field, neutral in (("fold", "mean"), ("norm_bound", 0.0)):
        if r[field] != neutral:
            _check_seen(c, f"robust.{field}", neutral)
            _check_applied(c, made, f"robust.{field}", neutral)
    if fold != "mean" and c.fairness.denominator == "fixed":
        what = f"cover with robust.fold {fold}, which is no sum over all hospitals"
        require.fail("fairness.denominator", what, "fixed")
    if fold not in UNWEIGHTED:
        return
    for part in c.fairness.rule.split("+"):
        if part not in NEUTRAL:
            what = f"one of {', '.join(NEUTRAL)} with robust.fold {fold}, in which "
            require.fail("fairness.rule", what + "weights have no say", part)


def _check_seen(c: Any, field: str, neutral: Any) -> None:
    got = _value(c, field)
    if c.privacy.secure_sum != "off":
        what = f"{neutral} with privacy.secure_sum, under which nobody sees an upload"
        require.fail(field, what, got)
    if c.privacy.mechanism == "client_dp":
        what = f"{neutral} with client_dp, whose clip and noise are those of a sum"
        require.fail(field, what, got)
    if c.privacy.mechanism == "local_dp" and field == "robust.norm_bound":
        what = f"{neutral} with local_dp: it measures norms before their noise"
        require.fail(field, what, got)


def _check_applied(c: Any, made: Rule, field: str, neutral: Any) -> None:
    got = _value(c, field)
    if not c.robust.finite_guard:
        what = f"True with {field} {got}, in which a NaN has no place"
        require.fail("robust.finite_guard", what, False)
    if made.combine is not None:
        what = f"{neutral} with rule {c.fairness.rule}, which combines changes itself"
        require.fail(field, what, got)


def _value(c: Any, field: str) -> Any:
    for part in field.split("."):
        c = c[part]
    return c


def _check_faults(c: Any, made: Rule) -> None:
    where = "robust.faults"
    for entry in c.robust.faults:
        if not isinstance(entry, tuple) or len(entry) != 3:
            require.fail(where, "(name, share of hospitals, rate) for each", entry)
        name, share, rate = entry
        if not isinstance(name, str):
            require.fail(where, "a name first", name)
        require.one_of(where, name, injected.FAULTS)
        require.in_range(f"{where} share of {name}", share, 0, 1, open_low=True)
        require.in_range(f"{where} rate of {name}", rate, 0, 1, open_low=True)
        if name in injected.PERMANENT and rate != 1:
            what = f"1 for {name}, which is in every round"
            require.fail(f"{where} rate of {name}", what, rate)
    named = [entry[0] for entry in c.robust.faults]
    for name in named:
        if named.count(name) > 1:
            require.fail(where, "every fault once", name)
        if name in injected.CLAIMS and c.privacy.mechanism == "client_dp":
            what = f"no {name} with client_dp, whose weights are public"
            require.fail(where, what, name)
        if name == "corrupted" and c.privacy.mechanism == "record_dp":
            what = "no corrupted with record_dp: it deals one record's values to many"
            require.fail(where, what, name)
    if "inflated_loss" in named and "loss" not in made.needs:
        what = "a rule that reads losses for inflated_loss in robust.faults"
        require.fail("fairness.rule", what, c.fairness.rule)


def check_used(path: str, c: Any) -> None:
    """Refuses a field of robust that was set by hand and that nothing reads."""
    r = c.robust
    _, group, *rest = path.split(".")
    named = [entry[0] for entry in r.faults]
    if group == "strength" and rest[0] not in named:
        require.fail(path, "robust.faults with it for this option", tuple(r.faults))
    if group == "deadline" and "straggler" not in named:
        require.fail(path, "a straggler in robust.faults", tuple(r.faults))
    if group == "trimmed_mean" and r.fold != "trimmed_mean":
        require.fail(path, "robust.fold 'trimmed_mean' for this option", r.fold)
    if group == "weight_cap" and not _capped(r):
        what = "robust.fold 'multi_krum', or a norm bound of a mean, for this option"
        require.fail(path, what, r.fold)
    if group == "hostile" and r.fold not in folds.BY_DISTANCE:
        what = f"robust.fold {' or '.join(folds.BY_DISTANCE)} for this option"
        require.fail(path, what, r.fold)


# ----------------------------------------------------------------------------- defences


def protection(c: Any, inner: Protection, cohort: int) -> Protection:
    """What stands between changes and model: the run's privacy, a fold, a norm bound.

    Args:
        c: a checked config.
        inner: of the run's privacy.
        cohort: K.

    Raises:
        InputError: a cohort that is too small for what the fold assumes.
    """
    r = c.robust
    if r.fold in folds.BY_DISTANCE and cohort < 2 * r.hostile + 3:
        what = f"at most {(cohort - 3) // 2} with a cohort of {cohort}: K >= 2 f + 3"
        require.fail("robust.hostile", what, r.hostile)
    if r.fold == "median":
        inner = folds.folded(inner, folds.median())
    elif r.fold == "trimmed_mean":
        inner = folds.folded(inner, folds.trimmed_mean(**r.trimmed_mean))
    elif r.fold in folds.BY_DISTANCE:
        fold = folds.krum if r.fold == "krum" else folds.multi_krum
        inner = folds.folded(inner, fold(hostile=r.hostile))
    if r.norm_bound:
        tiers = len(c.tiers.budget)
        inner = folds.bounded(inner, factor=r.norm_bound, tiers=tiers)
    return inner


def rule(c: Any, made: Rule) -> Rule:
    """A fairness rule whose weights no hospital can raise above the cap.

    That holds for the sizes too by which a rule without weights is averaged.
    """
    r = c.robust
    if not r.weight_cap or not _capped(r):
        return made
    if made.weigh is None:
        made = made._replace(weigh=weights.size().weigh)
    field = "robust.weight_cap"
    return compose.capped(made, r.weight_cap, shares=simplex.alike, field=field)


def _capped(r: Any) -> bool:
    """Whether a defence is in force in which weights are a lever."""
    return r.fold == "multi_krum" or (r.fold == "mean" and r.norm_bound > 0)


class Ring(NamedTuple):
    """Coordinates that the same tiers hold, and how many liars among them they bear."""

    tiers: tuple[int, ...]
    parameters: int
    hospitals: int
    """The fewest that hold one of them."""
    holders: int
    """Of those in a cohort on average, rounded down."""
    breakdown: int
    """See `folds.breakdown`."""


def rings(
    c: Any,
    params: Params,
    holders: PyTree[Int[np.ndarray, "T ..."]],
    clients: int,
    cohort: int,
) -> list[Ring]:
    """The coverage rings of a round, that of the most tiers first.

    Args:
        c: a plain or a checked config.
        params: the plain model.
        holders: how many hospitals of every tier hold a coordinate, [T, ...] a leaf.
        clients: N.
        cohort: K.
    """
    r = c["robust"]
    found = []
    for tiers, parameters, hospitals in folds.rings(params, holders):
        met = hospitals * cohort // clients
        bears = folds.breakdown(r["fold"], met, beta=r["trimmed_mean"]["beta"])
        found.append(Ring(tiers, parameters, hospitals, met, bears))
    return found


# ------------------------------------------------------------------------------- faults


def faults(c: Any, clients: int, seed: int) -> list[Fault]:
    """The faults of a checked config, for N hospitals; the seed says which of them."""
    return [
        Fault(
            name,
            injected.hospitals(share, clients, seed),
            float(rate),
            float(c.robust.strength.get(name, 1.0)),
        )
        for name, share, rate in c.robust.faults
    ]


def deadline(c: Any) -> Deadline:
    """Of the stragglers among them."""
    return Deadline(**c.robust.deadline)
