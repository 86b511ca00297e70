"""The five principles of fair federated learning, as numbers of one run.

The names are those of Zhang et al. 2025 (see `fairjax.submodels.dynamicfl`); the
operational definitions are ours. Everything follows from the rows of metrics.jsonl, the
tiers' costs and the final state, so a run that was interrupted gives the same numbers.

Lists have one entry per tier, smallest first; None stands for an unknown value. `rows`
are all rows of metrics.jsonl, `costs` the costs of `cost.client_cost` with the tier's
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
from fairjax.core import axes, inference, rng, scopes, trees
from fairjax.core.problem import LocalProblem
from fairjax.core.rng import Role
from fairjax.core.types import ClientView, Masks, Params, RunState, Submodel

Row = Mapping[str, Any]
PerTier = list[Any]

COSTS = ("parameters", "flops_train", "activation_floats")
"""Entries of a cost that are compared with a tier's budget."""
NEAR = 0.95
"""Share of the best accuracy at which a run counts as having reached it."""


def opportunity(
    rows: Sequence[Row],
    costs: Sequence[Row],
    full_model_cost: Row,
    selected: Bool[np.ndarray, "rounds N"],
    tiers: Int[np.ndarray, "rounds N"],
) -> dict[str, Any]:
    """Equal opportunity: does every tier take part, at a cost within its budget?

        participation_t = sum_r accepted_tr / sum_r selected_tr
        hospitals_t = clients of t whose change entered at least once / all clients of t
        cost_t = cost of t / cost of the plain model,   within_t = (cost_t <= budget_t)

    Args:
        rows: see above.
        costs: see above.
        full_model_cost: cost of a client that trains the plain model.
        selected: the clients of every round's cohort.
        tiers: tier of every client in every round; a client that changed tiers counts
            in each of them.

    Edge cases: rows count a tier's slots and do not name its clients. "hospitals" is
        None if a change was refused and no other round tells whose it was. A tier with
        branches has budget 1: its plain part is the whole model.
    """
    budget = [
        1.0 if tier_cost["branches"] else tier_cost["budget"] for tier_cost in costs
    ]
    selected_count, accepted_count = (
        _per_round(rows, name, len(costs)) for name in ("drawn", "valid")
    )
    client_share: PerTier = []
    for tier in range(len(costs)):
        in_tier = selected & (tiers == tier)
        # If all slots of the tier entered, so did every client in them.
        min_clients = (
            in_tier[accepted_count[:, tier] == selected_count[:, tier]]
            .any(axis=0)
            .sum()
        )
        max_clients = in_tier[accepted_count[:, tier] > 0].any(axis=0).sum()
        num_clients = int((tiers == tier).any(axis=0).sum())
        is_exact = min_clients == max_clients
        client_share.append(_ratio(int(min_clients), num_clients) if is_exact else None)
    relative_cost = {
        name: [_ratio(tier_cost[name], full_model_cost[name]) for tier_cost in costs]
        for name in COSTS
    }
    return {
        "participation": _ratios(
            accepted_count.sum(axis=0), selected_count.sum(axis=0)
        ),
        "hospitals": client_share,
        "budget": budget,
        "cost": relative_cost,
        "within": {
            name: [
                None if share is None else share <= limit
                for share, limit in zip(shares, budget, strict=True)
            ]
            for name, shares in relative_cost.items()
        },
    }


def contribution(
    rows: Sequence[Row], params: Params, masks: Sequence[Masks]
) -> dict[str, PerTier]:
    """Fair contribution: how far does each tier move the model?

        W_t = mean over rounds of the weight of tier t
        effective_weight_t = mean over p of W_t m_t[p] / sum_s W_s m_s[p]
        coverage_t = sum_p m_t[p] / P

    with p running over the coordinates that some tier covers (sum_s W_s m_s[p] > 0), so
    that effective weights add up to 1.

    Args:
        rows: see above.
        params: the plain model; only its shapes count.
        masks: m_t, the update mask of every tier; leaves broadcast to the parameters.

    Edge cases: effective weights are None if no tier covers anything.
    """
    names = [f"fairness/weight_tier_{tier}" for tier in range(len(masks))]
    weights = np.array([[row[name] for name in names] for row in rows], float)
    weight = [metrics.mean(tier_weights) for tier_weights in weights.T]
    scale = np.nan_to_num(np.array(weight))[:, None]
    effective, coverage = np.zeros((2, len(masks)))
    num_covered = total = 0
    for param, *tier_masks in zip(*map(jax.tree.leaves, (params, *masks)), strict=True):
        mask = np.stack(
            np.broadcast_arrays(*(np.asarray(m, float) for m in tier_masks))
        )
        mask = mask.reshape(len(masks), -1)
        # A mask has length 1 along unrestricted dimensions: one entry counts for many.
        repeats = param.size // mask.shape[1]
        num = scale * mask
        den = num.sum(axis=0)
        effective += repeats * (num[:, den > 0] / den[den > 0]).sum(axis=1)
        coverage += repeats * mask.sum(axis=1)
        num_covered += repeats * int(np.count_nonzero(den))
        total += param.size
    return {
        "weight": [None if math.isnan(w) else w for w in weight],
        "effective_weight": [_ratio(float(share), num_covered) for share in effective],
        "coverage": [_ratio(float(size), total) for size in coverage],
    }


