"""The five principles: by hand, and for methods that keep or break them."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import batching, client, objectives
from fairjax.core.types import ClientView
from fairjax.metrics import principles
from fairjax.models import mlp, resmlp
from fairjax.submodels import cost
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.fiarse import fiarse
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.inclusivefl import inclusivefl
from fairjax.submodels.partial import partial
from tests import fakes

BUDGET = (0.25, 0.5, 1.0)
TIERS = np.array([0, 1, 2, 1])
NAN = float("nan")


def log(**columns):
    """Rows of metrics.jsonl; a column is [rounds] or, per tier, [rounds, T]."""
    names = {"weight": "fairness/weight_tier_{}", "accuracy": "eval/accuracy"}
    rows = [{"round": r + 1} for r in range(len(next(iter(columns.values()))))]
    for column, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            if isinstance(value, list):
                name = names.get(column, f"cohort/{column}_tier_{{}}")
                row |= {name.format(t): entry for t, entry in enumerate(value)}
            elif value is not None:
                row[names[column]] = value
    return rows


def bill(price, budget=1.0, branches=0, clients=1):
    names = (*principles.COSTS, "bytes_down", "bytes_up")
    known = {"budget": budget, "branches": branches, "clients": clients}
    prices = {name: price * (i + 1) for i, name in enumerate(names)}
    return known | prices | {"flops_step": 100 * price}


# ----------------------------------------------------------------- records of the steps


@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 40))
def test_records_are_those_of_the_batches(count, size, steps):
    steps = steps if count else 0
    examples = client.ClientData(
        jnp.zeros((30, 1)),
        jnp.zeros(30, jnp.int32),
        jnp.asarray(0),
        jnp.asarray(count),
    )
    order = jnp.zeros(1, jnp.int32)
    seen = sum(
        int(batching.batch(examples, order, jnp.asarray(s), size).where.sum())
        for s in range(min(steps, 8))
    )
    got = principles.records(np.array([count]), np.array([min(steps, 8)]), size)
    assert got.tolist() == [seen]


# -------------------------------------------------------------------- equal opportunity


def test_opportunity_by_hand():
    """Tier 0 loses a slot, tier 1 is complete, 2 has branches, 3 has no client."""
    rows = log(drawn=[[2, 1, 1, 0], [1, 1, 1, 0]], valid=[[1, 1, 1, 0], [1, 1, 1, 0]])
    bills = [bill(1, 0.25), bill(2, 0.25), bill(8, 0.5, branches=2), bill(4)]
    tiers = np.array([[0, 0, 1, 1, 2]] * 2)
    drawn = np.array([[1, 1, 1, 0, 1], [1, 0, 1, 0, 1]], bool)
    got = principles.opportunity(rows, bills, bill(8), drawn, tiers)
    assert got["participation"] == [2 / 3, 1, 1, None]
    # Either of two clients of tier 0 may have been refused in round 1.
    assert got["hospitals"] == [None, 1 / 2, 1, None]
    assert got["budget"] == [0.25, 0.25, 1, 1]
    for name in principles.COSTS:
        assert got["cost"][name] == [1 / 8, 1 / 4, 1, 1 / 2]
        assert got["within"][name] == [True, True, True, True]
    dearer = principles.opportunity(rows, bills, bill(7), drawn, tiers)
    assert dearer["within"]["parameters"] == [True, False, False, True]


@pytest.mark.parametrize(
    ("valid", "hospitals"),
    [
        ([2, 1], 1),  # round 1 tells that both entered
        ([1, 1], None),  # hospital 0 surely did, hospital 1 perhaps
        ([1, 0], None),  # either of them did
        ([0, 1], 1 / 2),
        ([0, 0], 0),
    ],
)
def test_clients_are_counted_only_if_the_rows_identify_them(valid, hospitals):
    rows = log(drawn=[[2], [1]], valid=[[v] for v in valid])
    drawn = np.array([[True, True], [True, False]])
    got = principles.opportunity(rows, [bill(1)], bill(1), drawn, np.zeros((2, 2), int))
    assert got["hospitals"] == [hospitals]


def test_a_cost_that_is_zero_for_the_plain_model_is_unknown():
    whole = bill(1) | {"activation_floats": 0}
    rows = log(drawn=[[1]], valid=[[1]])
    got = principles.opportunity(
        rows, [bill(1)], whole, np.ones((1, 1), bool), np.zeros((1, 1), int)
    )
    assert got["cost"]["activation_floats"] == [None]
    assert got["within"]["activation_floats"] == [None]


# -------------------------------------------------------------------- fair contribution


def test_contribution_by_hand():
    """Tiers cover 2, 6 and no coordinates of 8; no tier covers two of them."""
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    first = jnp.array([[1.0, 0, 0]])
    masks = [
        {"a": first, "b": jnp.zeros(1)},
        {"a": one, "b": jnp.zeros(1)},
        {"a": none, "b": jnp.zeros(1)},
    ]
    rows = log(weight=[[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    got = principles.contribution(rows, params, masks)
    assert got["weight"] == [0.25, 0.5, 0.25]
    assert got["coverage"] == [2 / 8, 6 / 8, 0]
    shared = 0.25 / 0.75
    expected = [2 * shared / 6, (2 * (1 - shared) + 4) / 6, 0]
    np.testing.assert_allclose(got["effective_weight"], expected)
    full = [jax.tree.map(jnp.broadcast_to, m, {"a": (2, 3), "b": (2,)}) for m in masks]
    np.testing.assert_allclose(
        principles.contribution(rows, params, full)["effective_weight"], expected
    )


def test_a_tier_without_weight_covers_nothing_for_the_others():
    params, mask = {"a": jnp.zeros(4)}, {"a": jnp.ones(1)}
    half = {"a": jnp.array([1.0, 1, 0, 0])}
    got = principles.contribution(log(weight=[[0.0, 1.0]]), params, [mask, half])
    assert got["effective_weight"] == [0, 1]
    assert got["coverage"] == [1, 1 / 2]


def test_no_tier_contributes_or_weights_are_unknown():
    params, mask = {"a": jnp.zeros(4)}, {"a": jnp.ones(1)}
    got = principles.contribution(log(weight=[[0.0], [0.0]]), params, [mask])
    assert got["effective_weight"] == [None]
    got = principles.contribution(log(weight=[[None], [0.5]]), params, [mask])
    assert got["weight"] == [0.5]
    got = principles.contribution(log(weight=[[None]]), params, [mask])
    assert got == {"weight": [None], "effective_weight": [None], "coverage": [1.0]}


# ------------------------------------------------------------------------ shared fruits


def test_fruits_are_compared_bit_by_bit():
    plain = {"a": jnp.array([0.0, NAN]), "b": jnp.ones(2, jnp.bfloat16)}
    signed = plain | {"a": jnp.array([-0.0, NAN])}
    nearly = plain | {"b": plain["b"].at[1].set(1.0078125)}
    copy = jax.tree.map(jnp.array, plain)
    got = principles.shared_fruits(plain, [copy, signed, nearly], [3, 1, 4])
    assert got["identical"] == [True, False, False]
    assert got["hospitals"] == 3 / 8
    content = np.asarray(plain["a"]).tobytes() + np.asarray(plain["b"]).tobytes()
    assert got["sha256"] == hashlib.sha256(content).hexdigest()


# ------------------------------------------------------- equal accuracy, sustainability


def test_accuracy_is_that_of_the_metrics():
    row = {
        "eval/accuracy/client_std": 0.1,
        "eval/accuracy/client_worst": 0.2,
        "eval/accuracy/client_worst10": 0.3,
        "fairness/jain": 0.4,
        "fairness/entropy": None,
        "eval/accuracy/tier_0": 0.5,
        "eval/accuracy/tier_1": None,
        "eval/accuracy/tier_2": 0.75,
        "eval/accuracy/tier_3": 0.625,
    }
    got = principles.equal_accuracy(row, 4, (0, 1, 2, 3))
    assert got == {
        "std": 0.1,
        "worst": 0.2,
        "worst10": 0.3,
        "jain": 0.4,
        "entropy": None,
        "tier_range": 0.25,
    }

    def ranged(*given):
        return principles.equal_accuracy(*given)["tier_range"]

    assert ranged(row | {"eval/accuracy/tier_0": None}, 2, (0, 1)) is None
    # Tiers with too few test records are in no range, and one tier alone has none.
    assert ranged(row, 4, (0, 3)) == 0.125
    assert ranged(row, 4, (0, 1)) is None
    assert ranged(row, 1, (0,)) == 0


def test_sustainability_by_hand():
    rows = log(
        trained=[[1, 2], [0, 1], [3, 0]],
        records=[[7, 5], [0, 5], [9, 0]],
        steps=[[2, 3], [0, 1], [2, 0]],
        accuracy=[0.9, None, 0.96],
    )
    got = principles.sustainability(rows, [bill(1), bill(10)])
    assert got["bytes_down"] == [4 * 4, 3 * 40]
    assert got["bytes_up"] == [4 * 5, 3 * 50]
    assert got["flops_train"] == [16 * 2 + 4 * 100, 10 * 20 + 4 * 1000]
    assert got["rounds_to_95_percent"] == 3


@pytest.mark.parametrize(
    ("accuracy", "arrived"),
    [
        ([0.96, 0.9, 1.0], 1),
        ([None, 0.95, 1.0], 2),
        ([0.949, 0.5, 1.0], 3),
        ([1.0, 0.1, 0.1], 1),
        ([None, None, None], None),
    ],
)
def test_the_first_round_near_the_best_accuracy(accuracy, arrived):
    nothing = {name: [[0]] * 3 for name in ("trained", "records", "steps")}
    rows = log(accuracy=accuracy, **nothing)
    got = principles.sustainability(rows, [bill(1)])
    assert got["rounds_to_95_percent"] == arrived


# ------------------------------------------------------------------- permuted and whole


@given(st.permutations(range(3)), st.integers(0, 2**32 - 1))
def test_the_order_of_tiers_only_orders_the_numbers(order, seed):
    rng = np.random.default_rng(seed)
    order = list(order)
    drawn = rng.integers(0, 2, (4, 6)).astype(bool)
    tiers = rng.integers(0, 3, (4, 6))
    asked = np.stack([(drawn & (tiers == t)).sum(1) for t in range(3)], 1)
    entered = rng.integers(0, asked + 1)
    weight = rng.integers(0, 5, (4, 3)) / 4
    bills = [bill(t + 1, BUDGET[t]) for t in range(3)]
    params = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
    shapes = {"a": (1, 4), "b": 4}
    masks = [
        {name: jnp.asarray(rng.integers(0, 2, of)) for name, of in shapes.items()}
        for _ in range(3)
    ]

    def all_of(order):
        def table(values):
            return values[:, order].tolist()

        rows = log(
            drawn=table(asked),
            valid=table(entered),
            trained=table(entered),
            records=table(7 * entered),
            steps=table(2 * entered),
            weight=table(weight),
            accuracy=[0.5] * 4,
        )
        paid = [bills[t] for t in order]
        place = np.argsort(order)[tiers]
        opportunity = principles.opportunity(rows, paid, bill(3), drawn, place)
        flat = opportunity | opportunity.pop("cost")
        flat |= {f"within {name}": v for name, v in flat.pop("within").items()}
        flat |= principles.contribution(rows, params, [masks[t] for t in order])
        return flat | principles.sustainability(rows, paid)

    straight, permuted = all_of([0, 1, 2]), all_of(order)
    for name, values in straight.items():
        if isinstance(values, list):
            expected = np.array([values[t] for t in order], float)
            got = np.array(permuted[name], float)
            np.testing.assert_allclose(got, expected, err_msg=name)
        else:
            assert permuted[name] == values


# ------------------------------------------------------------------------------ methods


DEEP = mlp(classes=fakes.CLASSES, hidden=(16, 16))
BLOCKS = resmlp(classes=3, width=8, hidden=8, depth=4, norm="none", exits=True)


def measured(model, method, weights=(0.25, 0.25, 0.5)):
    """All five principles of a run at random parameters."""
    data = fakes.federation()
    spec = fakes.spec(model, method)
    state = fakes.start(spec, data, params=fakes.drawn(model, data.x[:1]))
    copies = {
        path: jax.vmap(jnp.add)(leaf, jnp.arange(len(leaf), dtype=leaf.dtype))
        for path, leaf in state.leaf_copies["tier"].items()
    }
    state = dataclasses.replace(state, leaf_copies=state.leaf_copies | {"tier": copies})
    members = [fakes.member(c, t, data) for t, c in enumerate((0, 1, 2))]
    local = spec.local

    def ledger(method, objective, member):
        kept = method.submodel(state.key, state.round, state.params, member)
        return cost.client_cost(
            model,
            method,
            objective,
            optax.sgd(0.1),
            state.params,
            kept,
            member,
            x=data.x[:1],
        )

    bills = [
        {"budget": BUDGET[t], "branches": 0, "clients": int(np.sum(TIERS == t))}
        | ledger(method, local.objective, member)
        for t, member in enumerate(members)
    ]
    whole = ledger(fedavg(model.axes), objectives.mean_cross_entropy(), members[0])
    rows = log(
        drawn=[[1, 2, 1]],
        valid=[[1, 2, 1]],
        trained=[[1, 2, 1]],
        records=[[10, 12, 23]],
        steps=[[1, 2, 1]],
        weight=[list(weights)],
        accuracy=[0.5],
    )
    names = ("std", "worst", "worst10")
    rows[0] |= {f"eval/accuracy/client_{name}": 0.5 for name in names}
    rows[0] |= {f"eval/accuracy/tier_{t}": 0.5 for t in range(3)}
    rows[0] |= {"fairness/jain": 1.0, "fairness/entropy": 1.0}
    return principles.measure(
        rows,
        bills,
        whole,
        np.ones((1, 4), bool),
        TIERS[None],
        state,
        ClientView(*(jnp.stack(leaves) for leaves in zip(*members, strict=True))),
        local=local,
        eligible_tiers=range(3),
    )


def test_fedavg_shares_everything_and_costs_every_tier_the_same():
    got = measured(DEEP, fedavg(DEEP.axes))
    assert got["shared_fruits"]["identical"] == [True] * 3
    assert got["shared_fruits"]["hospitals"] == 1
    assert got["contribution"] == {
        "weight": [0.25, 0.25, 0.5],
        "effective_weight": [0.25, 0.25, 0.5],
        "coverage": [1, 1, 1],
    }
    for name in principles.COSTS:
        assert got["opportunity"]["cost"][name] == [1, 1, 1]
        # Two tiers cannot train it.
        assert got["opportunity"]["within"][name] == [False, False, True]


def test_heterofl_fits_every_budget_and_shares_nothing_with_small_tiers():
    method = heterofl(DEEP.axes, BUDGET, scaler=False, masked_loss=False)
    got = measured(DEEP, method)
    assert got["shared_fruits"]["identical"] == [False, False, True]
    assert got["shared_fruits"]["hospitals"] == 1 / 4
    sizes = [6 * h + h + h * h + h + 3 * h + 3 for h in (4, 8, 16)]
    np.testing.assert_allclose(
        got["contribution"]["coverage"], [size / sizes[2] for size in sizes]
    )
    # Sub-models are nested: three tiers hold the smallest part, two the ring around
    # it, one the rest.
    inner, ring, rest = sizes[0], sizes[1] - sizes[0], sizes[2] - sizes[1]
    expected = [
        0.25 * inner,
        0.25 * inner + ring / 3,
        0.5 * inner + 2 * ring / 3 + rest,
    ]
    np.testing.assert_allclose(
        got["contribution"]["effective_weight"], np.array(expected) / sizes[2]
    )
    opportunity = got["opportunity"]
    assert opportunity["cost"]["parameters"][0] == sizes[0] / sizes[2]
    for name in ("parameters", "flops_train"):
        assert opportunity["within"][name] == [True] * 3
    # The three logits are never cut: 4 + 4 + 3 of 16 + 16 + 3 floats.
    assert opportunity["cost"]["activation_floats"][0] == 11 / 35
    assert opportunity["within"]["activation_floats"] == [False, False, True]


def test_partial_training_deploys_the_whole_model_and_moves_a_part_of_it():
    got = measured(BLOCKS, partial(BLOCKS.axes, BUDGET, mode="top"))
    assert got["shared_fruits"]["identical"] == [True] * 3
    poor, middle, rich = got["contribution"]["coverage"]
    assert poor < middle < rich == 1


def test_importance_masks_are_deployed_and_sent():
    got = measured(DEEP, fiarse(BUDGET, layerwise=False))
    assert got["shared_fruits"]["identical"] == [False, False, True]
    np.testing.assert_allclose(got["contribution"]["coverage"], BUDGET, atol=0.01)
    assert got["contribution"]["coverage"] == got["opportunity"]["cost"]["parameters"]


def test_leaves_of_a_tier_move_no_plain_model():
    """Decoupled tiers share nothing; tiers of InclusiveFL copy the last block."""
    got = measured(DEEP, fedavg(DEEP.axes, BUDGET, mode="decoupled"))
    assert got["contribution"]["coverage"] == [0, 0, 0]
    assert got["contribution"]["effective_weight"] == [None] * 3
    # The full model is the richest tier's.
    assert got["shared_fruits"]["identical"] == [False, False, True]
    method = inclusivefl(BLOCKS.axes, BUDGET, beta=0.0, stages=())
    contribution = measured(BLOCKS, method)["contribution"]
    assert all(0 < share < 1 for share in contribution["coverage"])
    np.testing.assert_allclose(sum(contribution["effective_weight"]), 1)
