"""What cannot be private is refused by name; every method that passes is protected."""

import jax
import jax.numpy as jnp
import pytest

from fairjax.core import require, round
from fairjax.core.types import Cohort
from fairjax.experiment.config import build, registry, validate
from fairjax.experiment.resume import initial_state
from tests.private_configs import (
    BY_LOSS,
    CLIENT,
    LOCAL,
    PATIENT,
    RECORD,
    SECRET,
    changed,
)

REFUSED = {
    "privacy.unit": [
        *[(CLIENT, {"privacy__unit": unit}) for unit in ("record", "patient")],
        *[(LOCAL, {"privacy__unit": unit}) for unit in ("record", "patient")],
        (RECORD, {"privacy__unit": "client"}),
        (RECORD, {"privacy__unit": "patients"}),
        # The breast-cancer table names no patients.
        (RECORD, {"privacy__unit": "patient"}),
        ({}, {"privacy__unit": "client"}),
    ],
    "privacy.records_per_patient": [
        (PATIENT, {"privacy__records_per_patient": 0}),
    ],
    "privacy.batches": [(PATIENT, {"privacy__batches": "shuffled"})],
    "data.partition.name": [
        (RECORD, {"data__partition__name": "dirichlet_overlap"}),
    ],
    "fairness.denominator": [
        (CLIENT, {"fairness__denominator": "cover"}),
    ],
    "fairness.rule": [
        *[
            (base, {"fairness__rule": rule})
            for base in (CLIENT, RECORD, LOCAL)
            for rule in ("tier_gap", "size+fedmgda", "tier_equal", "propfair", "ditto")
        ],
        *[(base, {"fairness__rule": "q_ffl"}) for base in (RECORD, LOCAL)],
    ],
    "fairness.cap": [
        (BY_LOSS, {"fairness__cap": 0.0}),
        (BY_LOSS, {"fairness__cap": 0.5}),
    ],
    "fairness.gifair.groups": [
        (
            BY_LOSS,
            {
                "fairness__rule": "gifair",
                "fairness__gifair__groups": "client_group",
                "fairness__client_group": tuple("aabbcc"),
            },
        )
    ],
    "fairness.agnostic.domain": [
        (BY_LOSS, {"fairness__rule": "agnostic", "fairness__agnostic__domain": "group"})
    ],
    "privacy.losses.bound": [(BY_LOSS, {"privacy__losses__bound": 0.0})],
    "privacy.losses.noise_multiplier": [
        (BY_LOSS, {"privacy__losses__noise_multiplier": value}) for value in (0.0, 0.9)
    ],
    "fairness.warmup": [(CLIENT, {"fairness__warmup": 2})],
    "submodel.name": [
        *[(base, {"submodel__name": "fiarse"}) for base in (CLIENT, RECORD, LOCAL)],
        (RECORD, {"submodel__name": "fjord"}),
    ],
    "submodel.heterofl.masked_loss": [
        (base, {"submodel__heterofl__masked_loss": True}) for base in (RECORD, LOCAL)
    ],
    "clients_per_round": [
        (CLIENT, {"clients_per_round": 0}),
        (CLIENT, {"clients_per_round": 6}),
        (CLIENT, {"privacy__sampling": "full"}),
    ],
    "privacy.neighbours": [
        (CLIENT, {"privacy__sampling": "fixed", "privacy__neighbours": "zero_out"}),
        (LOCAL, {"privacy__neighbours": "zero_out"}),
        ({}, {"privacy__neighbours": "zero_out"}),
    ],
    "privacy.accountant": [
        (CLIENT, {"privacy__sampling": "fixed", "privacy__accountant": "pld"}),
        (
            CLIENT,
            {"privacy__neighbours": "replace_one", "privacy__accountant": "rdp"},
        ),
    ],
    "robust.finite_guard": [(RECORD, {"robust__finite_guard": False})],
    "tiers.changes": [(CLIENT, {"tiers__changes": ((2, 0, 1),)})],
    "execution.slots": [(CLIENT, {"execution__slots": "stratified"})],
    "local.class_weights": [(RECORD, {"local__class_weights": "balanced"})],
    "model": [
        (
            base,
            {
                "model__name": "resmlp",
                "submodel__name": "fedavg",
                "clients_per_round": 3,
            },
        )
        for base in (CLIENT, RECORD, LOCAL)
    ],
    "privacy.delta": [
        (CLIENT, {"privacy__delta": 0.2}),
        (RECORD, {"privacy__delta": 0.02}),
    ],
    "privacy.epsilon": [
        (RECORD, {"privacy__epsilon": 0.1}),
        ({}, {"privacy__epsilon": 1.0}),
    ],
    "privacy.noise_multiplier": [(RECORD, {"privacy__noise_multiplier": None})],
    "privacy.tier_clip": [
        (CLIENT, {"privacy__tier_clip": (1.0,)}),
        (RECORD, {"privacy__tier_clip": (1.0,) * 4}),
    ],
    "privacy.adaptive.quantile": [(RECORD, {"privacy__adaptive__quantile": 0.5})],
    "privacy.secure.bits": [
        (CLIENT, {"privacy__secure_sum": "masked", "privacy__secure__bits": 25}),
        (RECORD, {"privacy__secure_sum": "masked", "privacy__secure__bits": 25}),
    ],
    "privacy.secure.minimum": [
        (RECORD, {"privacy__secure_sum": "masked", "privacy__secure__minimum": 5}),
        (CLIENT, {"privacy__secure_sum": "masked", "privacy__secure__minimum": 4}),
        # An average cohort has two clients of a tier.
        (SECRET, {"privacy__secure__minimum": 3}),
    ],
    "privacy.secure_sum": [
        # An average cohort has one client of a tier or less: no minimum hides it.
        (BY_LOSS, {"privacy__secure_sum": "masked", "privacy__secure__minimum": 2}),
    ],
    "execution.form": [(RECORD, {"execution__form": "sliced"})],
}


