"""Sums modulo 2^32 against NumPy, for every set of drop-outs, and their refusals."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fairjax.core import aggregate, layout, require, round
from fairjax.core.protocols import Population
from fairjax.core.types import ClientView, Cohort, Upload
from fairjax.fairness.tilted import term
from fairjax.privacy import client_level, securesum
from fairjax.privacy.clip import Adaptive
from fairjax.privacy.means import TierLossRelease
from fairjax.submodels.heterofl import heterofl
from tests import fakes

KEY = jax.random.key(5)
BITS = 20
SECURE = {"bound": 1.0, "bits": BITS, "minimum": 2}


def cohort(n, valid=None):
    valid = np.ones(n, bool) if valid is None else valid
    ids = jnp.arange(n, dtype=jnp.int32) * 3 + 1
    return Cohort(ids, jnp.zeros(n, jnp.int32), jnp.asarray(valid))


def vectors(n, seed=0):
    """Integers of two leaves over the whole range of a client."""
    rng = np.random.default_rng(seed)
    top = securesum.levels(BITS)
    return {
        "a": rng.integers(-top, top, (n, 3), endpoint=True),
        "b": rng.integers(-top, top, (n, 2, 2), endpoint=True),
    }


def modular(whole):
    return jax.tree.map(lambda v: jnp.asarray(v % 2**32, jnp.uint32), whole)


@jax.jit
def masked(group, whole):
    one = functools.partial(securesum.mask, KEY, group)
    return jax.vmap(one)(group.client, whole)


@jax.jit
def recovered(group, arrived, sent):
    total = jax.tree.map(
        lambda leaf: jnp.sum(
            jnp.where(arrived.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0),
            axis=0,
            dtype=jnp.uint32,
        ),
        sent,
    )
    return securesum.unmask(KEY, group, arrived, total)


@pytest.mark.parametrize("n", range(1, 7))
def test_the_sum_is_that_of_int64_for_every_set_of_drop_outs(n):
    whole = vectors(n, seed=n)
    group = cohort(n)
    sent = masked(group, modular(whole))
    for arrived in itertools.product([False, True], repeat=n):
        got = recovered(group, jnp.asarray(arrived), sent)
        for name, values in whole.items():
            expected = values[list(arrived)].astype(np.int64).sum(0) % 2**32
            np.testing.assert_array_equal(np.asarray(got[name], np.int64), expected)


def test_padded_slots_share_no_masks():
    group = cohort(4, np.array([True, False, True, True]))
    whole = vectors(4)
    got = recovered(group, group.valid, masked(group, modular(whole)))
    expected = whole["a"][np.asarray(group.valid)].sum(0) % 2**32
    np.testing.assert_array_equal(np.asarray(got["a"], np.int64), expected)


def test_the_order_of_the_cohort_changes_no_bit():
    whole, order = modular(vectors(5)), np.array([3, 0, 4, 2, 1])
    group = cohort(5)
    turned = jax.tree.map(lambda leaf: leaf[order], (group, whole))
    one = jax.tree.map(lambda leaf: leaf[order], masked(group, whole))
    assert fakes.equal(one, masked(*turned))


def test_masked_vectors_are_uniform():
    """Masked zeros, by chi-squared over 64 cells of the high and of the low bits."""
    zeros = {"a": jnp.zeros((3, 4000), jnp.uint32)}
    sent = np.asarray(masked(cohort(3), zeros)["a"])
    for vector in sent:
        for cell in (vector >> 26, vector & 63):
            counts = np.bincount(cell, minlength=64)
            statistic = np.sum((counts - 4000 / 64) ** 2) / (4000 / 64)
            assert chi2.sf(statistic, 63) > 1e-3
    assert abs(np.corrcoef(sent)[0, 1:]).max() < 0.06


def test_every_round_draws_masks_of_its_own():
    zeros = {"a": jnp.zeros(100, jnp.uint32)}
    group = cohort(3)
    first, second = (
        securesum.mask(jax.random.key(seed), group, group.client[0], zeros)["a"]
        for seed in (0, 1)
    )
    assert not np.any(first == second)


# ---------------------------------------------------------------------------- integers


@given(
    n=st.integers(1, 2000),
    bits=st.integers(2, 24),
    seed=st.integers(0, 2**16),
)
def test_no_sum_that_is_let_in_wraps(n, bits, seed):
    top = securesum.levels(bits)
    if n * top >= 2**31:
        with pytest.raises(require.InputError, match=r"^bits: expected"):
            securesum.check_capacity(bits, n)
        return
    securesum.check_capacity(bits, n)
    for sign in (-1.0, 1.0):
        one = securesum.quantise(jnp.full(1, sign * 7.0), 1.0, bits)
        total = (np.asarray(one, np.int64) * n) % 2**32
        back = securesum.dequantise(jnp.asarray(total, jnp.uint32), 1.0, bits)
        assert float(back[0]) == pytest.approx(sign * n, rel=1e-6)


@given(seed=st.integers(0, 2**16), bits=st.sampled_from([8, 16, 20]))
def test_quantising_is_off_by_half_a_step_per_client(seed, bits):
    rng = np.random.default_rng(seed)
    values = rng.uniform(-2, 2, (6, 10)).astype(np.float32)
    bound = 0.5
    whole = securesum.quantise(jnp.asarray(values), bound, bits)
    total = jnp.sum(whole, axis=0, dtype=jnp.uint32)
    got = np.asarray(securesum.dequantise(total, bound, bits))
    exact = np.clip(values, -bound, bound).astype(np.float64).sum(0)
    step = bound / securesum.levels(bits)
    assert np.abs(got - exact).max() <= 6 / 2 * step * (1 + 1e-3) + 1e-6


# ------------------------------------------------------------------------ in the round


def federated(mode, private=None, **settings):
    model = fakes.small_mlp()
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False)
    spec = fakes.spec(model, method._replace(scopes=private))
    protection = aggregate.OPEN
    if mode != "off":
        protection = securesum.secure(protection, mode=mode, **(SECURE | settings))
    return dataclasses.replace(spec, protection=protection), fakes.federation()


def stepped(mode, cohort=None, data=None, **settings):
    spec, whole = federated(mode, **settings)
    data = whole if data is None else data
    cohort = fakes.cohort() if cohort is None else cohort
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.vmapped()))
    state = fakes.start(spec, data)
    return state, step(state, data, cohort)[0]


def heads_of_tiers(params):
    scopes = jax.tree.map(lambda leaf: "shared", params)
    scopes["head"] = {"kernel": "tier", "bias": (1,)}
    return scopes


@pytest.mark.slow
def test_masked_is_quantised_bit_by_bit():
    """In another layout, with copies of tiers, a padded slot and a drop-out.

    A client whose change is NaN agreed on masks and never sends.
    """
    spec, data = federated("masked", private=heads_of_tiers)
    data = dataclasses.replace(data, x=data.x.at[int(data.offset[1])].set(jnp.nan))
    cohort = fakes.cohort(valid=[True, True, False, True])
    start, quantised = stepped("quantized", cohort, data=data, private=heads_of_tiers)
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.scanned()))
    under_masks, info = step(start, data, cohort)
    assert np.asarray(info.valid).tolist() == [True, False, False, True]
    assert fakes.equal(under_masks.params, quantised.params)
    assert fakes.equal(under_masks.leaf_copies, quantised.leaf_copies)
    assert not fakes.equal(quantised.params, start.params)


def test_quantised_sums_train_as_open_ones():
    start, secured = stepped("quantized", bound=0.5)
    _, plain = stepped("off")
    held = np.s_[:, :8]  # by two hospitals or more
    moved, expected = (
        np.asarray(new.params["hidden0"]["kernel"] - start.params["hidden0"]["kernel"])
        for new in (secured, plain)
    )
    np.testing.assert_allclose(moved[held], expected[held], atol=1e-4)
    assert np.abs(expected[held]).max() > 1e-2


def test_what_too_few_hold_stays():
    """One client has the last eight units of hidden0, and three have four more."""
    start, new = stepped("quantized", minimum=4)
    moved = np.asarray(
        new.params["hidden0"]["kernel"] - start.params["hidden0"]["kernel"]
    )
    assert np.all(moved[:, 4:] == 0)
    assert np.all(np.any(moved[:, :4] != 0, axis=0))


def test_a_cohort_below_the_minimum_changes_nothing():
    few = fakes.cohort(valid=[True, False, False, False])
    start, new = stepped("quantized", few, private=heads_of_tiers)
    assert fakes.equal(new.params, start.params)
    assert fakes.equal(new.leaf_copies, start.leaf_copies)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", "off"), ("bound", 0.0), ("bits", 25), ("minimum", 1)],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(require.InputError, match=f"^{field}: expected"):
        securesum.secure(
            aggregate.OPEN, **({"mode": "masked"} | SECURE | {field: value})
        )


# ---------------------------------------------------------------------- under client_dp

P = 300


def clipped_by(rounding, update, bits, clips, valid=True):
    """The integers that a client sends, and the norm that they stand for."""
    population = Population(jnp.zeros(1, jnp.int32), jnp.ones(1), 1.0)
    secret = securesum.SecureSum("quantized", bits, 2, rounding)
    protection = client_level.central(
        population, clip=clips, noise_multiplier=1.0, secure_sum=secret
    )
    ones = jnp.ones((), jnp.int32)
    member = ClientView(ones * 0, ones * 0, jnp.asarray(valid), ones, jnp.ones(2, int))
    message = Upload({"a": jnp.asarray(update)}, {"a": jnp.ones(P)}, {})
    one, start = jnp.ones(()), protection.init()
    whole, _ = protection.protect(KEY, start, cohort(1), member, message, one, one)
    integers = np.asarray(whole[0]["a"]).astype(np.uint32).view(np.int32)
    norm = np.linalg.norm(integers.astype(np.int64))
    return integers, norm * max(clips) / securesum.levels(bits)


@given(
    seed=st.integers(0, 2**16),
    bits=st.sampled_from([4, 8, 20, 24]),
    clip=st.floats(2.0**-10, 2.0**10, width=32),
    flat=st.booleans(),
)
def test_integers_keep_the_norm_that_a_change_is_clipped_to(seed, bits, clip, flat):
    """In a tier whose clip is below the largest, on the grid of the largest."""
    rng = np.random.default_rng(seed)
    update = rng.normal(size=P) * 10.0 ** rng.uniform(-3, 3)
    update = (np.sign(update) * 1e6 if flat else update).astype(np.float32)
    _, norm = clipped_by(jnp.trunc, update, bits, (clip, 2 * clip))
    assert norm <= clip * (1 + 1e-5)


def test_rounded_to_the_nearest_many_small_entries_exceed_the_clip():
    """The measurement of the test above detects the wrong rounding."""
    top = securesum.levels(8)
    small = np.concatenate([[1.0], np.full(P - 1, 0.6 / top)]).astype(np.float32)
    clip = float(np.linalg.norm(small))
    for rounding, kept in ((jnp.trunc, True), (jnp.round, False)):
        _, norm = clipped_by(rounding, small, 8, (clip,))
        assert (norm <= clip * (1 + 1e-5)) == kept


def test_who_does_not_count_sends_nothing_in_secret():
    integers, norm = clipped_by(jnp.trunc, np.zeros(P, np.float32), 8, (1.0,), False)
    assert norm == 0
    assert not np.any(integers)


TIERS = jnp.asarray([0, 1, 2, 1])


def hidden(mode, minimum=1, noise=0.0):
    """A spec whose sums of changes, counts and losses are open or secret."""
    model = fakes.small_mlp()
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False)
    secret = None
    if mode != "off":
        secret = securesum.SecureSum(mode, BITS, minimum, jnp.trunc)
    protection = client_level.central(
        Population(TIERS, jnp.ones(4), 1.0),
        clip=(1.0,) * 3,
        noise_multiplier=noise,
        adaptive=Adaptive(expected_clients=4.0, count_noise=1e-6),
        loss_release=TierLossRelease(
            2.0, 1e-6, jnp.asarray([1.0, 2.0, 1.0]), jnp.asarray([10, 12, 23])
        ),
        secure_sum=secret,
    )
    return fakes.spec(
        model,
        method._replace(scopes=heads_of_tiers),
        rule=term(t=1.0),
        protection=protection,
        epochs=1,
    )


def hidden_round(mode, valid=(True,) * 4, laid=None, **settings):
    """A round in which client 1 drops out: its change is NaN."""
    data = fakes.federation()
    broken = data.x.at[int(data.offset[1])].set(jnp.nan)
    data = dataclasses.replace(data, x=broken)
    spec = hidden(mode, **settings)
    laid = layout.vmapped() if laid is None else laid
    step = jax.jit(functools.partial(round.step, spec=spec, layout=laid))
    state = fakes.start(spec, data)
    new, info = step(state, data, fakes.cohort(valid=valid))
    assert info.valid[1]
    assert not info.clients.finite[1]
    return state, new


def test_secret_sums_of_clipped_changes_are_the_open_ones():
    """Counts and losses too, with copies of tiers, a padded slot and a drop-out."""
    valid = (True, True, True, False)
    _, plain = hidden_round("off", valid)
    start, quantised = hidden_round("quantized", valid)
    _, under_masks = hidden_round("masked", valid, layout.scanned())
    for part in ("params", "leaf_copies", "protection"):
        whole, secret = getattr(quantised, part), getattr(under_masks, part)
        assert fakes.equal(secret, whole)
        assert fakes.gap(whole, getattr(plain, part)) < 1e-4
    assert fakes.gap(quantised.params, start.params) > 1e-2


def test_what_is_left_out_follows_from_the_population_whoever_comes():
    """One client has the last eight units of hidden0, and three have four more."""
    for valid in ((True,) * 4, (False, True, True, False)):
        start, new = hidden_round("quantized", valid, minimum=3, noise=1e-7)
        moved = np.asarray(
            new.params["hidden0"]["kernel"] - start.params["hidden0"]["kernel"]
        )
        assert np.all(moved[:, 8:] == 0)
        assert np.all(np.any(moved[:, :8] != 0, axis=0))
