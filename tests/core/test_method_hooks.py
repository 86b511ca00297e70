"""Every seam of a round, each proven by one small method or rule that hangs on it.

None of these is a published method. If one of them needed a change in the round or the
client, the seam would be in the wrong place.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import aggregate, layout, losses, round, simplex
from fairjax.core import axes as unit_axes
from fairjax.core.method import ClientMemory, Method, Reparameterisation, ServerStep
from fairjax.core.protocols import Protection
from fairjax.core.rule import Rule
from fairjax.core.types import Axes, LeafAxes, Model, Outputs, Submodel, Units
from fairjax.fairness import weights
from fairjax.submodels.fedavg import fedavg
from tests import fakes

EVERYTHING = Method(submodel=lambda key, round, params, member: Submodel())


def jitted(spec, laid=None):
    laid = laid or layout.vmapped()
    return jax.jit(functools.partial(round.step, spec=spec, layout=laid))


def run(spec, cohorts, data=None, laid=None):
    """(states before and after every round, infos)."""
    data = fakes.federation() if data is None else data
    step, states, infos = jitted(spec, laid), [fakes.start(spec, data)], []
    for cohort in cohorts:
        state, info = step(states[-1], data, cohort)
        states.append(state)
        infos.append(info)
    return states, infos


def alone(spec, client):
    """What one round of one client changes."""
    states, _ = run(spec, [fakes.cohort((client,), (0,))])
    return jax.tree.map(jnp.subtract, states[1].params, states[0].params)


@functools.cache
def plainly():
    """What one round of each client alone changes under FedAvg, [N] trees."""
    spec, data = fakes.spec(), fakes.federation()
    step, start = jitted(spec), fakes.start(spec, data)
    ends = [step(start, data, fakes.cohort((k,), (0,)))[0] for k in range(4)]
    return [jax.tree.map(jnp.subtract, end.params, start.params) for end in ends]


# -------------------------------------------------------------- a mask drawn per client


def drawn_per_client(axes, share=0.5) -> Method:
    """Every client keeps a random half of the first layer's units, anew every round."""

    def units(key, round, params, member):
        draw = jax.random.uniform(
            jax.random.fold_in(key, member.client), (axes.units["hidden0"],)
        )
        kept = draw <= jnp.sort(draw)[int(share * draw.shape[0]) - 1]
        return Submodel(Units({"hidden0": kept}, {}))

    return Method(submodel=units)


def test_a_mask_drawn_per_client():
    model = fakes.small_mlp()
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    spec = fakes.spec(model, drawn_per_client(model.axes), optimizer=decayed)
    changes = [np.asarray(alone(spec, k)["hidden0"]["kernel"]) for k in (0, 1)]
    kernels = [np.any(change != 0, axis=0) for change in changes]
    assert [kernel.sum() for kernel in kernels] == [8, 8]
    assert not np.array_equal(*kernels)
    states, _ = run(spec, [fakes.cohort((0, 1), (0, 0))] * 2)
    weights = [np.asarray(state.params["hidden0"]["kernel"]) for state in states]
    first, second = (
        np.any(new != old, axis=0) for old, new in itertools.pairwise(weights)
    )
    assert np.array_equal(first, kernels[0] | kernels[1])
    assert not np.array_equal(first, second)


# ------------------------------------------------------- a width narrowed in every step


def narrowed(axes, widths) -> Method:
    """Step s runs the first widths[s % 2] units of the first layer (as FjORD may)."""

    def inner(key, step, kept):
        size = jnp.asarray(widths)[step % len(widths)]
        return Submodel(unit_axes.prefix(axes, {"hidden0": size}))

    return EVERYTHING._replace(local=Reparameterisation(per_step=inner))


