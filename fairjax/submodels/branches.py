"""Branches that add up: a richer local model as leaves beside a plain kernel.

A layer with plain kernel W is trained as

    W = base + sum_r tau_r(psi_r),

where tau_r (`families.tau`) turns the parameters psi_r of branch r into a kernel of W's
own shape. The network is applied to the sum (`effective`), so that one convolution runs
instead of many, training and evaluation see the same function, and merging is exact. No
model code knows of branches: stride, padding and groups belong to the layer, and a
branch only adds to its kernel and bias.

A local tree is

    {"base": like the plain parameters,
     "branches": {layer: {"<slot>_<family>": psi}},
     "alive": {layer: 0/1 per slot, [R]}},

with R slots in each of L layers. Plans for all layers are tables [L, R], layers bottom
to top. The psi of a dead slot is 0 and adds nothing, so that trees of all budgets have
one shape.

Source: Zhang et al. 2025 (DynamicFL, see `fairjax.submodels.dynamicfl`), eqs. 14 to 16.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key

from fairjax.core import trees
from fairjax.core.axes import CLASSES
from fairjax.core.types import Axes, LeafAxes, Params
from fairjax.submodels.families import SEQUENCES, Psi, fits, shapes, tau

Branches = dict[str, dict[str, Psi]]
"""{layer: {slot: psi}}."""
LocalTree = dict[str, Any]
"""{"base", "branches", "alive"}, see the module's docstring."""


class Form(NamedTuple):
    """Which branches a layer may have."""

    families: tuple[str, ...] = (
        *("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale"),
        *("linear", "lowrank"),
    )
    """The family of every slot; a layer has the slots whose family fits it. A family
    named twice has two slots. The default is the paper's set for convolutions (whose
    K x K branch is the base here), and two families for matrices."""
    rank: int = 4
    """Inner width of "lowrank"."""
    inner: float = 1.0
    """Inner width of "1x1-KxK", as a share of its inputs; 1 is that of Diverse Branch
    Blocks. The branch's cost and rank are in proportion."""


