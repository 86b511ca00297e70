"""Rich hospitals train branches beside the plain model; what travels is their sum."""

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from fairjax.core import require, rng
from fairjax.core.types import (
    Axes,
    Context,
    Kept,
    Masks,
    Member,
    Memory,
    Method,
    Params,
    Size,
)
from fairjax.submodels import branches
from fairjax.submodels.branches import Branches, Form

FORMS = ("collapsed", "preconditioned", "matched")
"""What a client trains, see `branched`."""
STRUCTURES = ("sensitivity", "random", "fixed")
"""Who decides which branches are alive, see `branched`."""


def dynamicfl(axes: Axes, number: tuple[int, ...], **options: Any) -> Method:
    """DynamicFL: everybody trains the plain model, richer hospitals with branches.

    Args:
        axes: unit axes of the plain model.
        number: branches per layer of every tier, smallest tier first.
        **options: of `branched`.

    Source: Zhang et al. 2025 (Nature Communications 16:2852, doi
    10.1038/s41467-025-58055-3). Tiers below the plain model, which it does not have,
    are `fairjax.submodels.ladder`'s.
    """

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        return Kept()

    plain = Method(units=units, size=lambda tier: Size({}, {}))
    return branched(plain, axes, number, **options)


def branched(
    method: Method,
    axes: Axes,
    number: tuple[int, ...],
    *,
    branch_form: str = "collapsed",
    families: tuple[str, ...] = Form().families,
    rank: int = Form().rank,
    inner: float = Form().inner,
    structure: str = "sensitivity",
    sensitivity: str = "product",
    moved: float = 0.25,
    skip: tuple[str, ...] = ("attention", "patch"),
) -> Method:
    """The method, whose tiers train branches beside the kernels they hold.

    A client of tier t has number_t * L branches, L being the layers of the plain model
    that may have some, or as many as there are slots. Every round it draws new ones on
    the model that it received (`branches.expand`), trains base and branches alike, and
    sends the change of their sum. Between its rounds it remembers which branches it had
    and how sensitive they were in the last epoch, and `plan`s the next from that.

    Args:
        method: whose sub-models these are; it trains plain parameters and has no
            memory. Tiers with branches hold the whole model.
        axes: unit axes of the plain model.
        number: branches per layer of every tier, smallest tier first.
        branch_form: "collapsed": train base and branches. "preconditioned": train the
            plain model, by gradients that move it as branches would
            (`branches.scale_by_branches`): the same at no cost, for families that are
            linear in their parameters, under SGD and momentum. "matched": also the
            plain model alone, by the gradient that branches as drawn would give it, of
            any family: the control.
        families: the family of every slot of a layer, see `branches.Form`.
        rank: inner width of family "lowrank".
        inner: inner width of family "1x1-KxK", as a share of its inputs.
        structure: "sensitivity": `plan` as it is; "random": with random numbers for
            sensitivities; "fixed": the first number_t slots of every layer, in every
            round, which is the paper's choice for transformers.
        sensitivity: of a branch in a step, one of `SENSITIVITIES`; the mean over the
            steps of the client's last epoch counts.
        moved: share of the branches that `plan` moves.
        skip: parts of paths whose layers have no branches: the paper leaves attention
            and the patch embedding alone.

    Raises:
        InputError: an unknown form, family, structure or sensitivity, or what
            `check_form` refuses; a negative number; from `Memory.init`, a model none of
            whose layers fits a family.

    Edge cases: with no branches this is the method itself, to the bit. A changed budget
    changes how many branches live in the next round; the model that the client received
    and what it sends stay whole.

    Source: Zhang et al. 2025. Deviates: the budget counts branches for convolutions and
    matrices alike, where the released code counts grown layers of the one and branches
    of the other; branches carry no batch norm (see `fairjax.submodels.expanded`).
    """
    where = "submodel.dynamicfl"
    for family in families:
        require.one_of(f"{where}.families", family, branches.FAMILIES)
    require.count(f"{where}.rank", rank)
    require.in_range(f"{where}.inner", inner, 0, 1, open_low=True)
    require.one_of(f"{where}.structure", structure, STRUCTURES)
    require.one_of(f"{where}.sensitivity", sensitivity, SENSITIVITIES)
    require.one_of(f"{where}.branch_form", branch_form, FORMS)
    check_form(branch_form, families, structure, sensitivity)
    require.in_range(f"{where}.moved", moved, 0, 1)
    for count in number:
        require.in_range("tiers.branches", count, 0)
    assert method.enter is None
    assert method.memory is None
    if not any(number):
        return method
    form = Form(families, rank, inner)
    layers = branches.layers(axes, skip)
    table = (len(layers), len(families))

    def units(key: Array, round: Array, params: Params, member: Member) -> Kept:
        wanted = jnp.asarray(number, jnp.int32)[member.tier]
        return method.units(key, round, params, member)._replace(extra=wanted)

    def alive(key: Array, plain: Params, wanted: Array, memory: Any) -> Array:
        exists = jnp.asarray(branches.admitted(plain, layers, form))
        if structure == "fixed":
            return level(exists, wanted)
        scores = memory["sensitivity"]
        if structure == "random":
            scores = jax.random.uniform(key, table)
        total = wanted * len(layers)
        return plan(scores, memory["alive"], exists, total, moved=moved)

    def enter(
        key: Array,
        plain: Params,
        kept: Kept,
        memory: Any,
        forward: Masks,
        update: Masks,
    ) -> tuple[PyTree, PyTree]:
        held = jax.tree.map(jnp.multiply, plain, forward)
        here = alive(rng.at(key, 0), held, kept.extra, memory)
        if branch_form == "preconditioned":
            local = branches.bare(held, here, layers)
        else:
            draw = rng.at(key, 1)
            local = branches.expand(draw, held, here, layers=layers, form=form)
        trained = {
            "base": update,
            "branches": branches.living(local),
            "alive": jax.tree.map(jnp.zeros_like, local["alive"]),
        }
        if branch_form != "collapsed":
            local["base"] = held
            trained["branches"] = jax.tree.map(jnp.zeros_like, trained["branches"])
        return local, trained

    def at(local: PyTree) -> Branches:
        if branch_form == "preconditioned":
            return branches.zeros(branches.present(local["base"], layers), form)
        return local["branches"]

    def scaled(
        optimizer: optax.GradientTransformation, local: PyTree
    ) -> optax.GradientTransformation:
        scale = branches.scale_by_branches(local["alive"], at(local))

        def of_base(grads: PyTree, _: Any = None) -> PyTree:
            base, _ = scale.update(grads["base"], optax.EmptyState())
            return {**grads, "base": base}

        return optax.chain(optax.stateless(of_base), optimizer)

    def observe(memory: Any, local: PyTree, grads: PyTree, context: Context) -> Any:
        mean = memory["sensitivity"]
        gradient, psi = grads["branches"], local["branches"]
        if branch_form == "preconditioned" and structure == "sensitivity":
            psi = at(local)
            gradient = branches.pulled(grads["base"], psi)
        now = _sensitivity(gradient, psi, local["alive"], SENSITIVITIES[sensitivity])
        now = _table(now, layers, like=mean)
        place = context.of_epoch.astype(mean.dtype)
        mean = jnp.where(place == 0, now, mean + (now - mean) / (place + 1))
        alive = _table(local["alive"], layers, like=mean)
        return {"alive": alive, "sensitivity": mean}

    def start(params: Params) -> Any:
        if not np.any(branches.admitted(params, layers, form)):
            what = f"a family that fits one of {', '.join(layers)}"
            require.fail(f"{where}.families", what, families)
        return {"alive": jnp.zeros(table), "sensitivity": jnp.zeros(table)}

    effective, optimizer = branches.effective, method.optimizer
    if branch_form != "collapsed":
        effective, optimizer = operator.itemgetter("base"), scaled
    return method._replace(
        units=units,
        enter=enter,
        effective=effective,
        optimizer=optimizer,
        memory=Memory(start, observe=observe, plain=False),
    )


