"""The words of fairjax: shapes, the data that walks through a round, and the seams.

Shape letters, used in every docstring:

    N clients of the federation    K clients of a round's cohort    T budget tiers
    E records of the federation    B records of a batch             S local steps
    C classes                      G patient groups                 P parameters

Tier 0 is the smallest.

`mask` is a 0/1 mask over parameters, `where` one over data or clients; 1 or True always
means "in". `plain` is the model that travels, `delta` is new minus old in plain
coordinates, and `cover` says for which coordinates a delta speaks. A step returns
`(new_state, info)`: what is carried and what is only reported.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, no_type_check

import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, Shaped

Block = Array | np.ndarray
"""A federation stays on the host, as NumPy arrays, until a run moves it."""

Scalar = float | Float[Array, ""]
"""A number, or one that is traced."""

Params = PyTree[Array]
Masks = PyTree[Array]
"""Like params; every leaf broadcasts to its parameter, so that no tier costs a copy of
the model."""


# --------------------------------------------------------------------------------- data


# While JAX transforms a registered pytree its leaves may be anything, shapes too: its
# annotations document, and are not enforced when one is built.


@jax.tree_util.register_dataclass
@no_type_check
@dataclasses.dataclass(frozen=True)
class Federation:
    """The records of all hospitals in one flat block.

    Hospital k owns the rows offset[k] to offset[k] + count[k] - 1.
    """

    x: Num[Block, "E ..."]
    y: Int[Block, "E"]
    group: Int[Block, "E A"]
    """Patient group of every record by every attribute (sex, age band, ...), -1 where
    unknown; A is 0 where the data names none."""
    offset: Int[Block, "N"]
    count: Int[Block, "N"]
    labels: Int[Block, "N C"]
    """Records of every class at every hospital; it never leaves the hospital it
    describes."""
    patient: Int[Block, "E"] | None = None
    """Whose every record is: a number among the hospital's patients, from 0, of whom
    none is without a record; None where the data name no patients."""


class Cohort(NamedTuple):
    """The clients of one round. Slots with `valid` False are padding: no effect."""

    client: Int[Array, "K"]
    tier: Int[Array, "K"]
    valid: Bool[Array, "K"]


class Member(NamedTuple):
    """One client as a method sees it."""

    client: Int[Array, ""]
    tier: Int[Array, ""]
    valid: Bool[Array, ""]
    count: Int[Array, ""]
    """Training records."""
    labels: Int[Array, "C"]
    """Training records of every class."""


class Examples(NamedTuple):
    """One client's view of the flat records; x and y are everybody's."""

    x: Num[Array, "E ..."]
    y: Int[Array, "E"]
    offset: Int[Array, ""]
    count: Int[Array, ""]
    group: Int[Array, "E"] | None = None
    """Patient group of every record by one attribute, -1 unknown; None without one."""
    patient: Int[Array, "E"] | None = None
    """As of `Federation`."""


class Cells(NamedTuple):
    """How a model does on one client's records, by patient group and class.

    Sums, so that cells of clients, groups or classes add up. The rows are the G groups
    and, last, the records whose group is unknown.
    """

    count: Float[Array, "rows C"]
    """Records."""
    loss: Float[Array, "rows C"]
    """Sum of their cross-entropy, in nats."""
    right: Float[Array, "rows C"]
    """Records that are answered with their class."""


class Batch(NamedTuple):
    """Padded records of one local step; rows with `where` False must not count."""

    x: Num[Array, "B ..."]
    y: Int[Array, "B"]
    where: Bool[Array, "B"]
    group: Int[Array, "B"] | None = None
    """As of `Examples`."""
    factor: Float[Array, "B"] | None = None
    """What an objective multiplies a record's loss by, see `losses.over`; None: 1."""


# ---------------------------------------------------------------------- model and units


