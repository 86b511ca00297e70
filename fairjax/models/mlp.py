"""Multi-layer perceptron for tables; with no hidden layer, logistic regression."""

from typing import Any

import flax.linen as nn
import jax

from fairjax.core.types import Axes, LeafAxes, Model, Outputs, Size
from fairjax.models import layers


class _Mlp(nn.Module):
    """The network as a linen module."""

    classes: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, name=f"hidden{i}")(x)
            x = nn.relu(layers.apply_scaler(x, scale))
        return nn.Dense(self.classes, name="head")(x)


def mlp(*, classes: int, hidden: tuple[int, ...]) -> Model:
    """Dense layers with ReLU; every hidden layer is a unit axis "hidden<i>".

    Inputs of any shape [B, ...] are read as rows; the input axis has no name.

    Args:
        classes: C, the width of the head. The class axis "classes" is never sliced, but
            a client's update can leave out rows of classes without records at it.
        hidden: width of every hidden layer, first to last.

    Raises:
        InputError: a layer without units.
    """
    layers.check_sizes(hidden=hidden)
    module = _Mlp(classes, hidden)
    names = [f"hidden{i}" for i in range(len(hidden))]
    tree, input_axis = {}, None
    for name in names:
        tree[name] = {"kernel": LeafAxes((input_axis, name)), "bias": LeafAxes((name,))}
        input_axis = name
    tree["head"] = {
        "kernel": LeafAxes((input_axis, "classes")),
        "bias": LeafAxes(("classes",)),
    }
    units = dict(zip(names, hidden, strict=True), classes=classes)

    def init(key: jax.Array, x: jax.Array) -> Any:
        return module.init(key, x, None)["params"]

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        setting = layers.make_setting(where, stats, submodel)
        logits: Any = module.apply({"params": params}, x, setting.scale)
        return Outputs(logits, (logits,))

    def resize(size: Size) -> Model:
        unit_counts = units | dict(size.axes)
        return mlp(classes=classes, hidden=tuple(unit_counts[name] for name in names))

    return Model(init, apply, Axes(tree, units, {}), resize)
