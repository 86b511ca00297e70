"""DynamicFL: what branches do not change, what they train, and which are alive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairjax.core import batching, client, layout, objectives, require, round
from fairjax.core.types import ClientData
from fairjax.submodels import branches, cost
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.mixed import mixed
from fairjax.submodels.structures import first_slots, plan
from tests import fakes

MODEL = fakes.small_mlp()
DATA = fakes.federation()
NUMBER = (0, 1, 3)
FORM = ("linear", "lowrank", "linear")
LAYERS = branches.layers(MODEL.axes)


def table(alive):
    return np.stack([alive[layer] for layer in LAYERS])


def method(number=NUMBER, **options):
    return dynamicfl(MODEL.axes, number, families=FORM, **options)


def trained(spec, tier, who=0, memory=None, rate=1.0):
    """The result of `client.update` for one client of a tier."""
    rule, data = spec.local.method, DATA
    params = fakes.drawn(MODEL, data.x[:1])
    memory = rule.memory.init(params) if memory is None else memory
    member = fakes.member(who, tier, data)

    @jax.jit
    def run(params, memory):
        kept = rule.submodel(jax.random.key(2), jnp.asarray(0), params, member)
        return client.update(
            jax.random.key(5),
            params,
            memory,
            kept,
            ClientData(data.x, data.y, data.offset[who], data.count[who]),
            client=member,
            round=jnp.asarray(0),
            local=spec.local,
            lr_scale=rate,
        )

    return run(params, memory)


def local_trees(rule):
    """The method; its update is the local tree before and after training."""

    def leave(before, after, update):
        return {"before": before, "after": after}, update

    return rule._replace(local=rule.local._replace(to_update=leave))


# ---------------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize(
    "options", [{}, {"branch_form": "matched"}, {"structure": "fixed"}]
)
def test_a_round_without_learning_rate_changes_nothing_at_all(options):
    spec = fakes.spec(MODEL, method(**options), optimizer=optax.sgd(0.0))
    state = fakes.start(spec, DATA)
    step = jax.jit(functools.partial(round.step, spec=spec, layout=layout.vmapped()))
    after = state
    for _ in range(2):
        after, info = step(after, DATA, fakes.cohort(tiers=(0, 1, 2, 2)))
    assert np.all(info.valid)
    assert fakes.equal(after.params, state.params)


def test_no_tier_with_branches_is_fedavg():
    assert method((0, 0, 0)).local.to_local is None
    spec, other = fakes.spec(MODEL, method()), fakes.spec(MODEL, fedavg(MODEL.axes))
    # Beside tiers that have branches, one without trains the plain model.
    plain = trained(spec, 0)[0]
    expected = trained(other, 0, memory=())[0]
    assert fakes.gap(plain, expected) < 1e-7
    assert fakes.gap(trained(spec, 2)[0], expected) > 1e-3


def test_everybody_receives_one_model():
    """No tier owns a leaf or drops a unit: every tier deploys the plain model."""
    rule = method()
    assert rule.scopes is None
    for tier in range(3):
        kept = rule.submodel(
            jax.random.key(0), jnp.asarray(0), {}, fakes.member(0, tier)
        )
        assert kept.forward is None
        assert kept.update is None


# ---------------------------------------------------------------------- what is trained


def test_living_branches_move_and_dead_ones_never():
    rule = local_trees(method())
    trees_, _, _, info = trained(fakes.spec(MODEL, rule, epochs=1), 1)
    before, after = trees_["before"], trees_["after"]
    # One branch per layer on average; without a past they start at the bottom.
    assert table(after["alive"]).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert fakes.equal(before["alive"], after["alive"])
    for layer in LAYERS:
        for slot, psi in after["branches"][layer].items():
            old = before["branches"][layer][slot]
            if after["alive"][layer][branches.column_of(slot)]:
                assert not any(
                    np.array_equal(psi[name], old[name])
                    for name in psi
                    # The first step of "second" has no bias to learn from.
                    if psi[name].ndim > 1
                )
            else:
                assert not any(np.any(leaf) for leaf in psi.values())
    assert int(info.steps) == 3


def test_branches_of_one_family_stay_apart():
    rule = local_trees(method((3, 3, 3)))
    after = trained(fakes.spec(MODEL, rule), 2)[0]["after"]["branches"]["hidden1"]
    assert fakes.gap(after["0_linear"], after["2_linear"]) > 0.1


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_every_epoch_trains(epochs):
    """In the released code the first epoch trains nothing."""
    rule = method((1, 1, 1))
    delta, _, _, info = trained(fakes.spec(MODEL, rule, epochs=epochs), 0)
    assert int(info.steps) == 3 * epochs
    if epochs > 1:
        shorter = fakes.spec(MODEL, rule, epochs=epochs - 1)
        assert fakes.gap(delta, trained(shorter, 0)[0]) > 1e-3


def test_branches_of_linear_families_are_learning_rates():
    """The whole client update, against the control with the matched gradient."""
    form = ("linear", "linear")
    both = [
        dynamicfl(MODEL.axes, (2,), families=form, structure="fixed", branch_form=how)
        for how in ("collapsed", "matched")
    ]
    ours, theirs = (trained(fakes.spec(MODEL, rule), 0)[0] for rule in both)
    assert fakes.gap(ours, theirs) < 1e-5
    # Two branches of the same shape triple the rate of their kernels and biases.
    plain = fakes.spec(MODEL, fedavg(MODEL.axes), epochs=1, optimizer=optax.sgd(1e-4))
    one, two = (
        trained(fakes.spec(MODEL, rule, epochs=1, optimizer=optax.sgd(1e-4)), 0)[0]
        for rule in both
    )
    expected = trained(plain, 0, memory=())[0]
    for got in (one, two):
        ratio = got["hidden0"]["kernel"] / expected["hidden0"]["kernel"]
        np.testing.assert_allclose(np.nanmedian(ratio), 3, rtol=1e-2)
        head = got["head"]["kernel"] / expected["head"]["kernel"]
        np.testing.assert_allclose(np.nanmedian(head), 1, rtol=1e-2)


# -------------------------------------------------------------------------- sensitivity


@pytest.mark.parametrize(
    "kind",
    [
        "product",
        pytest.param("gradient", marks=pytest.mark.slow),
        pytest.param("signed", marks=pytest.mark.slow),
    ],
)
def test_sensitivity_is_the_mean_of_the_last_epoch(kind):
    """At rate 0 the tree does not move, so that every step can be computed by hand."""
    rule = method((3, 3, 3), sensitivity=kind)
    spec = fakes.spec(MODEL, rule, epochs=2)
    memory = trained(spec, 2, rate=0.0)[2]
    local = trained(fakes.spec(MODEL, local_trees(rule)), 2, rate=0.0)[0]["before"]
    examples = ClientData(DATA.x, DATA.y, DATA.offset[0], DATA.count[0])
    order = batching.stream(
        jax.random.fold_in(jax.random.key(5), 1),
        DATA.count[0],
        spec.local.schedule.stream_length,
    )

    @jax.jit
    def gradient(step):
        batch = batching.batch(examples, order, step, 4)

        def loss(tree):
            logits = MODEL.apply(branches.effective(tree), batch.x).logits
            each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
            return jnp.sum(jnp.where(batch.where, each, 0)) / jnp.sum(
                batch.where
            ).astype(jnp.float32)

        return jax.grad(loss)(local)["branches"]

    of = {
        "product": lambda g, v: np.abs(g * v).sum(),
        "gradient": lambda g, v: (g**2).sum(),
        "signed": lambda g, v: (g * v).sum(),
    }[kind]

    def by_hand(steps):
        table = np.zeros((len(LAYERS), len(FORM)))
        for step in steps:
            for layer, slots in gradient(step).items():
                for slot, grads in slots.items():
                    psi = local["branches"][layer][slot]
                    table[LAYERS.index(layer), branches.column_of(slot)] += sum(
                        of(np.asarray(grads[name]), np.asarray(psi[name]))
                        for name in psi
                    ) / len(steps)
        return table

    np.testing.assert_allclose(memory["sensitivity"], by_hand((3, 4, 5)), rtol=2e-4)
    assert np.max(np.abs(memory["sensitivity"] - by_hand(range(6)))) > 1e-4
    assert np.array_equal(memory["alive"], np.ones((2, 3)))


# ----------------------------------------------------------------------------- the plan


def planned(sensitivity, alive, number, admitted=None, moved=0.5):
    sensitivity, alive = (np.asarray(v, np.float32) for v in (sensitivity, alive))
    admitted = np.ones(alive.shape, bool) if admitted is None else admitted
    return np.asarray(
        _plan(sensitivity, alive, np.asarray(admitted), number, move_share=moved)
    )


_plan = jax.jit(plan, static_argnames="move_share")


def test_without_a_past_slots_fill_bottom_to_top():
    nothing = np.zeros((3, 3))
    admitted = [[1, 1, 1], [0, 1, 1], [1, 1, 1]]
    got = planned(nothing, nothing, 4, np.asarray(admitted, bool))
    assert got.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]


def test_redundant_branches_move_to_the_important_layer():
    sensitivity = [[1, 2, 0], [0, 9, 0], [3, 0, 0]]
    alive = [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    # The two least sensitive are merged; both new ones join the most sensitive layer.
    got = planned(sensitivity, alive, 4)
    assert got.tolist() == [[0, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert planned(sensitivity, alive, 4, moved=0.0).tolist() == alive


def test_a_changed_budget_keeps_the_most_sensitive():
    sensitivity = [[1, 2, 0], [0, 9, 0], [3, 0, 0]]
    alive = [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert planned(sensitivity, alive, 0).sum() == 0
    poorer = planned(sensitivity, alive, 2, moved=0.0)
    assert poorer.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    richer = planned(sensitivity, alive, 6, moved=0.0)
    assert richer.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert planned(sensitivity, alive, 99).sum() == 9


@given(seed=st.integers(0, 2**16), number=st.integers(0, 14), moved=st.floats(0.0, 1.0))
def test_a_plan_spends_the_budget_on_slots_that_exist(seed, number, moved):
    rng = np.random.default_rng(seed)
    admitted = rng.random((4, 3)) < 0.8
    alive = (rng.random((4, 3)) < 0.5) & admitted
    sensitivity = rng.normal(size=(4, 3)).astype(np.float32)
    with jax.disable_jit():
        got = plan(
            jnp.asarray(sensitivity),
            jnp.asarray(alive.astype(np.float32)),
            jnp.asarray(admitted),
            jnp.asarray(number),
            move_share=moved,
        )
    got = np.asarray(got) > 0
    assert got.sum() == min(number, admitted.sum())
    assert not np.any(got & ~admitted)
    stays, goes = got & alive, alive & ~got
    if stays.any() and goes.any():
        assert sensitivity[stays].min() >= sensitivity[goes].max()
    carried = min(alive.sum(), number)
    assert stays.sum() >= carried - np.floor(np.float32(moved) * np.float32(carried))


def test_a_level_structure_is_alike_in_every_layer():
    admitted = jnp.asarray([[1, 0, 1, 1], [1, 1, 1, 1]], bool)
    got = first_slots(admitted, jnp.asarray(2))
    assert got.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]


def test_the_next_round_is_planned_from_what_was_remembered():
    """All branches move; in a fixed structure none does."""
    rule = local_trees(method((1, 1, 1), moved=1.0))
    past = {
        "alive": jnp.asarray([[1.0, 1, 0], [0, 0, 0]]),
        "sensitivity": jnp.asarray([[1.0, 5, 0], [0, 0, 0]]),
    }
    spec = fakes.spec(MODEL, rule, epochs=1)
    alive = table(trained(spec, 0, memory=past)[0]["after"]["alive"])
    assert alive.sum() == 2
    # All branches move, none to its old slot.
    assert not np.any(alive * past["alive"])
    fixed = local_trees(method((1, 1, 1), structure="fixed"))
    after = trained(fakes.spec(MODEL, fixed, epochs=1), 0, memory=past)[0]["after"]
    assert table(after["alive"]).tolist() == [[1, 0, 0], [1, 0, 0]]


# ------------------------------------------------------------- the ladder, and the bill


@pytest.mark.parametrize("structure", ["sensitivity", "random"])
def test_random_structures_ask_no_sensitivity(structure):
    """The key, or the sensitivities, decide which of two branches stays."""
    rule = method((1, 1, 1), structure=structure, moved=0.5)
    params, member = fakes.drawn(MODEL, DATA.x[:1]), fakes.member(0, 0)
    kept = rule.submodel(jax.random.key(0), jnp.asarray(0), params, member)
    whole = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim), params)
    past = {
        "alive": jnp.asarray([[1.0, 1, 0], [0, 0, 0]]),
        "sensitivity": jnp.asarray([[1.0, 5, 0], [0, 0, 0]]),
    }

    @jax.jit
    def stays(key):
        local, _ = rule.local.to_local(key, params, kept, past, whole, whole)
        return local["alive"][LAYERS[0]][:2]

    which = {tuple(stays(jax.random.key(i)).tolist()) for i in range(12)}
    assert which == ({(0, 1)} if structure == "sensitivity" else {(0, 1), (1, 0)})


@pytest.mark.slow
def test_a_ladder_reaches_below_and_above_the_plain_model():
    model = fakes.small_mlp((8,))
    rule = mixed(
        model.axes,
        (0.5, 1.0, 1.0),
        kinds=("width", "plain", "plain"),
        cut=(),
        blocks=(),
        number=(0, 0, 2),
        families=FORM,
    )
    spec = fakes.spec(model, rule, epochs=1)
    state = fakes.start(spec, DATA)
    step = functools.partial(round.step, spec=spec)
    cohort = fakes.cohort(tiers=(0, 1, 2, 2))
    masked, _ = jax.jit(functools.partial(step, layout=layout.vmapped()))(
        state, DATA, cohort
    )
    sliced = layout.sliced(layout.vmapped(), (1, 1, 2))
    other, _ = jax.jit(functools.partial(step, layout=sliced))(state, DATA, cohort)
    assert masked.memory["alive"].sum((1, 2)).tolist() == [0, 0, 2, 2]
    assert fakes.gap(masked.params, other.params) < 1e-5
    assert fakes.gap(masked.memory, other.memory) < 1e-4
    assert fakes.gap(masked.params, state.params) > 1e-3


def test_branches_cost_a_step_and_no_record():
    rule, bills = method(), []
    params = fakes.drawn(MODEL, DATA.x[:1])
    for tier in range(3):
        member = fakes.member(0, tier)
        kept = rule.submodel(jax.random.key(0), jnp.asarray(0), params, member)
        bills.append(
            cost.client_cost(
                MODEL,
                rule,
                objectives.mean_cross_entropy(),
                optax.sgd(0.1, momentum=0.9),
                params,
                kept,
                member,
                x=DATA.x[:1],
            )
        )
    poor, middle, rich = bills
    grow = ("flops_step", "optimizer_floats")
    for key in poor:
        if key in grow:
            assert poor[key] <= middle[key] < rich[key]
        else:
            assert poor[key] == middle[key] == rich[key]
    assert poor["flops_step"] == 0
    # Tier 1 has "linear" and "lowrank" at the bottom layer; a b is in * rank * out.
    multiply_adds = 6 * 4 * 16
    # The gradients with respect to a and b, and the share of the biases.
    assert middle["flops_step"] >= 3 * 2 * multiply_adds
    assert middle["flops_step"] <= 3 * 2 * (multiply_adds + 2 * 4 * 16)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: method((0, -1, 2)), "^number: expected a finite number >= 0"),
        (lambda: dynamicfl(MODEL.axes, (1,), families=("2x2",)), "^families: "),
        (lambda: method(structure="fix"), "^structure: .*fixed"),
        (lambda: method(sensitivity="norm"), "^sensitivity: "),
        (lambda: method(moved=1.5), "^moved: "),
        (
            lambda: dynamicfl(MODEL.axes, (1,), families=("1x1",)).memory.init(
                fakes.drawn(MODEL, DATA.x[:1])
            ),
            "^families: .* a family that fits one of hidden0, hidden1",
        ),
        (
            lambda: mixed(
                MODEL.axes, (0.5, 1.0), kinds=(), cut=(), blocks=(), number=(1, 1)
            ),
            "^number: expected 0 for tier 0",
        ),
        (
            lambda: mixed(
                MODEL.axes, (0.5, 1.0), kinds=(), cut=(), blocks=(), number=(1,)
            ),
            "^number: expected 2 values, one per tier",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises(require.InputError, match=words):
        build()