def shared_fruits(
    plain: Params, deployed_params: Iterable[Params], clients: Sequence[int]
) -> dict[str, Any]:
    """Shared fruits: do all clients get the same model?

        identical_t = (bytes of what tier t deploys = bytes of the plain model)
        hospitals = sum_t identical_t N_t / N

    Args:
        plain: the model that represents the federation.
        deployed_params: every tier's sub-model in plain coordinates, 0 where it drops
            one.
        clients: N_t, clients of every tier.

    Returns:
        These, and the SHA-256 of the plain model: the hash of the bytes of its leaves,
        in the order of `jax.tree.leaves`.
    """
    plain_bytes = list(_bytes(plain))
    digest = hashlib.sha256()
    for leaf in plain_bytes:
        digest.update(leaf)
    identical = [
        all(
            itertools.starmap(bytes.__eq__, zip(plain_bytes, _bytes(tree), strict=True))
        )
        for tree in deployed_params
    ]
    num_identical = sum(
        n for n, is_identical in zip(clients, identical, strict=True) if is_identical
    )
    return {
        "identical": identical,
        "hospitals": _ratio(num_identical, sum(clients)),
        "sha256": digest.hexdigest(),
    }


def equal_accuracy(
    row: Row, tiers: int, eligible_tiers: Sequence[int]
) -> dict[str, float | None]:
    """Equal accuracy: how far apart are clients under the full model?

    Standard deviation, worst, mean of the worst tenth, Jain's index and normalised
    entropy over clients come from `metrics.summary`, which also says over which
    clients. The range over tiers is max_t a_t - min_t a_t, with a_t the mean accuracy
    of a tier.

    Args:
        row: an evaluated row of metrics.jsonl.
        tiers: T.
        eligible_tiers: the tiers that have enough test records. If there is only one
            and other tiers have records too, there is no range.
    """
    means = {tier: row[f"eval/accuracy/tier_{tier}"] for tier in range(tiers)}
    tier_means = {tier: mean for tier, mean in means.items() if mean is not None}
    eligible_means = [tier_means[tier] for tier in eligible_tiers if tier in tier_means]
    if len(eligible_means) == 1 < len(tier_means):
        eligible_means = []
    return {
        "std": row["eval/accuracy/client_std"],
        "worst": row["eval/accuracy/client_worst"],
        "worst10": row["eval/accuracy/client_worst10"],
        "jain": row["fairness/jain"],
        "entropy": row["fairness/entropy"],
        "tier_range": max(eligible_means) - min(eligible_means)
        if eligible_means
        else None,
    }


def sustainability(rows: Sequence[Row], costs: Sequence[Row]) -> dict[str, Any]:
    """Sustainability: the cost of each tier, over all its clients and rounds.

        bytes_t = sum_r trained_tr * (bytes of one client in one round)
        flops_t = sum_r records_tr * (training FLOPs of one record)
                      + steps_tr * (further FLOPs of one local step)
        rounds = the first evaluated round with accuracy >= 0.95 max accuracy

    trained_tr are the slots that took a local step, whether or not their change
    entered, and records_tr the records in these steps. Accuracy is the full model's on
    all test records.

    Args:
        rows: see above.
        costs: see above.
    """
    trained_slots, records, steps = (
        _per_round(rows, name, len(costs)).sum(axis=0).tolist()
        for name in ("trained", "records", "steps")
    )
    per_record = _scaled_costs(costs, "flops_train", records)
    per_step = _scaled_costs(costs, "flops_step", steps)
    evaluated_rows = [row for row in rows if row.get("eval/accuracy") is not None]
    threshold = NEAR * max(
        (row["eval/accuracy"] for row in evaluated_rows), default=0.0
    )
    reached_rounds = (
        row["round"] for row in evaluated_rows if row["eval/accuracy"] >= threshold
    )
    return {
        "bytes_down": _scaled_costs(costs, "bytes_down", trained_slots),
        "bytes_up": _scaled_costs(costs, "bytes_up", trained_slots),
        "flops_train": [a + b for a, b in zip(per_record, per_step, strict=True)],
        "rounds_to_95_percent": next(reached_rounds, None),
    }


