"""Any flax module, or bare functions, as a `Model`; a model in another precision.

An adapted model runs masked with any axes that fit it (`core.axes.check`). It runs
sliced only with a `resize`. Masked and sliced agree if the module's layers have the
properties of `layers`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from fairjax.core import require
from fairjax.core.types import Axes, Model, Outputs, Params, Size

DTYPES = ("float32", "bfloat16")

Resize = Callable[[Size], Model]


class Call(Protocol):
    """How a flax module is called."""

    def __call__(
        self, module: Any, x: Array, train: bool, key: Array | None, /
    ) -> Array:
        """The logits of a batch.

        Args:
            module: the module.
            x: inputs of a batch.
            train: training mode.
            key: key of dropout; None without one.
        """
        ...


def _default_call(module: Any, x: Array, train: bool, key: Array | None) -> Array:
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
        axes: axes of the parameters.
        resize: the same architecture at another size; None: it runs masked only.
    """

    def run(params, x, *, train=False, key=None, where=None, stats=None, submodel=None):
        logits = apply(params, x)
        return Outputs(logits, (logits,))

    return Model(init, run, axes, resize)


def from_linen(
    module: nn.Module,
    axes: Axes,
    x: Array | jax.ShapeDtypeStruct,
    *,
    call: Call = _default_call,
    resize: Resize | None = None,
) -> Model:
    """The model of a `flax.linen` module.

    Args:
        module: an unbound module with parameters alone.
        axes: axes of its parameters.
        x: inputs whose shape and dtype count.
        call: how to call the module; its "dropout" stream has the key already.
        resize: the same architecture at another size; None: it runs masked only.

    Raises:
        InputError: a module with other collections, such as running averages: a model
            has no mutable state.
    """

    def init_all(key: Array, x: Array) -> Any:
        return module.init(key, x, False, key, method=call)

    variables = jax.eval_shape(init_all, jax.random.key(0), x)
    if set(variables) != {"params"}:
        require.fail("module", "the collection params alone", sorted(variables))

    def init(key: Array, x: Array) -> Params:
        return init_all(key, x)["params"]

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
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
    call: Call = _default_call,
    resize: Resize | None = None,
) -> Model:
    """The model of a `flax.nnx` module; its parameters become a plain dictionary.

    Args:
        module: a module with parameters alone, which are the model's initial ones; or a
            function of random streams that builds one, for parameters that depend on
            the key.
        axes: axes of its parameters.
        call: how to call the module; it passes the key on to dropout layers.
        resize: the same architecture at another size; None: it runs masked only.

    Raises:
        InputError: a module with other variables, such as running averages or random
            streams of its own: a model has no mutable state.
    """
    build = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    abstract_module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, shapes, other_state = nnx.split(abstract_module, nnx.Param, ...)
    if jax.tree.leaves(other_state):
        require.fail("module", "nnx.Param variables alone", list(other_state))

    def init(key: Array, x: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        state = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(state, params)
        logits = call(nnx.merge(graph, state), x, train, key)
        return Outputs(logits, (logits,))

    return Model(init, apply, axes, resize)


def computing_in(dtype: str, model: Model) -> Model:
    """The model whose layers, and nothing else, compute in `dtype`.

    Parameters and inputs are cast to `dtype` and logits to float32, so that gradients
    reach the parameters in their own precision: optimiser, updates, sums over clients
    and losses keep theirs. Norms take their moments in float32 (`layers`).

    Args:
        dtype: one of `DTYPES`; "float32" gives the model itself.
        model: a model with float32 parameters.
    """
    if dtype == "float32":
        return model

    def cast(tree: Any, target: str) -> Any:
        def per_leaf(leaf: Array) -> Array:
            is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(target) if is_float else leaf

        return jax.tree.map(per_leaf, tree)

    def apply(params, x, **options):
        outputs = model.apply(cast(params, dtype), cast(x, dtype), **options)
        return cast(outputs, "float32")

    def resize(size: Size) -> Model:
        assert model.resize is not None
        return computing_in(dtype, model.resize(size))

    return model._replace(apply=apply, resize=None if model.resize is None else resize)
