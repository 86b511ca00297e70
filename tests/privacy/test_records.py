"""DP-SGD against a loop over records or patients, and what one of them can move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import batching, client, losses, trees
from fairjax.core.types import Batch, ClientData
from fairjax.privacy import poisson
from fairjax.privacy.records import DPSGD
from fairjax.submodels.heterofl import heterofl
from tests import fakes

MODEL = fakes.small_mlp(hidden=(8,))
DATA = fakes.federation(counts=(16, 7, 23, 5), seed=3)
PARAMS = fakes.drawn(MODEL, DATA.x[:1])
PLAIN = DPSGD(1.0, 0.0, batch_size=4, slots=None, microbatch=4)


def loss_of(params, rows):
    logits = MODEL.apply(params, rows.x).logits
    return losses.mean(losses.cross_entropy(logits, rows.y), rows.where), {}


def ones(tree=PARAMS):
    return jax.tree.map(jnp.ones_like, tree)


def rows(number=7, valid=None, x=None):
    valid = np.ones(number, bool) if valid is None else valid
    x = DATA.x[:number] if x is None else x
    return Batch(x, DATA.y[:number], jnp.asarray(valid))


@functools.partial(jax.jit, static_argnames="dp")
def gradient(batch, trained, dp, key=None, count=100):
    key = jax.random.key(0) if key is None else key
    count = jnp.asarray(count)
    return dp.gradient(key, loss_of, PARAMS, batch, trained, count)


def looped(batch, trained, clip, lot):
    """Abadi et al. 2016, algorithm 1, in NumPy around one gradient at a time."""
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), PARAMS)
    norms = []
    for i in np.flatnonzero(batch.where):
        alone = Batch(batch.x[i][None], batch.y[i][None], jnp.ones(1, bool))
        grads = jax.grad(lambda p, alone=alone: loss_of(p, alone)[0])(PARAMS)
        grads = jax.tree.map(lambda g, t: np.asarray(g * t, float), grads, trained)
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
        norms.append(norm)
        factor = min(1.0, clip / norm)
        total = jax.tree.map(lambda t, g, f=factor: t + f * g, total, grads)
    return jax.tree.map(lambda t: t / lot, total), norms


@pytest.mark.parametrize(
    ("clip", "microbatch"), [(0.5, 3), (1.5, 1), (1.5, 7), (1e6, 50)]
)
def test_the_gradient_is_the_loop_over_records(clip, microbatch):
    valid = np.array([True, True, False, True, True, False, True])
    trained = ones()
    trained["hidden0"]["kernel"] = trained["hidden0"]["kernel"].at[:, 4:].set(0)
    dp = PLAIN._replace(clip=clip, microbatch=microbatch)
    _, grads = gradient(rows(valid=valid), trained, dp)
    expected, norms = looped(rows(valid=valid), trained, clip, lot=4)
    if clip == 1.5:
        assert min(norms) < clip < max(norms)
    assert fakes.gap(grads, jax.tree.map(jnp.float32, expected)) < 1e-6
    assert np.all(np.asarray(grads["hidden0"]["kernel"])[:, 4:] == 0)


def test_the_loss_is_the_mean_over_the_records_that_count():
    valid = np.array([True, True, False, True, True, False, True])
    (loss, _), _ = gradient(rows(valid=valid), ones(), PLAIN)
    assert float(loss) == pytest.approx(float(loss_of(PARAMS, rows(valid=valid))[0]))


def test_a_small_hospital_divides_by_its_records():
    _, few = gradient(rows(), ones(), PLAIN, count=2)
    _, many = gradient(rows(), ones(), PLAIN)
    twice = jax.tree.map(lambda leaf: 2 * leaf, many)
    assert fakes.gap(few, twice) < 1e-6


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@given(
    seed=st.integers(0, 2**16),
    clip=st.sampled_from([0.1, 1.0]),
    what=st.sampled_from(["absent", "replaced", "infinite"]),
)
def test_one_record_moves_the_sum_by_its_clip_at_most(seed, clip, what):
    rng = np.random.default_rng(seed)
    x = np.asarray(DATA.x[:7]) * 10.0 ** rng.uniform(-3, 3, (7, 1))
    who = rng.integers(7)
    dp = PLAIN._replace(clip=clip)
    _, with_it = gradient(rows(x=jnp.asarray(x, jnp.float32)), ones(), dp)
    other, valid, allowed = x.copy(), np.ones(7, bool), clip
    if what == "absent":
        valid[who] = False
    elif what == "replaced":
        other[who], allowed = 1e3 * rng.normal(size=6), 2 * clip
    else:
        other[who] = np.inf
    neighbour = rows(valid=valid, x=jnp.asarray(other, jnp.float32))
    _, without = gradient(neighbour, ones(), dp)
    moved = 4 * np.linalg.norm(flat(with_it) - flat(without))
    assert moved <= allowed * (1 + 1e-4)


def test_the_mean_over_those_who_came_moves_further():
    """The measurement above finds a divisor that depends on the records."""
    x = np.zeros((7, 6), np.float32)
    x[0] = 100.0
    valid = np.arange(7) < 1
    dp = PLAIN._replace(clip=1.0)
    lone = rows(valid=valid, x=jnp.asarray(x))
    _, grads = gradient(lone, ones(), dp)
    fixed = np.linalg.norm(flat(grads))
    counted = fixed * 4 / valid.sum()
    assert fixed <= 1 / 4 * (1 + 1e-5) < counted == pytest.approx(1.0, rel=1e-5)


def test_noise_has_the_stated_variance_where_it_is_trained_and_only_there():
    trained = ones()
    trained["hidden0"]["kernel"] = trained["hidden0"]["kernel"].at[:, 4:].set(0)
    dp = PLAIN._replace(clip=0.5, noise_multiplier=3.0)
    nobody = rows(valid=np.zeros(7, bool))
    one = lambda key: gradient(nobody, trained, dp, key)[1]  # noqa: E731
    drawn = jax.vmap(one)(jax.random.split(jax.random.key(1), 100))
    kept = np.asarray(drawn["hidden0"]["kernel"])
    assert np.std(kept[..., :4]) == pytest.approx(3.0 * 0.5 / 4, rel=0.06)
    assert np.all(kept[..., 4:] == 0)
    assert np.std(np.asarray(drawn["head"]["kernel"])) == pytest.approx(0.375, rel=0.06)


# ----------------------------------------------------------------------- in the client


def local_of(dp, *, batch_size=4, epochs=2):
    spec = fakes.spec(
        MODEL,
        heterofl(MODEL.axes, (0.5, 1.0), scaler=False, masked_loss=False),
        counts=np.asarray(DATA.count),
        batch_size=batch_size,
        epochs=epochs,
    )
    return spec.local._replace(dp=dp)


def trainer(local, who, tier=1, patient=None):
    member = fakes.member(who, tier, DATA)
    patient = None if patient is None else jnp.asarray(patient, jnp.int32)

    def run(seed):
        key = jax.random.key(seed)
        kept = local.method.submodel(key, jnp.asarray(0), PARAMS, member)
        examples = ClientData(
            DATA.x, DATA.y, DATA.offset[who], DATA.count[who], patient=patient
        )
        return client.update(
            key,
            PARAMS,
            None,
            kept,
            examples,
            client=member,
            round=jnp.asarray(0),
            local=local,
        )

    return jax.jit(run)


def trained_by(local, who, tier=1):
    return trainer(local, who, tier)(0)


def test_without_noise_and_clip_whole_batches_train_as_before():
    """16 records in batches of 4, and a narrow sub-model: exactly the plain steps."""
    wide = PLAIN._replace(clip=1e6)
    private, _, _, info = trained_by(local_of(wide), 0, tier=0)
    plain, _, _, usual = trained_by(local_of(None), 0, tier=0)
    assert fakes.gap(private, plain) < 1e-6
    assert float(info.loss) == pytest.approx(float(usual.loss), rel=1e-5)


def test_every_key_and_every_step_draws_noise_of_its_own():
    loud = PLAIN._replace(clip=1e-3, noise_multiplier=1e3)
    train = trainer(local_of(loud), 0)
    a, b, again = (flat(train(seed)[0]) for seed in (0, 1, 0))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.4
    np.testing.assert_array_equal(a, again)
    # 8 steps of rate 0.1, noise 1 / 4 each: independent, their variances add.
    assert np.std(a) == pytest.approx(0.1 * np.sqrt(8) / 4, rel=0.3)


def test_poisson_batches_draw_every_record_alike_and_never_a_stranger():
    slots, overflow = poisson.capacity(23, 4 / 23)
    dp = PLAIN._replace(slots=slots)
    examples = ClientData(DATA.x, jnp.arange(51), DATA.offset[2], DATA.count[2])
    one = lambda key: dp.batch(key, examples, 23)  # noqa: E731
    drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 3000))
    seen = np.zeros((3000, 52), int)
    at = np.where(drawn.where, drawn.y, 51)
    np.add.at(seen, (np.arange(3000)[:, None], at), 1)
    own = np.arange(51) >= int(DATA.offset[2])
    own &= np.arange(51) < int(DATA.offset[2] + DATA.count[2])
    assert not seen[:, :51][:, ~own].any()
    assert seen[:, :51].max() == 1
    np.testing.assert_allclose(seen[:, :51][:, own].mean(0), 4 / 23, atol=0.03)
    assert overflow < 1e-14


def test_a_hospital_smaller_than_a_batch_is_whole_in_every_step():
    dp = PLAIN._replace(slots=16, batch_size=8)
    examples = ClientData(DATA.x, DATA.y, DATA.offset[3], DATA.count[3])
    drawn = dp.batch(jax.random.key(0), examples, 23)
    assert int(drawn.where.sum()) == 5
    wide = dp._replace(clip=1e6)
    local = local_of(wide, batch_size=8, epochs=1)
    private, *_ = trained_by(local, 3)
    plain, *_ = trained_by(local_of(None, batch_size=8, epochs=1), 3)
    assert fakes.gap(private, plain) < 1e-6


def test_poisson_batches_train():
    """Their mean step is that of whole epochs."""
    local = local_of(PLAIN._replace(clip=1e6, slots=16), epochs=1)
    local = local._replace(optimizer=optax.sgd(1e-3))
    train = trainer(local, 0)
    changes = [flat(train(seed)[0]) for seed in range(16)]
    whole = local_of(None, epochs=1)._replace(optimizer=optax.sgd(1e-3))
    expected = flat(trained_by(whole, 0)[0])
    mean = np.mean(changes, axis=0)
    assert np.dot(mean, expected) / np.dot(expected, expected) == pytest.approx(
        1.0, abs=0.3
    )


def test_a_trained_tree_of_zeros_moves_nothing():
    nothing = trees.multiply(ones(), jax.tree.map(jnp.zeros_like, PARAMS))
    dp = PLAIN._replace(noise_multiplier=5.0)
    _, grads = gradient(rows(), nothing, dp)
    assert not flat(grads).any()


def test_that_a_hospital_sends_does_not_follow_from_its_losses():
    """One record of finite, huge loss: the sum over steps is infinite, the change not.

    The record moves no step, as the norm of its gradient overflows, and it must not
    stop the steps.
    """
    who, first = 3, int(DATA.offset[3])
    examples = ClientData(
        DATA.x.at[first].set(jnp.zeros(6).at[0].set(3e38)),
        DATA.y,
        DATA.offset[who],
        DATA.count[who],
    )
    local = local_of(PLAIN._replace(batch_size=8), batch_size=8, epochs=120)
    member = fakes.member(who, 1, DATA)
    kept = local.method.submodel(jax.random.key(0), jnp.asarray(0), PARAMS, member)

    @jax.jit
    def run(examples):
        return client.update(
            jax.random.key(0),
            PARAMS,
            None,
            kept,
            examples,
            client=member,
            round=jnp.asarray(0),
            local=local,
        )

    delta, _, _, info = run(examples)
    assert np.isinf(info.loss)
    assert bool(info.finite)
    empty = examples._replace(x=examples.x.at[first].set(jnp.nan))
    without, _, _, usual = run(empty)
    assert np.isfinite(usual.loss)
    assert bool(usual.finite)
    assert fakes.equal(delta, without)


# ---------------------------------------------------------------------------- patients

PATIENT = np.concatenate(
    [[0] * 16, [0, 1] * 3 + [2], [*range(8)] * 2 + [1] * 7, [0] * 5]
)
"""At hospital 2 patients 0 to 7 have two records each, and patient 1 nine."""
BY_PATIENT = PLAIN._replace(slots=16, per_patient=3)


def sampled(number, dp=BY_PATIENT, who=2, x=None, seed=4):
    """Batches of patients; the label of a record is its index among all records."""
    examples = ClientData(
        DATA.x if x is None else x,
        jnp.arange(len(DATA.y)),
        DATA.offset[who],
        DATA.count[who],
        patient=jnp.asarray(PATIENT),
    )
    one = lambda key: dp.batch(key, examples, 23)  # noqa: E731
    keys = jax.random.split(jax.random.key(seed), number)
    return jax.jit(jax.vmap(one))(keys)


def test_a_batch_draws_patients_alike_each_with_some_of_its_records():
    drawn = sampled(3000)
    row = np.asarray(drawn.y).reshape(3000, 16, 3)
    where = np.asarray(drawn.where).reshape(3000, 16, 3)
    # A slot belongs to one patient; a surplus row repeats a record of that patient.
    assert np.all(PATIENT[row] == PATIENT[row[..., :1]])
    number = np.arange(len(PATIENT))
    inside = (number >= 23) & (number < 46)
    assert np.all(inside[row[where]])
    there = where.any(-1)
    size = where.sum(-1)[there]
    whose = PATIENT[row[..., 0]][there]
    np.testing.assert_array_equal(size, np.where(whose == 1, 3, 2))
    # Every patient at rate 4 / 8, at most once, and all records of each alike.
    each = np.zeros((3000, 8), int)
    np.add.at(each, (np.nonzero(there)[0], whose), 1)
    assert each.max() == 1
    np.testing.assert_allclose(each.mean(0), 0.5, atol=0.04)
    seen = np.zeros((3000, len(PATIENT)), int)
    np.add.at(seen, (np.nonzero(where)[0], row[where]), 1)
    assert seen.max() == 1
    expected = np.where(PATIENT[inside] == 1, 0.5 * 3 / 9, 0.5)
    np.testing.assert_allclose(seen[:, inside].mean(0), expected, atol=0.04)


def test_which_of_the_records_are_drawn_does_not_follow_from_who_is():
    """A record of patient 1 is drawn as often with patient 0 as without."""
    drawn = sampled(3000, seed=5)
    row = np.where(np.asarray(drawn.where), np.asarray(drawn.y), -1)
    first = 23 + np.flatnonzero(PATIENT[23:46] == 1)[0]
    with_it = (row == first).any(1)
    came = np.isin(row, 23 + np.flatnonzero(PATIENT[23:46] == 1)).any(1)
    beside = np.isin(row, 23 + np.flatnonzero(PATIENT[23:46] == 0)).any(1)
    shares = [with_it[came & (beside == there)].mean() for there in (False, True)]
    assert shares[0] == pytest.approx(shares[1], abs=0.06)


def patients_rows(x, valid):
    """Four patients of three rows each."""
    return Batch(x, DATA.y[:12], jnp.asarray(valid))


@pytest.mark.parametrize("microbatch", [1, 3, 50])
def test_the_gradient_is_the_loop_over_patients(microbatch):
    """Each patient's mean over its rows, clipped once; the third slot is empty."""
    valid = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1], bool)
    dp = BY_PATIENT._replace(clip=2.0, microbatch=microbatch)
    batch = patients_rows(DATA.x[:12], valid)
    (loss, _), grads = gradient(batch, ones(), dp)
    total, norms, means = jax.tree.map(lambda p: np.zeros(p.shape), PARAMS), [], []
    for slot in (0, 1, 3):
        at = slice(3 * slot, 3 * slot + 3)
        theirs = Batch(batch.x[at], batch.y[at], batch.where[at])
        mean, alone = jax.value_and_grad(lambda p, t=theirs: loss_of(p, t)[0])(PARAMS)
        norms.append(np.linalg.norm(flat(alone)))
        means.append(float(mean))
        factor = min(1.0, 2.0 / norms[-1])
        total = jax.tree.map(lambda t, g, f=factor: t + f * np.asarray(g), total, alone)
    assert min(norms) < 2 < max(norms)
    expected = jax.tree.map(lambda t: jnp.float32(t / 4), total)
    assert fakes.gap(grads, expected) < 1e-6
    assert float(loss) == pytest.approx(np.mean(means), rel=1e-5)


