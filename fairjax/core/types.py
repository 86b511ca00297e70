"""The vocabulary of fairjax: shape letters, the data of a round, and its seams.

Shape letters, used in every docstring:

    N clients of the federation    K clients of a round's cohort    T budget tiers
    E records of the federation    B records of a batch             S local steps
    C classes                      G patient groups                 P parameters
    R branch slots of a layer

Tier 0 is the smallest.

`mask` is a 0/1 mask over parameters, `where` one over data or clients; 1 or True always
means "in". `plain` is the model that travels, `delta` is new minus old in plain
coordinates, and `cover` marks the coordinates that a delta speaks for. A step returns
`(new_state, info)`: the state is carried on, the info is only reported.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, no_type_check

import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, Shaped

Block = Array | np.ndarray
"""An array of a federation: NumPy's on the host until a run moves it to the device."""

Scalar = float | Float[Array, ""]
"""A number, which may be traced."""

Params = PyTree[Array]
Masks = PyTree[Array]
"""A tree like `Params`; every leaf broadcasts to its parameter, so that no tier costs a
copy of the model."""


# --------------------------------------------------------------------------------- data


# JAX rebuilds a registered pytree with leaves of any type (tracers, shapes). So its
# annotations only document, and `no_type_check` keeps them from being enforced.


@jax.tree_util.register_dataclass
@no_type_check
@dataclasses.dataclass(frozen=True)
class FederatedData:
    """The records of all clients in one flat block.

    Client k owns the rows offset[k] to offset[k] + count[k] - 1.

    Example:
        >>> data = FederatedData(
        ...     x=np.zeros((5, 3)), y=np.array([0, 1, 0, 1, 1]),
        ...     group=np.zeros((5, 0), int), offset=np.array([0, 2]),
        ...     count=np.array([2, 3]), labels=np.array([[1, 1], [1, 2]]),
        ... )
        >>> data.y[data.offset[1] : data.offset[1] + data.count[1]].tolist()
        [0, 1, 1]
    """

    x: Num[Block, "E ..."]
    y: Int[Block, "E"]
    group: Int[Block, "E A"]
    """Patient group of every record by every attribute (sex, age band, ...), -1 where
    unknown. A is the number of attributes, 0 where the data have none."""
    offset: Int[Block, "N"]
    count: Int[Block, "N"]
    labels: Int[Block, "N C"]
    """Number of records of every class at every client. A client's row never leaves
    that client."""
    patient: Int[Block, "E"] | None = None
    """The patient of every record, numbered from 0 within its client; every number has
    a record. None where the data name no patients."""


class Cohort(NamedTuple):
    """The clients of one round. Slots with `valid` False are padding: no effect.

    Example:
        >>> import jax.numpy as jnp
        >>> cohort = Cohort(jnp.array([3, 0]), jnp.array([1, 0]), jnp.ones(2, bool))
        >>> cohort.client.tolist()
        [3, 0]
    """

    client: Int[Array, "K"]
    tier: Int[Array, "K"]
    valid: Bool[Array, "K"]


class ClientView(NamedTuple):
    """One client as a method sees it."""

    client: Int[Array, ""]
    tier: Int[Array, ""]
    valid: Bool[Array, ""]
    count: Int[Array, ""]
    """Number of training records."""
    labels: Int[Array, "C"]
    """Number of training records of every class."""


class ClientData(NamedTuple):
    """One client's records: `count` rows from `offset` of arrays that all share."""

    x: Num[Array, "E ..."]
    y: Int[Array, "E"]
    offset: Int[Array, ""]
    count: Int[Array, ""]
    group: Int[Array, "E"] | None = None
    """Patient group of every record by one attribute, -1 where unknown; None without an
    attribute."""
    patient: Int[Array, "E"] | None = None
    """See `FederatedData.patient`."""


class GroupStats(NamedTuple):
    """How a model does on one client's records, by patient group and class.

    All fields are sums, so that they add up over clients, groups and classes. The rows
    are the G groups and, last, the records of unknown group.
    """

    count: Float[Array, "rows C"]
    """Number of records."""
    loss: Float[Array, "rows C"]
    """Sum of their cross-entropy, in nats."""
    correct: Float[Array, "rows C"]
    """Number of records whose predicted class is right."""