def check_form(
    branch_form: str, families: tuple[str, ...], structure: str, sensitivity: str
) -> None:
    """Refuses branches that no gradient of the plain model can stand for.

    Args:
        branch_form: as of `branched`, as are the others.
        families: of the slots.
        structure: which branches are alive.
        sensitivity: of a branch.

    Raises:
        InputError: "preconditioned" with a family that is not linear in its parameters,
            or with a sensitivity that asks for their values.
    """
    if branch_form != "preconditioned":
        return
    where, why = "submodel.dynamicfl", "with branch_form preconditioned"
    for family in families:
        if family not in branches.ONE_MAP:
            what = f"families linear in their parameters {why}: "
            what += ", ".join(branches.ONE_MAP)
            require.fail(f"{where}.families", what, family)
    if structure == "sensitivity" and sensitivity != "gradient":
        what = f"gradient {why}, or structure random or fixed: no branch has values"
        require.fail(f"{where}.sensitivity", what, sensitivity)


# ---------------------------------------------------------------------- which are alive

SENSITIVITIES: dict[str, Callable[[Array, Array], Array]] = {
    "product": lambda gradient, value: jnp.sum(jnp.abs(gradient * value)),
    "gradient": lambda gradient, value: jnp.sum(gradient**2),
    "signed": lambda gradient, value: jnp.sum(gradient * value),
}
"""What a leaf of a branch adds to its sensitivity: "product" is SNIP's (Lee et al.
2019), "gradient" the squared norm, "signed" what the paper's released code sums."""