def measure(
    rows: Sequence[Row],
    costs: Sequence[Row],
    full_model_cost: Row,
    selected: Bool[np.ndarray, "rounds N"],
    tiers: Int[np.ndarray, "rounds N"],
    state: RunState,
    representatives: ClientView,
    *,
    local: LocalProblem,
    eligible_tiers: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """All five principles of a run.

    The plain model is that of the evaluation: the richest tier's if tiers keep copies
    of leaves. Such leaves, and a client's local leaves, move no other tier's model, so
    they count in no coverage.

    Args:
        rows: see above.
        costs: see above.
        full_model_cost: see `opportunity`.
        selected: see `opportunity`.
        tiers: see `opportunity`.
        state: the final state.
        representatives: one client of every tier, [T] a leaf; its update mask and its
            deployed sub-model represent the tier if a method draws them per client.
        local: the local problem.
        eligible_tiers: tiers with enough test records, see `equal_accuracy`.
    """
    units_key = rng.fold_in(state.key, Role.UNITS, state.round)
    client_views = [trees.pick(representatives, tier) for tier in range(len(costs))]

    def client_inputs(client_view: ClientView) -> tuple[Params, Submodel]:
        params = scopes.gather(state.leaf_copies, state.params, client_view)
        return params, local.method.submodel(
            units_key, state.round, params, client_view
        )

    def update_mask(client_view: ClientView) -> Masks:
        params, submodel = client_inputs(client_view)
        mask = axes.masks(params, local.model.axes, submodel.update or submodel.forward)
        if local.method.mask is not None:
            mask = trees.multiply(local.method.mask(params, submodel), mask)
        return scopes.shared_leaves(state.leaf_copies, mask, client_view.tier)

    def deployed_params(client_view: ClientView) -> Params:
        params, submodel = client_inputs(client_view)
        forward = axes.masks(params, local.model.axes, submodel.forward)
        return trees.multiply(
            inference.masked_params(local.method, params, submodel), forward
        )

    return {
        "opportunity": opportunity(rows, costs, full_model_cost, selected, tiers),
        "contribution": contribution(
            rows, state.params, [update_mask(m) for m in client_views]
        ),
        "shared_fruits": shared_fruits(
            scopes.top_tier_model(state.leaf_copies, state.params),
            (deployed_params(client_view) for client_view in client_views),
            [tier_cost["clients"] for tier_cost in costs],
        ),
        "equal_accuracy": equal_accuracy(rows[-1], len(costs), eligible_tiers),
        "sustainability": sustainability(rows, costs),
    }


def records(
    count: Int[np.ndarray, "K"], steps: Int[np.ndarray, "K"], batch_size: int
) -> Int[np.ndarray, "K"]:
    """Records in the local steps of clients, counted with repetitions.

    Args:
        count: training records of every client.
        steps: local steps of every client; the last batch of an epoch may be short.
        batch_size: B.
    """
    per_epoch = np.maximum(-(-count // batch_size), 1)
    return steps // per_epoch * count + steps % per_epoch * batch_size


def _per_round(
    rows: Sequence[Row], name: str, tiers: int
) -> Int[np.ndarray, "rounds T"]:
    table = [[row[f"cohort/{name}_tier_{t}"] for t in range(tiers)] for row in rows]
    return np.array(table, np.int64)


def _scaled_costs(costs: Sequence[Row], name: str, counts: Sequence[int]) -> PerTier:
    return [tier_cost[name] * n for tier_cost, n in zip(costs, counts, strict=True)]


def _ratio(numerator: int | float, denominator: int | float) -> float | None:
    return numerator / denominator if denominator else None


def _ratios(numerators: np.ndarray, denominators: np.ndarray) -> PerTier:
    return list(map(_ratio, numerators.tolist(), denominators.tolist()))


def _bytes(tree: Params) -> Iterable[bytes]:
    return (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