class Batch(NamedTuple):
    """Padded records of one local step; rows with `where` False must not count."""

    x: Num[Array, "B ..."]
    y: Int[Array, "B"]
    where: Bool[Array, "B"]
    group: Int[Array, "B"] | None = None
    """See `ClientData.group`."""
    factor: Float[Array, "B"] | None = None
    """Factor on every record's loss, see `losses.batch_mean`; None: 1."""


# ---------------------------------------------------------------------- model and units


class LeafAxes(NamedTuple):
    """What the dimensions of one parameter mean.

    A dimension may hold several entries per unit (the channels of a norm group, the
    dimensions of a head). Every unit is then a run of consecutive entries, and all runs
    of the dimension are equally long.
    """

    dims: tuple[str | None, ...]
    """The name of a unit axis, or None, for every dimension."""
    block: tuple[str, int] | None = None
    """(block list, position) of a leaf inside a residual block that a depth tier may
    drop."""


class Axes(NamedTuple):
    """The named unit axes of a model: which units can be dropped, and where they lie.

    Two leaves that name the same axis are aligned by construction (a residual stream is
    one axis).

    Example:
        >>> leaves = {"kernel": LeafAxes((None, "hidden"))}
        >>> Axes(leaves, units={"hidden": 8}, blocks={}).units["hidden"]
        8
    """

    tree: PyTree[LeafAxes]
    """A tree like `Params`."""
    units: Mapping[str, int]
    """Number of units of every axis."""
    blocks: Mapping[str, int]
    """Length of every block list."""
    exits: tuple[int, ...] = ()
    """Position in the list "blocks" after which exit i sits, ascending. The names of
    the exits' heads begin with "exit"."""
    reshaping_blocks: tuple[int, ...] = ()
    """Positions in "blocks" of blocks that change the stream's shape (the first of a
    ResNet stage). Such a block is dropped only together with all blocks after it."""


class Units(NamedTuple):
    """Which units and blocks are present (0 or 1).

    An axis or a block list that is not named is whole.

    Example:
        >>> Units({"hidden": np.arange(4) < 2}, {}).axes["hidden"].tolist()
        [True, True, False, False]
    """

    axes: Mapping[str, Shaped[Array, "units"]]
    blocks: Mapping[str, Shaped[Array, "blocks"]]


class Submodel(NamedTuple):
    """The part of the plain model that one client uses in a round.

    Example:
        >>> half = Submodel(Units({"hidden": np.arange(4) < 2}, {}))
        >>> half.update is None  # it trains what it runs
        True
    """

    forward: Units | None = None
    """Units present in the forward pass; None: all of them."""
    update: Units | None = None
    """Units trained and sent back; None: the same as `forward`."""
    scale: Float[Array, ""] | None = None
    """Divisor of the activations of hidden layers (HeteroFL's scaler), wherever the
    sub-model runs; None: no scaling."""
    extra: PyTree[Array] = None
    """Anything else that the method's own functions read of this client (a threshold,
    which branches are alive)."""


class Size(NamedTuple):
    """The static size of a tier's sub-model; a sliced network is built with it.

    An axis or a block list that is not named is whole.
    """

    axes: Mapping[str, int]
    """Number of units that remain of an axis. Which units remain may change from round
    to round."""
    blocks: Mapping[str, tuple[int, ...]]
    """Positions that remain of a block list, ascending."""


class Moments(NamedTuple):
    """Statistics of one batch norm over records (and space), per channel."""

    count: Float[Array, ""]
    mean: Float[Array, "channels"]
    var: Float[Array, "channels"]
    """With divisor `count`."""


class Outputs(NamedTuple):
    """What a model returns."""

    logits: Float[Array, "B C"]
    """Logits of the deepest exit that the sub-model has."""
    exits: tuple[Float[Array, "B C"], ...]
    """Logits of every exit, first to last; those of a masked exit carry no meaning."""
    stats: PyTree[Moments] = None
    """Moments that the batch norms measured or were given; None without batch norms."""


