"""Branches that add up: a richer local model as leaves beside a plain kernel.

A layer with plain kernel W is trained as

    W = base + sum_r tau_r(psi_r),

where tau_r turns the parameters psi_r of branch r into a kernel of W's own shape. The
network is applied to the sum (`effective`), so that one convolution runs instead of
many, training and evaluation see the same function, and merging is exact: no model code
knows of branches. Stride, padding and groups are the layer's affair; a branch only ever
adds to its kernel and bias.

A local tree is

    {"base": like the plain parameters,
     "branches": {layer: {"<slot>_<family>": psi}},
     "alive": {layer: 0/1 per slot, [R]}},

with R slots in each of L layers; what is planned for all of them is a table [L, R],
layers bottom to top. The psi of a dead slot is 0 and adds nothing, so that trees of all
budgets have one shape.

Source: Zhang et al. 2025 (DynamicFL), eqs. 14 to 16; the families are those of Diverse
Branch Blocks (Ding et al. 2021) and DyRep (Huang et al. 2022). Deviates: no batch norm
inside a branch, see `fairjax.submodels.expanded`.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Key

from fairjax.core import trees
from fairjax.core.axes import CLASSES
from fairjax.core.types import Axes, LeafAxes, Params

CONV = ("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale", "KxK")
"""Families beside a K x K kernel [K, K, I, O]."""
LINEAR = ("linear", "lowrank", "scale")
"""Families beside a matrix [I, O]."""
FAMILIES = tuple(dict.fromkeys(CONV + LINEAR))
SEQUENCES = ("1x1-KxK", "lowrank")
"""Families of two maps, one after the other: bilinear in their parameters."""
ONE_MAP = tuple(family for family in FAMILIES if family not in SEQUENCES)
"""The others: linear in their parameters."""

Psi = Mapping[str, Array]
"""The parameters of one branch."""
Branches = dict[str, dict[str, Psi]]
"""{layer: {slot: psi}}."""
Local = dict[str, Any]
"""{"base", "branches", "alive"}, see above."""


class Form(NamedTuple):
    """Which branches a layer may have."""

    families: tuple[str, ...] = (
        *("1x1", "1x1-KxK", "1x1-avg", "1xK", "Kx1", "scale"),
        *("linear", "lowrank"),
    )
    """The family of every slot; a layer has those slots whose family fits it. A family
    that is named twice has two slots. The default is the paper's set (whose K x K
    branch is the base here) and what a matrix has in its place."""
    rank: int = 4
    """Inner width of "lowrank"."""
    inner: float = 1.0
    """Inner width of "1x1-KxK", as a share of its inputs; 1 is Diverse Branch Blocks'.
    What such a branch costs, and may express, is in proportion."""


# ------------------------------------------------------------------------- one branch


def fits(family: str, kernel: Sequence[int], groups: int = 1) -> bool:
    """Whether a kernel of this shape can have a branch of this family.

    "scale" maps every channel onto itself, which needs as many inputs as outputs; the
    others need a K x K kernel with K > 1, or a matrix.
    """
    *space, inputs, outputs = kernel
    if family == "scale" and inputs * groups != outputs:
        return False
    if not space:
        return family in LINEAR
    return family in CONV and len(space) == 2 and min(space) > 1


def shapes(
    family: str,
    kernel: Sequence[int],
    *,
    bias: bool,
    rank: int = 4,
    inner: float = 1.0,
    groups: int = 1,
) -> dict[str, tuple[int, ...]]:
    """The parameters of a branch beside a kernel [*space, I, O] as {name: shape}.

    I counts the inputs of one group. A sequence of two maps has "first" and "second",
    the inner width being ceil(inner * I) (or the rank) per group, and their biases are
    "between" and "bias"; all others have "kernel" or "scale".
    """
    *space, inputs, outputs = kernel
    ones = (1,) * len(space)
    if family in SEQUENCES:
        middle = rank if family == "lowrank" else math.ceil(inner * inputs)
        found = {
            "first": (*ones, inputs, middle * groups),
            "second": (*space, middle, outputs),
        }
        if bias:
            found["between"] = (middle * groups,)
    elif family == "scale":
        found = {"scale": (outputs,)}
    else:
        reach = {
            "1x1": ones,
            "1x1-avg": ones,
            "1xK": (1, *space[1:]),
            "Kx1": (*space[:1], 1),
        }
        found = {"kernel": (*reach.get(family, tuple(space)), inputs, outputs)}
    return found | ({"bias": (outputs,)} if bias else {})


def tau(
    family: str, psi: Psi, kernel: Sequence[int], groups: int = 1
) -> tuple[Float[Array, "*space I O"], Float[Array, "O"] | None]:
    """The plain kernel, and bias, that a branch is equal to.

        1x1, 1xK, Kx1    W = psi at the centre, 0 around it
        KxK, linear      W = psi
        1x1-avg          W[u, v, i, o] = psi[i, o] / K^2
        scale            W[centre, o, o] = psi[o]
        1x1-KxK,         W[u, v, i, o] = sum_m first[i, m] second[u, v, m, o],
        lowrank          b[o] = bias[o] + sum_uvm second[u, v, m, o] between[m]

    Args:
        family: one of `FAMILIES`.
        psi: parameters of the shapes of `shapes`.
        kernel: shape [*space, I, O] of the plain kernel.
        groups: of the convolution; output o belongs to group o // (O / groups).

    Returns:
        (kernel, bias), linear in every parameter; the bias is None without one.

    The centre of K taps is tap (K - 1) // 2, under which SAME padding puts the output.
    A sequence whose first map has a bias reads "between" outside the image too: its
    second map is padded with it, not with 0.

    Source: transforms I to VI of Ding et al. 2021.
    """
    *space, inputs, outputs = kernel
    bias = psi.get("bias")
    if family in SEQUENCES:
        first = psi["first"].reshape(inputs, groups, -1)
        second = psi["second"].reshape(*space, -1, groups, outputs // groups)
        product = jnp.einsum("igm,...mgo->...igo", first, second)
        if bias is not None:
            between = psi["between"].reshape(groups, -1)
            over_space = second.sum(tuple(range(len(space))))
            bias = bias + jnp.einsum("gm,mgo->go", between, over_space).ravel()
        return product.reshape(*space, inputs, outputs), bias
    if family == "scale":
        own = np.tile(np.eye(inputs), (1, groups))
        part = psi["scale"] * own.astype(psi["scale"].dtype)
        part = part.reshape(*(1,) * len(space), inputs, outputs)
    else:
        part = psi["kernel"]
    if family == "1x1-avg":
        # Not broadcast: XLA:CPU is slow at its gradient, a sum over leading axes.
        taps = math.prod(space)
        return jnp.concatenate([part / taps] * taps).reshape(kernel), bias
    around = [
        ((length - 1) // 2, length // 2) if here == 1 else (0, 0)
        for length, here in zip(space, part.shape[: len(space)], strict=True)
    ]
    return jnp.pad(part, (*around, (0, 0), (0, 0))), bias


# -------------------------------------------------------------------------- whole trees


def layers(axes: Axes, skip: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths of the layers that may have branches, bottom to top.

    A layer is a dictionary with a "kernel" of 2 or 4 dimensions, none of which is the
    classes': heads have no branches, nor have those whose path has a part in `skip`. A
    kernel of 4 dimensions is a convolution's; a dense layer over a whole feature map is
    one too, of a single output position.

    Bottom to top is the stem, then the residual blocks in their order, then the rest;
    inside each by name, with numbers as numbers.
    """
    found = []
    leaves = trees.named(axes.tree, is_leaf=lambda node: isinstance(node, LeafAxes))
    for path, leaf in leaves.items():
        layer, _, name = path.rpartition("/")
        if name != "kernel" or len(leaf.dims) not in (2, 4) or CLASSES in leaf.dims:
            continue
        if set(layer.split("/")) & set(skip):
            continue
        of, position = leaf.block or ("", 0)
        # Split at numbers, every other part is one: "conv10" comes after "conv9".
        parts = re.split(r"(\d+)", layer)
        numbers = [int(part) if i % 2 else part for i, part in enumerate(parts)]
        found.append(((_ORDER.get(of, 2), position, numbers), layer))
    return tuple(layer for _, layer in sorted(found))


