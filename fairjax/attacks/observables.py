"""What a round shows to the public or to the server, and its features."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from fairjax.core import trees
from fairjax.core.protocols import Protection
from fairjax.core.spec import RoundInfo
from fairjax.core.types import ClientView, Cohort, RunState, Upload

MAX_COORDINATES = 256
"""The largest part of the observables whose numbers are features one by one."""


class _TapState(NamedTuple):
    inner: Any
    uploads: Any
    """What reached the server in the last round, [K, ...] a leaf; None before it."""


def tap_uploads(inner: Protection) -> Protection:
    """The same protection, whose state also holds what every client sends.

    The state has another structure after a round than before it: see `drop_uploads`.
    """

    def protect(
        key: Key[Array, ""],
        state: _TapState,
        cohort: Cohort,
        client_view: ClientView,
        upload: Upload,
        weight: Float[Array, ""],
        denominator_weight: Float[Array, ""],
    ) -> tuple[Any, Any]:
        addend = inner.protect(
            key, state.inner, cohort, client_view, upload, weight, denominator_weight
        )
        # Every client has its own slot, so that the sum holds all uploads.
        slot_mask = cohort.valid & (cohort.client == client_view.client)

        def scatter(leaf: Array) -> Array:
            where = slot_mask.reshape(-1, *([1] * leaf.ndim))
            return jnp.where(where, leaf[None], jnp.zeros_like(leaf)[None])

        return addend, jax.tree.map(scatter, addend)

    def release(
        key: Key[Array, ""],
        state: _TapState,
        cohort: Cohort,
        valid: Bool[Array, "K"],
        sums: tuple[Any, Any],
        public: Upload | None,
    ) -> tuple[Upload, _TapState]:
        aggregate, inner_state = inner.release(
            key, state.inner, cohort, valid, sums[0], public
        )
        return aggregate, _TapState(inner_state, sums[1])

    def fold(stack: tuple[Any, Any]) -> tuple[Any, Any]:
        assert inner.fold is not None
        uploads = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), stack[1])
        return inner.fold(stack[0]), uploads

    def accepted(state: _TapState, cohort: Cohort, valid: Array, sums: Any) -> Array:
        assert inner.accepted is not None
        return inner.accepted(state.inner, cohort, valid, sums[0])

    def weights(key, state, rule, rule_state, cohort, stats):
        assert inner.weights is not None
        return inner.weights(key, state.inner, rule, rule_state, cohort, stats)

    return inner._replace(
        protect=protect,
        release=release,
        init=lambda: _TapState(inner.init(), None),
        fold=None if inner.fold is None else fold,
        accepted=None if inner.accepted is None else accepted,
        weights=None if inner.weights is None else weights,
    )


def drop_uploads(state: RunState) -> RunState:
    """The state after a round with the structure that a round starts from."""
    tap = state.protection._replace(uploads=None)
    return dataclasses.replace(state, protection=tap)


def public_observables(state: RunState, new_state: RunState, info: RoundInfo) -> Any:
    """What a round shows to whoever sees the models, by name.

    This is all that the next round follows from, except what clients keep to
    themselves: that part reaches the server only through their changes.

    Args:
        state: before the round.
        new_state: after the round, with `tap_uploads`.
        info: the round's report.
    """
    return {
        "model": trees.subtract(new_state.params, state.params),
        "tiers": new_state.leaf_copies["tier"],
        "server": new_state.server,
        "rule": new_state.rule,
        "protection": new_state.protection.inner,
        "coverage": info.coverage,
    }


def server_observables(state: RunState, new_state: RunState, info: RoundInfo) -> Any:
    """What a round shows to the server: the public part, uploads, and who sent them.

    Args:
        state: before the round.
        new_state: after the round, with `tap_uploads`.
        info: the round's report.
    """
    return public_observables(state, new_state, info) | {
        "uploads": new_state.protection.uploads,
        "valid": info.valid,
        "weights": info.weights,
        "attendance": new_state.participation,
    }


def features(observables: Any) -> Float[Array, "F"]:
    """The observables as numbers, of which an audit makes its tests.

    The features of a part are its norm, how many of its numbers are exactly 0, how many
    are not finite, and, up to `MAX_COORDINATES`, the numbers themselves. A feature that
    is not finite is replaced as by `jnp.nan_to_num`.
    """

    def part_features(tree: PyTree) -> list[Array]:
        leaves = [_to_float(leaf).ravel() for leaf in jax.tree.leaves(tree)]
        if not leaves:
            return []
        flat = jnp.concatenate(leaves)
        summary = jnp.stack(
            [
                jnp.sqrt(jnp.sum(jnp.square(flat))),
                jnp.sum(flat == 0).astype(jnp.float32),
                jnp.sum(~jnp.isfinite(flat)).astype(jnp.float32),
            ]
        )
        return [summary, flat] if flat.size <= MAX_COORDINATES else [summary]

    arrays = [
        array
        for observable in observables.values()
        for array in part_features(observable)
    ]
    return jnp.nan_to_num(jnp.concatenate(arrays))


def _to_float(leaf: Array) -> Float[Array, "..."]:
    if leaf.dtype == jnp.uint32:  # integers of a secure sum
        leaf = jax.lax.bitcast_convert_type(leaf, jnp.int32)
    return leaf.astype(jnp.float32)
