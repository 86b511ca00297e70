"""Preconditioned training equals training with branches, wherever that is allowed."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.submodels import dynamicfl as config
from fairjax.core import client, layout, objectives, require, round
from fairjax.core.types import ClientData, Submodel
from fairjax.experiment.config import validate
from fairjax.models import two_conv
from fairjax.submodels import cost, families
from fairjax.submodels.dynamicfl import dynamicfl
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.mixed import mixed
from tests import fakes

# A convolution and a matrix that have branches, and one of each that do not.
MODEL = two_conv(classes=3, channels=(4, 4), hidden=(5, 5), lowering="xla")
LAYERS, SKIP = ("conv1", "hidden1"), ("conv0", "hidden0")
FAMILIES = families.ONE_MAP
FORMS = ("collapsed", "preconditioned")
COUNT, EPOCHS, STEPS = 9, 10, 30


class Case(NamedTuple):
    """The alive branches of either layer, and what transforms the gradient."""

    conv: tuple[str, ...] = ()
    matrix: tuple[str, ...] = ()
    rate: float = 0.05
    momentum: float = 0.0
    decay: float = 0.0
    prox: float = 0.0

    def alive(self):
        rows = [[float(name in row) for name in FAMILIES] for row in self[:2]]
        # Otherwise `plan` would have to create or merge branches.
        assert np.sum(rows) % len(LAYERS) == 0
        return rows


EVERY = set(FAMILIES) - {"linear"}, {"linear", "scale"}
CASES = {
    "1x1": Case(("1x1",), ("linear",)),
    "1x1-avg": Case(("1x1-avg",), ("linear",)),
    "1xK": Case(("1xK",), ("linear",)),
    "Kx1": Case(("Kx1",), ("linear",)),
    "KxK": Case(("KxK",), ("linear",)),
    "scale": Case(("scale",), ("scale",)),
    "matrix alone": Case((), ("linear", "scale")),
    "all": Case(*EVERY, rate=0.02),
    "momentum": Case(*EVERY, rate=0.01, momentum=0.9),
    "decay": Case(("1x1", "Kx1"), ("linear", "scale"), decay=0.3),
    "both": Case(("1xK", "Kx1"), ("linear", "scale"), 0.01, 0.9, 0.3),
    "prox": Case(("1x1-avg", "1xK"), ("linear", "scale"), 0.02, 0.5, 0.0, 2.0),
    "none": Case(),
    "still": Case(*EVERY, rate=0.0),
}


@functools.cache
def trained(dtype):
    """Thirty steps of one client, {form: (change, memory)} with a row per case.

    "fedavg" is the method without branches; "adam" has both forms under Adam.
    """
    x64 = dtype is np.float64
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("standard"):
        data = fakes.federation((6, 6, 1), counts=(COUNT,), dtype=dtype)
        params = fakes.drawn(MODEL, data.x[:1], dtype)
        options = {"sensitivity": "gradient", "moved": 0.0, "skip": SKIP}
        options["families"] = FAMILIES
        rules = {
            form: dynamicfl(MODEL.axes, (4,), branch_form=form, **options)
            for form in FORMS
        }
        rules["fedavg"] = fedavg(MODEL.axes)

        def run(form, optimizer, alive, prox):
            objective = objectives.proximal(objectives.mean_cross_entropy(), prox)
            spec = fakes.spec(
                MODEL,
                rules[form],
                objective=objective,
                optimizer=optimizer,
                counts=(COUNT,),
                epochs=EPOCHS,
            )
            assert spec.local.schedule.steps == STEPS
            change, _, memory, _ = client.update(
                jax.random.key(5),
                params,
                {"alive": alive, "sensitivity": jnp.zeros_like(alive)},
                Submodel(extra=(jnp.sum(alive) / len(LAYERS)).astype(jnp.int32)),
                ClientData(data.x, data.y, data.offset[0], data.count[0]),
                client=fakes.member(0, 0, data),
                round=jnp.asarray(0),
                local=spec.local,
            )
            return change, memory

        def case(given):
            alive, rate, momentum, decay, prox = given
            decayed = optax.add_decayed_weights(decay)
            optimizer = optax.chain(decayed, optax.sgd(rate, momentum))
            return {form: run(form, optimizer, alive, prox) for form in rules}

        @jax.jit
        def every(alive, *numbers):
            made = jax.lax.map(case, (alive, *numbers))
            if x64:
                adam = functools.partial(run, optimizer=optax.adam(0.01), prox=0.0)
                made["adam"] = [adam(form, alive=alive[0]) for form in FORMS]
            return made

        alive = np.asarray([case.alive() for case in CASES.values()], dtype)
        numbers = np.asarray([case[2:] for case in CASES.values()], dtype).T
        return jax.device_get(every(alive, *numbers))


def of(dtype, form, name):
    """(change, memory) of a case."""
    row = list(CASES).index(name)
    return jax.tree.map(lambda leaf: leaf[row], trained(dtype)[form])


def size(change):
    return fakes.gap(change, jax.tree.map(np.zeros_like, change))


# ------------------------------------------------------------------------- as collapsed


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"none", "still"}))
def test_thirty_steps_are_those_of_branches(name):
    """In float64 within 1e-13 of a layer's change, in float32 within rounding."""
    theirs, past = of(np.float64, "collapsed", name)
    ours, memory = of(np.float64, "preconditioned", name)
    for layer, change in theirs.items():
        assert size(change) > 0.02
        assert fakes.gap(ours[layer], change) < 1e-13 * size(change)
    # The plain model without branches trains to other values.
    assert fakes.gap(ours, of(np.float64, "fedavg", name)[0]) > 0.05
    alive = np.asarray(CASES[name].alive())
    assert np.array_equal(memory["alive"], alive)
    scores, expected = (alive * each["sensitivity"] for each in (memory, past))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert np.all(scores[alive > 0] > 0)
    assert fakes.gap(*(of(np.float32, form, name)[0] for form in FORMS)) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_changes_nothing_changes_no_bit(dtype):
    """A learning rate of 0, and slots without an alive branch."""
    assert size(of(dtype, "preconditioned", "still")[0]) == 0
    ours, plain = (of(dtype, form, "none")[0] for form in ("preconditioned", "fedavg"))
    assert size(ours) > 0.1
    assert fakes.equal(ours, plain)


