"""Small federations, models and specs, and comparisons of trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.core import batching, objectives, round
from fairjax.core.problem import LocalProblem
from fairjax.core.spec import Spec
from fairjax.core.types import ClientView, Cohort, FederatedData
from fairjax.fairness import weights
from fairjax.models import cnn, mlp
from fairjax.submodels.fedavg import fedavg

COUNTS = (10, 7, 23, 5)
CLASSES = 3


def federation(shape=(6,), counts=COUNTS, seed=0, dtype=np.float32) -> FederatedData:
    """Records of Gaussian classes at clients of these sizes, with random labels."""
    rng = np.random.default_rng(seed)
    rows = sum(counts)
    y = rng.integers(0, CLASSES, rows).astype(np.int32)
    x = rng.normal(size=(rows, *shape)) + y.reshape(-1, *([1] * len(shape)))
    offset = np.concatenate([[0], np.cumsum(counts)[:-1]])
    labels = [
        np.bincount(y[o : o + n], minlength=CLASSES)
        for o, n in zip(offset, counts, strict=True)
    ]
    return FederatedData(
        jnp.asarray(x.astype(dtype)),
        jnp.asarray(y),
        jnp.zeros((rows, 0), jnp.int32),
        jnp.asarray(offset, jnp.int32),
        jnp.asarray(counts, jnp.int32),
        jnp.asarray(np.stack(labels), jnp.int32),
    )


def cohort(clients=(0, 1, 2, 3), tiers=(0, 1, 2, 1), valid=None) -> Cohort:
    valid = [True] * len(clients) if valid is None else valid
    return Cohort(
        jnp.asarray(clients, jnp.int32),
        jnp.asarray(tiers, jnp.int32),
        jnp.asarray(valid),
    )


def small_mlp(hidden=(16, 8)):
    return mlp(classes=CLASSES, hidden=hidden)


def small_cnn():
    return cnn(classes=CLASSES, channels=(8, 16), group_size=4, lowering="shift")


def spec(
    model=None,
    method=None,
    *,
    rule=None,
    server=None,
    optimizer=None,
    objective=None,
    counts=COUNTS,
    epochs=2,
    batch_size=4,
    **more,
) -> Spec:
    model = model or small_mlp()
    method = method or fedavg(model.axes)
    rule = rule or weights.size()
    objective = objective or method.objective or objectives.mean_cross_entropy()
    plan = batching.local_schedule(
        np.asarray(counts), batch_size=batch_size, epochs=epochs
    )
    return Spec(
        LocalProblem(
            model, method, rule.wrap(objective), optimizer or optax.sgd(0.1), plan
        ),
        rule,
        server or optax.sgd(1.0),
        **more,
    )


def start(spec, data, tiers=3, params=None, seed=0):
    return round.init(
        jax.random.key(seed),
        data.x[:1],
        counts=data.count,
        tiers=tiers,
        spec=spec,
        params=params,
    )


def drawn(model, x, dtype=np.float32, seed=0):
    """Random parameters from NumPy, which is faster than `init`; no bias is 0."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, jnp.float32)
    )
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape).astype(dtype)), shapes
    )


def member(client=0, tier=0, data=None) -> ClientView:
    """The view that a method has of a client of a federation."""
    data = federation() if data is None else data
    return ClientView(
        jnp.asarray(client),
        jnp.asarray(tier),
        jnp.asarray(True),
        data.count[client],
        data.labels[client],
    )


def relaxed(optimizer):
    """The optimiser under standard dtype promotion; optax's Adam fails under strict."""

    def update(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args, **kwargs)

    return optax.GradientTransformation(optimizer.init, update)


def gap(a, b) -> float:
    """The largest absolute difference of two trees."""
    return max(
        float(jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))))
        if x.dtype != y.dtype
        else float(jnp.max(jnp.abs(x - y)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def equal(a, b) -> bool:
    """Whether two trees are equal bit for bit."""
    return all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
