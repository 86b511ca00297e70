"""Leaves that a tier or a client keeps for itself.

A method names the scope of every leaf (`Method.scopes`). A "shared" leaf travels in the
plain model. A "tier" leaf has one copy per tier, which is averaged over that tier's
clients alone. A "client" leaf never leaves its client. A tuple of tiers lies between
"shared" and "tier": these tiers keep copies, the others share the plain leaf. The
copies are stored in a bank,

    {"tier": {path: [copies, ...]}, "client": {path: [N, ...]}, "row": {path: [T]}},

where "row" has the index of every tier's copy, -1 for a tier without one. A round
computes every tier's mean delta for the paths in "row".
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fairjax.core import require, trees
from fairjax.core.method import Method
from fairjax.core.types import ClientView, Cohort, Masks, Params

Bank = dict[str, dict[str, Array]]
"""Copies of leaves, as the module docstring describes."""

_SCOPES = ("shared", "tier", "client")


def init(method: Method, params: Params, clients: int, tiers: int) -> Bank:
    """A bank in which every tier and client starts from the plain model's leaves.

    Args:
        method: the method; its `scopes` decides.
        params: the plain model.
        clients: N.
        tiers: T.

    Raises:
        InputError: an unknown scope, or a tier outside 0 .. T - 1.
    """
    bank: Bank = {"tier": {}, "client": {}, "row": {}}
    if method.scopes is None:
        return bank
    # `flatten_up_to` stops at the parameters, so a tuple of tiers stays one scope.
    scopes = jax.tree.structure(params).flatten_up_to(method.scopes(params))
    for (path, leaf), scope in zip(
        trees.leaves_by_path(params).items(), scopes, strict=True
    ):
        where = f"Method.scopes[{path}]"
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


def gather(bank: Bank, params: Params, client: ClientView) -> Params:
    """The model that a client receives, with its tier's copies and its own leaves.

    Args:
        bank: the copies.
        params: the plain model.
        client: the client.
    """
    if not bank["tier"] and not bank["client"]:
        return params

    def per_leaf(path: str, leaf: Array) -> Array:
        if path in bank["client"]:
            return bank["client"][path][client.client]
        return _tier_copy(bank, path, leaf, client.tier)

    return trees.map_with_path(per_leaf, params)


def _tier_copy(bank: Bank, path: str, leaf: Array, tier: int | Int[Array, ""]) -> Array:
    """The tier's copy of a leaf, or the leaf itself where the tier has none."""
    if path not in bank["tier"]:
        return leaf
    row = bank["row"][path][tier]
    return jnp.where(row >= 0, bank["tier"][path][row], leaf)


def top_tier_model(bank: Bank, params: Params) -> Params:
    """The model that stands for the federation: plain, with the top tier's copies.

    Args:
        bank: the copies.
        params: the plain model.
    """
    return trees.map_with_path(
        lambda path, leaf: _tier_copy(bank, path, leaf, -1), params
    )


def shared_leaves(bank: Bank, tree: Params, tier: Int[Array, ""]) -> Params:
    """A client's tree with 0 at every leaf that must not move the plain model.

    Args:
        bank: the copies.
        tree: a tree like the plain model, for example a delta or its cover.
        tier: the client's tier, whose copies are such leaves.
    """
    if not bank["tier"] and not bank["client"]:
        return tree

    def per_leaf(path: str, leaf: Array) -> Array:
        zero = jnp.zeros_like(leaf)
        if path in bank["client"]:
            return zero
        if path in bank["tier"]:
            return jnp.where(bank["row"][path][tier] >= 0, zero, leaf)
        return leaf

    return trees.map_with_path(per_leaf, tree)


def outgoing_leaves(bank: Bank, tree: Params) -> Params:
    """A client's tree with 0 at every leaf that never leaves the client.

    Args:
        bank: the copies.
        tree: a tree like the plain model.
    """
    if not bank["client"]:
        return tree
    return trees.map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path in bank["client"] else leaf,
        tree,
    )


def by_tier(
    bank: Bank, num: Params, den: Masks, tier: Int[Array, ""]
) -> dict[str, tuple[Array, Array]]:
    """One client's addend to the means of its tier.

    Args:
        bank: the copies.
        num: the client's numerator, in plain coordinates.
        den: its denominator.
        tier: its tier.

    Returns:
        {path: (num [T, ...], den [T, ...])}, zero except in the row of the client's
        tier, so that a sum over clients is a sum within every tier.
    """
    nums, dens = trees.leaves_by_path(num), trees.leaves_by_path(den)

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
    share_between_tiers: Callable[..., dict[str, Array]] | None = None,
) -> Bank:
    """Moves tiers' copies by their masked mean and clients' copies by their own delta.

    Args:
        bank: the copies before the round.
        tiers: the sums of all clients' addends, from `by_tier`.
        deltas: {path: [K, ...]}, every client's delta of its own leaves.
        cohort: the clients of the round.
        valid: clients whose own leaves move; all other clients' leaves stay.
        share_between_tiers: `Method.share_between_tiers`; None: every tier's copies
            move by its own mean.

    Returns:
        The bank after the round.
    """
    mean_deltas, has_cover = {}, {}
    for path, (num, den) in tiers.items():
        has_cover[path] = den > 0
        mean_deltas[path] = jnp.where(den > 0, num / jnp.where(den > 0, den, 1), 0)
    if share_between_tiers is not None:
        mean_deltas = share_between_tiers(mean_deltas, has_cover)
    new_tiers = {}
    for path, copies in bank["tier"].items():
        row = bank["row"][path]
        delta = jnp.where(has_cover[path], mean_deltas[path], 0).astype(copies.dtype)
        slot = jnp.where(row >= 0, row, len(copies))
        new_tiers[path] = copies.at[slot].add(delta, mode="drop")
    new_clients = {}
    for path, copies in bank["client"].items():
        slot = jnp.where(valid, cohort.client, copies.shape[0])
        new_clients[path] = copies.at[slot].add(deltas[path], mode="drop")
    return {"tier": new_tiers, "client": new_clients, "row": bank["row"]}


def client_leaves(bank: Bank, delta: Params) -> dict[str, Array]:
    """{path: delta} of the leaves that belong to the client alone.

    Args:
        bank: the copies.
        delta: the client's delta.
    """
    leaves = trees.leaves_by_path(delta)
    return {path: leaves[path] for path in bank["client"]}