def test_a_width_narrowed_in_every_step():
    data, model = fakes.federation(), fakes.small_mlp()
    widths = (4, 12)
    spec = fakes.spec(model, narrowed(model.axes, widths), batch_size=32, epochs=2)
    params = first = fakes.start(spec, data).params
    for width in widths:

        def loss(p, width=width):
            mask = unit_axes.masks(
                p, model.axes, unit_axes.prefix(model.axes, {"hidden0": width})
            )
            logits = model.apply(
                jax.tree.map(jnp.multiply, p, mask), data.x[:10]
            ).logits
            return losses.cross_entropy(logits, data.y[:10]).mean()

        grads = jax.jit(jax.grad(loss))(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    expected = jax.tree.map(jnp.subtract, params, first)
    delta = alone(spec, 0)
    assert fakes.gap(delta, expected) < 1e-6
    assert not np.any(delta["hidden0"]["kernel"][:, 12:])
    assert np.any(delta["hidden0"]["kernel"][:, 4:12])


# ------------------------------------------------------- what the optimiser is given


def test_what_the_optimiser_is_given():
    """The gradient as the method turns it: twice of it is twice the learning rate."""

    def optimizer(own, local):
        return optax.chain(optax.scale(2.0), own)

    rule = EVERYTHING._replace(local=Reparameterisation(optimizer=optimizer))
    spec = fakes.spec(method=rule, optimizer=optax.sgd(0.05))
    assert fakes.gap(alone(spec, 1), plainly()[1]) < 1e-7


# ---------------------------------------------------------------------------- two exits


def two_exits() -> Model:
    """A network with a head after each of its two layers, in bare functions."""

    def init(key, x):
        shapes = {"first": (6, 8), "early": (8, 3), "second": (8, 8), "late": (8, 3)}
        return {
            name: 0.5 * jax.random.normal(jax.random.fold_in(key, i), shape)
            for i, (name, shape) in enumerate(shapes.items())
        }

    def apply(
        params, x, *, train=False, key=None, where=None, stats=None, submodel=None
    ):
        h = jnp.tanh(x @ params["first"])
        early = h @ params["early"]
        late = (h + jnp.tanh(h @ params["second"])) @ params["late"]
        return Outputs(late, (early, late))

    whole = LeafAxes((None, None))
    tree = {"first": whole, "early": whole, "late": whole}
    tree["second"] = LeafAxes((None, None), ("stage", 0))
    return Model(init, apply, Axes(tree, {}, {"stage": 1}))


def depth() -> Method:
    """Tier 0 stops at the early exit, others train both; exits share the loss."""

    def units(key, round, params, member):
        return Submodel(Units({}, {"stage": (member.tier > 0)[None]}))

    def objective(outputs_at, batch, key, context):
        early, late = outputs_at(None).exits
        deep = context.client.tier > 0
        each = losses.cross_entropy(early, batch.y)
        each = each + jnp.where(deep, losses.cross_entropy(late, batch.y), 0.0)
        return losses.mean(each, batch.where), {"deep": deep.astype(jnp.float32)}

    return Method(submodel=units, objective=objective)


def test_two_exits_and_a_block_that_only_richer_tiers_hold():
    spec = fakes.spec(two_exits(), depth())
    (before, after), (info,) = run(spec, [fakes.cohort(tiers=(0, 0, 0, 0))])
    still = {
        name: fakes.equal(after.params[name], leaf)
        for name, leaf in before.params.items()
    }
    assert still == {"first": False, "early": False, "second": True, "late": True}
    (before, after), (info,) = run(spec, [fakes.cohort(tiers=(0, 1, 0, 1))])
    assert not any(
        fakes.equal(after.params[name], leaf) for name, leaf in before.params.items()
    )
    assert info.clients.extra["deep"].tolist() == [0, 1, 0, 1]


# ------------------------------------------------- per-client state carried over rounds


def remembers() -> Method:
    """Counts a client's steps and adds up its changes, as SCAFFOLD or FedDyn would."""
    memory = ClientMemory(
        init=lambda params: {
            "steps": jnp.zeros((), jnp.int32),
            "moved": jax.tree.map(jnp.zeros_like, params),
        },
        observe=lambda memory, local, grads, context: {
            **memory,
            "steps": memory["steps"] + 1,
        },
        close=lambda memory, delta, context: {
            **memory,
            "moved": jax.tree.map(jnp.add, memory["moved"], delta),
        },
    )
    return EVERYTHING._replace(memory=memory)


@pytest.mark.parametrize("laid", [layout.vmapped(), layout.chunked(2)])
def test_state_of_a_client_is_carried_over_rounds(laid):
    cohorts = [
        fakes.cohort((0, 2, 1), (0, 0, 0), (True, True, False)),
        fakes.cohort((2, 3, 2), (0, 0, 0), (True, True, False)),
    ]
    states, _ = run(fakes.spec(method=remembers()), cohorts, laid=laid)
    per_epoch = [3, 2, 6, 2]
    expected = [2 * per_epoch[0], 0, 4 * per_epoch[2], 2 * per_epoch[3]]
    assert states[2].memory["steps"].tolist() == expected
    moved = states[2].memory["moved"]["head"]["bias"]
    assert not np.any(moved[1])
    total = states[2].params["head"]["bias"] - states[0].params["head"]["bias"]
    first = (10 * states[1].memory["moved"]["head"]["bias"][0]) / 33
    first = first + 23 * states[1].memory["moved"]["head"]["bias"][2] / 33
    second = 23 * (moved[2] - states[1].memory["moved"]["head"]["bias"][2]) / 28
    second = second + 5 * moved[3] / 28
    np.testing.assert_allclose(total, first + second, atol=1e-6)


# --------------------------------------------------------- a reparameterised local tree


def in_two_halves() -> Method:
    """Trains w = a + b with both halves free: SGD then moves w at twice the rate."""

    def enter(key, params, kept, memory, forward, update):
        half = jax.tree.map(lambda leaf: 0.5 * leaf, params)
        return {"a": half, "b": half}, {"a": update, "b": update}

    def effective(local):
        return jax.tree.map(jnp.add, local["a"], local["b"])

    def leave(before, after, update):
        change = jax.tree.map(jnp.subtract, effective(after), effective(before))
        return jax.tree.map(lambda d, m: d * m, change, update), update

    return EVERYTHING._replace(local=Reparameterisation(enter, effective, leave))


def test_a_reparameterised_local_tree():
    halves = alone(fakes.spec(method=in_two_halves(), optimizer=optax.sgd(0.05)), 1)
    assert fakes.gap(halves, plainly()[1]) < 1e-6
    assert fakes.gap(halves, jax.tree.map(jnp.zeros_like, halves)) > 1e-2


# ---------------------------------------------------------------------------- the rules


def worst_only() -> Rule:
    """All weight on the client with the highest loss at the incoming model."""

    def weigh(state, cohort, scores):
        loss = jnp.where(cohort.valid, scores.loss, -jnp.inf)
        return jax.nn.one_hot(jnp.argmax(loss), loss.shape[0]), state

    return Rule(weigh, frozenset({"losses"}), "losses")


def test_a_rule_that_needs_losses_first():
    spec = fakes.spec(rule=worst_only())
    states, (info,) = run(spec, [fakes.cohort()])
    data, params = fakes.federation(), states[0].params
    each = losses.cross_entropy(spec.local.model.apply(params, data.x).logits, data.y)
    means = [
        each[o : o + n].mean() for o, n in zip(data.offset, data.count, strict=True)
    ]
    np.testing.assert_allclose(info.incoming_losses, means, rtol=1e-5)
    worst = int(np.argmax(means))
    moved = jax.tree.map(jnp.subtract, states[1].params, params)
    assert fakes.gap(moved, plainly()[worst]) < 1e-6
    assert int(np.argmax(info.weights)) == worst


def median() -> Rule:
    """Coordinate-wise median over the cohort: no weighted sum gives it."""

    def combine(state, cohort, scores, weights):
        middle = jax.tree.map(lambda leaf: jnp.median(leaf, axis=0), scores.delta)
        return middle, jax.tree.map(jnp.ones_like, middle), state

    return Rule(reads=frozenset({"updates"}), combine=combine)


@pytest.mark.parametrize("laid", [layout.vmapped(), layout.scanned()])
def test_a_rule_that_needs_the_stack(laid):
    states, _ = run(fakes.spec(rule=median()), [fakes.cohort()], laid=laid)
    moved = jax.tree.map(jnp.subtract, states[1].params, states[0].params)
    expected = jax.tree.map(
        lambda *leaves: jnp.median(jnp.stack(leaves), 0), *plainly()
    )
    assert fakes.gap(moved, expected) < 1e-6


def by_length() -> Rule:
    """Weights in proportion to the length of the change, smoothed over rounds."""

    def weigh(state, cohort, scores):
        length = jax.vmap(optax.tree.norm)(scores.delta)
        share = simplex.softmax(jnp.log(length), cohort.valid)
        state = state.at[cohort.client].add(share)
        return share, state

    return Rule(
        weigh,
        frozenset({"updates"}),
        "updates",
        init=lambda params, facts: jnp.zeros(len(facts.count)),
    )


def test_a_rule_whose_weights_depend_on_the_changes_and_that_keeps_state():
    states, infos = run(fakes.spec(rule=by_length()), [fakes.cohort()] * 2)
    lengths = np.array([optax.tree.norm(change) for change in plainly()])
    np.testing.assert_allclose(infos[0].weights, lengths / lengths.sum(), rtol=1e-4)
    np.testing.assert_allclose(
        states[2].rule, infos[0].weights + infos[1].weights, rtol=1e-6
    )


def test_a_rule_that_changes_the_objective():
    """Twice the loss is twice the step."""

    def wrap(objective):
        def doubled(outputs_at, batch, key, context):
            loss, info = objective(outputs_at, batch, key, context)
            return 2 * loss, info

        return doubled

    doubled = fakes.spec(rule=weights.size()._replace(wrap=wrap))
    faster = fakes.spec(optimizer=optax.sgd(0.2))
    assert fakes.gap(alone(doubled, 0), alone(faster, 0)) < 1e-6


# ------------------------------------------------------------- release, finish, private


def noisy(spec, scale=0.1):
    """Gaussian noise on the summed changes, as a private release would add."""

    def release(key, state, cohort, valid, sums, public):
        leaves, structure = jax.tree.flatten(sums.num)
        noise = [
            scale * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
            for i, leaf in enumerate(leaves)
        ]
        noise = jax.tree.unflatten(structure, noise)
        return sums._replace(num=jax.tree.map(jnp.add, sums.num, noise)), state

    protection = Protection(aggregate.OPEN.protect, release)
    return dataclasses.replace(spec, protection=protection)


def test_a_release_that_adds_noise():
    cohorts = [fakes.cohort()] * 2
    quiet, _ = run(fakes.spec(optimizer=optax.sgd(0.0)), cohorts)
    loud, _ = run(noisy(fakes.spec(optimizer=optax.sgd(0.0))), cohorts)
    again, _ = run(noisy(fakes.spec(optimizer=optax.sgd(0.0))), cohorts)
    assert fakes.equal(quiet[2].params, quiet[0].params)
    assert fakes.equal(loud[2].params, again[2].params)
    noise = [
        np.concatenate(
            [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)]
        )
        for pair in [
            (loud[1].params, loud[0].params),
            (loud[2].params, loud[1].params),
        ]
    ]
    for draw in noise:
        assert abs(np.std(draw) - 0.1) < 0.02
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.2


