"""Members in what a server sees: one round by hand, and runs of several rounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.attacks import alignment, shadows
from fairjax.core import inference, layout, losses, problem, trees
from fairjax.core.types import ClientView
from fairjax.metrics import auroc
from fairjax.privacy import client_level
from fairjax.submodels.heterofl import heterofl
from tests import fakes

TRAIN = fakes.federation(counts=(10, 7, 23, 5))
TEST = fakes.federation(counts=(8, 6, 20, 0), seed=1)
POOL = shadows.pool_candidates(TRAIN, TEST)
TIERS = jnp.asarray([0, 1, 2, 1])
OWNER = jnp.asarray(POOL.owner)
MODEL = fakes.small_mlp()
METHOD = heterofl(MODEL.axes, (0.25, 0.5, 1.0), scaler=False, masked_loss=False)


def members(data):
    ids = jnp.arange(4, dtype=jnp.int32)
    return ClientView(ids, TIERS, jnp.ones(4, bool), data.count, data.labels)


def followed(spec, cohort, rounds, uploads=None, *, train=TRAIN, candidates=POOL):
    def run(state):
        return alignment.alignments(
            state,
            train,
            candidates.data,
            jnp.asarray(candidates.owner),
            lambda finished: members(train),
            lambda state: cohort,
            spec=spec,
            layout=layout.vmapped(),
            rounds=rounds,
            protection=uploads,
        )

    return jax.jit(run)(fakes.start(spec, train))


def test_one_step_of_whole_batches_is_the_mean_gradient():
    """The upload of one full-batch step is -lr times the mean of the members' own."""
    spec = fakes.spec(MODEL, METHOD, epochs=1, batch_size=32)
    absent = fakes.cohort(valid=[True, True, True, False])
    by_upload, by_model = np.asarray(followed(spec, absent, 1))
    params = fakes.start(spec, TRAIN).params

    @jax.jit
    def gradients(who):
        member = fakes.member(who, TIERS[who], TRAIN)
        kept = METHOD.submodel(jax.random.key(0), jnp.asarray(0), params, member)
        _, mask = problem.masks(spec.local, params, kept)

        def loss(params, x, y):
            logits = inference.apply_submodel(MODEL, params, x[None], kept).logits
            return losses.cross_entropy(logits, y[None])[0]

        each = jax.vmap(jax.grad(loss), (None, 0, 0))(
            params, jnp.asarray(POOL.data.x), jnp.asarray(POOL.data.y)
        )
        each = trees.multiply(each, mask)
        return jnp.concatenate(
            [leaf.reshape(len(OWNER), -1) for leaf in jax.tree.leaves(each)], axis=1
        )

    for who in range(3):
        g = np.asarray(gradients(who), float)
        mine = np.asarray(OWNER) == who
        step = -g[mine & POOL.member].mean(0)
        length = np.linalg.norm(g, axis=1) * np.linalg.norm(step)
        cosine = -(g @ step) / length
        np.testing.assert_allclose(by_upload[mine], cosine[mine], rtol=2e-3, atol=1e-4)
    assert np.isnan(by_upload[np.asarray(OWNER) == 3]).all()
    assert np.isfinite(by_model).all()


WIDE = [
    dataclasses.replace(
        fakes.federation((60,), (4, 4, 4, 4), seed=seed),
        x=jax.random.normal(jax.random.key(seed), (16, 60)),
    )
    for seed in (0, 1)
]
NOISY = client_level.local(clip=(1.0,) * 3, noise_multiplier=10.0)


@pytest.mark.parametrize(("uploads", "low", "high"), [(None, 0.95, 1), (NOISY, 0, 0.8)])
def test_members_show_in_uploads_unless_these_are_noised(uploads, low, high):
    """Few records of many features: gradients are almost at right angles."""
    train, candidates = WIDE[0], shadows.pool_candidates(*WIDE)
    model = fakes.small_mlp(hidden=(8,))
    spec = fakes.spec(model, counts=(4,) * 4, epochs=1)
    if uploads is not None:
        spec = dataclasses.replace(spec, protection=uploads)
    scores = followed(
        spec, fakes.cohort(), 2, uploads, train=train, candidates=candidates
    )
    member = jnp.asarray(candidates.member)
    area = auroc(scores[0], member, jnp.zeros(member.shape, jnp.int32), 1)[0]
    assert low <= float(area) <= high
