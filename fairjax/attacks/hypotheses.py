"""What an attacker takes a victim for, by what the attacker knows.

A hypothesis is an `exposure.View`. Each level of `exposure.LEVELS` gives a victim a
number M of hypotheses: one for all levels but "search", which lists every tier and,
where clients have branches of their own, every set of branches.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fairjax.attacks import exposure, victims
from fairjax.attacks.exposure import View
from fairjax.core import require, scopes
from fairjax.core.method import Method
from fairjax.core.problem import LocalProblem
from fairjax.core.types import RunState
from fairjax.experiment.config import build, conversion, lookup, registry
from fairjax.submodels import branches, structures

MAX_STRUCTURES = 4096
"""The largest number of structures that a search goes through."""


class Guesses(NamedTuple):
    """The tiers and branches that a search goes through, [M, ...] a leaf."""

    tier: Int[Array, "M"]
    alive: Float[Array, "M L R"] | None
    """The branches, L layers of R slots; None where the tier determines everything."""


def candidates(
    run: build.Run, state: RunState, local: LocalProblem, level: str
) -> Callable[[Array, View], View]:
    """(key, victim) -> the hypotheses of an attacker, [M, ...] a leaf.

    A hypothesis reads only those parts of the victim's view that the level may know.
    The plain model is there once, [1, ...] a leaf.

    Args:
        run: the run that is attacked.
        state: the state whose coming round is attacked.
        local: the victim's local problem.
        level: one of `exposure.LEVELS`.
    """

    def add_axis(view: View) -> View:
        return jax.tree.map(lambda leaf: jnp.stack([leaf]), view)

    if level == "plain":
        return lambda key, victim: add_axis(
            exposure.plain_view(key, victim, state.params)
        )
    if level == "tier":
        return lambda key, victim: add_axis(
            exposure.newcomer_view(key, _server_view(state, victim), local=local)
        )
    if level == "structure":
        return lambda key, victim: add_axis(victim)
    guesses = search_space(run, state)

    def search_candidates(key: Array, victim: View) -> View:
        guess = functools.partial(_guess_view, run, state, key, victim)
        broadcast_params = _server_view(state, victim).params
        one_model = jax.tree.map(lambda leaf: jnp.stack([leaf]), broadcast_params)
        return jax.vmap(guess)(guesses)._replace(params=one_model)

    return search_candidates


def has_secret_branches(run: build.Run) -> bool:
    """Whether the clients' branches follow from what the clients remember."""
    return any(run.branches) and lookup.uses_branch_memory(run.config)


def static_method(run: build.Run) -> Method:
    """The method without its planner: a client keeps the branches of its memory."""
    config = conversion.with_values(
        run.config, {f"submodel.{registry.BRANCHES}.moved": 0.0}
    )
    return lookup.method(config, run.spec.local.model.axes)


def search_space(run: build.Run, state: RunState) -> Guesses:
    """All tiers, and all structures of each.

    Raises:
        InputError: there are more than `MAX_STRUCTURES` structures.
    """
    if not has_secret_branches(run):
        return Guesses(jnp.arange(len(run.budget), dtype=jnp.int32), None)
    options = lookup.branch_options(run.config)
    layers = branches.layers(run.spec.local.model.axes, options.skip)
    form = branches.Form(options.families, options.rank)
    branch_mask = branches.existing_slots(state.params, layers, form)
    branch_counts = [
        min(number * len(layers), branch_mask.sum()) for number in run.branches
    ]
    total = sum(
        math.comb(int(branch_mask.sum()), int(number)) for number in branch_counts
    )
    if total > MAX_STRUCTURES:
        expected = f"no search through more than {MAX_STRUCTURES} structures"
        require.fail("--level", expected, f"search, through {total}")
    pairs = [
        (tier, table)
        for tier, number in enumerate(branch_counts)
        for table in structures.enumerate_tables(branch_mask, int(number))
    ]
    return Guesses(
        jnp.asarray([tier for tier, _ in pairs], jnp.int32),
        jnp.asarray(np.stack([table for _, table in pairs])),
    )


def _server_view(state: RunState, victim: View) -> View:
    """The victim with the parameters that the server sent it.

    The server holds the tiers' copies of leaves. It does not hold the leaves that a
    client keeps to itself.
    """
    bank = {**state.leaf_copies, "client": {}}
    return victim._replace(params=scopes.gather(bank, state.params, victim.client))


def _guess_view(
    run: build.Run, state: RunState, key: Array, victim: View, guess: Guesses
) -> View:
    """The hypothesis of one guess, without the plain model."""
    client_view = victim.client._replace(tier=guess.tier)
    view = exposure.newcomer_view(
        key, _server_view(state, victim), local=run.spec.local
    )
    memory = view.memory
    if guess.alive is not None:
        memory = memory | {"alive": guess.alive}
    submodel = victims.submodel_in_round(run, state, victim.params, client_view)
    return view._replace(
        params=None, submodel=submodel, memory=memory, client=client_view
    )