def test_a_method_that_finishes_the_round_itself():
    def finish(server, opt_state, params, num, den):
        half = jax.tree.map(lambda leaf: 0.5 * leaf, aggregate.masked_mean(num, den))
        return jax.tree.map(jnp.add, params, half), opt_state

    halved = fakes.spec(method=EVERYTHING._replace(server=ServerStep(finish)))
    whole = jax.tree.map(lambda leaf: 0.5 * leaf, plainly()[2])
    assert fakes.gap(alone(halved, 2), whole) < 1e-6


def keeps_private() -> Method:
    """The head stays with its tier, the last hidden bias with its client."""

    def private(params):
        scopes = jax.tree.map(lambda leaf: "shared", params)
        scopes["head"] = {"kernel": "tier", "bias": "tier"}
        scopes["hidden1"]["bias"] = "client"
        return scopes

    return EVERYTHING._replace(scopes=private)


def test_leaves_that_stay_with_their_tier_or_client():
    cohorts = [fakes.cohort((0, 1, 2), (0, 1, 1))] * 2
    states, _ = run(fakes.spec(method=keeps_private()), cohorts)
    start, end = states[0], states[2]
    assert fakes.equal(end.params["head"], start.params["head"])
    assert fakes.equal(end.params["hidden1"]["bias"], start.params["hidden1"]["bias"])
    assert not fakes.equal(end.params["hidden0"], start.params["hidden0"])
    heads = end.leaf_copies["tier"]["head/kernel"]
    assert not fakes.equal(heads[0], heads[1])
    assert fakes.equal(heads[2], start.params["head"]["kernel"])
    own = end.leaf_copies["client"]["hidden1/bias"]
    assert fakes.equal(own[3], start.params["hidden1"]["bias"])
    assert not fakes.equal(own[1], own[2])


