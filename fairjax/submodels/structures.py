"""Which branches are alive: DynamicFL's plan from how sensitive branches were.

Tables are [L, R], a row per layer from bottom to top and a column per slot.
"""

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairjax.submodels import branches
from fairjax.submodels.branches import Branches

STRUCTURES = ("sensitivity", "random", "fixed")
"""What decides which branches are alive, see `dynamicfl.branched`."""

SENSITIVITIES: dict[str, Callable[[Array, Array], Array]] = {
    "product": lambda gradient, value: jnp.sum(jnp.abs(gradient * value)),
    "gradient": lambda gradient, value: jnp.sum(gradient**2),
    "signed": lambda gradient, value: jnp.sum(gradient * value),
}
"""(gradient of a leaf, its values) -> what the leaf adds to its branch's sensitivity.
"product" is that of Lee, Ajanthan and Torr, "SNIP: Single-shot network pruning based on
connection sensitivity", ICLR 2019, arXiv:1810.02340, "gradient" the squared norm,
"signed" the sum in the released code of DynamicFL (see `fairjax.submodels.dynamicfl`).
"""


def branch_sensitivity(
    gradient: Branches,
    psi: Branches,
    alive: dict[str, Float[Array, "R"]],
    leaf_sensitivity: Callable,
) -> dict[str, Float[Array, "R"]]:
    """The sensitivity of every layer's branches in one step; 0 in slots without one.

    Args:
        gradient: the loss's gradient at the branches.
        psi: their parameters.
        alive: 0/1 per slot of every layer.
        leaf_sensitivity: one of `SENSITIVITIES`.
    """
    rows = {}
    for layer, slots in psi.items():
        row = jnp.zeros_like(alive[layer])
        for slot, values in slots.items():
            leaf_values = jax.tree.map(leaf_sensitivity, gradient[layer][slot], values)
            total = jnp.stack(jax.tree.leaves(leaf_values)).sum()
            row = row.at[branches.column_of(slot)].set(total.astype(row.dtype))
        rows[layer] = row
    return rows


def table(
    rows: dict[str, Float[Array, "R"]], layers: tuple[str, ...], template: Array
) -> Float[Array, "L R"]:
    """Rows of layers as one table, bottom to top; 0 for absent layers.

    Args:
        rows: row of every layer that is present.
        layers: all layers.
        template: a table of the result's dtype and row length.
    """
    zero_row = jnp.zeros_like(template[0])
    return jnp.stack([rows.get(layer, zero_row) for layer in layers]).astype(
        template.dtype
    )


def plan(
    sensitivity: Float[Array, "L R"],
    alive: Float[Array, "L R"],
    slot_exists: Bool[Array, "L R"],
    number: Int[Array, ""],
    *,
    move_share: float,
) -> Float[Array, "L R"]:
    """Which branches are alive next, from how sensitive they were.

    The share `move_share` of the alive branches with the lowest sensitivity is
    *redundant* and merged (more, if the budget shrank); the others stay. Dead slots are
    then born up to the budget, in the layers whose most sensitive staying branch ranks
    highest (the *important* ones), bottom to top among equal layers. So a client
    without a past fills the slots bottom to top, as far as its budget reaches.

    Args:
        sensitivity: sensitivity of every branch in the client's last round.
        alive: 0/1, the alive branches so far.
        slot_exists: the slots that exist.
        number: branches in total; at most all slots become alive.
        move_share: share in [0, 1] of the alive branches, as far as the budget still
            allows them, that move.

    Edge cases: fewer branches move where too few slots are dead.

    Source: the partition into common, important and redundant of Zhang et al. 2025 (see
    `fairjax.submodels.dynamicfl`); the paper leaves thresholds, ties and order open,
    which are as stated here.
    """
    is_slot = slot_exists.ravel()
    is_alive = (alive > 0).ravel() & is_slot
    num_slots, num_alive = jnp.sum(is_slot), jnp.sum(is_alive)
    number = jnp.minimum(number, num_slots)
    num_carried = jnp.minimum(num_alive, number)
    capacity = num_slots - num_alive - (number - num_carried)
    num_moved = jnp.floor(move_share * num_carried.astype(jnp.float32)).astype(
        num_carried.dtype
    )
    num_retained = num_carried - jnp.minimum(num_moved, capacity)

    scores = sensitivity.ravel()
    is_retained = is_alive & (_ascending_rank(~is_alive, -scores) < num_retained)
    lowest = jnp.asarray(-jnp.inf, scores.dtype)
    importance = (
        jnp.where(is_retained, scores, lowest).reshape(sensitivity.shape).max(1)
    )
    importance = jnp.broadcast_to(importance[:, None], sensitivity.shape).ravel()
    is_free = is_slot & ~is_alive
    is_born = is_free & (_ascending_rank(~is_free, -importance) < number - num_retained)
    return (is_retained | is_born).reshape(alive.shape).astype(alive.dtype)


def _ascending_rank(
    is_last: Bool[Array, "n"], value: Float[Array, "n"]
) -> Int[Array, "n"]:
    """Rank of every entry in ascending order of (is_last, value, position)."""
    position = jnp.arange(value.shape[0])
    order = jnp.lexsort((position, value, is_last))
    return jnp.zeros_like(position).at[order].set(position)


def enumerate_tables(
    slot_exists: Bool[np.ndarray, "L R"], number: int
) -> Iterator[Float[np.ndarray, "L R"]]:
    """Every way in which `number` of the existing slots can be alive, as 0/1 tables.

    An attacker who knows the code, but not a client's past, searches these.

    Args:
        slot_exists: the slots that exist.
        number: branches in total; at most all slots are alive.
    """
    slot_index = np.flatnonzero(slot_exists)
    for subset in itertools.combinations(slot_index, min(number, len(slot_index))):
        table = np.zeros(slot_exists.size, np.float32)
        table[list(subset)] = 1
        yield table.reshape(slot_exists.shape)


def first_slots(
    slot_exists: Bool[Array, "L R"], number: Int[Array, ""]
) -> Float[Array, "L R"]:
    """The first `number` slots of every layer."""
    is_first = jnp.cumsum(slot_exists, axis=1) <= number
    return (is_first & slot_exists).astype(jnp.float32)
