"""How far one client moves the sum, the noise it hides in, and the denominators."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import layout, require, round, trees
from fairjax.core.protocols import Population
from fairjax.core.types import ClientView, Cohort, Upload
from fairjax.fairness import weights
from fairjax.fairness.q_ffl import q_ffl
from fairjax.privacy import client_level, securesum
from fairjax.privacy import clip as clipping
from fairjax.submodels.heterofl import heterofl
from tests import fakes

N, T = 10, 3
TIERS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
WIDTHS = (2, 4, 8)
"""Coordinates, of 8, that a tier has in two leaves; one client has the last ring."""


def population(rate=1.0, weight=None):
    weight = np.ones(N) if weight is None else weight
    return Population(jnp.asarray(TIERS), jnp.asarray(weight, jnp.float32), rate)


def members(valid=None):
    ids = jnp.arange(N)
    valid = jnp.ones(N, bool) if valid is None else jnp.asarray(valid)
    ones = jnp.ones(N, jnp.int32)
    return ClientView(ids, jnp.asarray(TIERS), valid, ones, jnp.ones((N, 2), jnp.int32))


EVERYBODY = Cohort(jnp.arange(N), jnp.asarray(TIERS), jnp.ones(N, bool))


def masks(held=None):
    if held is None:
        held = np.arange(8) < np.asarray(WIDTHS)[TIERS][:, None]
    held = jnp.asarray(held, jnp.float32)
    return {"a": held, "b": held[:, None, :]}


def sent(updates, copies=None, held=None):
    """The clients' masked uploads, [N, ...] a leaf, with copies of a tier's leaf."""
    cover = masks(held)
    change = {"a": updates, "b": updates[:, None, :]}
    tiers = {}
    if copies is not None:
        row = jax.nn.one_hot(TIERS, T)
        tiers = {"norm": (row[..., None] * copies[:, None], row[..., None])}
    return Upload(trees.multiply(change, cover), cover, tiers)


def fold(protection, messages, weights, valid=None):
    """The sum that a server without noise would see."""
    state, who = protection.init(), members(valid)

    def one(member, message, weight):
        key = jax.random.key(0)
        weight = jnp.where(member.valid, weight, 0)
        return protection.protect(
            key, state, EVERYBODY, member, message, weight, weight
        )

    return trees.sum_first(jax.vmap(one)(who, messages, weights))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


floats = st.floats(-100, 100, width=32)


@st.composite
def federations(draw):
    """Updates of 8 coordinates, copies of 2, weights, masks, and the absent client."""
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-3, 3, (N, 1))
    # Many updates are large where a coordinate has a single holder.
    updates = scale * rng.normal(size=(N, 8)) * rng.choice([0, 1, 30], (N, 8))
    copies = scale * rng.normal(size=(N, 2)) * rng.choice([0.0, 1.0])
    weights = rng.uniform(0, draw(st.sampled_from([1.0, 5.0])), N)
    held = rng.random((N, 8)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    return updates, copies, weights, held, draw(st.integers(0, N - 1))


def change_without(release, case):
    """How far the release moves when one client is absent."""
    updates, copies, weights, held, absent = case
    updates, copies = (jnp.asarray(part, jnp.float32) for part in (updates, copies))
    messages = sent(updates, copies, held)
    weights = jnp.asarray(weights, jnp.float32)
    there = np.arange(N) != absent
    with_all = release(messages, weights, np.ones(N, bool))
    return np.linalg.norm(with_all - release(messages, weights, there))


CLIPS = (0.5, 1.0, 2.0)


@jax.jit
def clipped_sum(messages, weights, valid):
    protection = client_level.central(population(), clip=CLIPS, noise_multiplier=1.0)
    return fold(protection, messages, weights, valid)[0]


def summed(messages, weights, valid):
    return flat(clipped_sum(messages, weights, valid))


def counted(messages, weights, valid):
    """A wrong release: N times the mean over the cohort's holders of a coordinate."""
    total = summed(messages, weights, valid)
    there = jnp.asarray(valid, jnp.float32)
    count = jax.tree.map(
        lambda change, m: jnp.tensordot(there, jnp.broadcast_to(m, change.shape), 1),
        (messages.num, {path: num for path, (num, _) in messages.tiers.items()}),
        (messages.den, {path: den for path, (_, den) in messages.tiers.items()}),
    )
    return N * total / np.maximum(flat(count), 1)