def test_a_private_head_is_trained_on_its_own_tier_alone():
    """With everything private to the tier, two tiers are two federations."""
    everything = EVERYTHING._replace(
        scopes=lambda params: jax.tree.map(lambda leaf: "tier", params)
    )
    states, _ = run(
        fakes.spec(method=everything), [fakes.cohort((0, 1, 2, 3), (0, 0, 1, 1))]
    )
    for tier, members in enumerate([(0, 1), (2, 3)]):
        apart, _ = run(fakes.spec(), [fakes.cohort(members, (0, 0))])
        expected = apart[1].params["hidden0"]["kernel"]
        got = states[1].leaf_copies["tier"]["hidden0/kernel"][tier]
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_method_of_nothing_but_units_is_fedavg():
    states, _ = run(fakes.spec(method=EVERYTHING), [fakes.cohort()])
    model = fakes.small_mlp()
    same, _ = run(fakes.spec(model, fedavg(model.axes)), [fakes.cohort()])
    assert fakes.equal(states[1].params, same[1].params)


def test_client_objective_reaches_the_model_at_another_sub_model():
    """Distillation between widths needs the same batch at two sub-models."""
    model = fakes.small_mlp()
    narrow = Submodel(unit_axes.prefix(model.axes, {"hidden0": 4}))

    def objective(outputs_at, batch, key, context):
        wide, small = outputs_at(None).logits, outputs_at(narrow).logits
        gap = losses.mean(jnp.sum((wide - small) ** 2, axis=1), batch.where)
        return gap, {"gap": gap}

    method = EVERYTHING._replace(objective=objective)
    _, (info,) = run(fakes.spec(model, method, batch_size=32), [fakes.cohort()])
    assert np.all(np.asarray(info.clients.extra["gap"]) > 0)
    np.testing.assert_allclose(info.clients.extra["gap"], info.clients.loss, rtol=1e-6)