class LeafAxes(NamedTuple):
    """What the dimensions of one parameter mean.

    `dims` has a unit-axis name or None per dimension; a dimension may hold several
    entries per unit (channels of a norm group, head dimensions), the units then being
    equal consecutive runs. `block` places the leaf in a list of residual blocks that a
    depth tier may drop.
    """

    dims: tuple[str | None, ...]
    block: tuple[str, int] | None = None


class Axes(NamedTuple):
    """The named unit axes of a model: what can be dropped, and where it lives.

    Two leaves that name the same axis are aligned by construction (a residual stream is
    one axis).
    """

    tree: PyTree[LeafAxes]
    units: Mapping[str, int]
    """Units of every axis."""
    blocks: Mapping[str, int]
    """Length of every block list."""
    exits: tuple[int, ...] = ()
    """Position in the list "blocks" after which exit i sits, ascending. The names of
    the exits' heads begin with "exit"."""
    fixed: tuple[int, ...] = ()
    """Positions in "blocks" of blocks that change the stream's shape (the first of a
    ResNet stage): one is dropped only together with all that follow it."""


class Units(NamedTuple):
    """Which units and blocks are present (0 or 1); what is not named is whole."""

    axes: Mapping[str, Shaped[Array, "units"]]
    blocks: Mapping[str, Shaped[Array, "blocks"]]


class Kept(NamedTuple):
    """What of the plain model one client uses in a round."""

    forward: Units | None = None
    """Units present in the forward pass; None: all of them."""
    update: Units | None = None
    """Units trained and sent back; None: the same as `forward`."""
    scale: Float[Array, ""] | None = None
    """Activations of hidden layers are divided by it (HeteroFL's scaler), wherever the
    sub-model runs; None: no scaling."""
    extra: PyTree[Array] = None
    """What else the method's `enter` needs to know of this client (a threshold, which
    branches are alive)."""


class Size(NamedTuple):
    """The static size of a tier's sub-model, which a sliced network is built with.

    What is not named is whole.
    """

    axes: Mapping[str, int]
    """Units that remain of an axis; which ones may change from round to round."""
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
    """Those of the deepest exit that is kept."""
    exits: tuple[Float[Array, "B C"], ...]
    """One per exit, first to last; those of a masked exit carry no meaning."""
    stats: PyTree[Moments] = None
    """Moments that the batch norms measured or were given; None without any."""


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
        kept: Kept | None = None,
    ) -> Outputs:
        """The outputs of the network with these parameters.

        Args:
            params: the plain model's, masked, or a sliced network's.
            x: inputs of a batch.
            train: training mode: dropout. What is kept is scaled in both modes.
            key: of dropout.
            where: valid records, for norms with batch statistics.
            stats: moments that batch norms normalise by; None: those of the batch.
            kept: what of this network is kept; None: all.
        """
        ...


class Model(NamedTuple):
    """An architecture as pure functions: all that crosses the seam to flax."""

    init: Callable[[Array, Array], Params]
    """(key, x) -> params; x is a batch whose shape and dtype count."""
    apply: Apply
    axes: Axes
    resize: Callable[[Size], "Model"] | None = None
    """The same architecture at a tier's size, its parameters named as here; its block
    lists hold the remaining blocks alone. A model without it runs masked only."""


# ---------------------------------------------------------------------- method and rule


class Context(NamedTuple):
    """What one local step knows besides its batch."""

    round: Int[Array, ""]
    step: Int[Array, ""]
    of_epoch: Int[Array, ""]
    """Place of the step in the client's epoch, from 0."""
    member: Member
    kept: Kept
    memory: PyTree[Array]
    incoming: Params
    """The plain equivalent of the local tree as it was before the first step."""
    params: Params
    """The plain equivalent of the local tree now; differentiable."""
    told: PyTree[Array] = None
    """What the rule tells this client in this round; None: nothing, or it trains
    outside of a round."""


OutputsAt = Callable[[Kept | None], Outputs]
"""The current local model's outputs on the batch at its sub-model of this step (None)
or at another one."""

Scope = str | tuple[int, ...]
"""Whose a leaf is, see `Method.private`."""

