import contextlib
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from fairjax.core import batching, client, inference, objectives, require, trees
from fairjax.core.types import ClientData, ClientView, Submodel
from fairjax.submodels.heterofl import heterofl
from tests import fakes

EPOCHS, LONGEST = 3, 40
stream = jax.jit(batching.stream, static_argnums=2)


@functools.partial(jax.jit, static_argnums=(1, 2))
def batches_of(count, batch_size, steps):
    """The batches of a client whose records are numbered from 50 on."""
    order = batching.stream(jax.random.key(3), count, EPOCHS * LONGEST)
    x = jnp.arange(100.0)
    examples = ClientData(x, x.astype(jnp.int32), jnp.asarray(50), count)
    return jax.vmap(lambda s: batching.batch(examples, order, s, batch_size))(
        jnp.arange(steps, dtype=jnp.int32)
    )


@given(st.integers(1, LONGEST), st.sampled_from([1, 3, 8]))
def test_every_epoch_visits_every_record_once(count, batch_size):
    batches = batches_of(jnp.asarray(count), batch_size, EPOCHS * LONGEST)
    per_epoch = -(-count // batch_size)
    for epoch in range(EPOCHS):
        steps = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows = np.asarray(batches.y[steps])[np.asarray(batches.where[steps])]
        assert sorted(rows.tolist()) == list(range(50, 50 + count))


@given(st.integers(1, LONGEST))
def test_order_depends_on_the_client_alone(count):
    """Padding for a larger hospital does not reshuffle a smaller one."""
    short, long = 80, 131
    key = jax.random.key(7)
    whole = short - short % count
    np.testing.assert_array_equal(
        stream(key, jnp.asarray(count), short)[:whole],
        stream(key, jnp.asarray(count), long)[:whole],
    )


def test_epochs_are_shuffled_apart():
    order = np.asarray(batching.stream(jax.random.key(0), jnp.asarray(30), 60))
    assert not np.array_equal(order[:30], order[30:])
    assert not np.array_equal(order[:30], np.arange(30))


def test_plan_by_steps_has_room_for_every_client():
    plan = batching.local_schedule(np.array([3, 50]), batch_size=4, steps=10)
    assert (plan.steps, plan.epochs, plan.max_records) == (10, None, 50)
    assert plan.stream_length == max(10 * 3, 1 * 50)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "epochs: expected either epochs or steps"),
        ({"epochs": 1, "steps": 1}, "epochs: expected either epochs or steps"),
        ({"epochs": 0}, "epochs: expected a finite number > 0"),
        ({"steps": -1}, "steps: expected a finite number > 0"),
        ({"epochs": 2**31}, "epochs: expected a number with which a round takes"),
    ],
)
def test_plan_refuses_unclear_lengths(given_, message):
    with pytest.raises(require.InputError, match=f"^{message}"):
        batching.local_schedule(np.array([3]), batch_size=4, **given_)


# --------------------------------------------------------------------- masked == sliced

# flax's norms and optax's Adam do not promote strictly in float64.


def in_float64():
    stack = contextlib.ExitStack()
    stack.enter_context(jax.enable_x64(True))
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    return stack


OPTIMIZERS = {
    "momentum+decay": optax.chain(
        optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.9)
    ),
    "adamw": optax.adamw(0.01, weight_decay=0.05),
}
MODELS = {"mlp": fakes.small_mlp, "cnn": fakes.small_cnn}


def sliced_and_masked(model, optimizer, *, epochs, dtype, scaler=True, loss=True):
    """One client of the middle tier, masked at full width and as its own network."""
    shape = (8, 8, 1) if model is fakes.small_cnn else (6,)
    data = fakes.federation(shape, dtype=dtype)
    model = model()
    method = heterofl(model.axes, (0.25, 0.5, 1.0), scaler=scaler, masked_loss=loss)
    spec = fakes.spec(model, method, optimizer=optimizer, epochs=epochs)
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype),
        jax.jit(model.init)(jax.random.key(1), data.x[:1].astype(jnp.float32)),
    )
    who = 1
    member = ClientView(
        jnp.asarray(who),
        jnp.asarray(1),
        jnp.asarray(True),
        data.count[who],
        data.labels[who],
    )
    examples = ClientData(data.x, data.y, data.offset[who], data.count[who])
    round, key = jnp.asarray(0), jax.random.key(5)
    kept = method.submodel(key, round, params, member)

    def train(local, params, kept):
        run = functools.partial(client.update, client=member, round=round, local=local)
        return jax.jit(run)(key, params, None, kept, examples)

    masked, cover, _, _ = train(spec.local, params, kept)

    dense = functools.partial(
        client.update_sliced, client=member, round=round, local=spec.local
    )
    dense = jax.jit(functools.partial(dense, size=method.size(1)))
    sliced, also, _, _ = dense(key, params, None, kept, examples)
    assert fakes.equal(cover, also)
    return masked, sliced, cover


