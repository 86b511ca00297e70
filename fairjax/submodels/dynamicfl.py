"""Richer clients train branches beside the plain model; their sum is what travels."""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from fairjax.core import require, rng
from fairjax.core.method import ClientMemory, Method
from fairjax.core.types import Axes, ClientView, Context, Masks, Params, Size, Submodel
from fairjax.submodels import branches, structures
from fairjax.submodels.branches import Branches, Form
from fairjax.submodels.families import FAMILIES, ONE_MAP
from fairjax.submodels.preconditioner import branch_gradients, scale_by_branches

FORMS = ("collapsed", "preconditioned", "matched")
"""What a client trains, see `branched`."""


def dynamicfl(axes: Axes, number: tuple[int, ...], **options: Any) -> Method:
    """DynamicFL: every client trains the plain model, richer clients with branches.

    Args:
        axes: unit axes of the plain model.
        number: branches per layer of every tier, smallest tier first.
        **options: as for `branched`.

    Source: Zhang et al., "Towards fairness-aware and privacy-preserving enhanced
    collaborative learning for healthcare", Nature Communications 2025,
    doi:10.1038/s41467-025-58055-3. DynamicFL has no tiers below the plain model; for
    those see `fairjax.submodels.mixed`.
    """

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        return Submodel()

    plain = Method(submodel=submodel, size=lambda tier: Size({}, {}))
    return branched(plain, axes, number, **options)


def branched(
    method: Method,
    axes: Axes,
    number: tuple[int, ...],
    *,
    branch_form: str = "collapsed",
    families: tuple[str, ...] = Form().families,
    rank: int = Form().rank,
    inner: float = Form().inner,
    structure: str = "sensitivity",
    sensitivity: str = "product",
    moved: float = 0.25,
    skip: tuple[str, ...] = ("attention", "patch"),
) -> Method:
    """The method, whose tiers train branches beside their plain kernels.

    A client of tier t has number_t * L branches, where L layers of the plain model may
    have branches, or as many as there are slots. Every round it draws new ones on the
    model that it received (`branches.expand`), trains base and branches alike, and
    sends the change of their sum. Between its rounds it remembers which branches it had
    and how sensitive they were in the last epoch, and plans the next from that
    (`structures.plan`).

    Args:
        method: the method of the sub-models; it trains plain parameters and has no
            memory. Tiers with branches train the whole model.
        axes: unit axes of the plain model.
        number: branches per layer of every tier, smallest tier first.
        branch_form: "collapsed": train base and branches. "preconditioned": train the
            plain model with gradients that move it as branches would
            (`preconditioner.scale_by_branches`): the same at no cost, for families that
            are linear in their parameters, under SGD and momentum. "matched": the
            control, the plain model alone with the gradient that branches as drawn
            would give it, for any family.
        families: the family of every slot of a layer, see `branches.Form`.
        rank: inner width of family "lowrank".
        inner: inner width of family "1x1-KxK", as a share of its inputs.
        structure: "sensitivity": by `structures.plan`; "random": the same with random
            sensitivities; "fixed": the first number_t slots of every layer, in every
            round, which is the paper's choice for transformers.
        sensitivity: of a branch in a step, one of `structures.SENSITIVITIES`; its mean
            over the steps of the client's last epoch counts.
        moved: share of the branches that `structures.plan` moves.
        skip: parts of paths whose layers have no branches: the paper leaves attention
            and the patch embedding alone.

    Raises:
        InputError: an unknown form, family, structure or sensitivity, or one that
            `check_form` refuses; a negative number; from `ClientMemory.init`, a model
            none of whose layers fits a family.

    Edge cases: with no branches this is the method itself, to the bit. A changed budget
    changes how many branches are alive in the next round; the model that the client
    receives and the update that it sends stay whole.

    Source: Zhang et al. 2025 (see `dynamicfl`). Deviates: the budget counts branches
    for convolutions and matrices alike, where the released code counts grown layers of
    the one and branches of the other; branches carry no batch norm (see
    `fairjax.submodels.expanded`).
    """
    require.in_range("moved", moved, 0, 1)
    _check_options(number, branch_form, families, rank, inner, structure, sensitivity)
    assert method.local.to_local is None
    assert method.memory is None
    if not any(number):
        return method
    growth = _Growth(
        branches.layers(axes, skip),
        Form(families, rank, inner),
        branch_form,
        structure,
        sensitivity,
        moved,
    )
    local = method.local._replace(to_local=functools.partial(_to_local, growth))
    if branch_form == "collapsed":
        local = local._replace(effective=branches.effective)
    else:
        local = local._replace(
            effective=operator.itemgetter("base"),
            optimizer=functools.partial(_precondition, growth),
        )

    def submodel(
        key: Array, round: Array, params: Params, client: ClientView
    ) -> Submodel:
        num_branches = jnp.asarray(number, jnp.int32)[client.tier]
        return method.submodel(key, round, params, client)._replace(extra=num_branches)

    return method._replace(
        submodel=submodel,
        local=local,
        memory=ClientMemory(
            functools.partial(_init_memory, growth),
            observe=functools.partial(_observe, growth),
            has_plain_shapes=False,
        ),
    )


class _Growth(NamedTuple):
    """Where and how branches grow: the options of `branched` that a client needs."""

    layers: tuple[str, ...]
    """Layers that may have branches, L."""
    form: Form
    branch_form: str
    structure: str
    sensitivity: str
    moved: float

    @property
    def shape(self) -> tuple[int, int]:
        """[L, R]."""
        return len(self.layers), len(self.form.families)


