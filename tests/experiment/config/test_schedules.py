"""Learning rates over rounds: formulas, refusals, and which runs may be extended."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import require
from fairjax.experiment.config import build, conversion, optimizers, validate
from fairjax.experiment.config.schema import Server
from tests import private_configs

changed = functools.partial(private_configs.changed, {})


RATES = {"decay_rate": 0.5, "milestones": (4, 7)}


def numpy_factor(name, warmup, rounds):
    """A schedule's factor in every round and the one after the last, in NumPy."""
    r = np.arange(rounds + 1.0)
    since, length = np.maximum(r - warmup, 0), rounds - warmup
    factor = {
        "constant": np.ones_like(r),
        "linear": 1 - since / length,
        "cosine": (1 + np.cos(np.pi * since / length)) / 2,
        "steps": 0.5 ** (r[:, None] >= [4, 7]).sum(1),
        "exponential": 0.5**since,
    }[name]
    return np.where(r < warmup, (r + 1) / (warmup + 1), factor)


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_a_schedule_is_its_formula_in_every_round(name, warmup):
    fields = {"schedule": name, "warmup": warmup, **RATES}
    factor = optimizers.schedule(Server(**fields), 10)
    got = [float(factor(jnp.asarray(number))) for number in range(11)]
    np.testing.assert_allclose(got, numpy_factor(name, warmup, 10), atol=1e-6)


def test_the_schedules_of_a_config_are_those_of_its_round():
    fields = {f"local__{field}": value for field, value in RATES.items()}
    fields |= {f"server__{field}": value for field, value in RATES.items()}
    config = changed(
        local__schedule="steps", server__schedule="exponential", rounds=10, **fields
    )
    spec = build.run(config).spec
    factors = {"steps": spec.schedule, "exponential": spec.server_schedule}
    for name, factor in factors.items():
        got = [float(factor(jnp.asarray(number))) for number in range(11)]
        np.testing.assert_allclose(got, numpy_factor(name, 0, 10), atol=1e-6)


@pytest.mark.parametrize("group", validate.RATES)
def test_a_run_is_extended_where_no_schedule_rests_on_its_rounds(group):
    can = {
        name: validate.is_extendable(
            conversion.to_typed(changed(**{f"{group}__schedule": name}))
        )
        for name in optimizers.SCHEDULES
    }
    assert [name for name in can if not can[name]] == ["linear", "cosine"]
    for name in optimizers.SCHEDULES:
        made = [
            optimizers.schedule(Server(schedule=name, warmup=2, **RATES), n)
            for n in (8, 16)
        ]
        short, long = (
            [float(factor(jnp.asarray(number))) for number in range(8)]
            for factor in made
        )
        assert (short == long) == can[name]


def test_a_method_that_begins_by_a_share_of_the_rounds_is_not_extended():
    def can(**options):
        fields = {f"submodel__scalefl__{name}": v for name, v in options.items()}
        config = changed(submodel__name="scalefl", **fields)
        return validate.is_extendable(conversion.to_typed(config))

    assert not can()
    assert can(gamma=0.0)
    assert can(warmup=0.0)


@pytest.mark.parametrize("group", validate.RATES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "step"}, 'schedule: expected one of .*mean "steps"'),
        ({"warmup": -1}, "warmup: expected a finite number >= 0; got -1"),
        (
            {"schedule": "steps", "decay_rate": 0.1},
            r"milestones: expected rounds for schedule steps; got \(\)",
        ),
        (
            {"schedule": "steps", "milestones": (3,)},
            "decay_rate: expected a factor for schedule steps; got None",
        ),
        (
            {"schedule": "exponential"},
            "decay_rate: expected a factor for schedule exponential; got None",
        ),
        (
            {"schedule": "exponential", "decay_rate": 1.5},
            r"decay_rate: expected a finite number in \(0, 1\]; got 1.5",
        ),
        ({"milestones": (0.5,)}, "milestones: expected a whole number above 0"),
        (
            {"schedule": "steps", "decay_rate": 0.1, "milestones": (7, 4)},
            r"milestones: expected rounds that increase, .*; got \(7, 4\)",
        ),
        (
            {"schedule": "steps", "decay_rate": 0.1, "milestones": (4,), "warmup": 5},
            r"milestones: expected .* none of the 5 of warmup; got \(4,\)",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(group, fields, message):
    config = changed(**{f"{group}__{field}": v for field, v in fields.items()})
    with pytest.raises(require.InputError, match=rf"{group}\.{message}"):
        validate.check(config)


@pytest.mark.parametrize("group", validate.RATES)
def test_an_option_that_the_schedule_does_not_read_is_refused(group):
    config = changed(**{f"{group}__schedule": "exponential"})
    config[group].decay_rate, config[group].milestones = 0.9, (3,)
    path = f"{group}.milestones"
    validate.check(config, (f"{group}.decay_rate", f"{group}.warmup"))
    with pytest.raises(require.InputError) as refused:
        validate.check(config, (path,))
    what = f"{path}: expected {group}.schedule='steps' for this option"
    assert str(refused.value) == f"{what}; got 'exponential'"