_ORDER = {"stem": 0, "blocks": 1}


class Layer(NamedTuple):
    """A layer of a tree, and its row in the tables of all layers."""

    row: int
    name: str
    kernel: tuple[int, ...]
    bias: bool
    dtype: Any
    groups: int = 1


def present(params: Params, layers: Sequence[str]) -> list[Layer]:
    """The layers that a tree has; a sliced network may lack some."""
    leaves = trees.named(params)
    found = []
    for row, layer in enumerate(layers):
        kernel = leaves.get(f"{layer}/kernel")
        if kernel is not None:
            bias = f"{layer}/bias" in leaves
            found.append(Layer(row, layer, kernel.shape, bias, kernel.dtype))
    return found


def column_of(slot: str) -> int:
    """The column of a slot in the tables of all slots, by its name."""
    return int(slot.partition("_")[0])


def family_of(slot: str) -> str:
    """The family of a slot, by its name."""
    return slot.partition("_")[2]


def draw(key: Key[Array, ""], layers: Sequence[Layer], form: Form) -> Branches:
    """Random branches for all slots: N(0, 1 / inputs of a map) weights, biases of 0.

    The result is {layer: {"<slot>_<family>": psi}}, the families being those that fit.
    One draw fills them all: random numbers for every branch by itself would be most of
    what a compiler has to do.
    """
    wanted = {layer.name: _slots(layer, form) for layer in layers}
    leaves, structure = jax.tree.flatten(wanted, is_leaf=_is_shape)
    ends = np.cumsum([math.prod(shape) for shape in leaves], dtype=int)
    numbers = jax.random.normal(key, (sum(map(math.prod, leaves)),))
    parts = [
        numbers[end - math.prod(shape) : end].reshape(shape)
        for shape, end in zip(leaves, ends, strict=True)
    ]

    def scaled(path: str, part: Array) -> Array:
        if path.endswith(("/bias", "/between")):
            return jnp.zeros_like(part)
        return part / math.sqrt(math.prod(part.shape[:-1]))

    return trees.map_named(scaled, jax.tree.unflatten(structure, parts))


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
    """{"<slot>_<family>": `shapes`} of the slots that a layer has."""
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