def _init_memory(growth: _Growth, params: Params) -> Any:
    """The state of a client before its first round: no branch, no sensitivity."""
    if not np.any(branches.existing_slots(params, growth.layers, growth.form)):
        requirement = f"a family that fits one of {', '.join(growth.layers)}"
        families = growth.form.families
        require.fail("families", requirement, families)
    return {"alive": jnp.zeros(growth.shape), "sensitivity": jnp.zeros(growth.shape)}


def _choose_alive(
    growth: _Growth, key: Array, plain: Params, num_branches: Array, memory: Any
) -> Float[Array, "L R"]:
    """The alive branches of this round."""
    slot_exists = jnp.asarray(
        branches.existing_slots(plain, growth.layers, growth.form)
    )
    if growth.structure == "fixed":
        return structures.first_slots(slot_exists, num_branches)
    scores = memory["sensitivity"]
    if growth.structure == "random":
        scores = jax.random.uniform(key, growth.shape)
    total = num_branches * len(growth.layers)
    return structures.plan(
        scores, memory["alive"], slot_exists, total, move_share=growth.moved
    )


def _to_local(
    growth: _Growth,
    key: Array,
    plain: Params,
    submodel: Submodel,
    memory: Any,
    forward_mask: Masks,
    update_mask: Masks,
) -> tuple[PyTree, PyTree]:
    """The local tree of `branches`, and 0/1 of what of it is trained."""
    layers = growth.layers
    masked_params = jax.tree.map(jnp.multiply, plain, forward_mask)
    alive = _choose_alive(
        growth, rng.fold_in(key, 0), masked_params, submodel.extra, memory
    )
    if growth.branch_form == "preconditioned":
        local = branches.branchless_tree(masked_params, alive, layers)
    else:
        draw_key = rng.fold_in(key, 1)
        local = branches.expand(
            draw_key, masked_params, alive, layers=layers, form=growth.form
        )
    train_mask = {
        "base": update_mask,
        "branches": branches.branch_mask(local),
        "alive": jax.tree.map(jnp.zeros_like, local["alive"]),
    }
    if growth.branch_form != "collapsed":
        local["base"] = masked_params
        train_mask["branches"] = jax.tree.map(jnp.zeros_like, train_mask["branches"])
    return local, train_mask


def _local_branches(growth: _Growth, local: PyTree) -> Branches:
    """The branches of a local tree, or zeros in their place where it carries none."""
    if growth.branch_form == "preconditioned":
        present_layers = branches.layers_of(local["base"], growth.layers)
        return branches.zeros(present_layers, growth.form)
    return local["branches"]


def _precondition(
    growth: _Growth, optimizer: optax.GradientTransformation, local: PyTree
) -> optax.GradientTransformation:
    """The optimiser, whose gradient at the base moves as with branches."""
    scale = scale_by_branches(local["alive"], _local_branches(growth, local))

    def precondition_base(grads: PyTree, _: Any = None) -> PyTree:
        base, _ = scale.update(grads["base"], optax.EmptyState())
        return {**grads, "base": base}

    return optax.chain(optax.stateless(precondition_base), optimizer)


def _observe(
    growth: _Growth, memory: Any, local: PyTree, grads: PyTree, context: Context
) -> Any:
    """The alive branches, and their mean sensitivity over the epoch so far."""
    mean = memory["sensitivity"]
    gradient, psi = grads["branches"], local["branches"]
    if growth.branch_form == "preconditioned" and growth.structure == "sensitivity":
        psi = _local_branches(growth, local)
        gradient = branch_gradients(grads["base"], psi)
    step_sensitivity = structures.branch_sensitivity(
        gradient, psi, local["alive"], structures.SENSITIVITIES[growth.sensitivity]
    )
    step_sensitivity = structures.table(step_sensitivity, growth.layers, template=mean)
    step_index = context.epoch_step.astype(mean.dtype)
    mean = jnp.where(
        step_index == 0,
        step_sensitivity,
        mean + (step_sensitivity - mean) / (step_index + 1),
    )
    alive = structures.table(local["alive"], growth.layers, template=mean)
    return {"alive": alive, "sensitivity": mean}


def _check_options(
    number: tuple[int, ...],
    branch_form: str,
    families: tuple[str, ...],
    rank: int,
    inner: float,
    structure: str,
    sensitivity: str,
) -> None:
    """Refuses options of `branched` that are out of range or do not fit together."""
    for family in families:
        require.one_of("families", family, FAMILIES)
    require.count("rank", rank)
    require.in_range("inner", inner, 0, 1, open_low=True)
    require.one_of("structure", structure, structures.STRUCTURES)
    require.one_of("sensitivity", sensitivity, structures.SENSITIVITIES)
    require.one_of("branch_form", branch_form, FORMS)
    check_form(branch_form, families, structure, sensitivity)
    for count in number:
        require.in_range("number", count, 0)


def check_form(
    branch_form: str, families: tuple[str, ...], structure: str, sensitivity: str
) -> None:
    """Refuses branches that no gradient of the plain model can replace.

    Args:
        branch_form: as for `branched`.
        families: as for `branched`.
        structure: as for `branched`.
        sensitivity: as for `branched`.

    Raises:
        InputError: "preconditioned" with a family that is not linear in its parameters,
            or with a sensitivity that reads their values.
    """
    if branch_form != "preconditioned":
        return
    condition = "with branch_form preconditioned"
    for family in families:
        if family not in ONE_MAP:
            requirement = f"families linear in their parameters {condition}: "
            requirement += ", ".join(ONE_MAP)
            require.fail("families", requirement, family)
    if structure == "sensitivity" and sensitivity != "gradient":
        requirement = (
            f"gradient {condition}, or structure random or fixed: no branch has values"
        )
        require.fail("sensitivity", requirement, sensitivity)
