"""Any flax module, or bare functions, as a `Model`; a model in another precision.

An adapted model runs masked with any axes that fit it; `submodels.axes.check` says
whether they do. It runs sliced only if `resize` says how to build it smaller. Masked
and sliced then agree as far as the module's own layers allow, see `layers`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from fairjax.core import require
from fairjax.core.types import Axes, Model, Outputs, Params, Size

DTYPES = ("float32", "bfloat16")

Resize = Callable[[Size], Model]

Call = Callable[[Any, Array, bool, Array | None], Array]
"""(module, x, train, dropout key) -> logits."""


def _plainly(module: Any, x: Array, train: bool, key: Array | None) -> Array:
    return module(x)


def from_functions(
    init: Callable[[Array, Array], Params],
    apply: Callable[[Params, Array], Array],
    axes: Axes,
    *,
    resize: Resize | None = None,
) -> Model:
    """The model of two pure functions.

    Args:
        init: (key, x) -> params.
        apply: (params, x) -> logits.
        axes: what the parameters' dimensions mean.
        resize: the same architecture at another size.
    """

    def run(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        logits = apply(params, x)
        return Outputs(logits, (logits,))

    return Model(init, run, axes, resize)


def from_linen(
    module: nn.Module,
    axes: Axes,
    x: Array | jax.ShapeDtypeStruct,
    *,
    call: Call = _plainly,
    resize: Resize | None = None,
) -> Model:
    """The model of a `flax.linen` module.

    Args:
        module: unbound, with parameters alone.
        axes: what its parameters' dimensions mean.
        x: inputs whose shape and dtype count.
        call: how to call it; its "dropout" stream has the key already.
        resize: the same architecture at another size.

    Raises:
        InputError: a module with other collections, such as running averages: a model
            has no mutable state.
    """

    def init_all(key: Array, x: Array) -> Any:
        return module.init(key, x, False, key, method=call)

    held = jax.eval_shape(init_all, jax.random.key(0), x)
    if set(held) != {"params"}:
        require.fail("module", "the collection params alone", sorted(held))

    def init(key: Array, x: Array) -> Params:
        return init_all(key, x)["params"]

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        rngs = None if key is None else {"dropout": key}
        logits: Any = module.apply(
            {"params": params}, x, train, key, method=call, rngs=rngs
        )
        return Outputs(logits, (logits,))

    return Model(init, apply, axes, resize)


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    axes: Axes,
    *,
    call: Call = _plainly,
    resize: Resize | None = None,
) -> Model:
    """The model of a `flax.nnx` module; its parameters become a plain dictionary.

    Args:
        module: with parameters alone, which the model starts from; or a function of
            random streams that builds one, for a start that depends on the key.
        axes: what its parameters' dimensions mean.
        call: how to call it; hand the key on to its dropout layers.
        resize: the same architecture at another size.

    Raises:
        InputError: a module with other variables, such as running averages or random
            streams of its own: a model has no mutable state.
    """
    build = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    like = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, shapes, rest = nnx.split(like, nnx.Param, ...)
    if jax.tree.leaves(rest):
        require.fail("module", "nnx.Param variables alone", list(rest))

    def init(key: Array, x: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    def apply(params, x, *, train=False, key=None, where=None, stats=None, kept=None):
        state = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(state, params)
        logits = call(nnx.merge(graph, state), x, train, key)
        return Outputs(logits, (logits,))

    return Model(init, apply, axes, resize)


def computing_in(dtype: str, model: Model) -> Model:
    """The model whose layers compute in `dtype`; nothing outside of them does.

    Parameters and inputs are cast on their way in and logits to float32 on their way
    out, so that gradients reach the parameters in their own precision: optimiser,
    changes, sums over clients and losses stay what they are. Norms take their moments
    in float32 (`layers`).

    Args:
        dtype: one of `DTYPES`; "float32" gives the model itself.
        model: with float32 parameters.
    """
    if dtype == "float32":
        return model

    def cast(tree: Any, to: str) -> Any:
        def one(leaf: Array) -> Array:
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(to) if floating else leaf

        return jax.tree.map(one, tree)

    def apply(params, x, **given):
        outputs = model.apply(cast(params, dtype), cast(x, dtype), **given)
        return cast(outputs, "float32")

    def resize(size: Size) -> Model:
        assert model.resize is not None
        return computing_in(dtype, model.resize(size))

    return model._replace(apply=apply, resize=None if model.resize is None else resize)