def admitted(
    params: Params, layers: Sequence[str], form: Form
) -> Bool[np.ndarray, "L R"]:
    """Which slots of which layers exist: those whose family fits the kernel.

    It follows from shapes, so it is known while tracing.
    """
    table = np.zeros((len(layers), len(form.families)), bool)
    for layer in present(params, layers):
        table[layer.row] = [fits(family, layer.kernel) for family in form.families]
    return table


def bare(plain: Params, alive: Float[Array, "L R"], layers: Sequence[str]) -> Local:
    """The local tree without any parameters of branches."""
    rows = {layer.name: alive[layer.row] for layer in present(plain, layers)}
    return {"base": plain, "branches": {}, "alive": rows}


def expand(
    key: Key[Array, ""],
    plain: Params,
    alive: Float[Array, "L R"],
    *,
    layers: Sequence[str],
    form: Form,
) -> Local:
    """Random branches beside the plain kernels, whose sum the base gives up.

        psi_r random where alive,   base = plain - sum_r tau_r(psi_r)

    `effective` of it is the plain tree up to float order, and exactly the plain tree
    where no branch is alive. It is `regroup` from a tree without branches.

    Args:
        key: of the draw, which fills all slots in the order of their layers.
        plain: parameters; layers that it lacks have no branches.
        alive: 0/1; slots that do not exist (`admitted`) are ignored. If it is traced,
            every slot gets parameters, those of dead ones being 0; else alive ones do.
        layers: from `layers`.
        form: families of the slots.
    """
    before = bare(plain, jnp.zeros_like(alive), layers)
    return regroup(key, before, alive, layers=layers, form=form)