# The matrix of tests/submodels has every method and model; this one takes many steps.
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("mlp", "momentum+decay"),
        pytest.param("cnn", "adamw", marks=pytest.mark.slow),
    ],
)
def test_masked_is_sliced_in_float64_after_many_steps(model, optimizer):
    with in_float64():
        masked, sliced, cover = sliced_and_masked(
            MODELS[model], OPTIMIZERS[optimizer], epochs=3, dtype=np.float64
        )
        assert fakes.gap(masked, sliced) < 1e-10
        assert fakes.gap(masked, jax.tree.map(jnp.zeros_like, masked)) > 1e-4
        outside = jax.tree.map(lambda d, c: jnp.where(c > 0, 0, d), masked, cover)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(outside))


@pytest.mark.parametrize("model", MODELS)
def test_masked_is_sliced_in_float32_after_one_step(model):
    masked, sliced, _ = sliced_and_masked(
        MODELS[model], optax.sgd(0.1), epochs=1, dtype=np.float32
    )
    assert fakes.gap(masked, sliced) < 1e-5


@pytest.mark.parametrize(("scaler", "loss"), [(True, False), (False, True)])
def test_heterofl_options_keep_the_forms_equal(scaler, loss):
    with in_float64():
        masked, sliced, _ = sliced_and_masked(
            fakes.small_mlp,
            optax.sgd(0.1),
            epochs=2,
            dtype=np.float64,
            scaler=scaler,
            loss=loss,
        )
        assert fakes.gap(masked, sliced) < 1e-10


# --------------------------------------------------------------------------- one client


def run_client(local, data, who=0, params=None, kept=None, key=0):
    params = params or jax.jit(local.model.init)(jax.random.key(1), data.x[:1])
    member = ClientView(
        jnp.asarray(who),
        jnp.asarray(0),
        jnp.asarray(True),
        data.count[who],
        data.labels[who],
    )
    examples = ClientData(data.x, data.y, data.offset[who], data.count[who])
    run = functools.partial(
        client.update, client=member, round=jnp.asarray(0), local=local
    )
    return params, jax.jit(run)(
        jax.random.key(key), params, None, kept or Submodel(), examples
    )


def test_idle_steps_change_nothing():
    """A small client ends the same whatever the largest one needs, also with Adam."""
    data = fakes.federation()
    alone = fakes.spec(counts=(5,), optimizer=fakes.relaxed(optax.adam(0.01)))
    among = fakes.spec(counts=fakes.COUNTS, optimizer=fakes.relaxed(optax.adam(0.01)))
    assert among.local.schedule.steps > alone.local.schedule.steps
    _, (one, _, _, info) = run_client(alone.local, data, who=3)
    _, (other, _, _, more) = run_client(among.local, data, who=3)
    assert fakes.equal(one, other)
    assert int(info.steps) == int(more.steps) == 2 * 2
    np.testing.assert_allclose(info.loss, more.loss, rtol=1e-6)


def test_a_client_without_records_returns_zero():
    data = fakes.federation()
    empty = data.count.at[2].set(0)
    data = type(data)(data.x, data.y, data.group, data.offset, empty, data.labels)
    _, (delta, _, _, info) = run_client(fakes.spec().local, data, who=2)
    assert int(info.steps) == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(delta))


def test_learning_rate_zero_is_exactly_no_change():
    data = fakes.federation()
    local = fakes.spec(optimizer=optax.sgd(0.0, momentum=0.9)).local
    _, (delta, _, _, _) = run_client(local, data)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(delta))


def test_one_step_is_one_gradient_step():
    """Against a gradient taken by hand on the client's whole data."""
    data = fakes.federation()
    spec = fakes.spec(batch_size=32, epochs=1)
    params, (delta, _, _, info) = run_client(spec.local, data, who=1)
    rows = slice(10, 17)

    def loss(p):
        logits = spec.local.model.apply(p, data.x[rows]).logits
        picked = jax.nn.log_softmax(logits)[jnp.arange(7), data.y[rows]]
        return -picked.mean()

    value, grad = jax.value_and_grad(loss)(params)
    expected = jax.tree.map(lambda g: -0.1 * g, grad)
    assert fakes.gap(delta, expected) < 1e-6
    np.testing.assert_allclose(info.loss, value, rtol=1e-5)


def test_prox_pulls_towards_the_incoming_model():
    """With one step left to take from elsewhere its gradient is strength * (w - w0)."""
    data = fakes.federation()
    far = fakes.spec(epochs=4).local
    near = far._replace(objective=objectives.proximal(far.objective, 5.0))
    none = far._replace(objective=objectives.proximal(far.objective, 0.0))
    _, (free, *_) = run_client(far, data)
    _, (held, *_) = run_client(near, data)
    _, (same, *_) = run_client(none, data)
    assert float(optax.tree.norm(held)) < 0.7 * float(optax.tree.norm(free))
    assert fakes.gap(free, same) < 1e-7