Objective = Callable[[OutputsAt, Batch, Array, Context], tuple[Array, dict[str, Array]]]
"""(outputs_at, batch, key, context) -> (loss, info)."""


class Memory(NamedTuple):
    """State of a client that outlives a round (FedDyn, SCAFFOLD, sensitivities)."""

    init: Callable[[Params], PyTree[Array]]
    """params -> the state before the client's first round."""
    observe: Callable[[PyTree, PyTree, PyTree, Context], PyTree] = lambda old, *_: old
    """(memory, local, grads, context) -> memory; after every local step, which went
    from the tree `local` along `grads`. These are the loss's at all of its leaves, also
    at those that are not trained."""
    close: Callable[[PyTree, Params, Context], PyTree] = lambda old, *_: old
    """(memory, delta, context) -> memory; once, after the last step."""
    plain: bool = True
    """It has the shapes of the plain model; such a method runs masked only."""


class Method(NamedTuple):
    """A published way to give every budget its sub-model; only `units` is required."""

    units: Callable[[Array, Array, Params, Member], Kept]
    """(key, round, params, member) -> Kept. The key is the cohort's: fold in
    `member.client` for draws of one client."""
    size: Callable[[int], Size] | None = None
    """tier -> Size; None where no dense network of a static size holds the
    sub-model."""
    admits: Callable[[Member], Bool[Array, ""]] = lambda member: member.valid
    """Whether a client takes part at all (exclusive training leaves poor ones out)."""
    mask: Callable[[Params, Kept], Masks] | None = None
    """(params, kept) -> 0/1 tree of the single coordinates that the sub-model holds of
    the units in `kept` (importance masks): what of the incoming model runs, and what is
    trained and sent; None: all of them. `effective` may drop more of them as training
    goes on. `Kept()` is the whole model. A method that has one runs masked: its `size`
    is None."""
    inner: Callable[[Array, Array, Kept], Kept] | None = None
    """(key, step, kept) -> kept: narrows the forward pass of one local step; None: the
    same in every step."""
    narrow: Callable[[int], tuple[Size, ...]] | None = None
    """tier -> the sizes that `inner` cuts a step to, each as likely as the others, for
    the bill: the first of the units that are kept; None: no step costs less."""
    enter: (
        Callable[[Array, Params, Kept, PyTree, Masks, Masks], tuple[PyTree, PyTree]]
        | None
    ) = None
    """(key, plain, kept, memory, forward mask, update mask) -> (local tree, 0/1 tree of
    what of it is trained)."""
    effective: Callable[[PyTree], Params] = lambda local: local
    """local tree of `enter` -> plain parameters that the model is applied to;
    differentiable."""
    leave: Callable[[PyTree, PyTree, Masks], tuple[Params, Masks]] | None = None
    """(local before, local after, update mask) -> (delta, cover); default: masked
    change of `effective`."""
    objective: Objective | None = None
    """None: the run's own (mean cross-entropy)."""
    predict: Callable[[Outputs, Kept], Float[Array, "B C"]] = lambda outputs, kept: (
        outputs.logits
    )
    """(outputs, kept) -> the logits that a deployed sub-model answers with."""
    memory: Memory | None = None
    private: Callable[[Params], PyTree[Scope]] | None = None
    """params -> per leaf "shared", "tier" (one copy per tier, averaged inside it),
    "client" (never leaves) or a tuple of tiers: those keep a copy of their own, the
    others share the plain leaf. () keeps none, but `between` is told of the leaf."""
    between: Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]] | None = (
        None
    )
    """(changes, covered) -> the changes that tiers' copies are given, where a tier may
    learn from another. Both are {path: [T, ...]} over the leaves of scope "tier" or of
    a tuple: the mean change inside every tier, 0 where none of it covers the
    coordinate, and whether one does; `covered` may broadcast. A copy moves only where
    its own tier covers it."""
    optimizer: Callable[
        [optax.GradientTransformation, PyTree], optax.GradientTransformation
    ] = lambda optimizer, local: optimizer
    """(local optimiser, local tree of `enter`) -> the optimiser of the client's steps,
    which is given the loss's gradient at that tree, where trained."""
    finish: "Finish | None" = None
    """None: masked mean through the server optimiser."""
    server: Callable[
        [optax.GradientTransformation, float], optax.GradientTransformation
    ] = lambda server, share: server
    """(server optimiser, K / N) -> the server optimiser of the run, whose state holds
    what the method keeps on the server (FedDyn's h)."""


