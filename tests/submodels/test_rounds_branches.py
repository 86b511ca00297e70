"""DynamicFL in NumPy: its equations 14 to 16, and two federated rounds.

fairjax draws the random branches; everything else is computed by hand.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.core import rng
from fairjax.core.rng import Role
from fairjax.evaluation import personalised
from fairjax.models import mlp
from fairjax.submodels import branches, families
from fairjax.submodels.branches import Form
from fairjax.submodels.dynamicfl import dynamicfl
from tests.submodels import by_hand
from tests.submodels.by_hand import each, gap, leaves, plain
from tests.submodels.rounds import (
    CLASSES,
    TIERS,
    TIGHT,
    drawn,
    federated,
    member,
    records,
    wide,
)

RATE, MOVED, STEPS = 0.05, 0.5, 3
FAMILIES, NUMBER = ("linear", "lowrank", "linear"), (0, 1, 2)
LAYERS = ("hidden0", "hidden1")
MODEL = mlp(classes=CLASSES, hidden=(5, 4))


# ---------------------------------------------------------------------------- equations


def convolved(x, kernel, around=0.0):
    """A K x K convolution of one image [H, W, I], padded with `around`, by its sum."""
    size = len(kernel)
    padded = np.full((len(x) + size - 1, x.shape[1] + size - 1, x.shape[2]), around)
    lead = (size - 1) // 2
    padded[lead : lead + len(x), lead : lead + x.shape[1]] = x
    y = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for row, column in np.ndindex(y.shape[:2]):
        window = padded[row : row + size, column : column + size]
        y[row, column] = np.einsum("uvi,uvio->o", window, kernel)
    return y


def beside(family, psi, x, size=3):
    """The output of a branch, run as its own operations."""
    middle = slice((size - 1) // 2, (size - 1) // 2 + 1)
    channels = x.shape[2], len(psi["bias"])
    square = np.zeros((size, size, *channels))
    if family == "1x1":
        return x @ psi["kernel"][0, 0] + psi["bias"]
    if family == "1xK":
        square[middle] = psi["kernel"]
        return convolved(x, square) + psi["bias"]
    if family == "Kx1":
        square[:, middle] = psi["kernel"]
        return convolved(x, square) + psi["bias"]
    if family == "KxK":
        return convolved(x, psi["kernel"]) + psi["bias"]
    if family == "scale":
        return x * psi["scale"] + psi["bias"]
    if family == "1x1-avg":
        pool = np.ones((size, size, 1, 1)) * np.eye(channels[0]) / size**2
        return convolved(x, pool) @ psi["kernel"][0, 0] + psi["bias"]
    between = x @ psi["first"][0, 0] + psi["between"]
    return convolved(between, psi["second"], psi["between"]) + psi["bias"]


@wide
def test_equation_16_branches_side_by_side_are_one_kernel():
    """I * F1 + I * F2 = I * (F1 + F2) for branches of any size: every family runs by
    itself beside the base, and as one convolution with the sum."""
    rng, shape = np.random.default_rng(0), (3, 3, 2, 2)
    x = rng.normal(size=(5, 4, 2))
    base = {"kernel": rng.normal(size=shape), "bias": rng.normal(size=2)}
    psi = {
        f"{i}_{family}": {
            name: rng.normal(size=part)
            for name, part in families.shapes(family, shape, bias=True).items()
        }
        for i, family in enumerate(families.CONV)
    }
    local = {
        "base": {"conv": each(jnp.asarray, base)},
        "branches": {"conv": each(jnp.asarray, psi)},
        "alive": {"conv": jnp.ones(len(psi))},
    }
    one = plain(jax.jit(branches.effective)(local))["conv"]
    by_sum = convolved(x, base["kernel"]) + base["bias"]
    for slot, values in psi.items():
        by_sum = by_sum + beside(slot.partition("_")[2], values, x)
    together = convolved(x, one["kernel"]) + one["bias"]
    assert np.abs(together - by_sum).max() < TIGHT


def tau(slot, psi):
    """The kernel and bias of a branch beside a matrix."""
    if slot.endswith("linear"):
        return psi["kernel"], psi["bias"]
    return psi["first"] @ psi["second"], psi["between"] @ psi["second"] + psi["bias"]


def total(local):
    """The plain parameters that base and branches sum to."""
    found = {name: dict(layer) for name, layer in local["base"].items()}
    for layer, slots in local["branches"].items():
        for slot, psi in slots.items():
            kernel, bias = tau(slot, psi)
            found[layer]["kernel"] = found[layer]["kernel"] + kernel
            found[layer]["bias"] = found[layer]["bias"] + bias
    return found


@wide
def test_equations_14_and_15_what_is_merged_and_what_is_born():
    """(14) common absorbs redundant, psi_c + psi_r; (15) born branches are subtracted,
    psi_i - (psi^1 + .. + psi^n); so the sum does not change."""
    params, form = each(jnp.asarray, drawn(MODEL)), Form(FAMILIES, rank=2)
    before = jnp.asarray([[1.0, 1, 0], [1, 0, 0]])
    after = jnp.asarray([[0.0, 1, 0], [1, 1, 1]])
    options = {"layers": LAYERS, "form": form}
    local = branches.expand(jax.random.key(0), params, before, **options)
    old, new = (
        plain({name: tree[name] for name in ("base", "branches")})
        for tree in (
            local,
            branches.regroup(jax.random.key(1), local, after, **options),
        )
    )
    for row, layer in enumerate(LAYERS):
        expected = {name: leaf.copy() for name, leaf in old["base"][layer].items()}
        for slot, psi in new["branches"][layer].items():
            column = int(slot[0])
            was, now = before[row, column] > 0, after[row, column] > 0
            known = old["branches"][layer].get(slot)
            for sign, changed, values in (
                (1, was & ~now, known),
                (-1, now & ~was, psi),
            ):
                if changed:
                    kernel, bias = tau(slot, values)
                    expected["kernel"] += sign * kernel
                    expected["bias"] += sign * bias
            if was and now:
                assert gap(psi, known) == 0
        assert gap(new["base"][layer], expected) < TIGHT
    assert gap(total(new), total(old)) < TIGHT
    assert gap(params, total(old)) < TIGHT


# ------------------------------------------------------------------------------- rounds


def planned(sensitivity, alive, number):
    """The next structure: redundant branches are the least sensitive, the important
    layer has the most sensitive staying branch; without a past, bottom to top."""
    slots = list(np.ndindex(alive.shape))
    present = sorted((s for s in slots if alive[s]), key=lambda s: -sensitivity[s])
    wanted = min(number, len(slots))
    carried = min(len(present), wanted)
    room = len(slots) - len(present) - (wanted - carried)
    stay = present[: carried - min(math.floor(MOVED * carried), room)]

    def importance(layer):
        return max((sensitivity[s] for s in stay if s[0] == layer), default=-math.inf)

    free = sorted(
        (s for s in slots if not alive[s]), key=lambda s: (-importance(s[0]), s)
    )
    following = np.zeros(alive.shape)
    for slot in stay + free[: wanted - len(stay)]:
        following[slot] = 1
    return following


@wide
def test_two_rounds():
    """Every client trains base and branches.

    The base gives up the drawn branches (15), the client sends the change of the sum
    (16), and plans its next branches by mean |gradient * value| over its last epoch.
    """
    params = drawn(MODEL)
    method = dynamicfl(MODEL.axes, NUMBER, families=FAMILIES, rank=2, moved=MOVED)
    spec, states = federated(
        MODEL, method, params, steps=STEPS, optimizer=optax.sgd(RATE), rounds=(0, 1)
    )

    @jax.jit
    def begin(state, who, key):
        received, memory, kept = personalised.round_inputs(state, who, spec=spec)
        whole = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim), received)
        return method.local.to_local(key, received, kept, memory, whole, whole)[0]

    table = (len(LAYERS), len(FAMILIES))
    past = [(np.zeros(table), np.zeros(table)) for _ in TIERS]
    now, structures = params, []
    for number, (before, got) in enumerate(states):
        changes = []
        for who, (x, y) in enumerate(records()):
            alive = planned(*past[who], NUMBER[TIERS[who]] * len(LAYERS))
            structures.append(alive)
            key = rng.fold_in(before.key, Role.LOCAL, number, who)
            born = begin(before, member(who), rng.fold_in(key, 0))
            psi = {
                layer: {
                    slot: plain(values)
                    for slot, values in born["branches"][layer].items()
                    if alive[row, int(slot[0])]
                }
                for row, layer in enumerate(LAYERS)
            }
            # Exactly the drawn branches are alive.
            for row, layer in enumerate(LAYERS):
                assert np.array_equal(born["alive"][layer], alive[row])
            off = total({"base": each(np.zeros_like, now), "branches": psi})
            local = {"base": each(np.subtract, now, off), "branches": psi}

            def loss(tree, x=x, y=y):
                return by_hand.cross_entropy(by_hand.perceptron(total(tree), x), y)

            sensitivity = np.zeros(table)
            for _ in range(STEPS):
                slope = by_hand.gradient(loss, local)
                # A step is an epoch here, so that only the last step counts.
                for row, layer in enumerate(LAYERS):
                    for slot, values in local["branches"][layer].items():
                        parts = zip(
                            leaves(slope["branches"][layer][slot]),
                            leaves(values),
                            strict=True,
                        )
                        value = sum(np.abs(g * v).sum() for g, v in parts)
                        sensitivity[row, int(slot[0])] = value
                local = each(lambda w, g: w - RATE * g, local, slope)
            past[who] = sensitivity, alive
            changes.append(each(np.subtract, total(local), now))
        now = each(lambda w, *d: w + sum(d) / len(d), now, *changes)
        assert gap(got.params, now) < TIGHT
        for who, (sensitivity, alive) in enumerate(past):
            assert np.abs(got.memory["sensitivity"][who] - sensitivity).max() < TIGHT
            assert np.array_equal(got.memory["alive"][who], alive)
    # Some client's branches moved, and budgets did not change.
    moved = [
        np.any(a != b) for a, b in zip(structures[:4], structures[4:], strict=True)
    ]
    assert moved == [False, True, True, True]
