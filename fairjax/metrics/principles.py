"""The five principles of fair federated learning, as numbers of one run.

The names are those of Zhang et al. 2025; the definitions are operational ones of our
own. Everything follows from the rows of metrics.jsonl, the tiers' bills and the final
state, so a run that was interrupted comes to the same numbers.

Lists have one entry per tier, smallest first; None stands for what is not known. `rows`
are all rows of metrics.jsonl, `bills` the bills of `cost.ledger` with the tier's
"budget", "branches" and "clients".
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from fairjax import metrics
from fairjax.core import axes, client, rng, scopes, trees
from fairjax.core.rng import Role
from fairjax.core.types import Kept, Masks, Member, Params, RunState

Row = Mapping[str, Any]
PerTier = list[Any]

COSTS = ("parameters", "flops_train", "activation_floats")
"""Entries of a bill that are held against a tier's budget."""
NEAR = 0.95
"""Share of the best accuracy from which on a run counts as arrived."""


def opportunity(
    rows: Sequence[Row],
    bills: Sequence[Row],
    whole: Row,
    drawn: Bool[np.ndarray, "rounds N"],
    tiers: Int[np.ndarray, "rounds N"],
) -> dict[str, Any]:
    """Equal opportunity: does every tier take part, at a price that it can pay?

        participation_t = sum_r entered_tr / sum_r drawn_tr
        hospitals_t = hospitals of t whose change entered at least once / all of t
        cost_t = bill_t / bill of the plain model,   within_t = (cost_t <= budget_t)

    Args:
        rows: see above.
        bills: see above.
        whole: bill of a hospital that trains the plain model.
        drawn: the hospitals of every round's cohort.
        tiers: tier of every hospital in every round; one that changed tiers counts in
            each of them.

    Edge cases: rows count a tier's slots and do not name its hospitals. `hospitals` is
        None where a change was refused and no other round tells whose it was. A tier
        with branches has budget 1: its plain part is the whole model.
    """
    budget = [1.0 if bill["branches"] else bill["budget"] for bill in bills]
    asked, entered = (_per_round(rows, name, len(bills)) for name in ("drawn", "valid"))
    hospitals: PerTier = []
    for tier in range(len(bills)):
        mine = drawn & (tiers == tier)
        # If all of the tier's slots entered, so did every hospital in them.
        surely = mine[entered[:, tier] == asked[:, tier]].any(axis=0).sum()
        perhaps = mine[entered[:, tier] > 0].any(axis=0).sum()
        members = int((tiers == tier).any(axis=0).sum())
        known = surely == perhaps
        hospitals.append(_ratio(int(surely), members) if known else None)
    cost = {name: [_ratio(bill[name], whole[name]) for bill in bills] for name in COSTS}
    return {
        "participation": _ratios(entered.sum(axis=0), asked.sum(axis=0)),
        "hospitals": hospitals,
        "budget": budget,
        "cost": cost,
        "within": {
            name: [
                None if share is None else share <= most
                for share, most in zip(shares, budget, strict=True)
            ]
            for name, shares in cost.items()
        },
    }


def contribution(
    rows: Sequence[Row], params: Params, masks: Sequence[Masks]
) -> dict[str, PerTier]:
    """Fair contribution: how far does each tier move the model?

        W_t = mean over rounds of the weight of tier t
        effective_weight_t = mean over p of W_t m_t[p] / sum_s W_s m_s[p]
        coverage_t = sum_p m_t[p] / P

    with p running over the coordinates that somebody covers (sum_s W_s m_s[p] > 0), so
    that effective weights add up to 1.

    Args:
        rows: see above.
        params: the plain model; only its shapes count.
        masks: m_t, the update mask of every tier; leaves broadcast to the parameters.

    Edge cases: effective weights are None if nobody covers anything.
    """
    names = [f"fairness/weight_tier_{tier}" for tier in range(len(masks))]
    weights = np.array([[row[name] for name in names] for row in rows], float)
    weight = [metrics.mean(of_tier) for of_tier in weights.T]
    scale = np.nan_to_num(np.array(weight))[:, None]
    effective, coverage = np.zeros((2, len(masks)))
    covered = total = 0
    for param, *of_leaf in zip(*map(jax.tree.leaves, (params, *masks)), strict=True):
        mask = np.stack(np.broadcast_arrays(*(np.asarray(m, float) for m in of_leaf)))
        mask = mask.reshape(len(masks), -1)
        # A mask has length 1 where nothing restricts it: one entry speaks for many.
        each = param.size // mask.shape[1]
        num = scale * mask
        den = num.sum(axis=0)
        effective += each * (num[:, den > 0] / den[den > 0]).sum(axis=1)
        coverage += each * mask.sum(axis=1)
        covered += each * int(np.count_nonzero(den))
        total += param.size
    return {
        "weight": [None if math.isnan(w) else w for w in weight],
        "effective_weight": [_ratio(float(share), covered) for share in effective],
        "coverage": [_ratio(float(size), total) for size in coverage],
    }