def layers(axes: Axes, skip: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths of the layers that may have branches, bottom to top.

    A layer is a dictionary with a "kernel" of 2 or 4 dimensions, none of which is the
    class axis: heads have no branches. A kernel of 4 dimensions is a convolution's; a
    dense layer over a whole feature map is a convolution with one output position.

    Bottom to top is the stem, then the residual blocks in their order, then all other
    layers; inside each by name, with numbers as numbers.

    Args:
        axes: unit axes of the plain model.
        skip: layers whose path has a part in it have no branches.
    """
    keyed_layers = []
    leaves = trees.leaves_by_path(
        axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes)
    )
    for path, leaf in leaves.items():
        layer, _, name = path.rpartition("/")
        if name != "kernel" or len(leaf.dims) not in (2, 4) or CLASSES in leaf.dims:
            continue
        if set(layer.split("/")) & set(skip):
            continue
        block_list, position = leaf.block or ("", 0)
        # The odd parts are numbers, so that "conv10" comes after "conv9".
        tokens = re.split(r"(\d+)", layer)
        numbers = [int(token) if i % 2 else token for i, token in enumerate(tokens)]
        keyed_layers.append(((_ORDER.get(block_list, 2), position, numbers), layer))
    return tuple(layer for _, layer in sorted(keyed_layers))


_ORDER = {"stem": 0, "blocks": 1}


class Layer(NamedTuple):
    """A layer of a tree, and its row in the tables of all layers."""

    row: int
    name: str
    kernel: tuple[int, ...]
    bias: bool
    dtype: Any
    groups: int = 1


def layers_of(params: Params, layers: Sequence[str]) -> list[Layer]:
    """The layers that a tree has; a sliced network may lack some."""
    leaves = trees.leaves_by_path(params)
    present_layers = []
    for row, layer in enumerate(layers):
        kernel = leaves.get(f"{layer}/kernel")
        if kernel is not None:
            bias = f"{layer}/bias" in leaves
            present_layers.append(Layer(row, layer, kernel.shape, bias, kernel.dtype))
    return present_layers


def column_of(slot: str) -> int:
    """The column of a slot in the tables of all slots, by its name."""
    return int(slot.partition("_")[0])


def family_of(slot: str) -> str:
    """The family of a slot, by its name."""
    return slot.partition("_")[2]


def draw(key: Key[Array, ""], layers: Sequence[Layer], form: Form) -> Branches:
    """Random branches for all slots: N(0, 1 / inputs of a map) weights, biases of 0.

    The result is {layer: {"<slot>_<family>": psi}} with the families that fit. One draw
    fills all branches: a draw per branch would dominate compilation.

    Args:
        key: key of the draw.
        layers: from `layers_of`.
        form: families of the slots.
    """
    slot_shapes = {layer.name: _slots(layer, form) for layer in layers}
    leaves, structure = jax.tree.flatten(slot_shapes, is_leaf=_is_shape)
    ends = np.cumsum([math.prod(shape) for shape in leaves], dtype=int)
    numbers = jax.random.normal(key, (sum(map(math.prod, leaves)),))
    arrays = [
        numbers[end - math.prod(shape) : end].reshape(shape)
        for shape, end in zip(leaves, ends, strict=True)
    ]

    def scale_leaf(path: str, leaf: Array) -> Array:
        if path.endswith(("/bias", "/between")):
            return jnp.zeros_like(leaf)
        return leaf / math.sqrt(math.prod(leaf.shape[:-1]))

    return trees.map_with_path(scale_leaf, jax.tree.unflatten(structure, arrays))


def zeros(layers: Sequence[Layer], form: Form) -> Branches:
    """The branches of `draw` with parameters that are all 0."""
    return {
        layer.name: jax.tree.map(
            lambda shape, dtype=layer.dtype: jnp.zeros(shape, dtype),
            _slots(layer, form),
            is_leaf=_is_shape,
        )
        for layer in layers
    }


def _slots(layer: Layer, form: Form) -> dict[str, dict[str, tuple[int, ...]]]:
    """{"<slot>_<family>": parameter shapes} of the slots that a layer has."""
    return {
        f"{column}_{family}": shapes(
            family,
            layer.kernel,
            bias=layer.bias,
            rank=form.rank,
            inner=form.inner,
            groups=layer.groups,
        )
        for column, family in enumerate(form.families)
        if fits(family, layer.kernel, layer.groups)
    }


def _is_shape(node: object) -> bool:
    return isinstance(node, tuple)


def existing_slots(
    params: Params, layers: Sequence[str], form: Form
) -> Bool[np.ndarray, "L R"]:
    """Which slots of which layers exist: those whose family fits the kernel.

    The table follows from shapes, so it is known while tracing.
    """
    table = np.zeros((len(layers), len(form.families)), bool)
    for layer in layers_of(params, layers):
        table[layer.row] = [fits(family, layer.kernel) for family in form.families]
    return table


def branchless_tree(
    plain: Params, alive: Float[Array, "L R"], layers: Sequence[str]
) -> LocalTree:
    """The local tree without any parameters of branches."""
    rows = {layer.name: alive[layer.row] for layer in layers_of(plain, layers)}
    return {"base": plain, "branches": {}, "alive": rows}


def expand(
    key: Key[Array, ""],
    plain: Params,
    alive: Float[Array, "L R"],
    *,
    layers: Sequence[str],
    form: Form,
) -> LocalTree:
    """Random branches beside plain kernels; the base is the plain kernel minus them.

        psi_r random where alive,   base = plain - sum_r tau_r(psi_r)

    `effective` of the result is the plain tree up to float order, and exactly the plain
    tree where no branch is alive. `expand` is `regroup` from a tree without branches.

    Args:
        key: key of the draw, which fills all slots in the order of their layers.
        plain: parameters; layers that it lacks have no branches.
        alive: 0/1; slots that do not exist (`existing_slots`) are ignored. If it is
            traced, every slot gets parameters, which are 0 where dead; else only alive
            slots do.
        layers: from `layers`.
        form: families of the slots.
    """
    branchless = branchless_tree(plain, jnp.zeros_like(alive), layers)
    return regroup(key, branchless, alive, layers=layers, form=form)


def regroup(
    key: Key[Array, ""],
    local: LocalTree,
    alive: Float[Array, "L R"],
    *,
    layers: Sequence[str],
    form: Form,
) -> LocalTree:
    """Another set of alive branches, the same function: DynamicFL's eqs. 14 and 15.

        merged  base <- base + tau(psi),   psi <- 0              alive before, not after
        born    psi random,   base <- base - tau(psi)            alive after, not before

    Branches that are alive before and after keep their parameters.

    Args:
        key: key of the draw.
        local: the tree so far.
        alive: the branches alive afterwards.
        layers: from `layers`.
        form: families of the slots.

    Source: Zhang et al. 2025 (see `fairjax.submodels.dynamicfl`), eqs. 14 and 15:
    "common" branches absorb redundant ones, and important ones are split. Deviates: the
    paper subtracts new branches from the branch that is split; here the base gives up
    their sum, which works for any family.
    """
    shift: dict[str, Array] = {}
    branches: Branches = {}
    alive = alive * existing_slots(local["base"], layers, form).astype(alive.dtype)
    present_layers = layers_of(local["base"], layers)
    fresh_branches = draw(key, present_layers, form)
    for layer in present_layers:
        old_slots, old_alive = local["branches"].get(layer.name, {}), local["alive"]
        slots = {}
        for name, fresh_psi in fresh_branches[layer.name].items():
            family, column = family_of(name), column_of(name)
            is_alive = alive[layer.row, column].astype(layer.dtype)
            if name not in old_slots and is_known_dead(is_alive):
                continue
            if name in old_slots:
                old_psi = old_slots[name]
                was_alive = old_alive[layer.name][column].astype(layer.dtype)
                merged_psi = scale_psi(old_psi, was_alive * (1 - is_alive))
                add_shift(shift, layer.name, tau(family, merged_psi, layer.kernel))
                born_psi = scale_psi(fresh_psi, is_alive * (1 - was_alive))
                common_psi = scale_psi(old_psi, was_alive * is_alive)
                slots[name] = jax.tree.map(jnp.add, common_psi, born_psi)
            else:
                born_psi = slots[name] = scale_psi(fresh_psi, is_alive)
            add_shift(shift, layer.name, tau(family, born_psi, layer.kernel), sign=-1)
        if slots:
            branches[layer.name] = slots
    base = shift_leaves(local["base"], shift)
    return {**branchless_tree(base, alive, layers), "branches": branches}


def effective(local: LocalTree) -> Params:
    """The plain parameters base + sum_r tau_r(psi_r) that the network is applied to.

    A client sends the change of this sum: it merges its branches by adding them up.
    A conditional skips layers without an alive branch and the products of dead
    sequences. It saves time under `scan`; under `vmap` it becomes a selection.
    """
    leaves = trees.leaves_by_path(local["base"])
    shift: dict[str, Array] = {}
    for layer, slots in local["branches"].items():
        kernel, alive = leaves[f"{layer}/kernel"].shape, local["alive"][layer]
        collapse = functools.partial(_collapse_layer, kernel=kernel)
        add_shift(
            shift, layer, _run_if(jnp.any(alive > 0), collapse, dict(slots), alive)
        )
    return shift_leaves(local["base"], shift)


def branch_mask(local: LocalTree) -> Branches:
    """0/1 for every parameter of the branches: alive branches are trained."""

    def slot_mask(layer: str, slot: str, psi: Psi) -> dict[str, Array]:
        alive: Array = local["alive"][layer][column_of(slot)]
        return dict.fromkeys(psi, alive)

    return {
        layer: {slot: slot_mask(layer, slot, psi) for slot, psi in slots.items()}
        for layer, slots in local["branches"].items()
    }


def _collapse_layer(
    slots: dict[str, Psi], alive: Float[Array, "R"], kernel: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """The sum of all branches of a layer."""
    terms = []
    for slot, psi in slots.items():
        collapse = functools.partial(tau, family_of(slot), kernel=kernel)
        if family_of(slot) in SEQUENCES:
            terms.append(_run_if(alive[column_of(slot)] > 0, collapse, psi))
        else:
            terms.append(collapse(psi))
    return jax.tree.map(lambda *leaves: sum(leaves), *terms)


def _run_if(predicate: Bool[Array, ""], f: Callable[..., Any], *args: Any) -> Any:
    """f(*args) if the predicate holds, else 0."""

    def zero_outputs(*args: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(f, *args))

    return jax.lax.cond(predicate, f, zero_outputs, *args)


def is_known_dead(alive: Array) -> bool:
    """Whether a slot is known to be dead; False while `alive` is traced."""
    return not isinstance(alive, Tracer) and float(alive) == 0


def scale_psi(psi: Psi, factor: Array) -> dict[str, Array]:
    """The parameters of a branch, or their gradient, times a factor."""
    return {name: leaf.astype(factor.dtype) * factor for name, leaf in psi.items()}


def add_shift(
    shift: dict[str, Array],
    layer: str,
    addend: tuple[Array, Array | None],
    *,
    sign: int = 1,
) -> None:
    """Adds a branch's kernel and bias to the shift of its layer, in place."""
    for name, value in zip(("kernel", "bias"), addend, strict=True):
        if value is not None:
            path, value = f"{layer}/{name}", sign * value
            shift[path] = shift[path] + value if path in shift else value


def shift_leaves(base: Params, shift: Mapping[str, Array]) -> Params:
    """The plain tree plus {path: shift of a leaf}."""
    return trees.map_with_path(
        lambda path, leaf: leaf + shift[path] if path in shift else leaf, base
    )
