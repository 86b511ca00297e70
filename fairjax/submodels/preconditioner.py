"""What branches amount to for the optimiser: a preconditioner of the plain gradient.

Branches whose tau is linear in their parameters move the plain kernel along a linear
map of its gradient. `scale_by_branches` is that map, so that a client without branches
trains as one with them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from fairjax.core import trees
from fairjax.core.types import Params
from fairjax.submodels.branches import (
    Branches,
    add_shift,
    column_of,
    family_of,
    is_known_dead,
    scale_psi,
    shift_leaves,
)
from fairjax.submodels.families import Psi, tau


def branch_gradients(gradient: Params, branches: Branches) -> Branches:
    """The gradient of branches beside a plain tree, J_r' G.

    J_r = d tau_r / d psi_r is the Jacobian of branch r.

    Args:
        gradient: G, like the plain parameters.
        branches: the parameters psi at which J_r is taken.
    """
    leaves = trees.leaves_by_path(gradient)

    def per_slot(layer: str, slot: str, psi: Psi) -> Psi:
        kernel, bias = leaves[f"{layer}/kernel"], leaves.get(f"{layer}/bias")
        collapse = functools.partial(tau, family_of(slot), kernel=kernel.shape)
        return jax.vjp(collapse, psi)[1]((kernel, bias))[0]

    return {
        layer: {slot: per_slot(layer, slot, psi) for slot, psi in slots.items()}
        for layer, slots in branches.items()
    }


def scale_by_branches(
    alive: Mapping[str, Float[Array, "R"]], branches: Branches
) -> optax.GradientTransformation:
    """Turns the gradient at plain kernels and biases as branches beside them would.

        P(G) = G + sum_r alive_r J_r J_r' G,    J_r = d tau_r / d psi_r

    where G is the gradient at a layer's kernel W and bias b. A step of SGD on base and
    branches moves their sum along P(G). Where tau is linear in psi, J is constant and
    this holds for every step: such branches only set a learning rate per direction of
    the kernel. Alive branches of a 3 x 3 kernel add to G, with c its centre,

        1x1       G[c, i, o]                     at c
        1xK, Kx1  G                              in the middle row, or column
        1x1-avg   sum_uv G[u, v, i, o] / 81      at every tap
        scale     G[c, o, o]                     at c on the diagonal
        KxK       G                              everywhere

    and each adds the gradient of the bias once more. "linear" adds the whole gradient
    of a matrix.

    Every later transformation must be linear in all gradients so far, and the same for
    every leaf, so that it commutes with J. Momentum, weight decay that is added to the
    gradient, and changing learning rates are; an adaptive rate per coordinate (Adam)
    and clipping by a norm are not.

    Args:
        alive: {layer: 0/1 per slot, [R]}; may be traced.
        branches: the parameters psi at which J is taken; `branches.zeros` where J is
            constant. J of a family of `families.SEQUENCES` changes with its psi: there
            P is exact for one step.

    Returns:
        A transformation without state, of trees like the plain parameters.

    Edge cases: without an alive branch P(G) is G.

    Source: the chain rule, on the branches of Ding et al. 2021 (see
    `fairjax.submodels.families`).
    """

    def precondition(gradient: Params, _: Any = None) -> Params:
        leaves = trees.leaves_by_path(gradient)
        shift: dict[str, Array] = {}
        for layer, slots in branch_gradients(gradient, branches).items():
            kernel = leaves[f"{layer}/kernel"]
            for slot, psi_gradient in slots.items():
                factor = alive[layer][column_of(slot)]
                if is_known_dead(factor):
                    continue
                collapse = functools.partial(tau, family_of(slot), kernel=kernel.shape)
                psi_gradient = scale_psi(psi_gradient, factor.astype(kernel.dtype))
                _, pushforward = jax.jvp(
                    collapse, (branches[layer][slot],), (psi_gradient,)
                )
                add_shift(shift, layer, pushforward)
        return shift_leaves(gradient, shift)

    return optax.stateless(precondition)