def shared_fruits(
    plain: Params, deployed: Iterable[Params], clients: Sequence[int]
) -> dict[str, Any]:
    """Shared fruits: do all hospitals get the same model?

        identical_t = (bytes of what tier t deploys = bytes of the plain model)
        hospitals = sum_t identical_t N_t / N

    Args:
        plain: the model that stands for the federation.
        deployed: every tier's sub-model in plain coordinates, 0 where it drops one.
        clients: N_t, hospitals of every tier.

    Returns:
        These, and the SHA-256 of the plain model: of the bytes of its leaves, one after
        the other as `jax.tree.leaves` orders them.
    """
    of_plain = list(_bytes(plain))
    digest = hashlib.sha256()
    for leaf in of_plain:
        digest.update(leaf)
    identical = [
        all(itertools.starmap(bytes.__eq__, zip(of_plain, _bytes(tree), strict=True)))
        for tree in deployed
    ]
    same = sum(n for n, alike in zip(clients, identical, strict=True) if alike)
    return {
        "identical": identical,
        "hospitals": _ratio(same, sum(clients)),
        "sha256": digest.hexdigest(),
    }


def equal_accuracy(
    row: Row, tiers: int, compared: Sequence[int]
) -> dict[str, float | None]:
    """Equal accuracy: how far apart are hospitals under the full model?

    Standard deviation, worst, mean of the worst tenth, Jain's index and normalised
    entropy over hospitals, all from `metrics.summary`, which also says over which; and
    the range over tiers, max_t a_t - min_t a_t, of the tiers' mean accuracies.

    Args:
        row: an evaluated row of metrics.jsonl.
        tiers: T.
        compared: the tiers that have enough test records; where others are known, one
            alone has no range.
    """
    means = {tier: row[f"eval/accuracy/tier_{tier}"] for tier in range(tiers)}
    known = {tier: mean for tier, mean in means.items() if mean is not None}
    present = [known[tier] for tier in compared if tier in known]
    if len(present) == 1 < len(known):
        present = []
    return {
        "std": row["eval/accuracy/client_std"],
        "worst": row["eval/accuracy/client_worst"],
        "worst10": row["eval/accuracy/client_worst10"],
        "jain": row["fairness/jain"],
        "entropy": row["fairness/entropy"],
        "tier_range": max(present) - min(present) if present else None,
    }


def sustainability(rows: Sequence[Row], bills: Sequence[Row]) -> dict[str, Any]:
    """Sustainability: what has each tier paid, all its hospitals and rounds together?

        bytes_t = sum_r trained_tr * (bytes of one hospital in one round)
        flops_t = sum_r records_tr * (training FLOPs of one record)
                      + steps_tr * (FLOPs of one local step besides)
        rounds = the first evaluated round with accuracy >= 0.95 max accuracy

    `trained` are the slots that took a local step, whether or not their change entered;
    `records` what went through these steps. Accuracy is the full model's on all test
    records.

    Args:
        rows: see above.
        bills: see above.
    """
    trained, records, steps = (
        _per_round(rows, name, len(bills)).sum(axis=0).tolist()
        for name in ("trained", "records", "steps")
    )
    per_record = _times(bills, "flops_train", records)
    per_step = _times(bills, "flops_step", steps)
    known = [row for row in rows if row.get("eval/accuracy") is not None]
    near = NEAR * max((row["eval/accuracy"] for row in known), default=0.0)
    arrived = (row["round"] for row in known if row["eval/accuracy"] >= near)
    return {
        "bytes_down": _times(bills, "bytes_down", trained),
        "bytes_up": _times(bills, "bytes_up", trained),
        "flops_train": [a + b for a, b in zip(per_record, per_step, strict=True)],
        "rounds_to_95_percent": next(arrived, None),
    }


