"""Leaves that a tier or a client keeps for itself.

A method names the scope of every leaf (`Method.private`): a "shared" leaf travels in
the plain model, a "tier" leaf has one copy per tier that is averaged over that tier's
clients alone, a "client" leaf never leaves its client. A tuple of tiers lies between
"shared" and "tier": those tiers keep copies, the others share the plain leaf. The
copies live in a bank,

    {"tier": {path: [copies, ...]}, "client": {path: [N, ...]}, "row": {path: [T]}},

where "row" says which copy is a tier's, -1 if it has none. Every tier's mean change is
known for the paths in "row".
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fairjax.core import require, trees
from fairjax.core.types import Cohort, Masks, Member, Method, Params

Bank = dict[str, dict[str, Array]]

_SCOPES = ("shared", "tier", "client")


def init(method: Method, params: Params, clients: int, tiers: int) -> Bank:
    """A bank in which every tier and client starts from the plain model's leaves.

    Raises:
        InputError: an unknown scope, or a tier that there is not.
    """
    bank: Bank = {"tier": {}, "client": {}, "row": {}}
    if method.private is None:
        return bank
    # Up to the parameters alone: a tuple of tiers is a leaf.
    scopes = jax.tree.structure(params).flatten_up_to(method.private(params))
    for (path, leaf), scope in zip(trees.named(params).items(), scopes, strict=True):
        where = f"Method.private[{path}]"
        if isinstance(scope, str):
            require.one_of(where, scope, _SCOPES)
        if scope == "client":
            bank["client"][path] = jnp.broadcast_to(leaf, (clients, *leaf.shape))
        elif scope != "shared":
            owners = tuple(range(tiers) if scope == "tier" else scope)
            for tier in owners:
                require.in_range(where, tier, 0, tiers - 1)
            rows = [owners.index(t) if t in owners else -1 for t in range(tiers)]
            bank["row"][path] = jnp.asarray(rows, jnp.int32)
            if owners:
                copies = (len(owners), *leaf.shape)
                bank["tier"][path] = jnp.broadcast_to(leaf, copies)
    return bank


def gather(bank: Bank, params: Params, member: Member) -> Params:
    """The model as a client receives it, with its tier's and its own leaves."""
    if not bank["tier"] and not bank["client"]:
        return params

    def one(path: str, leaf: Array) -> Array:
        if path in bank["client"]:
            return bank["client"][path][member.client]
        return _of_tier(bank, path, leaf, member.tier)

    return trees.map_named(one, params)


def _of_tier(bank: Bank, path: str, leaf: Array, tier: int | Int[Array, ""]) -> Array:
    """The tier's copy of a leaf, or the leaf where it has none."""
    if path not in bank["tier"]:
        return leaf
    row = bank["row"][path][tier]
    return jnp.where(row >= 0, bank["tier"][path][row], leaf)


def whole(bank: Bank, params: Params) -> Params:
    """The model that stands for the federation: with the richest tier's leaves."""
    return trees.map_named(lambda path, leaf: _of_tier(bank, path, leaf, -1), params)


def shared(bank: Bank, tree: Params, tier: Int[Array, ""]) -> Params:
    """A client's tree with its private leaves at 0: what may move the plain model."""
    if not bank["tier"] and not bank["client"]:
        return tree

    def one(path: str, leaf: Array) -> Array:
        zero = jnp.zeros_like(leaf)
        if path in bank["client"]:
            return zero
        if path in bank["tier"]:
            return jnp.where(bank["row"][path][tier] >= 0, zero, leaf)
        return leaf

    return trees.map_named(one, tree)


def leaving(bank: Bank, tree: Params) -> Params:
    """A client's tree with the leaves at 0 that never leave it."""
    if not bank["client"]:
        return tree
    return trees.map_named(
        lambda path, leaf: jnp.zeros_like(leaf) if path in bank["client"] else leaf,
        tree,
    )


def by_tier(
    bank: Bank, num: Params, den: Masks, tier: Int[Array, ""]
) -> dict[str, tuple[Array, Array]]:
    """One client's addend to the means of its tier.

    Returns:
        {path: (num [T, ...], den [T, ...])}, zero but in the client's row, so that a
        sum over clients sums within every tier.
    """
    nums, dens = trees.named(num), trees.named(den)

    def row(value: Array, tiers: int) -> Array:
        empty = jnp.zeros((tiers, *value.shape), value.dtype)
        return empty.at[tier].set(value)

    return {
        path: (row(nums[path], len(rows)), row(dens[path], len(rows)))
        for path, rows in bank["row"].items()
    }


def update(
    bank: Bank,
    tiers: Mapping[str, tuple[Array, Array]],
    deltas: dict[str, Array],
    cohort: Cohort,
    valid: Bool[Array, "K"],
    between: Callable[..., dict[str, Array]] | None = None,
) -> Bank:
    """Moves tiers' copies by their masked mean and clients' by their own change.

    Args:
        bank: the copies before the round.
        tiers: summed addends of all tiers, from `by_tier`.
        deltas: {path: [K, ...]}, every client's change of its own leaves.
        cohort: who they are.
        valid: clients whose own leaves move; the others' stay.
        between: `Method.between`; None: a tier's change is its own mean.
    """
    changes, covered = {}, {}
    for path, (num, den) in tiers.items():
        covered[path] = den > 0
        changes[path] = jnp.where(den > 0, num / jnp.where(den > 0, den, 1), 0)
    if between is not None:
        changes = between(changes, covered)
    new_tiers = {}
    for path, copies in bank["tier"].items():
        row = bank["row"][path]
        change = jnp.where(covered[path], changes[path], 0).astype(copies.dtype)
        slot = jnp.where(row >= 0, row, len(copies))
        new_tiers[path] = copies.at[slot].add(change, mode="drop")
    new_clients = {}
    for path, copies in bank["client"].items():
        slot = jnp.where(valid, cohort.client, copies.shape[0])
        new_clients[path] = copies.at[slot].add(deltas[path], mode="drop")
    return {"tier": new_tiers, "client": new_clients, "row": bank["row"]}


def own(bank: Bank, delta: Params) -> dict[str, Array]:
    """The leaves of a change that belong to the client alone."""
    named = trees.named(delta)
    return {path: named[path] for path in bank["client"]}