def test_prox_loss_starts_at_zero_for_a_sub_model():
    """Coordinates a client does not keep are no distance."""
    data = fakes.federation()
    model = fakes.small_mlp()
    method = heterofl(model.axes, (0.5,), scaler=False, masked_loss=False)
    kept = method.submodel(
        jax.random.key(0),
        jnp.asarray(0),
        None,
        ClientView(
            *[jnp.asarray(0)] * 2, jnp.asarray(True), data.count[0], data.labels[0]
        ),
    )
    local = fakes.spec(model, method, optimizer=optax.sgd(0.0)).local
    strong = local._replace(objective=objectives.proximal(local.objective, 100.0))
    _, (_, _, _, plain) = run_client(local, data, kept=kept)
    _, (_, _, _, prox) = run_client(strong, data, kept=kept)
    np.testing.assert_allclose(plain.loss, prox.loss, rtol=1e-6)


def test_balanced_weights_make_classes_count_alike():
    """Mean of per-class means on one full batch."""
    data = fakes.federation()
    objective = objectives.mean_cross_entropy(balanced=True)
    spec = fakes.spec(batch_size=64, epochs=1, objective=objective)
    params, (_, _, _, info) = run_client(spec.local, data, who=2)
    rows = slice(17, 40)
    logits = spec.local.model.apply(params, data.x[rows]).logits
    y = np.asarray(data.y[rows])
    each = -np.asarray(jax.nn.log_softmax(logits))[np.arange(23), y]
    expected = np.mean([each[y == c].mean() for c in np.unique(y)])
    np.testing.assert_allclose(info.loss, expected, rtol=1e-5)


def test_counts_of_a_bfloat16_model_are_whole():
    """They do not stop at 256, where bfloat16 has no next number."""
    model = fakes.small_mlp(hidden=())

    def half(*args, **kwargs):
        outputs = model.apply(*args, **kwargs)
        return outputs._replace(logits=outputs.logits.astype(jnp.bfloat16))

    data = fakes.federation(counts=(900,))
    spec = fakes.spec(model._replace(apply=half), counts=(900,), batch_size=64)
    params = fakes.drawn(model, data.x[:1])
    examples = ClientData(data.x, data.y, data.offset[0], data.count[0])
    cells = inference.score(params, Submodel(), examples, local=spec.local)
    np.testing.assert_array_equal(cells.count[0], np.bincount(data.y))


def test_score_is_the_mean_over_all_records():
    data = fakes.federation()
    spec = fakes.spec()
    params = spec.local.model.init(jax.random.key(1), data.x[:1])
    examples = ClientData(data.x, data.y, data.offset[2], data.count[2])
    cells = inference.score(params, Submodel(), examples, local=spec.local)
    got = inference.mean_loss(cells)
    logits = spec.local.model.apply(params, data.x[17:40]).logits
    each = -jax.nn.log_softmax(logits)[jnp.arange(23), data.y[17:40]]
    np.testing.assert_allclose(got, each.mean(), rtol=1e-5)


def test_masked_loss_zeroes_absent_logits():
    """Absent classes stay in the softmax as exp(0), and their head rows do not move."""
    data = fakes.federation()
    y = jnp.where(data.y == 2, 1, data.y)
    labels = data.labels.at[:, 1].add(data.labels[:, 2]).at[:, 2].set(0)
    data = type(data)(data.x, y, data.group, data.offset, data.count, labels)
    model = fakes.small_mlp()
    method = heterofl(model.axes, (1.0,), scaler=False, masked_loss=True)
    spec = fakes.spec(model, method, batch_size=64, epochs=1)
    member = ClientView(
        *[jnp.asarray(0)] * 2, jnp.asarray(True), data.count[0], data.labels[0]
    )
    kept = method.submodel(jax.random.key(0), jnp.asarray(0), None, member)
    params, (delta, cover, _, info) = run_client(spec.local, data, kept=kept)
    logits = model.apply(params, data.x[:10]).logits.at[:, 2].set(0.0)
    each = -jax.nn.log_softmax(logits)[jnp.arange(10), data.y[:10]]
    np.testing.assert_allclose(info.loss, each.mean(), rtol=1e-5)
    assert not np.any(delta["head"]["kernel"][:, 2])
    assert not np.any(jnp.broadcast_to(cover["head"]["bias"], (3,))[2])
    assert np.any(delta["head"]["kernel"][:, 1])


def test_scaler_divides_hidden_activations_in_training_and_evaluation():
    model = fakes.small_mlp(hidden=(4,))
    x = jax.random.normal(jax.random.key(0), (5, 6))
    params = model.init(jax.random.key(1), x)
    kept = Submodel(scale=jnp.asarray(0.5))
    double = trees.multiply(
        params,
        {
            "hidden0": {"kernel": jnp.asarray([[2.0]]), "bias": jnp.asarray([2.0])},
            "head": {"kernel": jnp.asarray([[1.0]]), "bias": jnp.asarray([1.0])},
        },
    )
    for train in (True, False):
        logits = model.apply(params, x, train=train, submodel=kept).logits
        np.testing.assert_allclose(logits, model.apply(double, x).logits, rtol=1e-5)


def test_unrolling_the_loop_over_steps_changes_no_result():
    local, data = fakes.spec().local, fakes.federation()
    one, several = (run_client(local._replace(unroll=n), data)[1] for n in (1, 4))
    assert fakes.gap(one[0], several[0]) < 1e-6
    np.testing.assert_allclose(one[3].loss, several[3].loss, rtol=1e-5)