def _sensitivity(
    gradient: Branches,
    psi: Branches,
    alive: dict[str, Float[Array, "R"]],
    of: Callable,
) -> dict[str, Float[Array, "R"]]:
    """The sensitivity of every layer's branches in one step; 0 where there is none."""
    found = {}
    for layer, slots in psi.items():
        row = jnp.zeros_like(alive[layer])
        for slot, values in slots.items():
            parts = jax.tree.map(of, gradient[layer][slot], values)
            total = jnp.stack(jax.tree.leaves(parts)).sum()
            row = row.at[branches.column_of(slot)].set(total.astype(row.dtype))
        found[layer] = row
    return found


def _table(
    rows: dict[str, Float[Array, "R"]], layers: tuple[str, ...], like: Array
) -> Float[Array, "L R"]:
    """Rows of layers as one table, bottom to top; 0 for layers that are not there."""
    none = jnp.zeros_like(like[0])
    return jnp.stack([rows.get(layer, none) for layer in layers]).astype(like.dtype)


def plan(
    sensitivity: Float[Array, "L R"],
    alive: Float[Array, "L R"],
    admitted: Bool[Array, "L R"],
    number: Int[Array, ""],
    *,
    moved: float,
) -> Float[Array, "L R"]:
    """Which branches are alive next, from how sensitive they were.

    Of the branches alive now, the share `moved` with the lowest sensitivity is
    *redundant* and merged (more, if the budget shrank); the others stay. As many dead
    slots as the budget then allows are born in the layers of the most sensitive branch
    that stays (the *important* ones), bottom to top where layers are alike. So without
    a past the slots are filled bottom to top, as far as the budget reaches.

    Args:
        sensitivity: of every branch in the client's last round.
        alive: 0/1 so far.
        admitted: the slots that exist.
        number: branches wanted in all; more than there are slots means all.
        moved: share in [0, 1] of the branches that stay or move.

    Edge cases: fewer move where there are too few dead slots for them.

    Source: the partition into common, important and redundant of Zhang et al. 2025;
    what it leaves open (thresholds, ties, order) is as stated here.
    """
    exists = admitted.ravel()
    present = (alive > 0).ravel() & exists
    slots, held = jnp.sum(exists), jnp.sum(present)
    number = jnp.minimum(number, slots)
    carried = jnp.minimum(held, number)
    room = slots - held - (number - carried)
    moves = jnp.floor(moved * carried.astype(jnp.float32)).astype(carried.dtype)
    stay = carried - jnp.minimum(moves, room)

    scores = sensitivity.ravel()
    kept = present & (_place(~present, -scores) < stay)
    lowest = jnp.asarray(-jnp.inf, scores.dtype)
    importance = jnp.where(kept, scores, lowest).reshape(sensitivity.shape).max(1)
    importance = jnp.broadcast_to(importance[:, None], sensitivity.shape).ravel()
    free = exists & ~present
    born = free & (_place(~free, -importance) < number - stay)
    return (kept | born).reshape(alive.shape).astype(alive.dtype)


def _place(last: Bool[Array, "n"], value: Float[Array, "n"]) -> Int[Array, "n"]:
    """Place of every entry in ascending order of (last, value, position)."""
    position = jnp.arange(value.shape[0])
    order = jnp.lexsort((position, value, last))
    return jnp.zeros_like(position).at[order].set(position)


def structures(
    admitted: Bool[np.ndarray, "L R"], number: int
) -> Iterator[Float[np.ndarray, "L R"]]:
    """Every way in which `number` of the admitted slots can be alive, as 0/1 tables.

    What somebody goes through who knows the code but not a client's past. More than
    there are slots means all.
    """
    slots = np.flatnonzero(admitted)
    for chosen in itertools.combinations(slots, min(number, len(slots))):
        table = np.zeros(admitted.size, np.float32)
        table[list(chosen)] = 1
        yield table.reshape(admitted.shape)


def level(admitted: Bool[Array, "L R"], number: Int[Array, ""]) -> Float[Array, "L R"]:
    """The first `number` slots of every layer."""
    first = jnp.cumsum(admitted, axis=1) <= number
    return (first & admitted).astype(jnp.float32)
