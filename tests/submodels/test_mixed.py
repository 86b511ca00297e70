"""Mixed tiers: kinds side by side, refused options, and shares that fit a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairjax.core import objectives, require
from fairjax.submodels import cost
from fairjax.submodels import mixed as submodels_mixed
from fairjax.submodels.depthfl import depthfl
from fairjax.submodels.heterofl import heterofl
from fairjax.submodels.mixed import fit
from tests import fakes
from tests.submodels.residual import agree, member, moved, residual, trained

MODEL = residual(hidden=(6, 4), ends=())
BUDGET = (0.25, 0.5, 1.0)
KINDS = ("width", "depth", "plain")


def mixed(model=MODEL, budget=BUDGET, kinds=KINDS, cut=(), blocks=()):
    return submodels_mixed.mixed(
        model.axes, budget, kinds=kinds, cut=cut, blocks=blocks
    )


def test_every_tier_has_its_kind():
    method = mixed()
    whole = {"hidden0": 6, "hidden1": 4, "stream": 8}
    assert [method.size(tier) for tier in range(3)] == [
        ({"hidden0": 2, "hidden1": 1, "stream": 2}, {"blocks": (0, 1)}),
        (whole, {"blocks": (0,)}),
        (whole, {"blocks": (0, 1)}),
    ]
    inside = mixed(cut=("hidden0",)).size(0)
    assert inside.axes == {"hidden0": 2}
    all_wide = mixed(kinds=())
    assert all_wide.size(1) == heterofl(
        MODEL.axes, BUDGET, scaler=False, masked_loss=False
    ).size(1)


def test_units_are_the_sizes():
    method, data = mixed(), fakes.federation()
    for tier in range(3):
        kept = method.submodel(
            jax.random.key(0), jnp.asarray(0), {}, member(data, 0, tier)
        ).forward
        size = method.size(tier)
        assert {n: int(k.sum()) for n, k in kept.axes.items()} == size.axes
        assert np.flatnonzero(kept.blocks["blocks"]).tolist() == list(
            size.blocks["blocks"]
        )


@pytest.mark.parametrize("tier", [0, 1])
def test_masked_is_sliced(tier):
    agree(fakes.spec(MODEL, mixed(), epochs=1), tier)


def test_a_short_tier_trains_the_head_but_not_the_last_block():
    delta, _, _ = trained(fakes.spec(MODEL, mixed(), epochs=1), 1)
    assert {path.partition("/")[0] for path in moved(delta)} == {
        "stem",
        "block0",
        "head",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("width", "dept", "plain")}, 'kinds: .*Did you mean "depth"'),
        ({"kinds": ("width",)}, "kinds: expected 3 values"),
        ({"cut": ("strem",)}, 'cut: .*Did you mean "stream"'),
        ({"cut": ("classes",)}, "cut: expected one of hidden0"),
        ({"blocks": (1, 3, 1)}, r"blocks: .* in \[1, 2\]; got 3"),
        ({"model": fakes.small_mlp()}, "blocks: expected a model"),
        ({"model": residual(ends=(), fixed=(2,))}, r"blocks: .* in \[3, 3\]; got 2"),
        ({"model": residual(ends=(1, 2)), "blocks": (3, 1, 3)}, r"blocks: .*\[2, 3\]"),
    ],
)
def test_bad_ladders_are_refused_by_name(options, message):
    with pytest.raises(require.InputError, match="^" + message):
        mixed(**options)


# ------------------------------------------------------------------------- fitted tiers


def width(model):
    def family(share):
        return heterofl(model.axes, (share,), scaler=False, masked_loss=False)

    return family


def fitted(budgets, resource, model=None, family=None, **more):
    model = model or fakes.small_mlp()
    x = jnp.zeros((1, 6))
    return fit(
        budgets,
        resource,
        family=family or width(model),
        model=model,
        objective=objectives.mean_cross_entropy(),
        optimizer=optax.sgd(0.1),
        params=jax.jit(model.init)(jax.random.key(0), x),
        x=x,
        **more,
    )


def bill(share, resource):
    model, x = fakes.small_mlp(), jnp.zeros((1, 6))
    method = width(model)(share)
    params = jax.jit(model.init)(jax.random.key(0), x)
    who = member(fakes.federation(), 0, 0)
    kept = method.submodel(jax.random.key(0), jnp.asarray(0), params, who)
    objective = objectives.mean_cross_entropy()
    ledger = cost.client_cost(
        model, method, objective, optax.sgd(0.1), params, kept, who, x=x
    )
    return ledger[resource]


@pytest.mark.parametrize("resource", ["parameters", "flops_train", "activation_floats"])
def test_the_largest_that_fits(resource):
    """Budgets are the cost of share 5/16, slightly less, and more than enough."""
    exact = bill(5 / 16, resource)
    assert fitted((exact - 1, exact, 10**9), resource) == (4 / 16, 5 / 16, 1.0)


def test_depth_is_fitted_on_its_exits():
    model = residual(hidden=(6, 6))

    def family(share):
        return depthfl(
            model.axes,
            (share,),
            stages=(),
            distill=False,
            ramp=1,
            ensemble=True,
            feddyn=0.0,
        )

    one = 6 * 8 + 8 + 2 * 8 + (8 * 6 + 6) + (6 * 8 + 8) + (8 * 3 + 3)
    shares = fitted((one, 10**6), "parameters", model, family)
    assert [len(family(s).size(0).blocks["blocks"]) for s in shares] == [1, 2]


def test_a_budget_that_nothing_fits_and_an_unknown_resource():
    least = 6 + 1 + 1 + 1 + 3 + 3
    with pytest.raises(
        require.InputError,
        match=rf"budgets\[0\]: expected at least {least}, .* parameters; got 14",
    ):
        fitted((14, 100), "parameters")
    with pytest.raises(require.InputError, match=r'resource: .*mean "parameters"'):
        fitted((14,), "parameter")