def test_under_adam_it_is_another_method():
    ours, theirs = (change for change, _ in trained(np.float64)["adam"])
    assert fakes.gap(ours, theirs) > 0.1 * size(theirs)


@pytest.mark.slow
def test_a_federation_is_the_same():
    """Two rounds of mixed tiers, masked and sliced: below the plain model, plain,
    above."""
    model, data = fakes.small_mlp((8,)), fakes.federation()
    optimizer = optax.sgd(0.05, momentum=0.9)

    def after(form, laid):
        rule = mixed(
            model.axes,
            (0.5, 1.0, 1.0),
            kinds=("width", "plain", "plain"),
            cut=(),
            blocks=(),
            number=(0, 0, 2),
            families=("linear",) * 3,
            branch_form=form,
            sensitivity="gradient",
            moved=0.5,
        )
        spec = fakes.spec(model, rule, epochs=1, optimizer=optimizer)
        step = jax.jit(functools.partial(round.step, spec=spec, layout=laid))
        first = state = fakes.start(spec, data)
        for _ in range(2):
            state, _ = step(state, data, fakes.cohort(tiers=(0, 1, 2, 2)))
        assert fakes.gap(state.params, first.params) > 0.1
        alive = state.memory["alive"]
        return state.params, alive, alive * state.memory["sensitivity"]

    masked = layout.vmapped()
    params, alive, scores = after("collapsed", masked)
    assert alive.sum((1, 2)).tolist() == [0, 0, 2, 2]
    # The least sensitive branch has moved.
    assert np.all(alive[2:, 0, 2] == 1)
    for laid in (masked, layout.sliced(masked, (1, 1, 2))):
        ours = after("preconditioned", laid)
        assert fakes.gap(ours[0], params) < 2e-6
        assert fakes.equal(ours[1], alive)
        np.testing.assert_allclose(ours[2], scores, rtol=1e-4)


# --------------------------------------------------------------------- for free, or not


def test_nothing_is_drawn_and_the_bill_is_that_of_the_plain_model():
    data = fakes.federation((6, 6, 1))
    params, member = fakes.drawn(MODEL, data.x[:1]), fakes.member(0, 0, data)
    options = {"families": FAMILIES, "sensitivity": "gradient"}
    rule = dynamicfl(MODEL.axes, (2,), branch_form="preconditioned", **options)

    def bill(rule):
        kept = rule.submodel(jax.random.key(0), jnp.asarray(0), params, member)
        return cost.client_cost(
            MODEL,
            rule,
            objectives.mean_cross_entropy(),
            optax.sgd(0.1, momentum=0.9),
            params,
            kept,
            member,
            x=data.x[:1],
        )

    assert bill(rule) == bill(fedavg(MODEL.axes))
    whole = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim), params)
    kept, memory = Submodel(extra=jnp.asarray(2)), rule.memory.init(params)
    one, other = (
        rule.local.to_local(jax.random.key(i), params, kept, memory, whole, whole)[0]
        for i in range(2)
    )
    assert jax.tree.structure(one["base"]) == jax.tree.structure(params)
    assert one["branches"] == {}
    assert fakes.equal(one, other)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("local.optimizer", "adam", "local.optimizer: expected sgd with submodel"),
        (
            "local.max_grad_norm",
            1.0,
            "local.max_grad_norm: expected 0 with submodel.dynamicfl",
        ),
        ("privacy.mechanism", "record_dp", "expected another than record_dp with"),
        ("submodel.dynamicfl.families", ("1x1", "lowrank"), "got 'lowrank'"),
        ("submodel.dynamicfl.families", ("1x1-KxK",), "linear in their parameters"),
        ("submodel.dynamicfl.sensitivity", "product", "expected gradient with branch"),
        ("submodel.dynamicfl.sensitivity", "signed", "or structure random or fixed"),
    ],
)
def test_what_is_not_the_same_is_refused(field, value, words):
    c = config.get_config("preconditioned")
    c.local.momentum = 0.0
    c.privacy.noise_multiplier = 1.0 if field == "privacy.mechanism" else None
    c.update_from_flattened_dict({field: value})
    with pytest.raises(require.InputError, match=words):
        validate.check(c)
    c.submodel.dynamicfl.branch_form = "matched"
    validate.check(c)


def test_what_is_the_same_is_not_refused():
    c = config.get_config("preconditioned")
    validate.check(c)
    c.local.momentum, c.local.weight_decay, c.local.fedprox_mu = 0.9, 0.01, 0.1
    c.local.schedule = "cosine"
    for structure in ("random", "fixed"):
        c.submodel.dynamicfl.structure = structure
        c.submodel.dynamicfl.sensitivity = "product"
        validate.check(c)
    with pytest.raises(require.InputError, match=r"^branch_form: .*conditioned"):
        dynamicfl(MODEL.axes, (1,), branch_form="conditioned")
    with pytest.raises(require.InputError, match=r"^families: .*families linear in"):
        dynamicfl(MODEL.axes, (1,), branch_form="preconditioned")