def measure(
    rows: Sequence[Row],
    bills: Sequence[Row],
    whole: Row,
    drawn: Bool[np.ndarray, "rounds N"],
    tiers: Int[np.ndarray, "rounds N"],
    state: RunState,
    representatives: Member,
    *,
    local: client.Local,
    compared: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """All five principles of a run.

    The plain model is that of the evaluation: the richest tier's where tiers keep
    leaves to themselves. Such leaves, and those of a client, move no other tier's
    model, so they count in no coverage.

    Args:
        rows: see above.
        bills: see above.
        whole: see `opportunity`.
        drawn: see `opportunity`.
        tiers: see `opportunity`.
        state: the final state.
        representatives: one client of every tier, [T] a leaf; its update mask and what
            it deploys stand for the tier's where a method draws them per client.
        local: the local problem.
        compared: tiers with enough test records, see `equal_accuracy`.
    """
    units_key = rng.at(state.key, Role.UNITS, state.round)
    members = [trees.pick(representatives, tier) for tier in range(len(bills))]

    def received(member: Member) -> tuple[Params, Kept]:
        params = scopes.gather(state.private, state.params, member)
        return params, local.method.units(units_key, state.round, params, member)

    def sent(member: Member) -> Masks:
        params, kept = received(member)
        update = axes.masks(params, local.model.axes, kept.update or kept.forward)
        if local.method.mask is not None:
            update = trees.multiply(local.method.mask(params, kept), update)
        return scopes.shared(state.private, update, member.tier)

    def deployed(member: Member) -> Params:
        params, kept = received(member)
        forward = axes.masks(params, local.model.axes, kept.forward)
        return trees.multiply(client.held(local.method, params, kept), forward)

    return {
        "opportunity": opportunity(rows, bills, whole, drawn, tiers),
        "contribution": contribution(rows, state.params, [sent(m) for m in members]),
        "shared_fruits": shared_fruits(
            scopes.whole(state.private, state.params),
            (deployed(member) for member in members),
            [bill["clients"] for bill in bills],
        ),
        "equal_accuracy": equal_accuracy(rows[-1], len(bills), compared),
        "sustainability": sustainability(rows, bills),
    }


def records(
    count: Int[np.ndarray, "K"], steps: Int[np.ndarray, "K"], batch_size: int
) -> Int[np.ndarray, "K"]:
    """Records that went through the local steps of clients, repetitions counted.

    Args:
        count: training records of every client.
        steps: local steps that it took; the last batch of an epoch may be short.
        batch_size: B.
    """
    per_epoch = np.maximum(-(-count // batch_size), 1)
    return steps // per_epoch * count + steps % per_epoch * batch_size


def _per_round(
    rows: Sequence[Row], name: str, tiers: int
) -> Int[np.ndarray, "rounds T"]:
    table = [[row[f"cohort/{name}_tier_{t}"] for t in range(tiers)] for row in rows]
    return np.array(table, np.int64)


def _times(bills: Sequence[Row], name: str, how_often: Sequence[int]) -> PerTier:
    return [bill[name] * n for bill, n in zip(bills, how_often, strict=True)]


def _ratio(part: int | float, whole: int | float) -> float | None:
    return part / whole if whole else None


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> PerTier:
    return list(map(_ratio, parts.tolist(), wholes.tolist()))


def _bytes(tree: Params) -> Iterable[bytes]:
    return (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
