"""InclusiveFL: the owners of blocks, and the server's momentum in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import layout, require, round, scopes, trees
from fairjax.core.types import Size
from fairjax.models import resmlp, resnet, vit
from fairjax.submodels.fedavg import fedavg
from fairjax.submodels.inclusivefl import inclusivefl
from tests import fakes
from tests.submodels.residual import agree, residual

MODEL, DATA = residual(hidden=(6, 6, 6, 6)), fakes.federation()
LENGTHS, TIERS, BETA = (1, 3, 4), (0, 1, 2, 1), 0.2


def depths(model=MODEL, stages=LENGTHS, beta=BETA):
    return inclusivefl(model.axes, (1.0,) * len(stages), stages=stages, beta=beta)


def stepper(method, model=MODEL, tiers=3):
    """(the state before the first round, cohort -> the state after it)."""
    spec = fakes.spec(model, method, epochs=1)
    state = fakes.start(spec, DATA, tiers=tiers)
    run = functools.partial(round.step, spec=spec, layout=layout.vmapped())
    step = jax.jit(lambda cohort: run(state, DATA, cohort)[0])
    return state, step


@functools.cache
def federated(beta):
    return stepper(depths(beta=beta))


def named(tree):
    """{path: leaf}, in NumPy."""
    leaves = {}
    trees.map_with_path(
        lambda path, leaf: leaves.update({path: np.asarray(leaf)}), tree
    )
    return leaves


@functools.cache
def alone():
    """The change of every client to its model; a client alone in a round has no
    teacher."""
    state, step = federated(BETA)
    changes = []
    for who, tier in enumerate(TIERS):
        end = step(fakes.cohort(tiers=TIERS, valid=[k == who for k in range(4)]))
        new, old = (received(s, tier) for s in (end, state))
        changes.append({path: new[path] - old[path] for path in new})
    return changes


def received(state, tier):
    """{path: leaf} of the model that a tier receives."""
    member = fakes.member(0, tier)
    return named(scopes.gather(state.leaf_copies, state.params, member))


def mean(path, tiers):
    """The mean change of a leaf over the clients of some tiers, by records."""
    who = [k for k in range(4) if TIERS[k] in tiers]
    weights = [fakes.COUNTS[k] for k in who]
    return np.average([alone()[k][path] for k in who], axis=0, weights=weights)


def block_of(path):
    part = path.partition("/")[0]
    return int(part[-1]) if part[-1].isdigit() else None


@pytest.mark.slow
@pytest.mark.parametrize("beta", [BETA, 0.0])
def test_a_round_by_hand(beta):
    """Blocks 0, 2 and 3 are the last of a tier; tier 2 alone has no teacher."""
    state, step = federated(beta)
    end = step(fakes.cohort(tiers=TIERS))
    shared = named(jax.tree.map(jnp.subtract, end.params, state.params))
    for path, change in shared.items():
        block = block_of(path)
        # Tiers that cover the block and do not end with it.
        by = {t for t in range(3) if block is None or block < LENGTHS[t] - 1}
        expected = mean(path, by) if by else 0
        np.testing.assert_allclose(change, expected, atol=1e-6, err_msg=path)
    seen = set()
    for tier, length in enumerate(LENGTHS):
        got = received(end, tier)
        for path in got:
            if block_of(path) != length - 1:
                continue
            expected = mean(path, {tier})
            if path.startswith("block") and tier < 2:
                rest = path.removeprefix(f"block{length - 1}/")
                teacher = [
                    mean(f"block{b}/{rest}", {tier + 1})
                    for b in range(length - 1, LENGTHS[tier + 1])
                ]
                expected = (1 - beta) * expected + beta * np.mean(teacher, 0)
            change = got[path] - named(state.params)[path]
            np.testing.assert_allclose(change, expected, atol=1e-6, err_msg=path)
            assert np.any(change)
            seen.add(path)
    assert len(seen) == 3 * 8


def test_whoever_does_not_come_neither_teaches_nor_learns():
    """Without clients of tier 1 its copy stays, and tier 0 moves by its own change."""
    state, step = federated(BETA)
    end = step(fakes.cohort(tiers=TIERS, valid=[True, False, True, False]))
    for tier, length in enumerate(LENGTHS):
        new, old = received(end, tier), received(state, tier)
        for path in new:
            if block_of(path) == length - 1:
                expected = 0 if tier == 1 else mean(path, {tier})
                np.testing.assert_allclose(new[path] - old[path], expected, atol=1e-6)


@pytest.mark.parametrize("model", ["bare", "resmlp", "vit"])
def test_whose_is_what(model):
    built = {
        "bare": lambda: MODEL,
        "resmlp": lambda: resmlp(
            classes=3, width=4, hidden=4, depth=4, norm="batch", exits=True
        ),
        "vit": lambda: vit(classes=3, width=4, depth=4, heads=1, patch=4, exits=True),
    }[model]()
    shape = (1, 4, 4, 1) if model == "vit" else (1, 6)
    params = fakes.drawn(built, np.zeros(shape))

    def scopes(**options):
        tree = depths(built, **options).scopes(params)
        found = {}
        trees.map_with_path(
            lambda path, _: found.setdefault(path.partition("/")[0], None), params
        )
        for name in found:
            of_leaves = jax.tree.leaves(
                tree[name], is_leaf=lambda node: isinstance(node, tuple)
            )
            (found[name],) = set(of_leaves)
        return found

    exits = {"exit0": (0,), "exit1": "shared", "exit2": (1,), "exit3": (2,)}
    blocks = {"block0": (0,), "block1": (), "block2": (1,), "block3": (2,)}
    assert scopes() == {"stem": "shared"} | exits | blocks
    assert scopes(beta=0.0) == {"stem": "shared", "block1": "shared"} | {
        name: scope for name, scope in (exits | blocks).items() if scope != ()
    }
    both = scopes(stages=(2, 2, 4))
    assert (both["block1"], both["exit1"], both["block0"]) == ((0, 1), (0, 1), "shared")


def test_all_blocks_since_the_last_exit_are_taught_alike():
    """Exits behind blocks 1 and 3; tier 0 ends at the first, tier 1 at the second."""
    model = residual(hidden=(6, 6, 6, 6), ends=(1, 3))
    method = depths(model, stages=(1, 2))
    rng = np.random.default_rng(0)
    params = model.init(None, None)
    changes = {
        path: jnp.asarray(rng.normal(size=(2, *leaf.shape)), jnp.float32)
        for path, leaf in named(params).items()
        if path.startswith(("block", "exit"))
    }
    covered = {path: change == change for path, change in changes.items()}
    got = method.share_between_tiers(changes, covered)
    for path, change in changes.items():
        expected = np.array(change)
        if path.startswith(("block0", "block1")):
            rest = path.partition("/")[2]
            teacher = np.mean([changes[f"block{b}/{rest}"][1] for b in range(4)], 0)
            expected[0] = 0.8 * expected[0] + 0.2 * teacher
        np.testing.assert_allclose(got[path], expected, atol=1e-6)


def test_one_tier_trains_the_network_of_its_depth():
    cohort, model = fakes.cohort(tiers=(0, 0, 0, 0)), residual(hidden=(6, 6))
    _, step = stepper(depths(model, stages=(1,)), model, tiers=1)
    end = step(cohort)
    short = model.resize(Size({}, {"blocks": (0,)}))
    _, step = stepper(fedavg(short.axes), short, tiers=1)
    theirs = step(cohort).params
    ours = scopes.top_tier_model(end.leaf_copies, end.params)
    assert fakes.gap({name: ours[name] for name in theirs}, theirs) < 1e-6


def test_masked_is_sliced():
    model = residual(hidden=(6, 6))
    agree(fakes.spec(model, depths(model, stages=(1, 2)), epochs=1), 0)


def stages_of_two_widths(**options):
    model = resnet(
        classes=3, channels=(4, 8), blocks=(1, 2), exits=True, lowering="shift"
    )
    return depths(model, **options)


def test_blocks_of_other_shapes_cannot_teach():
    what = "^beta: .* stage0_block0 and stage1_block0 differ"
    with pytest.raises(require.InputError, match=what):
        stages_of_two_widths(stages=(1, 2))
    assert stages_of_two_widths(stages=(1, 2), beta=0.0).share_between_tiers is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"stages": (1, 5, 5)}, "stages"),
        ({"stages": (3, 1, 4)}, "stages"),
        ({"beta": 1.1}, "beta"),
        ({"model": residual(ends=())}, "stages"),
    ],
)
def test_bad_options_are_refused(options, field):
    with pytest.raises(require.InputError, match=f"^{field}: "):
        depths(**options)