@given(federations())
def test_an_absent_hospital_moves_the_sum_by_its_clip_at_most(case):
    moved = change_without(summed, case)
    assert moved <= CLIPS[TIERS[case[-1]]] * (1 + 1e-4)


def test_normalised_by_who_came_a_lone_holder_moves_it_ten_times_as_far():
    """The measurement of the test above detects a wrong release."""
    updates = np.zeros((N, 8))
    updates[9, 7] = 100.0
    case = updates, np.zeros((N, 2)), np.ones(N), None, 9
    assert change_without(summed, case) == pytest.approx(CLIPS[2], rel=1e-5)
    assert change_without(counted, case) == pytest.approx(10 * CLIPS[2], rel=1e-5)


def test_a_change_below_the_clip_is_sent_as_it_is():
    updates = jnp.full((N, 8), 1e-3)
    protection = client_level.central(population(), clip=CLIPS, noise_multiplier=1.0)
    total, _ = fold(protection, sent(updates), jnp.ones(N))
    holders = np.repeat([10, 4, 1], [2, 2, 4])
    np.testing.assert_allclose(total[0]["a"], 1e-3 * holders, rtol=1e-5)


def test_the_weight_comes_before_the_clip():
    updates = jnp.ones((N, 8))
    protection = client_level.central(
        population(), clip=(1.0,) * 3, noise_multiplier=1.0
    )
    heavy, _ = fold(protection, sent(updates), jnp.full(N, 50.0))
    light, _ = fold(protection, sent(updates), jnp.full(N, 1.0))
    np.testing.assert_allclose(flat(heavy), flat(light), rtol=1e-5)


# ------------------------------------------------------------------------ in the round


HOLDERS = np.repeat([4, 3, 1], [4, 4, 8])
"""Holders of the units of hidden0, with the three tiers below."""


def federated(method=None, *, rate=1.0, **settings):
    """(spec, data) of three width tiers under the protection."""
    model = fakes.small_mlp()
    method = method or heterofl(
        model.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False
    )
    tiers = jnp.asarray([0, 1, 2, 1])
    public = Population(tiers, jnp.ones(4), rate)
    settings = {"clip": (1.0,) * 3, "noise_multiplier": 1.0} | settings
    spec = fakes.spec(model, method, optimizer=settings.pop("optimizer", None))
    protection = client_level.central(public, **settings)
    return dataclasses.replace(spec, protection=protection), fakes.federation()


VMAP = layout.vmapped()


def jitted(spec, laid=VMAP):
    return jax.jit(functools.partial(round.step, spec=spec, layout=laid))


LAYOUTS = {"vmap": VMAP, "sliced": layout.sliced(layout.scanned(), (1, 2, 1))}


@pytest.mark.parametrize("laid", LAYOUTS)
def test_without_noise_and_with_a_wide_clip_it_is_the_masked_mean(laid):
    spec, data = federated(clip=(1e6,) * 3, noise_multiplier=0.0)
    state = fakes.start(spec, data)
    cohort = fakes.cohort((0, 1, 3, 2), (0, 1, 1, 2))
    protected, _ = jitted(spec, LAYOUTS[laid])(state, data, cohort)
    # The public weights are equal, so the open rule must be uniform.
    plain = dataclasses.replace(
        spec, rule=weights.uniform(), protection=fakes.spec().protection
    )
    start = dataclasses.replace(state, protection=())
    expected, _ = jitted(plain)(start, data, cohort)
    assert fakes.gap(protected.params, expected.params) < 1e-5