def regroup(
    key: Key[Array, ""],
    local: Local,
    alive: Float[Array, "L R"],
    *,
    layers: Sequence[str],
    form: Form,
) -> Local:
    """Another set of alive branches, the same function: DynamicFL's eqs. 14 and 15.

        merged  base <- base + tau(psi),   psi <- 0              alive before, not after
        born    psi random,   base <- base - tau(psi)            alive after, not before

    What is alive before and after keeps its parameters.

    Args:
        key: of the draw.
        local: the tree so far.
        alive: the branches alive afterwards.
        layers: from `layers`.
        form: families of the slots.

    Source: Zhang et al. 2025, eqs. 14 and 15: "common" takes in what is redundant, and
    what is important is split. The paper subtracts new branches from the branch that is
    split; here the base gives up their sum, which any family can do.
    """
    shift: dict[str, Array] = {}
    branches: Branches = {}
    alive = alive * admitted(local["base"], layers, form).astype(alive.dtype)
    here = present(local["base"], layers)
    drawn = draw(key, here, form)
    for layer in here:
        before, lived = local["branches"].get(layer.name, {}), local["alive"]
        slots = {}
        for name, fresh in drawn[layer.name].items():
            family, column = family_of(name), column_of(name)
            after = alive[layer.row, column].astype(layer.dtype)
            if name not in before and _dead(after):
                continue
            if name in before:
                old = before[name]
                was = lived[layer.name][column].astype(layer.dtype)
                gone = _times(old, was * (1 - after))
                _add(shift, layer.name, tau(family, gone, layer.kernel))
                born = _times(fresh, after * (1 - was))
                kept = _times(old, was * after)
                slots[name] = jax.tree.map(jnp.add, kept, born)
            else:
                born = slots[name] = _times(fresh, after)
            _add(shift, layer.name, tau(family, born, layer.kernel), sign=-1)
        if slots:
            branches[layer.name] = slots
    base = _shifted(local["base"], shift)
    return {**bare(base, alive, layers), "branches": branches}


def effective(local: Local) -> Params:
    """The plain parameters base + sum_r tau_r(psi_r) that the network is applied to.

    Layers without a living branch are left out, and so are the products of sequences
    that are dead, where a program has that choice: under `scan`, not under `vmap`.
    """
    leaves = trees.named(local["base"])
    shift: dict[str, Array] = {}
    for layer, slots in local["branches"].items():
        kernel, alive = leaves[f"{layer}/kernel"].shape, local["alive"][layer]
        whole = functools.partial(_collapsed, kernel=kernel)
        _add(shift, layer, _only_if(jnp.any(alive > 0), whole, dict(slots), alive))
    return _shifted(local["base"], shift)


merge = effective
"""What leaves the hospital: merging is no more than taking the sum."""


def living(local: Local) -> Branches:
    """0/1 for every parameter of the branches: those of alive ones are trained."""

    def flags(layer: str, slot: str, psi: Psi) -> dict[str, Array]:
        alive: Array = local["alive"][layer][column_of(slot)]
        return dict.fromkeys(psi, alive)

    return {
        layer: {slot: flags(layer, slot, psi) for slot, psi in slots.items()}
        for layer, slots in local["branches"].items()
    }


