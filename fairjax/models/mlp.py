"""Multi-layer perceptron for tables; with no hidden layer, logistic regression."""

from typing import Any

import flax.linen as nn
import jax

from fairjax.core.types import Axes, LeafAxes, Model, Outputs, Size
from fairjax.models import layers


class _Mlp(nn.Module):
    classes: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, name=f"hidden{i}")(x)
            x = nn.relu(layers.scaled(x, scale))
        return nn.Dense(self.classes, name="head")(x)


def mlp(*, classes: int, hidden: tuple[int, ...]) -> Model:
    """Dense layers with ReLU; every hidden layer is a unit axis "hidden<i>".

    Args:
        classes: C, the width of the head; the class axis "classes" is never sliced, but
            rows of classes that a client does not hold can be left out of its update.
        hidden: width of every hidden layer, first to last.

    Inputs of any shape [B, ...] are read as rows; the input axis has no name.
    """
    module = _Mlp(classes, hidden)
    names = [f"hidden{i}" for i in range(len(hidden))]
    tree, before = {}, None
    for name in names:
        tree[name] = {"kernel": LeafAxes((before, name)), "bias": LeafAxes((name,))}
        before = name
    tree["head"] = {
        "kernel": LeafAxes((before, "classes")),
        "bias": LeafAxes(("classes",)),
    }
    units = dict(zip(names, hidden, strict=True), classes=classes)

    def init(key: jax.Array, x: jax.Array) -> Any:
        return module.init(key, x, None)["params"]

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        around = layers.setting(where, stats, kept)
        logits: Any = module.apply({"params": params}, x, around.scale)
        return Outputs(logits, (logits,))

    def resize(size: Size) -> Model:
        kept = units | dict(size.axes)
        return mlp(classes=classes, hidden=tuple(kept[name] for name in names))

    return Model(init, apply, Axes(tree, units, {}), resize)
