"""Layers whose masked and sliced forms agree.

A masked unit must give exactly 0 to the next layer. Affine maps do (their bias is
masked too), and so do norms whose statistics never mix units of the sub-model with
others: a batch norm reads one channel, a group norm the groups that *are* the units,
and a layer norm counts the active channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Shaped

from fairjax.core import require
from fairjax.core.types import Moments, Submodel


def check_sizes(**sizes: int | tuple[int, ...]) -> None:
    """Refuses layers without units.

    Args:
        **sizes: whole numbers by the names of a factory's arguments.

    Raises:
        InputError: names the argument that has a number below 1.
    """
    for name, size in sizes.items():
        for number in size if isinstance(size, tuple) else (size,):
            require.count(name, number)


def pool(x: Float[Array, "B H W I"]) -> Float[Array, "B H2 W2 I"]:
    """2 x 2 maximum; an odd last row or column is dropped.

    Two maxima of pairs: XLA:CPU computes their gradient 8 times faster than that of a
    window. Tied values share the gradient.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // 2, width // 2
    x = x[:, : 2 * rows, : 2 * columns]
    x = x.reshape(batch, rows, 2, columns, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def dense(
    params: Mapping[str, Float[Array, "..."]], x: Float[Array, "B ..."]
) -> Float[Array, "B ..."]:
    """The affine map x W + b, which contracts all leading dimensions of the kernel.

    A kernel [H, W, I, O] reads a whole feature map, whose channels stay a dimension of
    their own: a model that flattened it could not be sliced.

    Args:
        params: kernel and bias.
        x: input.
    """
    kernel = params["kernel"]
    if kernel.ndim == 2:
        return x @ kernel + params["bias"]
    return _contract(x, kernel) + params["bias"]


@jax.custom_vjp
def _contract(x: Array, kernel: Array) -> Array:
    return jnp.tensordot(x, kernel, kernel.ndim - 1)


def _contract_forward(x: Array, kernel: Array) -> tuple[Array, Any]:
    return _contract(x, kernel), (x, kernel)


def _contract_backward(residuals: Any, g: Array) -> tuple[Array, Array]:
    """The usual gradients, with the kernel on the left of its product.

    With the kernel on the right, XLA:CPU writes a transposed copy of it in every step,
    which doubles the cost of a large kernel.
    """
    x, kernel = residuals
    grad_x = jnp.tensordot(kernel, g, ((kernel.ndim - 1,), (1,)))
    return jnp.moveaxis(grad_x, -1, 0), jnp.tensordot(x, g, ((0,), (0,)))


_contract.defvjp(_contract_forward, _contract_backward)


# ------------------------------------------------------------------------------- norms


EPSILON = 1e-5


class Setting(NamedTuple):
    """Arguments of `Model.apply` that layers read besides parameters and input."""

    where: Bool[Array, "B"] | None
    """Valid records; None: all."""
    stats: Mapping[str, Moments] | None
    """Moments by the name of their batch norm; None: those of the batch."""
    scale: Float[Array, ""] | None
    """`Submodel.scale`; None: no scaling."""
    active: Mapping[str, Shaped[Array, "units"]]
    """0/1 per unit of every masked axis."""


def make_setting(
    where: Bool[Array, "B"] | None,
    stats: Mapping[str, Moments] | None,
    submodel: Submodel | None,
) -> Setting:
    """The setting of one pass, from arguments of `Model.apply`.

    These layers do not depend on the training mode, so a sub-model computes the same
    function in evaluation and in training.

    Args:
        where: valid records; None: all.
        stats: moments by the name of their batch norm; None: those of the batch.
        submodel: the sub-model of the network; None: all of it.
    """
    submodel = submodel or Submodel()
    active = submodel.forward.axes if submodel.forward else {}
    return Setting(where, stats, submodel.scale, active)


def promote(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The array in float32 at least: moments in lower precision lose differences."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def apply_scaler(
    x: Float[Array, "..."], scale: Float[Array, ""] | None
) -> Float[Array, "..."]:
    """The quotient x / scale, so that all widths feed alike; x where scale is None.

    The scaler is part of the sub-model: it divides in evaluation as in training. A norm
    behind it hides the difference but for its epsilon. Without a norm, or with moments
    taken behind the scaler, evaluation without the scaler would be another function
    than the trained one.

    Source: the Scaler of HeteroFL (see `fairjax.submodels.heterofl`), placed before the
    norm as there. The released code evaluates only the whole model, which has no
    scaler.
    """
    return x if scale is None else x / scale.astype(x.dtype)


def norm(
    params: Mapping[str, Float[Array, "C"]] | None,
    x: Float[Array, "B *space C"],
    setting: Setting,
    *,
    kind: str,
    name: str = "",
    axis: str = "",
    group_size: int = 1,
) -> tuple[Float[Array, "B *space C"], dict[str, Moments]]:
    """One of `leaves.NORMS`, after HeteroFL's scaler.

    The output carries the checkpoint name "norm": a rematerialisation policy can save
    it by that name, and `submodels.cost` counts it.

    Args:
        params: scale and bias; None for kind "none".
        x: the input.
        setting: the setting of this pass.
        kind: "group", "batch", "layer" or "none".
        name: key of a batch norm's moments.
        axis: unit axis whose masked channels a layer norm does not count.
        group_size: channels of one group, for kind "group".

    Returns:
        (output, {name: moments} of a batch norm; empty for other kinds).
    """
    x, moments = apply_scaler(x, setting.scale), {}
    if kind == "none" or params is None:
        return x, moments
    if kind == "batch":
        fixed_moments = None if setting.stats is None else setting.stats[name]
        y, moments[name] = batch_norm(
            params, x, where=setting.where, moments=fixed_moments
        )
    elif kind == "group":
        y = group_norm(params, x, group_size=group_size)
    else:
        y = layer_norm(params, x, active=setting.active.get(axis))
    return checkpoint_name(y, "norm"), moments


def batch_norm(
    params: Mapping[str, Float[Array, "C"]],
    x: Float[Array, "B *space C"],
    *,
    where: Bool[Array, "B"] | None = None,
    moments: Moments | None = None,
) -> tuple[Float[Array, "B *space C"], Moments]:
    """Normalises every channel over records and space.

        y = scale * (x - mean) / sqrt(var + 1e-5) + bias

    Args:
        params: scale and bias.
        x: the input.
        where: valid records; others enter no moment. None: all.
        moments: moments to normalise by; None: those of the valid records of x.

    Returns:
        (y, the moments used).

    Edge cases: without a valid record mean and variance are 0.

    Source: S. Ioffe and C. Szegedy, "Batch Normalization: Accelerating Deep Network
    Training by Reducing Internal Covariate Shift", ICML 2015, arXiv:1502.03167.
    Deviates: no running averages; other moments than the batch's are an argument.
    """
    x32 = promote(x)
    if moments is None:
        moments = _moments(x32, where)
    y = (x32 - moments.mean) * jax.lax.rsqrt(moments.var + EPSILON)
    return y.astype(x.dtype) * params["scale"] + params["bias"], moments


def _moments(x: Float[Array, "B *space C"], where: Bool[Array, "B"] | None) -> Moments:
    """Moments per channel over valid records and space."""
    reduction_axes = tuple(range(x.ndim - 1))
    valid = jnp.ones(x.shape[:1], bool) if where is None else where
    valid = jnp.broadcast_to(
        valid.reshape(-1, *[1] * (x.ndim - 1)), (*x.shape[:-1], 1)
    ).astype(x.dtype)
    count = jnp.sum(valid)
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(x * valid, axis=reduction_axes) / divisor
    var = jnp.sum((x - mean) ** 2 * valid, axis=reduction_axes) / divisor
    return Moments(count, mean, var)


def group_norm(
    params: Mapping[str, Float[Array, "C"]],
    x: Float[Array, "B *space C"],
    *,
    group_size: int,
) -> Float[Array, "B *space C"]:
    """Normalises every record over space and each run of `group_size` channels.

    Args:
        params: scale and bias.
        x: the input.
        group_size: channels of one group.

    Source: Y. Wu and K. He, "Group Normalization", ECCV 2018, arXiv:1803.08494.
    Deviates: the size of a group is fixed and not their number, so that a narrower
    network normalises each of its groups as the wide one does.
    """
    grouped = promote(x).reshape(*x.shape[:-1], -1, group_size)
    reduction_axes = (*range(1, x.ndim - 1), x.ndim)
    y = (
        grouped - jnp.mean(grouped, axis=reduction_axes, keepdims=True)
    ) * jax.lax.rsqrt(jnp.var(grouped, axis=reduction_axes, keepdims=True) + EPSILON)
    return y.reshape(x.shape).astype(x.dtype) * params["scale"] + params["bias"]


def layer_norm(
    params: Mapping[str, Float[Array, "C"]],
    x: Float[Array, "*lead C"],
    *,
    active: Shaped[Array, "C"] | None = None,
) -> Float[Array, "*lead C"]:
    """Normalises the last axis, counting only its active channels.

        mean = sum_c a_c x_c / n,   var = sum_c a_c (x_c - mean)^2 / n,   n = sum_c a_c

    Args:
        params: scale and bias.
        x: the input.
        active: 0/1 per channel, a above; None: all, which is the usual layer norm.

    Returns:
        The bias in inactive channels; in active ones the layer norm of the active
        channels alone, as in the sliced network.

    Source: J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer Normalization", 2016,
    arXiv:1607.06450; the count over active channels is ours.
    """
    x32 = promote(x)
    if active is None:
        active = jnp.ones(x.shape[-1], x32.dtype)
    active = active.astype(x32.dtype)
    count = jnp.maximum(jnp.sum(active), 1)
    mean = jnp.sum(x32 * active, axis=-1, keepdims=True) / count
    centred = (x32 - mean) * active
    var = jnp.sum(centred**2, axis=-1, keepdims=True) / count
    y = centred * jax.lax.rsqrt(var + EPSILON)
    return y.astype(x.dtype) * params["scale"] + params["bias"]
