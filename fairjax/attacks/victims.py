"""The clients whose uploads are inverted: their records and their round.

A victim is a training image that stands for its client. It is the same image for every
tier: the client takes part as if it belonged to that tier.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fairjax.attacks.exposure import View
from fairjax.core import batching, rng, scopes
from fairjax.core.problem import LocalProblem
from fairjax.core.rng import Role
from fairjax.core.types import Block, ClientView, Params, RunState, Submodel
from fairjax.experiment.config import build

OBSERVABLES = ("gradient", "steps", "round")
"""What the server sees: the change after one step on all records, after `steps` such
steps, or after the config's own epochs or steps in the config's batches."""


class Victims(NamedTuple):
    """The records of n victims, r of each."""

    x: Float[Array, "n r H W ch"]
    """As the model sees them."""
    y: Int[Array, "n r"]
    owner: Int[Array, "n"]
    """The client of each victim."""
    true: Float[np.ndarray, "n r H W ch"]
    """The images `x` with pixels in [0, 1]."""


def draw(run: build.Run, *, images: int, records: int, seed: int) -> Victims:
    """Draws the victims at random from the training records.

    Args:
        run: the run that is attacked.
        images: n. Victims are drawn from clients with at least `records` records.
        records: r. The first record of a victim is its image; the others are further
            records of the same client.
        seed: of the draw.
    """
    train = jax.tree.map(np.asarray, run.splits.train)
    generator = np.random.default_rng([seed, 0])
    owner = np.repeat(np.arange(len(train.count)), train.count)
    eligible_rows = np.flatnonzero(train.count[owner] >= records)
    victim_rows = generator.permutation(eligible_rows)[:images]
    rows = []
    for row in victim_rows:
        k = owner[row]
        client_rows = np.arange(train.offset[k], train.offset[k] + train.count[k])
        other_rows = generator.permutation(client_rows[client_rows != row])[
            : records - 1
        ]
        rows.append([row, *other_rows])
    index = np.asarray(rows)
    return Victims(
        jnp.asarray(train.x[index]),
        jnp.asarray(train.y[index]),
        jnp.asarray(owner[victim_rows], jnp.int32),
        to_pixels(run, train.x[index]),
    )


def pixel_range(run: build.Run) -> tuple[np.ndarray, np.ndarray]:
    """The model's input at pixel 0, and the width of [0, 1] in it, per channel.

    Both follow from the public images of the test split.
    """
    x = np.asarray(run.splits.test.x)
    low, high = x.min((0, 1, 2)), x.max((0, 1, 2))
    return low, np.where(high > low, high - low, 1)


def to_pixels(run: build.Run, x: Block) -> np.ndarray:
    """The model's inputs as pixels in [0, 1]."""
    low, span = pixel_range(run)
    return np.clip((np.asarray(x) - low) / span, 0, 1).astype(np.float32)


def local_problem(
    run: build.Run, *, observable: str, records: int, steps: int
) -> LocalProblem:
    """The local problem whose upload the server sees.

    Args:
        run: the run that is attacked.
        observable: one of `OBSERVABLES`.
        records: r.
        steps: local steps under observable "steps".
    """
    c, local = run.config.local, run.spec.local
    counts = np.asarray([records])
    if observable == "round":
        has_steps = c.steps is not None
        plan = batching.local_schedule(
            counts,
            batch_size=c.batch_size,
            epochs=None if has_steps else c.epochs,
            steps=c.steps,
        )
    else:
        steps = steps if observable == "steps" else 1
        plan = batching.local_schedule(counts, batch_size=records, steps=steps)
    dp = run.dpsgd
    if dp is not None:
        # The attacked records are in every step, and each belongs to one patient.
        dp = dp._replace(slots=None, per_patient=None)
    return local._replace(schedule=plan, dp=dp)


def views(run: build.Run, state: RunState, owner: Int[Array, "n"], tier: int) -> View:
    """The victims' clients in the coming round as members of this tier.

    Returns:
        The views, [n, ...] a leaf.
    """
    records = jax.tree.map(jnp.asarray, run.splits.train)

    def per_client(client_index: Array) -> View:
        client_view = ClientView(
            client_index,
            jnp.asarray(tier, jnp.int32),
            jnp.asarray(True),
            records.count[client_index],
            records.labels[client_index],
        )
        params = scopes.gather(state.leaf_copies, state.params, client_view)
        memory = state.memory
        if memory is not None:
            memory = jax.tree.map(lambda leaf: leaf[client_index], memory)
        return View(
            params,
            submodel_in_round(run, state, params, client_view),
            memory,
            client_view,
            rng.fold_in(state.key, Role.LOCAL, state.round, client_index),
            state.round,
            jnp.asarray(run.spec.schedule(state.round), jnp.float32),
        )

    return jax.vmap(per_client)(owner)


def submodel_in_round(
    run: build.Run, state: RunState, params: Params, client_view: ClientView
) -> Submodel:
    """The sub-model of a client in the coming round."""
    key = rng.fold_in(state.key, Role.UNITS, state.round)
    return run.spec.local.method.submodel(key, state.round, params, client_view)