@given(
    seed=st.integers(0, 2**16),
    clip=st.sampled_from([0.1, 1.0]),
    what=st.sampled_from(["absent", "replaced", "infinite", "fewer"]),
)
def test_one_patient_moves_the_sum_by_its_clip_at_most(seed, clip, what):
    """Whatever all of its records become, and however many of them there are."""
    rng = np.random.default_rng(seed)
    x = np.asarray(DATA.x[:12]) * 10.0 ** rng.uniform(-3, 3, (12, 1))
    mine = 3 * rng.integers(4) + np.arange(3)
    dp = BY_PATIENT._replace(clip=clip)
    valid = np.ones(12, bool)
    _, with_it = gradient(patients_rows(jnp.asarray(x, jnp.float32), valid), ones(), dp)
    other, allowed = x.copy(), 2 * clip
    if what == "absent":
        valid[mine], allowed = False, clip
    elif what == "replaced":
        other[mine] = 1e3 * rng.normal(size=(3, 6))
    elif what == "fewer":
        valid[mine[1:]] = False
    else:
        other[mine[0]], allowed = np.nan, clip
    neighbour = patients_rows(jnp.asarray(other, jnp.float32), valid)
    _, without = gradient(neighbour, ones(), dp)
    moved = 4 * np.linalg.norm(flat(with_it) - flat(without))
    assert moved <= allowed * (1 + 1e-4)


