"""Uploads of a client or of the whole population, and validation errors of a cohort."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fairjax.core import aggregate, inference, problem, rng, scopes
from fairjax.core.protocols import Layout, Population
from fairjax.core.rng import Role
from fairjax.core.spec import Spec
from fairjax.core.types import (
    ClientData,
    ClientView,
    Cohort,
    FederatedData,
    Masks,
    Params,
    RunState,
    Submodel,
    Upload,
)


def make_upload(
    state: RunState, num: Params, den: Masks, tier: Int[Array, ""]
) -> Upload:
    """A client's delta as it is sent, without the leaves that it keeps for itself.

    Args:
        state: the run so far.
        num: the client's masked delta.
        den: its cover.
        tier: the client's tier.
    """
    return Upload(
        scopes.shared_leaves(state.leaf_copies, num, tier),
        scopes.shared_leaves(state.leaf_copies, den, tier),
        scopes.by_tier(state.leaf_copies, num, den, tier),
    )


def expected_upload(
    state: RunState, population: Population, classes: int, *, spec: Spec
) -> Upload:
    """The weights and masks that a cohort sends on average, from public facts alone.

        den_j = q sum_k w_k m_kj,    num_j = sum_k 1[w_k > 0] m_kj,    over all N

    The masks are those of clients that hold every class, so no client's labels enter.

    Args:
        state: the run so far.
        population: what is public of all clients.
        classes: C.
        spec: what a round does.
    """
    units_key = rng.fold_in(state.key, Role.UNITS, state.round)
    one_record = jnp.ones((), jnp.int32)
    labels = jnp.ones(classes, jnp.int32)

    def addend(client_id: Array) -> Upload:
        tier = population.tier[client_id]
        client_view = ClientView(client_id, tier, one_record > 0, one_record, labels)
        submodel = spec.local.method.submodel(
            units_key, state.round, state.params, client_view
        )
        _, cover = problem.masks(spec.local, state.params, submodel)
        weight = population.weight[client_id]
        has_weight = (weight > 0).astype(weight.dtype)
        upload = make_upload(state, cover, cover, tier)
        return aggregate.scale_upload(
            upload, has_weight, population.sampling_rate * weight
        )

    def add(sums: Upload, client_id: Array) -> tuple[Upload, None]:
        return jax.tree.map(jnp.add, sums, addend(client_id)), None

    clients = jnp.arange(population.tier.shape[0], dtype=jnp.int32)
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(addend, clients[0]),
    )
    return jax.lax.scan(add, zero, clients)[0]


def validation_errors(
    state: RunState,
    validation: FederatedData,
    cohort: Cohort,
    *,
    spec: Spec,
    layout: Layout,
) -> Callable[[Params], Float[Array, "K"]]:
    """`CohortStats.errors` of a round: error rates of updated incoming models.

    Args:
        state: the run so far.
        validation: validation records of all clients.
        cohort: the clients of the round.
        spec: what a round does.
        layout: how the cohort is laid on the hardware.
    """
    records = jax.tree.map(jnp.asarray, validation)
    max_records = spec.max_validation_records
    if max_records is None:
        max_records = records.y.shape[0]

    def per_client(slot: tuple[Params, Array], tier: int | None) -> Array:
        update, client_id = slot
        examples = ClientData(
            records.x, records.y, records.offset[client_id], records.count[client_id]
        )
        group_stats = inference.score(
            optax.apply_updates(state.params, update),
            Submodel(),
            examples,
            local=spec.local,
            max_records=max_records,
        )
        count = jnp.sum(group_stats.count)
        error_rate = 1 - jnp.sum(group_stats.correct) / jnp.maximum(count, 1)
        return jnp.where(count > 0, error_rate, jnp.nan)

    return lambda updates: layout.stack(per_client, (updates, cohort.client))