class Apply(Protocol):
    """`apply(params, x, ...) -> Outputs`; pure, without mutable state."""

    def __call__(
        self,
        params: Params,
        x: Num[Array, "B ..."],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        where: Bool[Array, "B"] | None = None,
        stats: PyTree[Moments] = None,
        submodel: Submodel | None = None,
    ) -> Outputs:
        """The outputs of the network with these parameters.

        Args:
            params: masked parameters of the plain model, or those of a sliced network.
            x: inputs of a batch.
            train: training mode, with dropout. `Submodel.scale` acts in both modes.
            key: the key of dropout; None without dropout.
            where: valid records, for norms with batch statistics.
            stats: moments that batch norms normalise by; None: those of the batch.
            submodel: the part of this network that runs; None: all of it.
        """
        ...


class Model(NamedTuple):
    """An architecture as pure functions: the only seam to flax.

    Example:
        >>> import jax.numpy as jnp
        >>> from fairjax.models.mlp import mlp
        >>> model, x = mlp(classes=2, hidden=(4,)), jnp.ones((3, 5))
        >>> model.apply(model.init(jax.random.key(0), x), x).logits.shape
        (3, 2)
    """

    init: Callable[[Array, Array], Params]
    """(key, x) -> params. Only the shape and the dtype of the batch x matter."""
    apply: Apply
    axes: Axes
    resize: Callable[[Size], "Model"] | None = None
    """The same architecture at a tier's size. Its parameters have the same names, and
    its block lists contain only the remaining blocks. A model without `resize` runs
    masked only."""


# ------------------------------------------------------------------------- a local step


class Context(NamedTuple):
    """What an objective or a memory may read in one local step, beside the batch."""

    round: Int[Array, ""]
    """Rounds finished."""
    step: Int[Array, ""]
    """Position of the step in the client's round, from 0."""
    epoch_step: Int[Array, ""]
    """Position of the step in the client's epoch, from 0."""
    client: ClientView
    submodel: Submodel
    memory: PyTree[Array]
    incoming: Params
    """The plain equivalent of the local tree as it was before the first step."""
    params: Params
    """The plain equivalent of the local tree now; differentiable."""
    message: PyTree[Array] = None
    """The rule's message to this client; None: the rule sends none, or the client
    trains outside a round."""


OutputsAt = Callable[[Submodel | None], Outputs]
"""The current local model's outputs on the batch at its sub-model of this step (None)
or at another one."""

Scope = str | tuple[int, ...]
"""Who has a copy of a leaf, see `Method.scopes`."""

Objective = Callable[[OutputsAt, Batch, Array, Context], tuple[Array, dict[str, Array]]]
"""(outputs_at, batch, key, context) -> (loss, info)."""


class Upload(NamedTuple):
    """What a client sends of its delta d, or the sum of uploads over a cohort.

    Leaves that a client keeps for itself are 0 in `num` and `den`. So are the leaves of
    which the client's tier has a copy: these travel in `tiers`.
    """

    num: Params
    """w m d."""
    den: Masks
    """b m."""
    tiers: Mapping[str, tuple[Array, Array]]
    """{path: (w m d, b m)} of the leaves of which tiers keep copies: [T, ...] each, 0
    except in the row of the client's tier."""


# -------------------------------------------------------------------------------- state


class Participation(NamedTuple):
    """What became of every client's deltas so far."""

    selected: Int[Array, "N"]
    """Number of rounds in which the client was to train."""
    accepted: Float[Array, "N"]
    """Sum over these rounds of the share of its delta that entered the model."""


@jax.tree_util.register_dataclass
@no_type_check
@dataclasses.dataclass(frozen=True)
class RunState:
    """The whole run; the only thing that is checkpointed."""

    round: Int[Array, ""]
    """Rounds finished."""
    params: Params
    """The plain model."""
    server: optax.OptState
    """State of the server optimiser."""
    rule: PyTree[Array]
    """State of `Spec.rule`."""
    memory: PyTree[Array]
    """Per-client state, [N, ...] a leaf; None for methods without."""
    leaf_copies: dict[str, dict[str, Array]]
    """Copies of the leaves that are not shared, see `fairjax.core.scopes`."""
    personal: PyTree[Array]
    """Every client's personal model, [N, ...] a leaf; None for rules without."""
    protection: PyTree[Array]
    """State of `Spec.protection`."""
    participation: Participation
    key: Key[Array, ""]
    """The run key, from which every random number is derived."""