def test_the_denominator_is_that_of_the_population_whoever_comes():
    """With absent clients the step is smaller; it is not another mean."""
    spec, data = federated(clip=(1e6,) * 3, noise_multiplier=0.0)
    state = fakes.start(spec, data)
    alone = fakes.cohort(valid=[False, False, True, False])
    one, _ = jitted(spec)(state, data, alone)
    open_spec = dataclasses.replace(spec, protection=fakes.spec().protection)
    start = dataclasses.replace(state, protection=())
    whole, _ = jitted(open_spec)(start, data, alone)
    moved, expected = (
        np.asarray(trees.subtract(new.params, state.params)["hidden0"]["kernel"])
        for new in (one, whole)
    )
    np.testing.assert_allclose(moved * HOLDERS, expected, rtol=1e-4, atol=1e-6)


def noise_of(spec, data, rounds, cohort):
    """The changes of hidden0 by rounds without training, [rounds, ...]."""
    step, state, found = jitted(spec), fakes.start(spec, data), []
    for _ in range(rounds):
        new, _ = step(state, data, cohort)
        found.append(
            new.params["hidden0"]["kernel"] - state.params["hidden0"]["kernel"]
        )
        state = new
    return np.stack(found)


def test_noise_has_the_stated_variance_on_every_coordinate():
    """sigma C / D_j, whether or not a client of the cohort has j."""
    settings = {"optimizer": optax.sgd(0.0), "rate": 0.5}
    spec, data = federated(clip=(0.5, 1.0, 2.0), noise_multiplier=1.5, **settings)
    nobody_wide = fakes.cohort(valid=[True, False, False, False])
    drawn = noise_of(spec, data, 40, nobody_wide)
    rings = np.split(drawn, [4, 8], axis=2)
    for ring, holders in zip(rings, (4, 3, 1), strict=True):
        expected = 1.5 * 2.0 / (0.5 * holders)
        count = ring.size
        # Four standard errors of a standard deviation.
        assert np.std(ring) == pytest.approx(expected, rel=4 / np.sqrt(2 * count))
        assert abs(np.mean(ring)) < 4 * expected / np.sqrt(count)
    again = noise_of(spec, data, 2, nobody_wide)
    np.testing.assert_array_equal(again, drawn[:2])
    assert np.all(np.abs(np.corrcoef(drawn[:2].reshape(2, -1))[0, 1]) < 0.3)


def tier_heads(model):
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False)

    def private(params):
        scopes = jax.tree.map(lambda leaf: "shared", params)
        scopes["head"] = {"kernel": "tier", "bias": (0, 2)}
        return scopes

    return method._replace(scopes=private)


def test_copies_of_a_tier_get_noise_and_denominators_as_the_plain_model_does():
    method = tier_heads(fakes.small_mlp())
    spec, data = federated(method, optimizer=optax.sgd(0.0))
    state = fakes.start(spec, data)
    new, _ = jitted(spec)(state, data, fakes.cohort(valid=[True, False, False, False]))
    for path in ("head/kernel", "head/bias"):
        moved = new.leaf_copies["tier"][path] - state.leaf_copies["tier"][path]
        assert np.all(np.any(np.asarray(moved) != 0, axis=tuple(range(1, moved.ndim))))
    # Every tier has a copy of the kernel: the plain leaf has no population.
    assert fakes.equal(new.params["head"]["kernel"], state.params["head"]["kernel"])


@pytest.mark.parametrize("rest", [0.0, 100.0])
def test_copies_of_a_tier_are_clipped_with_the_rest(rest):
    updates = jnp.full((N, 8), rest)
    protection = client_level.central(population(), clip=CLIPS, noise_multiplier=1.0)
    message = trees.pick(sent(updates, jnp.full((N, 2), 100.0)), 9)
    who = trees.pick(members(), 9)
    one = jnp.ones(())
    addend, _ = protection.protect(
        jax.random.key(0), protection.init(), EVERYBODY, who, message, one, one
    )
    assert np.linalg.norm(flat(addend)) == pytest.approx(CLIPS[2], rel=1e-5)


