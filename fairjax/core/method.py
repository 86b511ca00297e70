"""A published method as a value: the sub-model of every budget, and how it trains."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import optax
from jaxtyping import Array, Bool, Float, PyTree

from fairjax.core.types import (
    ClientView,
    Context,
    Masks,
    Objective,
    Outputs,
    Params,
    Scope,
    Size,
    Submodel,
)


class ClientMemory(NamedTuple):
    """State of a client that outlives a round (FedDyn, SCAFFOLD, sensitivities)."""

    init: Callable[[Params], PyTree[Array]]
    """params -> the state before the client's first round."""
    observe: Callable[[PyTree, PyTree, PyTree, Context], PyTree] = lambda old, *_: old
    """(memory, local, grads, context) -> memory, called after every local step. The
    step started from the tree `local`; `grads` are the gradients of the loss at all
    leaves of that tree, trained or not."""
    close: Callable[[PyTree, Params, Context], PyTree] = lambda old, *_: old
    """(memory, delta, context) -> memory, called once, after the last step."""
    has_plain_shapes: bool = True
    """Whether the state has the shapes of the plain model. If so, the method runs
    masked only."""


class ToLocal(Protocol):
    """The incoming plain model as the tree that a client trains."""

    def __call__(
        self,
        key: Array,
        plain: Params,
        submodel: Submodel,
        memory: PyTree,
        forward_mask: Masks,
        update_mask: Masks,
        /,
    ) -> tuple[PyTree, PyTree]:
        """Builds the local tree of one client.

        Args:
            key: the client's key of this round.
            plain: the plain model as it arrives, of the network that the client runs.
            submodel: the client's sub-model.
            memory: the client's state; None for methods without.
            forward_mask: 0/1, the coordinates of its forward pass.
            update_mask: 0/1, the coordinates that it trains and sends.

        Returns:
            (local tree, 0/1 tree of the coordinates of it that are trained).
        """
        ...


class Reparameterisation(NamedTuple):
    """What a client trains in place of the plain sub-model, and how each step runs it.

    The defaults train the plain parameters under their mask.
    """

    to_local: ToLocal | None = None
    """See `ToLocal`; None: (plain * forward mask, update mask)."""
    effective: Callable[[PyTree], Params] = lambda local: local
    """local tree of `to_local` -> plain parameters that the model is applied to;
    differentiable."""
    to_update: Callable[[PyTree, PyTree, Masks], tuple[Params, Masks]] | None = None
    """(local before, local after, update mask) -> (delta, cover); None: masked change
    of `effective`."""
    per_step: Callable[[Array, Array, Submodel], Submodel] | None = None
    """(key, step, sub-model) -> sub-model: narrows the forward pass of one local step;
    None: the same in every step."""
    per_step_sizes: Callable[[int], tuple[Size, ...]] | None = None
    """tier -> the sizes that `per_step` cuts a step to, each as likely as the others; a
    size of n units stands for the sub-model's first n. Only the cost reads it. None:
    every step costs the same."""
    optimizer: Callable[
        [optax.GradientTransformation, PyTree], optax.GradientTransformation
    ] = lambda optimizer, local: optimizer
    """(local optimiser, local tree of `to_local`) -> the optimiser of the client's
    steps, which is given the loss's gradient at that tree, where trained."""


class Finish(Protocol):
    """The new plain model from the sums over a cohort."""

    def __call__(
        self,
        server: optax.GradientTransformation,
        opt_state: optax.OptState,
        params: Params,
        num: Params,
        den: Masks,
        /,
    ) -> tuple[Params, optax.OptState]:
        """Steps the server.

        Args:
            server: the server optimiser.
            opt_state: its state.
            params: the plain model before the round.
            num: sum of w m d over the cohort.
            den: sum of b m over the cohort.

        Returns:
            (plain model, state of the server optimiser).
        """
        ...


class ServerStep(NamedTuple):
    """How the server turns a cohort's sums into the new plain model."""

    finish: Finish | None = None
    """See `Finish`; None: masked mean through the server optimiser."""
    optimizer: Callable[
        [optax.GradientTransformation, float], optax.GradientTransformation
    ] = lambda server, share: server
    """(server optimiser, K / N) -> the server optimiser of the run, whose state holds
    what the method keeps on the server (FedDyn's h)."""


class SubmodelChoice(Protocol):
    """The sub-model of one client in one round."""

    def __call__(
        self, key: Array, round: Array, params: Params, client: ClientView, /
    ) -> Submodel:
        """Picks the units of one client.

        Args:
            key: the cohort's; fold in `client.client` for draws of one client.
            round: rounds finished.
            params: the plain model.
            client: the client.
        """
        ...


class Method(NamedTuple):
    """A published way to give every budget its sub-model; it needs only `submodel`.

    Example:
        >>> import numpy as np
        >>> from fairjax.core.types import Units
        >>> half = Units({"hidden": np.arange(4) < 2}, {})
        >>> method = Method(lambda key, round, params, client: Submodel(half))
        >>> method.submodel(None, 0, None, None).forward.axes["hidden"].tolist()
        [True, True, False, False]
    """

    submodel: SubmodelChoice
    """See `SubmodelChoice`."""
    size: Callable[[int], Size] | None = None
    """tier -> Size; None where no dense network of a static size holds the
    sub-model."""
    accepts: Callable[[ClientView], Bool[Array, ""]] = lambda client: client.valid
    """Whether a client takes part at all (exclusive training leaves poor ones out)."""
    mask: Callable[[Params, Submodel], Masks] | None = None
    """(params, sub-model) -> 0/1 tree of the single coordinates that the sub-model has
    among its units (importance masks): what of the incoming model runs, and what is
    trained and sent; None: all of them. `Reparameterisation.effective` may drop more of
    them as training goes on. `Submodel()` is the whole model. A method with a mask runs
    masked: its `size` is None."""
    local: Reparameterisation = Reparameterisation()
    """What a client trains in place of the plain sub-model."""
    objective: Objective | None = None
    """None: the run's own (mean cross-entropy)."""
    predict: Callable[[Outputs, Submodel], Float[Array, "B C"]] = (
        lambda outputs, submodel: outputs.logits
    )
    """(outputs, sub-model) -> the logits of a deployed sub-model."""
    memory: ClientMemory | None = None
    scopes: Callable[[Params], PyTree[Scope]] | None = None
    """params -> per leaf "shared", "tier" (one copy per tier, averaged inside it),
    "client" (never leaves) or a tuple of tiers: those keep a copy of their own, the
    others share the plain leaf. With () no tier keeps one, but `share_between_tiers`
    sees the leaf."""
    share_between_tiers: (
        Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]] | None
    ) = None
    """(mean deltas, has_cover) -> the deltas that tiers' copies are given, where a tier
    may learn from another. Both are {path: [T, ...]} over the leaves of scope "tier" or
    of a tuple: the mean delta inside every tier, 0 where no client of the tier covers
    the coordinate, and whether one does; `has_cover` may broadcast. A copy moves only
    where its own tier covers it."""
    server: ServerStep = ServerStep()
    """How the server steps."""
    reads_labels: bool = False
    """Whether the sub-model follows from the client's labels."""