Finish = Callable[
    [optax.GradientTransformation, optax.OptState, Params, Params, Masks],
    tuple[Params, optax.OptState],
]
"""(server optimiser, its state, params, num, den) -> (params, state)."""


class Scores(NamedTuple):
    """What is known of the cohort when it is weighted; None if not asked for."""

    count: Int[Array, "K"]
    loss: Float[Array, "K"] | None = None
    """Mean training loss of each client's own sub-model at the incoming model."""
    cells: Cells | None = None
    """What that loss is made of, [K, ...] a leaf."""
    rate: Float[Array, ""] | float = 1.0
    """The round's factor on the local learning rate."""
    delta: Params | None = None
    """All changes, [K, ...] a leaf, without leaves that a client or a tier keeps for
    itself; 0 for a client that is not valid."""
    cover: Masks | None = None
    incoming: Params | None = None
    """The plain model that the changes are of, where they are asked for."""
    errors: Callable[[Params], Float[Array, "K"]] | None = None
    """(changes of the incoming model, [K, ...] a leaf) -> share of each client's
    validation records that the model so changed answers wrongly; NaN without any."""


class Rule(NamedTuple):
    """One fairness rule: how the cohort's changes are weighted or combined."""

    weigh: (
        Callable[[PyTree, Cohort, Scores], tuple[Float[Array, "K"], PyTree]] | None
    ) = None
    """(state, cohort, scores) -> (weights on the simplex over valid clients, state);
    None: by records."""
    needs: frozenset[str] = frozenset()
    """"loss": `Scores.loss` and `cells`; "update": `Scores.delta` and `cover`, the
    whole stack of changes at once; "validation", beside "update": `Scores.errors`."""
    everyone: bool = False
    """Means something only if every hospital is in every round's cohort."""
    init: Callable[[Params, Int[Array, "N"], int], PyTree] = (
        lambda params, counts, tiers: ()
    )
    """(plain model, training records of every hospital, T) -> state."""
    tell: Callable[[PyTree, Cohort, Scores], PyTree[Array]] = (
        lambda state, cohort, scores: None
    )
    """(state, cohort, scores before any training) -> what every client of the cohort is
    told, [K, ...] a leaf: its `Context.told`."""
    wrap: Callable[[Objective], Objective] = lambda objective: objective
    """Changes the client's objective (PropFair, logit adjustment)."""
    combine: (
        Callable[
            [PyTree, Cohort, Scores, Float[Array, "K"]],
            tuple[Params, Masks, PyTree],
        ]
        | None
    ) = None
    """(state, cohort, scores, weights) -> (num, den, state) from the whole stack of
    changes; None: the weighted sums."""
    keeps: Callable[[str], bool] | None = None
    """Path of a leaf -> whether every client keeps it for itself; None: no leaf."""
    personal: "Personal | None" = None


class Personal(NamedTuple):
    """A model that every client trains for itself beside its part of the plain one.

    It starts as the first plain model, is trained on the same batches at the same
    coordinates, and never leaves.
    """

    wrap: Callable[[Objective], Objective]
    """The client's objective -> the personal model's, in whose context `incoming` is
    the plain model as it arrived."""


class Sent(NamedTuple):
    """What a client sends of its change d, or the sums of it over a cohort.

    Leaves that a client keeps for itself are 0, as are those of the plain model of
    which its tier has a copy.
    """

    num: Params
    """w m d."""
    den: Masks
    """b m."""
    tiers: Mapping[str, tuple[Array, Array]]
    """{path: (w m d, b m)} of leaves of which tiers keep copies, [T, ...] each, 0 but
    in the row of the client's tier."""