# ---------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_the_clip_finds_the_median_norm(factor):
    """Within 60 rounds, from a tenth of it and from ten times it."""
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0.0, 0.5, 200)
    target = float(np.median(norms))
    adaptive = clipping.Adaptive(expected_clients=200.0, count_noise=10.0)
    clips = jnp.asarray([factor * target])
    for _ in range(60):
        centred = np.sum(np.where(norms <= float(clips[0]), 0.5, -0.5))
        clips = adaptive.next_clip(clips, jnp.float32(centred + 10 * rng.normal()))
    assert float(clips[0]) == pytest.approx(target, rel=0.15)


def test_the_round_moves_the_clip_by_the_share_that_is_not_clipped():
    adaptive = clipping.Adaptive(
        expected_clients=4.0, count_noise=1e-3, step_size=0.3, quantile=0.5
    )
    spec, data = federated(
        clip=(1e6, 1e6, 1e-6), noise_multiplier=1e-6, adaptive=adaptive
    )
    state = fakes.start(spec, data)
    new, _ = jitted(spec)(state, data, fakes.cohort())
    factor = np.exp(-0.3 * (0.75 - 0.5))
    np.testing.assert_allclose(
        new.protection, np.array([1e6, 1e6, 1e-6]) * factor, rtol=1e-3
    )
    # An absent client does not count as clipped, nor as unclipped.
    less, _ = jitted(spec)(state, data, fakes.cohort(valid=[True, True, False, False]))
    np.testing.assert_allclose(
        less.protection[0], 1e6 * np.exp(-0.3 * (0.75 - 0.5)), rtol=1e-3
    )


def test_noise_is_that_of_the_clip_in_force_and_of_its_share_of_the_budget():
    adaptive = clipping.Adaptive(expected_clients=4.0, count_noise=1.0, step_size=3.0)
    spec, data = federated(
        noise_multiplier=1.2, adaptive=adaptive, optimizer=optax.sgd(0.0)
    )
    state = fakes.start(spec, data)
    new, _ = jitted(spec)(state, data, fakes.cohort())
    moved = trees.subtract(new.params, state.params)["hidden0"]["kernel"]
    moved = np.asarray(moved) * HOLDERS
    sigma = (1.2**-2 - 2.0**-2) ** -0.5
    assert sigma == pytest.approx(1.5)
    # The clip of the next round is far from the clip of this one, 1.
    assert np.std(moved) == pytest.approx(sigma, rel=0.25)
    assert not np.allclose(new.protection, 1.0, rtol=0.5)


def test_all_releases_together_are_the_one_that_is_accounted():
    beside = {"count_noise": 2.0, "losses": 3.0}
    changes = clipping.update_multiplier(1.2, beside)
    together = sum(z**-2 for z in (changes, *beside.values()))
    assert together == pytest.approx(1.2**-2)
    assert clipping.client_multiplier(1.2, 1.0, beside) == pytest.approx(1.2)
    # A change clipped at half the norm is hidden twice as well; the other releases
    # are not.
    halved = sum(z**-2 for z in (2 * changes, *beside.values()))
    assert clipping.client_multiplier(1.2, 0.5, beside) == pytest.approx(halved**-0.5)
    with pytest.raises(require.InputError, match="count_noise: expected more noise"):
        clipping.update_multiplier(1.7, beside)
    adaptive = clipping.Adaptive(expected_clients=4.0, count_noise=0.5)
    with pytest.raises(require.InputError, match=r"^adaptive: expected more noise"):
        client_level.central(
            population(), clip=CLIPS, noise_multiplier=1.0, adaptive=adaptive
        )


# ------------------------------------------------------------------------------- local


def test_every_upload_is_noised_before_it_is_weighed():
    protection = client_level.local(clip=(1.0, 1.0, 2.0), noise_multiplier=3.0)
    messages = trees.pick(sent(jnp.zeros((N, 8))), 9)
    who = trees.pick(members(), 9)

    def draw(seed, weight):
        weight = jnp.asarray(weight, jnp.float32)
        key = jax.random.key(seed)
        return protection.protect(key, (), EVERYBODY, who, messages, weight, weight).num

    drawn = jax.vmap(lambda seed: draw(seed, 1.0))(jnp.arange(200))
    assert np.std(flat(drawn)) == pytest.approx(6.0, rel=0.1)
    np.testing.assert_allclose(flat(draw(0, 0.5)), flat(draw(0, 1.0)) / 2, rtol=1e-6)
    # Two clients have different noise.
    other = protection.protect(
        jax.random.key(0),
        (),
        EVERYBODY,
        trees.pick(members(), 8),
        messages,
        *[jnp.ones(())] * 2,
    ).num
    assert not np.any(np.isclose(flat(other), flat(draw(0, 1.0)) / 2))


