"""Leaves that stay with a tier or a client, on a tree with one of each scope."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import aggregate, layout, require, round, scopes, trees
from fairjax.core.method import Method
from fairjax.core.rule import Rule
from fairjax.core.types import ClientView, Submodel
from tests import fakes

N, T = 6, 3
PARAMS = {
    "body": {"kernel": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])},
    "norm": {"scale": jnp.asarray([5.0, 6.0])},
    "head": {"bias": jnp.asarray([7.0, 8.0, 9.0])},
}
SCOPES = {
    "body": {"kernel": "shared"},
    "norm": {"scale": "tier"},
    "head": {"bias": "client"},
}
COHORT = fakes.cohort((4, 1, 5, 2), (0, 2, 0, 2))
WEIGHTS = jnp.asarray([0.125, 0.5, 0.375, 0.25])
EVERYBODY = jnp.ones(4, bool)


def method(scopes=SCOPES, **more):
    return Method(
        submodel=lambda key, round, params, member: Submodel(),
        scopes=lambda params: scopes,
        **more,
    )


BANK = scopes.init(method(), PARAMS, N, T)


def member(client, tier):
    number = jnp.asarray
    return ClientView(
        number(client), number(tier), number(True), number(3), jnp.asarray([1, 2])
    )


def deltas(seed=0):
    """Every client's change, whole numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.integers(1, 9, (4, *leaf.shape)), jnp.float32),
        PARAMS,
    )


