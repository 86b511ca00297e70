"""Leaves that a tier or a client keeps for itself.

A method names the scope of every leaf (`Method.private`): a "shared" leaf travels in
the plain model, a "tier" leaf has one copy per tier that is averaged over that tier's
clients alone, a "client" leaf never leaves its client. The copies live in a bank,
{"tier": {path: [T, ...]}, "client": {path: [N, ...]}}.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from fairjax import checks, trees
from fairjax.types import Cohort, Masks, Member, Method, Params

Bank = dict[str, dict[str, Array]]

_SCOPES = ("shared", "tier", "client")


def init(method: Method, params: Params, clients: int, tiers: int) -> Bank:
    """A bank in which every tier and client starts from the plain model's leaves."""
    bank: Bank = {"tier": {}, "client": {}}
    if method.private is None:
        return bank
    copies = {"tier": tiers, "client": clients}
    named = dict(_named(params))
    for path, scope in _named(method.private(params)):
        checks.one_of(f"Method.private[{path}]", scope, _SCOPES)
        if scope != "shared":
            leaf = named[path]
            bank[scope][path] = jnp.broadcast_to(leaf, (copies[scope], *leaf.shape))
    return bank


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def gather(bank: Bank, params: Params, member: Member) -> Params:
    """The model as a client receives it, with its tier's and its own leaves."""
    if not bank["tier"] and not bank["client"]:
        return params

    def one(path: str, leaf: Array) -> Array:
        if path in bank["tier"]:
            return bank["tier"][path][member.tier]
        if path in bank["client"]:
            return bank["client"][path][member.client]
        return leaf

    return trees.map_named(one, params)


def whole(bank: Bank, params: Params) -> Params:
    """The model that stands for the federation: with the richest tier's leaves."""
    copies = bank["tier"]
    return trees.map_named(
        lambda path, leaf: copies[path][-1] if path in copies else leaf, params
    )


def shared(bank: Bank, tree: Params) -> Params:
    """The tree with every private leaf at 0: what may move the plain model."""
    private = bank["tier"].keys() | bank["client"].keys()
    if not private:
        return tree
    return trees.map_named(
        lambda path, leaf: jnp.zeros_like(leaf) if path in private else leaf, tree
    )


def by_tier(
    bank: Bank, num: Params, den: Masks, tier: Int[Array, ""]
) -> dict[str, tuple[Array, Array]]:
    """One client's addend to the leaves of its tier.

    Returns:
        {path: (num [T, ...], den [T, ...])}, zero but in the client's row, so that a
        sum over clients sums within every tier.
    """
    nums, dens = dict(_named(num)), dict(_named(den))

    def row(value: Array, copies: Array) -> Array:
        empty = jnp.zeros((copies.shape[0], *value.shape), value.dtype)
        return empty.at[tier].set(value)

    return {
        path: (row(nums[path], copies), row(dens[path], copies))
        for path, copies in bank["tier"].items()
    }


def update(
    bank: Bank,
    tiers: dict[str, tuple[Array, Array]],
    deltas: dict[str, Array],
    cohort: Cohort,
    valid: Bool[Array, "K"],
) -> Bank:
    """Moves tiers' leaves by their masked mean and clients' by their own change.

    Args:
        bank: the copies before the round.
        tiers: summed addends of the tier leaves, from `by_tier`.
        deltas: {path: [K, ...]}, every client's change of its own leaves.
        cohort: who they are.
        valid: whose change counts; the others' copies stay.
    """
    new_tiers = {}
    for path, copies in bank["tier"].items():
        num, den = tiers[path]
        mean = jnp.where(den > 0, num / jnp.where(den > 0, den, 1), 0)
        new_tiers[path] = copies + mean.astype(copies.dtype)
    new_clients = {}
    for path, copies in bank["client"].items():
        slot = jnp.where(valid, cohort.client, copies.shape[0])
        new_clients[path] = copies.at[slot].add(deltas[path], mode="drop")
    return {"tier": new_tiers, "client": new_clients}


def own(bank: Bank, delta: Params) -> dict[str, Array]:
    """The leaves of a change that belong to the client alone."""
    return {path: leaf for path, leaf in _named(delta) if path in bank["client"]}