def test_an_upload_stays_within_its_mask():
    protection = client_level.local(clip=(1.0,) * 3, noise_multiplier=3.0)
    noisy = fold(protection, sent(jnp.ones((N, 8))), jnp.ones(N))
    alone = np.asarray(members().valid) & (TIERS == 0)
    narrow = fold(protection, sent(jnp.ones((N, 8))), jnp.ones(N), alone)
    assert np.all(np.asarray(noisy.num["a"]) != 0)
    assert np.all(np.asarray(narrow.num["a"])[2:] == 0)


DIVERGED = 2
"""The client whose training overflows."""


def diverging(data):
    rows = slice(int(data.offset[DIVERGED]), int(data.offset[DIVERGED + 1]))
    return dataclasses.replace(data, x=data.x.at[rows].multiply(1e30))


PROTECTIONS = {
    "local": client_level.local(clip=(1.0,) * 3, noise_multiplier=1.0),
    "central": client_level.central(
        Population(jnp.asarray([0, 1, 2, 1]), jnp.ones(4), 1.0),
        clip=(1.0,) * 3,
        noise_multiplier=1.0,
    ),
    "secret": client_level.central(
        Population(jnp.asarray([0, 1, 2, 1]), jnp.ones(4), 1.0),
        clip=(1.0,) * 3,
        noise_multiplier=1.0,
        secure_sum=securesum.SecureSum("masked", 20, 1, jnp.trunc),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "secret" else [])
        for name in PROTECTIONS
    ],
)
def test_a_hospital_whose_training_fails_is_not_to_be_told_from_others(name):
    """Its round looks like that of a client that learned nothing."""
    spec, data = federated()
    spec = dataclasses.replace(spec, protection=PROTECTIONS[name])
    state = fakes.start(spec, data)
    new, info = jitted(spec)(state, diverging(data), fakes.cohort())
    assert np.asarray(info.clients.finite).tolist() == [True, True, False, True]
    assert np.asarray(info.valid).all()
    np.testing.assert_array_equal(
        new.participation.accepted, new.participation.selected
    )
    assert np.isfinite(info.loss)
    _, usual = jitted(spec)(state, data, fakes.cohort())
    np.testing.assert_array_equal(info.weights, usual.weights)
    # Noise moves the units that it alone has.
    alone = np.asarray(
        trees.subtract(new.params, state.params)["hidden0"]["kernel"][:, 8:]
    )
    assert np.all(np.isfinite(alone))
    assert np.std(alone) == pytest.approx(1.0, rel=0.3)


def test_a_rule_under_noisy_losses_tells_nobody_the_true_ones():
    """A broadcast of true losses would move a client's change past any clip."""
    seen = []

    def tell(state, cohort, scores):
        seen.append((scores.loss, scores.group_stats))
        return jnp.zeros(len(cohort.client))

    spec, data = federated()
    rule = q_ffl(q=1.0)._replace(broadcast=tell)
    spec = dataclasses.replace(spec, rule=rule)
    state = fakes.start(spec, data)
    jax.eval_shape(jitted(spec), state, data, fakes.cohort())
    assert seen == [(None, None)]


@pytest.mark.parametrize("make", [client_level.central, client_level.local])
@pytest.mark.parametrize(
    ("clip", "noise", "field"),
    [((0.0, 1.0, 1.0), 1.0, "clip"), ((1.0,) * 3, -1.0, "noise_multiplier")],
)
def test_settings_out_of_range_are_refused(make, clip, noise, field):
    if make is client_level.central:
        make = functools.partial(make, population())
    with pytest.raises(require.InputError, match=f"^{field}: expected"):
        make(clip=clip, noise_multiplier=noise)
