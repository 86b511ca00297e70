"""What a server sees of a client is what the client's own training sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax import models
from fairjax.attacks import exposure, inversion
from fairjax.attacks.exposure import View
from fairjax.core import batching, objectives, rng, trees
from fairjax.core.problem import LocalProblem
from fairjax.core.rng import Role
from fairjax.core.types import ClientView
from fairjax.privacy import client_level
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.structures import enumerate_tables

CLASSES, RATE = 3, 0.1
MODEL = models.mlp(classes=CLASSES, hidden=(4, 4))
X = jax.random.normal(jax.random.key(8), (1, 5))
Y = jnp.asarray([1], jnp.int32)
PARAMS = MODEL.init(jax.random.key(0), X)
BANK = {"tier": {}, "client": {}, "row": {}}
FEDAVG = fedavg(MODEL.axes)
HETEROFL = heterofl(MODEL.axes, (0.5, 1.0), scaler=True, masked_loss=False)
DYNAMICFL = dynamicfl(MODEL.axes, (0, 2), families=("linear", "lowrank", "lowrank"))


def local_of(method, steps=1):
    return LocalProblem(
        MODEL,
        method,
        objectives.mean_cross_entropy(),
        optax.sgd(RATE),
        batching.local_schedule(np.asarray([1]), batch_size=1, steps=steps),
    )


def view_of(method, tier):
    member = ClientView(
        jnp.asarray(0),
        jnp.asarray(tier),
        jnp.asarray(True),
        jnp.asarray(1),
        jnp.ones(CLASSES, jnp.int32),
    )
    number = jnp.asarray(0, jnp.int32)
    kept = method.submodel(jax.random.key(1), number, PARAMS, member)
    memory = None if method.memory is None else method.memory.init(PARAMS)
    return View(PARAMS, kept, memory, member, jax.random.key(2), number, jnp.ones(()))


@functools.cache
def seen(name, tier):
    method = {"fedavg": FEDAVG, "heterofl": HETEROFL, "dynamicfl": DYNAMICFL}[name]
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(
            lambda view: exposure.observe_upload(
                jax.random.key(3), view, X, Y, local=local_of(method), bank=BANK
            )
        )(view_of(method, tier))


def far(ours, theirs, cover):
    return float(inversion.cosine_distance(ours, theirs, cover))


def test_a_gradient_is_one_step_of_the_client():
    def loss(params):
        logits = MODEL.apply(params, X).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    expected = jax.tree.map(lambda g: -RATE * g, jax.grad(loss)(PARAMS))
    for name, tier in (("fedavg", 0), ("heterofl", 1), ("dynamicfl", 0)):
        change = seen(name, tier)[0].update
        for path, leaf in trees.leaves_by_path(change).items():
            wanted = trees.leaves_by_path(expected)[path]
            np.testing.assert_allclose(leaf, wanted, atol=1e-6, err_msg=path)


def test_a_narrow_tier_sends_and_shows_its_units_alone():
    whole, narrow = seen("heterofl", 1)[0], seen("heterofl", 0)[0]
    change, cover = narrow
    for path, leaf in trees.leaves_by_path(change).items():
        dead = np.broadcast_to(trees.leaves_by_path(cover)[path] == 0, leaf.shape)
        assert not np.any(np.asarray(leaf)[dead])
    assert not np.all(trees.leaves_by_path(cover)["hidden0/bias"])
    # It is no part of the whole tier's change, since narrow activations differ.
    assert far(change, whole.update, cover) > 1e-3


def test_branches_turn_the_update_and_who_knows_them_simulates_it_to_the_bit():
    upload, after = seen("dynamicfl", 1)
    view = view_of(DYNAMICFL, 1)
    assert after["alive"].sum() == 4
    local = exposure.noiseless_problem(local_of(DYNAMICFL))
    simulate = jax.jit(
        lambda view: exposure.simulate_update(view, X, Y, local=local)[0]
    )
    plain = exposure.plain_view(jax.random.key(5), view, PARAMS)
    as_plain = exposure.plain_problem(local_of(DYNAMICFL))
    naive = jax.jit(
        lambda view: exposure.simulate_update(view, X, Y, local=as_plain)[0]
    )(plain)
    newcomer = exposure.newcomer_view(jax.random.key(5), view, local=local)
    known, drawn = simulate(view), simulate(newcomer)
    for ours, theirs in zip(
        jax.tree.leaves(known), jax.tree.leaves(upload.update), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert far(naive, upload.update, upload.cover) > 1e-3
    # The same branches come from another draw: the bilinear one differs.
    apart = far(drawn, upload.update, upload.cover)
    assert 1e-6 < apart < far(naive, upload.update, upload.cover)


def test_structures_are_the_admitted_ones():
    exists = np.asarray([[True, False], [True, True]])
    tables = list(enumerate_tables(exists, 2))
    assert len(tables) == 3
    assert len({table.tobytes() for table in tables}) == 3
    assert all(table.sum() == 2 and not table[0, 1] for table in tables)
    assert np.array_equal(next(enumerate_tables(exists, 9)), exists)


def test_soft_labels_agree_with_hard_ones_and_have_a_slope():
    local = exposure.noiseless_problem(local_of(FEDAVG, steps=2))
    view = view_of(FEDAVG, 0)

    def simulate(x, y):
        return exposure.simulate_update(view, x, y, local=local)[0]

    hard, soft = jax.jit(
        lambda x: (simulate(x, Y), simulate(x, jax.nn.one_hot(Y, CLASSES)))
    )(X)
    for ours, theirs in zip(jax.tree.leaves(hard), jax.tree.leaves(soft), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    def size(x, y):
        return optax.tree.norm(simulate(x, y), squared=True)

    slopes = jax.jit(jax.grad(size, (0, 1)))(X, jnp.full((1, CLASSES), 1 / CLASSES))
    for slope in slopes:
        assert np.all(np.isfinite(slope))
        assert np.any(slope != 0)


def test_an_upload_passes_its_own_protection():
    clip, key = 1e-3, rng.fold_in(jax.random.key(0), Role.EVALUATE)
    view, local = view_of(HETEROFL, 0), local_of(HETEROFL)

    def behind(sigma):
        protection = client_level.local(clip=(clip, clip), noise_multiplier=sigma)
        return exposure.observe_upload(
            key, view, X, Y, local=local, bank=BANK, protection=protection
        )[0]

    open_ = seen("heterofl", 0)[0]
    clipped, noisy = jax.jit(lambda: (behind(0.0), behind(1.0)))()
    # Clipping does not change the direction.
    assert far(clipped.update, open_.update, open_.cover) < 1e-5
    assert float(optax.tree.norm(clipped.update)) == pytest.approx(clip, rel=1e-4)
    assert far(noisy.update, open_.update, open_.cover) > 0.5
    # The noise is also on the sent coordinates alone.
    outside = jax.tree.map(lambda c: 1 - c, noisy.cover)
    assert not optax.tree.norm(trees.multiply(noisy.update, outside))