def covers(rows=EVERYBODY):
    """Masks that keep or leave out all of a client."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(
            rows.astype(leaf.dtype).reshape(4, *[1] * leaf.ndim), (4, *leaf.shape)
        ),
        PARAMS,
    )


def turn(bank, delta, cover, weights=WEIGHTS, valid=EVERYBODY, between=None):
    """What a round does with the bank, and the sums that reach the server."""
    weights = jnp.where(valid, weights, 0)

    def one(delta, cover, weight, tier):
        num, den = aggregate.weighted_update(delta, cover, weight)
        return scopes.shared_leaves(bank, num, tier), scopes.by_tier(
            bank, num, den, tier
        )

    shared, tiers = trees.sum_first(jax.vmap(one)(delta, cover, weights, COHORT.tier))
    own = scopes.client_leaves(bank, delta)
    return scopes.update(bank, tiers, own, COHORT, valid, between), shared


# ------------------------------------------------------------------------- the bank


def test_every_copy_starts_from_the_plain_model():
    scale, bias = PARAMS["norm"]["scale"], PARAMS["head"]["bias"]
    assert {scope: list(copies) for scope, copies in BANK.items()} == {
        "tier": ["norm/scale"],
        "client": ["head/bias"],
        "row": ["norm/scale"],
    }
    np.testing.assert_array_equal(BANK["tier"]["norm/scale"], [scale] * T)
    np.testing.assert_array_equal(BANK["client"]["head/bias"], [bias] * N)


def test_a_method_without_private_leaves_has_an_empty_bank():
    bank = scopes.init(method()._replace(scopes=None), PARAMS, N, T)
    assert bank == {"tier": {}, "client": {}, "row": {}}
    assert scopes.gather(bank, PARAMS, member(0, 0)) is PARAMS
    assert scopes.shared_leaves(bank, PARAMS, jnp.asarray(0)) is PARAMS
    assert scopes.client_leaves(bank, PARAMS) == {}
    all_shared = jax.tree.map(lambda _: "shared", SCOPES)
    assert scopes.init(method(all_shared), PARAMS, N, T) == bank


def test_an_unknown_scope_is_refused_with_the_nearest():
    wrong = SCOPES | {"norm": {"scale": "teir"}}
    with pytest.raises(require.InputError) as caught:
        scopes.init(method(wrong), PARAMS, N, T)
    assert str(caught.value) == (
        "Method.scopes[norm/scale]: expected one of shared, tier, client; "
        "got 'teir'. Did you mean \"tier\"?"
    )


# --------------------------------------------------------------- what a client receives


def test_a_client_receives_the_leaves_of_its_tier_and_its_own():
    bank = {
        "tier": {"norm/scale": jnp.arange(T * 2.0).reshape(T, 2)},
        "client": {"head/bias": jnp.arange(N * 3.0).reshape(N, 3)},
        "row": BANK["row"],
    }
    got = scopes.gather(bank, PARAMS, member(client=4, tier=1))
    np.testing.assert_array_equal(got["norm"]["scale"], [2, 3])
    np.testing.assert_array_equal(got["head"]["bias"], [12, 13, 14])
    assert fakes.equal(got["body"], PARAMS["body"])


def test_the_whole_model_has_the_richest_tier_s_leaves():
    bank = {
        "tier": {"norm/scale": jnp.arange(T * 2.0).reshape(T, 2)},
        "client": {"head/bias": jnp.arange(N * 3.0).reshape(N, 3)},
        "row": BANK["row"],
    }
    got = scopes.top_tier_model(bank, PARAMS)
    np.testing.assert_array_equal(got["norm"]["scale"], [4, 5])
    assert fakes.equal(got["head"], PARAMS["head"])
    assert fakes.equal(got["body"], PARAMS["body"])


def test_only_shared_leaves_reach_the_server():
    got = scopes.shared_leaves(BANK, PARAMS, jnp.asarray(0))
    assert fakes.equal(got["body"], PARAMS["body"])
    assert not np.any(got["norm"]["scale"])
    assert not np.any(got["head"]["bias"])
    assert require.describe(got) == require.describe(PARAMS)


def test_own_is_what_the_client_keeps():
    assert scopes.client_leaves(BANK, PARAMS) == {"head/bias": PARAMS["head"]["bias"]}


def test_what_leaves_a_client_is_all_but_its_own():
    got = scopes.outgoing_leaves(BANK, PARAMS)
    assert not np.any(got["head"]["bias"])
    rest = {name: leaf for name, leaf in PARAMS.items() if name != "head"}
    assert fakes.equal({name: got[name] for name in rest}, rest)
    assert (
        scopes.outgoing_leaves(
            scopes.init(method()._replace(scopes=None), PARAMS, N, T), PARAMS
        )
        is PARAMS
    )


# --------------------------------------------------------------------------- a round


def test_a_tier_moves_by_the_mean_of_its_own_clients():
    """Clients 4 and 5 are tier 0, clients 1 and 2 tier 2; nobody is tier 1."""
    delta = deltas()
    new, _ = turn(BANK, delta, covers())
    change = new["tier"]["norm/scale"] - BANK["tier"]["norm/scale"]
    d, w = delta["norm"]["scale"], WEIGHTS
    np.testing.assert_allclose(
        change[0], (w[0] * d[0] + w[2] * d[2]) / (w[0] + w[2]), rtol=1e-6
    )
    np.testing.assert_allclose(
        change[2], (w[1] * d[1] + w[3] * d[3]) / (w[1] + w[3]), rtol=1e-6
    )
    np.testing.assert_array_equal(change[1], 0)


def test_what_one_tier_does_is_nothing_to_another():
    delta = deltas()
    low = jnp.asarray(COHORT.tier == 0)
    louder = jax.tree.map(
        lambda leaf: leaf * jnp.where(low, 1, 100.0).reshape(4, *[1] * (leaf.ndim - 1)),
        delta,
    )
    one, _ = turn(BANK, delta, covers())
    other, _ = turn(BANK, louder, covers())
    np.testing.assert_array_equal(
        one["tier"]["norm/scale"][:2], other["tier"]["norm/scale"][:2]
    )
    assert np.any(one["tier"]["norm/scale"][2] != other["tier"]["norm/scale"][2])


def test_a_tier_averages_over_those_who_cover_a_coordinate():
    """Whoever leaves a coordinate out does not drag its mean towards 0."""
    delta, cover = deltas(), covers()
    cover["norm"]["scale"] = jnp.asarray([[1.0, 1], [1, 0], [0, 1], [1, 0]])
    new, _ = turn(BANK, delta, cover)
    change = new["tier"]["norm/scale"] - BANK["tier"]["norm/scale"]
    np.testing.assert_allclose(change[0, 0], delta["norm"]["scale"][0, 0], rtol=1e-6)
    np.testing.assert_array_equal(change[2, 1], 0)


def test_masks_may_broadcast():
    delta, cover = deltas(), covers()
    narrow = jax.tree.map(
        lambda leaf: leaf[(slice(None), *[slice(1)] * (leaf.ndim - 1))], cover
    )
    assert fakes.equal(turn(BANK, delta, narrow)[0], turn(BANK, delta, cover)[0])


def test_a_client_moves_by_its_own_change_and_nobody_elses():
    """Whatever its weight; who is not in the cohort stays."""
    delta = deltas()
    new, shared = turn(BANK, delta, covers(), weights=WEIGHTS / 7)
    change = new["client"]["head/bias"] - BANK["client"]["head/bias"]
    for slot, who in enumerate(COHORT.client.tolist()):
        np.testing.assert_array_equal(change[who], delta["head"]["bias"][slot])
    np.testing.assert_array_equal(change[jnp.asarray([0, 3])], 0)
    assert not np.any(shared["head"]["bias"])
    assert not np.any(shared["norm"]["scale"])
    assert np.all(shared["body"]["kernel"] > 0)


@pytest.mark.parametrize("gone", range(4))
def test_an_invalid_client_leaves_no_trace(gone):
    """Its tier's mean is that of the others; its own copy stays bit for bit."""
    valid = EVERYBODY.at[gone].set(False)
    one, _ = turn(BANK, deltas(0), covers(), valid=valid)
    others = jax.tree.map(lambda a, b: a.at[gone].set(b[gone]), deltas(0), deltas(1))
    other, _ = turn(BANK, others, covers(), valid=valid)
    absent, _ = turn(BANK, deltas(0), covers(valid), valid=valid)
    assert fakes.equal(one, other)
    assert fakes.equal(one["tier"], absent["tier"])
    who = int(COHORT.client[gone])
    np.testing.assert_array_equal(
        one["client"]["head/bias"][who], PARAMS["head"]["bias"]
    )


