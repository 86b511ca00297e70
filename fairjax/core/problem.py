"""The local problem: what all clients share when they train, and what they report."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from fairjax.core import axes, trees
from fairjax.core.batching import LocalSchedule
from fairjax.core.method import Method
from fairjax.core.types import (
    Batch,
    ClientData,
    Masks,
    Model,
    Objective,
    Params,
    Submodel,
)

MOMENTS = ("static", "per_tier", "batch")
"""Values of `LocalProblem.moments`."""


class PrivateGradient(Protocol):
    """A client's gradients under differential privacy, in place of plain ones.

    It protects units, which are records or patients. `fairjax.privacy.records.DPSGD`
    is DP-SGD.
    """

    @property
    def slots(self) -> int | None:
        """Units of a batch that `batch` draws; None: batches are cut from epochs."""
        ...

    def units(self, examples: ClientData, max_records: int) -> Int[Array, ""]:
        """n, the client's units; `max_records` counts the largest client's records."""
        ...

    def batch(
        self, key: Key[Array, ""], examples: ClientData, max_records: int
    ) -> Batch:
        """The records of `slots` units drawn for one step; called where `slots` is set.

        Rows that no unit fills have `where` False.
        """
        ...

    def gradient(
        self,
        key: Key[Array, ""],
        loss_fn: Callable[[PyTree, Batch], tuple[Float[Array, ""], Any]],
        tree: PyTree[Array],
        records: Batch,
        trainable_mask: PyTree[Array],
        count: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, ""], Any], PyTree[Array]]:
        """`jax.value_and_grad(loss_fn, has_aux=True)` with a private gradient.

        Args:
            key: the key of the noise.
            loss_fn: (tree, batch) -> (loss, further values to report).
            tree: the tree that is trained.
            records: the batch; rows with `where` False do not count.
            trainable_mask: 0/1 tree of the coordinates that are trained.
            count: n.

        Returns:
            ((loss, report), gradient). Loss and report are for the simulator alone.
        """
        ...


class LocalProblem(NamedTuple):
    """What all clients share when they train."""

    model: Model
    method: Method
    objective: Objective
    optimizer: optax.GradientTransformation
    """It holds the learning rate; its state starts afresh every round."""
    schedule: LocalSchedule
    moments: str = "static"
    """The moments that batch norms use in evaluation: "static" pools them over all
    clients, "per_tier" over the clients of the tier, "batch" takes those of the
    evaluated batch. The last is for parity with published code: a prediction then
    depends on the other records of its batch."""
    dp: PrivateGradient | None = None
    """Differential privacy of the local steps, for records or patients; None: plain
    gradients."""
    augment: Callable[[Array, Array], Array] | None = None
    """(key, inputs of a batch) -> those that a step trains on; None: as they are."""
    unroll: int = 1
    """Steps that one turn of the loop over steps computes."""


class ClientInfo(NamedTuple):
    """What one client reports."""

    loss: Float[Array, ""]
    """Mean of its objective over the steps that it took."""
    steps: Int[Array, ""]
    finite: Bool[Array, ""]
    """False if the delta or the loss holds NaN or infinity, or if the delta is longer
    than training makes one (`trees.is_bounded`). With `LocalProblem.dp` the delta alone
    decides: it follows from noised gradients, and the loss does not."""
    extra: dict[str, Array]
    """What its objective reported, averaged over steps."""


def masks(
    local: LocalProblem, params: Params, submodel: Submodel
) -> tuple[Masks, Masks]:
    """(forward mask, update mask): what of the plain model runs, and what is trained.

    The second is the cover of the client's delta, unless the method's `to_update`
    narrows it.
    """
    forward_mask = axes.masks(params, local.model.axes, submodel.forward)
    update_mask = forward_mask
    if submodel.update is not None:
        update_mask = axes.masks(params, local.model.axes, submodel.update)
    if local.method.mask is None:
        return forward_mask, update_mask
    coordinate_mask = local.method.mask(params, submodel)
    return (
        trees.multiply(coordinate_mask, forward_mask),
        trees.multiply(coordinate_mask, update_mask),
    )