@pytest.mark.parametrize(
    ("field", "base", "fields"),
    [(field, *case) for field, cases in REFUSED.items() for case in cases],
)
def test_what_cannot_be_accounted_is_refused_by_name(field, base, fields):
    with pytest.raises(require.InputError) as error:
        build.run(changed(base, **fields))
    assert str(error.value).startswith(f"{field}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["fedmgda", "q_fedavg", "fedce"])
def test_a_rule_that_needs_single_changes_gets_no_secret_sum(rule):
    config = changed(
        {"privacy.secure_sum": "quantized", "submodel.heterofl.masked_loss": False},
        fairness__rule=rule,
    )
    with pytest.raises(require.InputError, match="rule of sums alone"):
        build.run(config)


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ({}, "privacy.clip"),
        ({}, "privacy.secure.bits"),
        (SECRET, "privacy.secure.bound"),
        (RECORD, "privacy.sampling"),
        (RECORD, "privacy.adaptive.rate"),
        (CLIENT, "privacy.batches"),
        (CLIENT, "privacy.losses.bound"),
        (RECORD, "privacy.losses.bound"),
        (RECORD, "privacy.records_per_patient"),
        (LOCAL, "privacy.records_per_patient"),
    ],
)
def test_an_option_that_the_mechanism_does_not_read_is_refused(base, path):
    with pytest.raises(require.InputError, match=path):
        validate.check(changed(base), [path])
    validate.check(changed(CLIENT), ["privacy.clip", "privacy.adaptive.rate"])
    validate.check(changed(BY_LOSS), ["privacy.losses.bound"])


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *[(CLIENT, name) for name in registry.METHODS if name != "fiarse"],
        (RECORD, "lora"),
        (SECRET, "heterofl"),
        (SECRET, "fedrolex"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (RECORD, "nefl"),
                (RECORD, "dynamicfl"),
                (SECRET, "inclusivefl"),
            ]
        ),
    ],
)
def test_every_method_is_protected_in_the_round(base, name):
    """The round is traced, not run: trees, tier copies and states fit together."""
    fields = {"submodel__name": name, "privacy__accountant": "rdp"}
    if registry.METHODS[name].blocks or registry.METHODS[name].exits:
        fields["model__name"] = "resmlp"
        fields |= {"model__resmlp__norm": "layer", "model__resmlp__width": 8}
    run = build.run(changed(base, **fields))
    state = initial_state(run)

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = Cohort(jnp.arange(2), jnp.asarray(run.tiers[:2]), jnp.ones(2, bool))
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)