def test_nobody_valid_changes_no_copy():
    new, _ = turn(BANK, deltas(), covers(), valid=~EVERYBODY)
    assert fakes.equal(new, BANK)


def test_a_padded_slot_may_repeat_a_client():
    """The slot that pads with client 4 does not undo or double what client 4 did."""
    valid = jnp.asarray([True, True, True, False])
    cohort = COHORT._replace(client=COHORT.client.at[3].set(4))
    own = scopes.client_leaves(BANK, deltas())
    tiers = {"norm/scale": (jnp.zeros((T, 2)), jnp.zeros((T, 2)))}
    new = scopes.update(BANK, tiers, own, cohort, valid)
    np.testing.assert_array_equal(
        new["client"]["head/bias"][4], PARAMS["head"]["bias"] + own["head/bias"][0]
    )


def test_a_round_keeps_private_leaves_where_they_belong():
    """Through `round.step`; the records of client 1 are not finite."""
    model = fakes.small_mlp(hidden=(4,))
    scopes = {
        "hidden0": {"kernel": "shared", "bias": "tier"},
        "head": {"kernel": "client", "bias": "client"},
    }
    spec, data = fakes.spec(model, method(scopes)), fakes.federation()
    data = dataclasses.replace(data, x=data.x.at[12, 0].set(jnp.nan))
    state, cohort = fakes.start(spec, data), fakes.cohort(tiers=(0, 1, 2, 2))
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.vmapped()))
    new, info = step(state, data, cohort)
    assert info.valid.tolist() == [True, False, True, True]
    assert fakes.equal(new.params["head"], state.params["head"])
    assert np.array_equal(
        new.params["hidden0"]["bias"], state.params["hidden0"]["bias"]
    )
    assert np.any(new.params["hidden0"]["kernel"] != state.params["hidden0"]["kernel"])
    moved = jax.tree.map(
        lambda n, o: np.any(n != o, axis=tuple(range(1, n.ndim))).tolist(),
        new.leaf_copies,
        state.leaf_copies,
    )
    assert moved == {
        "tier": {"hidden0/bias": [True, False, True]},
        "client": {
            "head/bias": [True, False, True, True],
            "head/kernel": [True, False, True, True],
        },
        "row": {"hidden0/bias": [False, False, False]},
    }


# ------------------------------------------------------- leaves of some tiers alone

SOME = {
    "body": {"kernel": (2,)},
    "norm": {"scale": ()},
    "head": {"bias": (0, 2)},
}
PARTLY = scopes.init(method(SOME), PARAMS, N, T)


def test_only_the_tiers_that_are_named_have_copies():
    shapes = jax.tree.map(jnp.shape, PARTLY["tier"])
    assert shapes == {"body/kernel": (1, 2, 2), "head/bias": (2, 3)}
    rows = {path: row.tolist() for path, row in PARTLY["row"].items()}
    assert rows == {
        "body/kernel": [-1, -1, 0],
        "norm/scale": [-1, -1, -1],
        "head/bias": [0, -1, 1],
    }