def test_as_records_one_patient_moves_it_further():
    """The measurement above finds a gradient that is clipped by record."""
    x = np.zeros((12, 6), np.float32)
    x[:3] = 100.0
    rows = Batch(jnp.asarray(x), jnp.zeros(12, jnp.int32), jnp.arange(12) < 3)
    _, by_patient = gradient(rows, ones(), BY_PATIENT._replace(clip=0.1))
    _, by_record = gradient(rows, ones(), PLAIN._replace(clip=0.1))
    bound = 0.1 / 4
    assert np.linalg.norm(flat(by_patient)) <= bound * (1 + 1e-5)
    assert np.linalg.norm(flat(by_record)) > 2.9 * bound


def test_what_is_no_number_stays_with_its_patient():
    """Record 0 of the hospital is patient 0's: rows that pad others are not of it."""
    broken = DATA.x.at[23].set(jnp.nan)
    dp = BY_PATIENT._replace(batch_size=8)
    drawn = sampled(1, dp, x=broken)
    batch = jax.tree.map(lambda leaf: leaf[0], drawn)._replace(y=DATA.y[drawn.y[0]])
    (loss, _), grads = gradient(batch, ones(), dp)
    assert np.isfinite(float(loss))
    assert np.linalg.norm(flat(grads)) > 0
    whole = sampled(1, dp)
    batch = jax.tree.map(lambda leaf: leaf[0], whole)._replace(y=DATA.y[whole.y[0]])
    batch = batch._replace(where=batch.where & (PATIENT[whole.y[0]] != 0))
    _, without = gradient(batch, ones(), dp)
    assert fakes.gap(grads, without) == 0


@pytest.mark.parametrize("most", [1, 3])
def test_patients_of_one_record_each_train_as_records_do(most):
    """Bit for bit where a patient has one row, and to float order where two pad it."""
    each = np.concatenate([np.arange(n) for n in (16, 7, 23, 5)]).astype(np.int32)
    loud = PLAIN._replace(clip=0.7, noise_multiplier=0.3, slots=16)
    records_, _, _, info = trainer(local_of(loud), 2)(0)
    by_patient = loud._replace(per_patient=most)
    patients, _, _, theirs = trainer(local_of(by_patient), 2, patient=each)(0)
    assert int(info.steps) == int(theirs.steps) == 12
    if most == 1:
        assert fakes.equal(patients, records_)
    assert fakes.gap(patients, records_) < 1e-6


def test_an_epoch_passes_over_patients():
    """Eight patients in lots of four, not 23 records."""
    local = local_of(BY_PATIENT)
    plan = batching.local_schedule(
        np.asarray(DATA.count), batch_size=4, epochs=2, units=np.array([1, 3, 8, 1])
    )
    assert (plan.steps, plan.max_records) == (4, 23)
    _, _, _, info = trainer(local._replace(schedule=plan), 2, patient=PATIENT)(0)
    assert int(info.steps) == 4