def _collapsed(
    slots: dict[str, Psi], alive: Float[Array, "R"], kernel: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """The sum of all branches of a layer."""
    parts = []
    for slot, psi in slots.items():
        part = functools.partial(tau, family_of(slot), kernel=kernel)
        if family_of(slot) in SEQUENCES:
            parts.append(_only_if(alive[column_of(slot)] > 0, part, psi))
        else:
            parts.append(part(psi))
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


def _only_if(wanted: Bool[Array, ""], f: Callable[..., Any], *args: Any) -> Any:
    """f(*args) where it is wanted, else 0."""

    def nothing(*args: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, jax.eval_shape(f, *args))

    return jax.lax.cond(wanted, f, nothing, *args)


def _dead(alive: Array) -> bool:
    """Whether a slot is known to be dead; while `alive` is traced it is not."""
    return not isinstance(alive, Tracer) and float(alive) == 0


def _times(psi: Psi, factor: Array) -> dict[str, Array]:
    return {name: leaf.astype(factor.dtype) * factor for name, leaf in psi.items()}


def _add(
    shift: dict[str, Array],
    layer: str,
    part: tuple[Array, Array | None],
    *,
    sign: int = 1,
) -> None:
    """Adds a branch's kernel and bias to what a layer's leaves are to be shifted by."""
    for name, value in zip(("kernel", "bias"), part, strict=True):
        if value is not None:
            path, value = f"{layer}/{name}", sign * value
            shift[path] = shift[path] + value if path in shift else value


def _shifted(base: Params, shift: Mapping[str, Array]) -> Params:
    return trees.map_named(
        lambda path, leaf: leaf + shift[path] if path in shift else leaf, base
    )


# -------------------------------------------------------------- what branches amount to


def pulled(gradient: Params, at: Branches) -> Branches:
    """The gradient of branches beside a plain tree, J_r' G.

    Args:
        gradient: G, like the plain parameters.
        at: the parameters psi at which J_r = d tau_r / d psi_r is taken.
    """
    leaves = trees.named(gradient)

    def one(layer: str, slot: str, psi: Psi) -> Psi:
        kernel, bias = leaves[f"{layer}/kernel"], leaves.get(f"{layer}/bias")
        collapse = functools.partial(tau, family_of(slot), kernel=kernel.shape)
        return jax.vjp(collapse, psi)[1]((kernel, bias))[0]

    return {
        layer: {slot: one(layer, slot, psi) for slot, psi in slots.items()}
        for layer, slots in at.items()
    }


def scale_by_branches(
    alive: Mapping[str, Float[Array, "R"]], at: Branches
) -> optax.GradientTransformation:
    """Turns the gradient at plain kernels and biases as branches beside them would.

        P(G) = G + sum_r alive_r J_r J_r' G,    J_r = d tau_r / d psi_r

    where G is the gradient at a layer's kernel W and bias b. A step of SGD on base and
    branches moves their sum along P(G). Where tau is linear in psi, J is constant and
    every step does: such branches are a learning rate per direction of the kernel, and
    no more. Living branches of a 3 x 3 kernel add to G, with c its centre,

        1x1       G[c, i, o]                     at c
        1xK, Kx1  G                              in the middle row, or column
        1x1-avg   sum_uv G[u, v, i, o] / 81      at every tap
        scale     G[c, o, o]                     at c on the diagonal
        KxK       G                              everywhere

    and each of them the gradient of the bias once more, as "linear" adds that of a
    matrix.

    What comes after must be linear in all gradients so far, and the same for every
    leaf: then all of it is P's, or commutes with J. So are momentum, weight decay that
    is added to the gradient, and rates that change; an adaptive rate per coordinate
    (Adam) and clipping by a norm are not.

    Args:
        alive: {layer: 0/1 per slot, [R]}; may be traced.
        at: the parameters psi at which J is taken; `zeros` where J is constant. A
            family of `SEQUENCES` moves with its psi: there P is exact for one step.

    Returns:
        A transformation without state, of trees like the plain parameters.

    Edge cases: without a living branch P(G) is G.

    Source: the chain rule, on the branches of Ding et al. 2021.
    """

    def scaled(gradient: Params, _: Any = None) -> Params:
        leaves = trees.named(gradient)
        shift: dict[str, Array] = {}
        for layer, slots in pulled(gradient, at).items():
            kernel = leaves[f"{layer}/kernel"]
            for slot, back in slots.items():
                factor = alive[layer][column_of(slot)]
                if _dead(factor):
                    continue
                collapse = functools.partial(tau, family_of(slot), kernel=kernel.shape)
                back = _times(back, factor.astype(kernel.dtype))
                _, along = jax.jvp(collapse, (at[layer][slot],), (back,))
                _add(shift, layer, along)
        return _shifted(gradient, shift)

    return optax.stateless(scaled)