class Population(NamedTuple):
    """What everybody may know of a federation whose hospitals' data are protected."""

    tier: Int[Array, "N"]
    weight: Float[Array, "N"]
    """In place of one that is normalised by who came: >= 0, 0 for hospitals that the
    method leaves out."""
    rate: float
    """q, the probability with which each is in a cohort."""


class Protection(NamedTuple):
    """What stands between the clients' changes and the server's model."""

    protect: Callable[[Array, PyTree, Cohort, Member, Sent, Array, Array], PyTree]
    """(key, state, cohort, member, sent, weight, base) -> what reaches the server of
    one client, which is summed over the cohort; sensitivity is fixed here. The key is
    the round's; `sent` has w = b = 1; `member.valid` is False for a client that sends
    nothing, and all its numbers are then 0."""
    release: Callable[
        [Array, PyTree, Cohort, Bool[Array, "K"], PyTree, Sent | None],
        tuple[Sent, PyTree],
    ]
    """(key, state, cohort, who of it counts, sums, public) -> (what the server may see,
    state). `public` is of the population: num the number of hospitals that hold a
    coordinate, shaped as masks are, den q sum w m, what a cohort sends on average."""
    init: Callable[[], PyTree] = tuple
    """Its state before the first round (a clipping norm that adapts)."""
    fold: Callable[[PyTree], PyTree] | None = None
    """What `protect` gave of every client, [K, ...] a leaf -> what `release` is given
    in place of their sum (a median); None: the sum, for which no stack is needed."""
    entered: (
        Callable[[PyTree, Cohort, Bool[Array, "K"], PyTree], Float[Array, "K"]] | None
    ) = None
    """(state, cohort, who of it counts, sums) -> what share of every client's change is
    in the sums, 0 for none; None: all of those that count."""
    hides_failure: bool = False
    """Whether a client whose training failed, so that its change is not finite, sends
    what one whose change is 0 does: that it failed follows from its records. The round
    then looks alike whatever those are. False: it sends nothing."""
    population: Population | None = None
    """None: no public sums."""
    weigh: (
        Callable[
            [Array, PyTree, Rule, PyTree, Cohort, Scores],
            tuple[Float[Array, "K"], Float[Array, "K"], PyTree],
        ]
        | None
    ) = None
    """(key, state, rule, its state, cohort, scores) -> (weights w, bases b, the rule's
    state), where what a rule may see of the cohort is restricted; None: the rule sees
    the scores."""


# ------------------------------------------------------------------------------- layout


One = Callable[[Any, int | None], Any]
"""(slot, tier) -> result of one client. The tier is the static one that all clients of
a call share, whose sub-model is then sliced; None: clients of any tier, masked."""


class Layout(NamedTuple):
    """How a cohort is laid on the hardware; slots have [K, ...] leaves."""

    stack: Callable[[One, Any], Any]
    """Every client's result, [K, ...] a leaf."""
    total: Callable[[One, Any], tuple[Any, Any]]
    """`one` gives (addend, report): the addends' sum and the stacked reports."""
    reason: str = ""


# -------------------------------------------------------------------------------- state


class Attendance(NamedTuple):
    """What became of every hospital's changes so far."""

    came: Int[Array, "N"]
    """Rounds in which it was to train."""
    entered: Float[Array, "N"]
    """Sum over them of the share of its change that entered the model."""


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
    rule: PyTree[Array]
    memory: PyTree[Array]
    """Per-client state, [N, ...] a leaf; None for methods without."""
    private: dict[str, dict[str, Array]]
    """Copies of private leaves and whose they are, see `fairjax.core.scopes`."""
    personal: PyTree[Array]
    """Every client's personal model, [N, ...] a leaf; None for rules without."""
    protection: PyTree[Array]
    """Of `Spec.protection`."""
    attendance: Attendance
    key: Key[Array, ""]