@pytest.mark.parametrize("tier", range(T))
def test_a_tier_without_a_copy_shares_the_plain_leaf(tier):
    bank = PARTLY | {"tier": jax.tree.map(lambda leaf: -leaf, PARTLY["tier"])}
    got = scopes.gather(bank, PARAMS, member(0, tier))
    sent = scopes.shared_leaves(bank, PARAMS, jnp.asarray(tier))
    for part, own in {"body": tier == 2, "norm": False, "head": tier != 1}.items():
        sign, share = (-1, 0) if own else (1, 1)
        received = jax.tree.map(lambda leaf, sign=sign: sign * leaf, PARAMS[part])
        assert fakes.equal(got[part], received)
        assert fakes.equal(
            sent[part], jax.tree.map(lambda leaf, s=share: s * leaf, PARAMS[part])
        )
    if tier == T - 1:
        assert fakes.equal(scopes.top_tier_model(bank, PARAMS), got)


def test_those_who_share_are_averaged_without_those_who_do_not():
    """Clients 4 and 5 are tier 0, clients 1 and 2 tier 2."""
    delta, w = deltas(), WEIGHTS
    new, sums = turn(PARTLY, delta, covers())
    d = delta["body"]["kernel"]
    np.testing.assert_allclose(sums["body"]["kernel"], w[0] * d[0] + w[2] * d[2])
    expected = (w[1] * d[1] + w[3] * d[3]) / (w[1] + w[3])
    change = new["tier"]["body/kernel"] - PARTLY["tier"]["body/kernel"]
    np.testing.assert_allclose(change, expected[None], rtol=1e-6)
    assert not np.any(sums["head"]["bias"])
    change = new["tier"]["head/bias"] - PARTLY["tier"]["head/bias"]
    d = delta["head"]["bias"]
    expected = (w[1] * d[1] + w[3] * d[3]) / (w[1] + w[3])
    np.testing.assert_allclose(change[1], expected, rtol=1e-6)
    d = delta["norm"]["scale"]
    np.testing.assert_allclose(sums["norm"]["scale"], jnp.tensordot(w, d, 1), rtol=1e-6)


def test_what_happens_between_tiers_sees_every_tier_and_moves_copies_alone():
    """Tier 1 is empty: it teaches nothing, and tier 0 is given what tier 2 did."""
    seen = {}

    def between(changes, covered):
        seen.update(changes=changes, covered=covered)
        return {path: change.at[:2].set(change[2]) for path, change in changes.items()}

    delta = deltas()
    new, _ = turn(PARTLY, delta, covers(), between=between)
    d, w = delta["norm"]["scale"], WEIGHTS
    for tier, slots in {0: (0, 2), 2: (1, 3)}.items():
        a, b = slots
        expected = (w[a] * d[a] + w[b] * d[b]) / (w[a] + w[b])
        got = seen["changes"]["norm/scale"][tier]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert not np.any(seen["changes"]["norm/scale"][1])
    for path in PARTLY["row"]:
        covered = seen["covered"][path].reshape(T, -1).any(1)
        assert covered.tolist() == [True, False, True]
    change = new["tier"]["head/bias"] - PARTLY["tier"]["head/bias"]
    np.testing.assert_array_equal(change[0], change[1])
    everybody, _ = turn(BANK, delta, covers(), between=between)
    empty = everybody["tier"]["norm/scale"][1]
    np.testing.assert_array_equal(empty, PARAMS["norm"]["scale"])


def test_a_tier_that_there_is_not_is_refused():
    with pytest.raises(require.InputError, match=r"Method\.scopes\[norm/scale\]: "):
        scopes.init(method(SCOPES | {"norm": {"scale": (1, T)}}), PARAMS, N, T)


def test_a_rule_that_combines_the_stack_sees_no_private_change():
    """Tier 2 keeps the hidden bias, client k its head: neither is in what it gets."""
    model, seen = fakes.small_mlp(hidden=(4,)), []

    def combine(state, cohort, scores, weights):
        both = scores.delta, scores.cover
        seen.extend(
            jax.tree.map(lambda leaf: leaf.reshape(4, -1).any(1), tree) for tree in both
        )
        return *map(trees.sum_first, both), state

    scopes = {
        "hidden0": {"kernel": "shared", "bias": (2,)},
        "head": {"kernel": "client", "bias": "client"},
    }
    rule = Rule(reads=frozenset({"updates"}), combine=combine)
    spec, data = fakes.spec(model, method(scopes), rule=rule), fakes.federation()
    state, cohort = fakes.start(spec, data), fakes.cohort(tiers=(0, 1, 2, 2))

    @jax.jit
    def step(state):
        round.step(state, data, cohort, spec=spec, layout=layout.vmapped())
        return seen

    for tree in step(state):
        assert tree["hidden0"]["kernel"].all()
        assert tree["hidden0"]["bias"].tolist() == [True, True, False, False]
        assert not tree["head"]["kernel"].any()
