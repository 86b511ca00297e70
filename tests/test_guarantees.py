"""From a config to a guarantee: known epsilons, refusals by name, spent budgets."""

import json
import math

import dp_accounting as da
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import pld, rdp

from configs import default
from fairjax.core import require, round
from fairjax.core.types import Cohort
from fairjax.data import federation
from fairjax.experiment.config import build, privacy, registry, validate
from fairjax.experiment.train import initial, privacy_of, train
from fairjax.fairness import weights
from fairjax.privacy import accounting, poisson
from fairjax.submodels.fedavg import fedavg

CLIENT = {
    "privacy.mechanism": "client_dp",
    "privacy.noise_multiplier": 1.0,
    "fairness.denominator": "fixed",
    "cohort": 3,
    "data.partition.num_clients": 6,
    "model.mlp.hidden": (8,),
    "rounds": 3,
}
RECORD = {
    "privacy.mechanism": "record_dp",
    "privacy.noise_multiplier": 1.0,
    "submodel.heterofl.masked_loss": False,
    "data.partition.num_clients": 4,
    "model.mlp.hidden": (8,),
    "rounds": 3,
}
LOCAL = RECORD | {"privacy.mechanism": "local_dp", "privacy.noise_multiplier": 8.0}
LOCAL["cohort"] = 2


def changed(base, **fields):
    config = default.get_config()
    named = {name.replace("__", "."): value for name, value in fields.items()}
    config.update_from_flattened_dict(base | named)
    return config


# ----------------------------------------------------------------------- known epsilons


def of_a_hundred(**fields):
    """The guarantee of a config, without data: hospitals of five records."""
    config = changed(CLIENT, **{"cohort": 10, "rounds": 100, **fields})
    validate.check(config)
    model = fakes.small_mlp()
    facts = privacy.Facts(
        tiers=np.arange(100, dtype=np.int32) % 4,
        counts=np.full(100, 5, np.int32),
        patients=None,
        shared={},
        clients=[f"hospital_{k}" for k in range(100)],
        classes=fakes.CLASSES,
        model=model,
        method=fedavg(model.axes),
        rule=weights.size(),
        x=jax.ShapeDtypeStruct((1, 6), jnp.float32),
    )
    return privacy.build(config, facts)


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({}, 7.0466),
        ({"privacy__accountant": "rdp"}, 7.9039),
        ({"privacy__neighbours": "replace_one"}, 10.516),
        # Noise of twice the clip is once the sensitivity of "replace_one".
        ({"privacy__sampling": "fixed", "privacy__noise_multiplier": 2.0}, 14.0538),
    ],
)
def test_known_epsilons_of_ten_of_a_hundred_hospitals(fields, known):
    guarantee = of_a_hundred(**fields)
    epsilon = guarantee.epsilon(100)
    assert epsilon == pytest.approx(known, abs=5e-4 if known > 10 else 5e-5)
    assert guarantee.summary(100)["epsilon"] == epsilon


def test_a_tier_of_smaller_clip_spends_less():
    """C / 4, C / 2 and C of the table: 0.98, 2.34 and 7.05."""
    guarantee = of_a_hundred(privacy__tier_clip=(0.25, 0.25, 0.5, 1.0))
    spent = guarantee.spent(100)
    known = {"tier 0": 0.98, "tier 1": 0.98, "tier 2": 2.34, "tier 3": 7.05}
    assert spent == pytest.approx(known, abs=5e-3)
    assert guarantee.epsilon(100) == spent["tier 3"]


def test_in_a_fixed_cohort_a_small_tier_is_swapped_for_a_large_one():
    """2 C_t would be too little: who is drawn instead may be clipped at C."""
    config = changed(
        CLIENT,
        tiers__budget=(0.5, 1.0),
        tiers__share=(1.0, 1.0),
        privacy__sampling="fixed",
        privacy__tier_clip=(0.5, 1.0),
        privacy__noise_multiplier=3.0,
    )
    parties = build.build(config).guarantee.parties
    sigmas = [each.noise_multiplier for each in parties.values()]
    # Noise over half the sensitivity: 3 / ((0.5 + 1) / 2) and 3 / ((1 + 1) / 2).
    assert sigmas == pytest.approx([4.0, 3.0])


def test_a_count_that_is_noised_too_is_within_the_same_epsilon():
    fields = {"privacy__sampling": "full", "cohort": 0}
    fixed = build.build(changed(CLIENT, **fields)).guarantee
    moving = build.build(
        changed(
            CLIENT,
            privacy__adaptive__quantile=0.5,
            privacy__adaptive__count_noise=2.0,
            **fields,
        )
    ).guarantee
    assert moving.epsilon(5) == pytest.approx(fixed.epsilon(5), rel=1e-6)
    with pytest.raises(require.InputError, match="count_noise"):
        # m / 20 = 0.3 for six hospitals.
        build.build(changed(CLIENT, privacy__adaptive__quantile=0.5, **fields))


BY_LOSS = CLIENT | {"fairness.rule": "term", "fairness.cap": 2.0}
SECRET = BY_LOSS | {
    "cohort": 4,
    "tiers.budget": (0.5, 1.0),
    "tiers.share": (1.0, 1.0),
    "privacy.secure_sum": "masked",
    "privacy.secure.minimum": 2,
}


@pytest.mark.parametrize(
    ("fields", "sampled", "accountant"),
    [
        ({"privacy__sampling": "full", "cohort": 0}, lambda event: event, pld),
        ({}, lambda event: da.PoissonSampledDpEvent(0.1, event), rdp),
    ],
)
def test_losses_are_in_epsilon_as_a_release_of_the_same_sample(
    fields, sampled, accountant
):
    """Of noise multipliers sigma_Delta and 3.3, composed by dp-accounting."""
    guarantee = of_a_hundred(
        privacy__accountant=accountant.__name__.rsplit(".", 1)[-1],
        privacy__noise_multiplier=1.1,
        privacy__losses__noise_multiplier=3.3,
        fairness__rule="term",
        fairness__cap=2.0,
        **fields,
    )
    changes = (1.1**-2 - 3.3**-2) ** -0.5
    both = [da.GaussianDpEvent(changes), da.GaussianDpEvent(3.3)]
    event = da.SelfComposedDpEvent(sampled(da.ComposedDpEvent(both)), 9)
    made = {"pld": "PLDAccountant", "rdp": "RdpAccountant"}
    told = getattr(accountant, made[accountant.__name__.rsplit(".", 1)[-1]])()
    expected = told.compose(event).get_epsilon(1e-5)
    assert guarantee.epsilon(9) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_losses_are_within_a_budget_that_noise_is_calibrated_for():
    fields = {
        "privacy__epsilon": 8.0,
        "privacy__noise_multiplier": None,
        "privacy__accountant": "rdp",
    }
    plain, shown = (
        build.build(changed(base, **fields)).guarantee for base in (CLIENT, BY_LOSS)
    )
    assert 7.99 < shown.epsilon(3) <= 8
    sigma = shown.parties["tier 0"].noise_multiplier
    assert sigma == pytest.approx(plain.parties["tier 0"].noise_multiplier)
    # Losses that would spend as much as all may.
    few = {"privacy__losses__noise_multiplier": 0.9 * sigma}
    with pytest.raises(require.InputError, match=r"^privacy\.losses\.noise"):
        build.build(changed(BY_LOSS, **fields, **few))


def test_a_tier_of_smaller_clip_spends_as_much_on_losses():
    fields = {
        "privacy__sampling": "full",
        "cohort": 0,
        "privacy__tier_clip": (0.25, 0.25, 0.5, 1.0),
        "privacy__losses__noise_multiplier": 2.0,
    }
    parties = build.build(changed(BY_LOSS, **fields)).guarantee.parties
    changes = 1 - 2.0**-2
    for tier, share in enumerate((0.25, 0.25, 0.5, 1.0)):
        if f"tier {tier}" in parties:
            expected = (share**2 * changes + 2.0**-2) ** -0.5
            got = parties[f"tier {tier}"].noise_multiplier
            assert got == pytest.approx(expected)


@pytest.mark.parametrize("rule", privacy.BY_LOSS)
def test_every_rule_by_losses_is_shown_tiers_in_the_round(rule):
    """Traced, not run; beside another rule, and after a warm-up."""
    run = build.build(
        changed(BY_LOSS, fairness__rule=f"{rule}+private_head", fairness__warmup=2)
    )
    state = initial(run)
    counts = np.bincount(run.tiers, np.asarray(run.splits.train.count), minlength=4)
    assert run.guarantee.shown == tuple(counts.astype(int))

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = run.draw(state.key, state.round)
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)


def test_weights_are_those_of_everybody_and_of_mean_one():
    for rule, expected in (("uniform", lambda n: n**0), ("size", lambda n: n)):
        config = changed(CLIENT, fairness__rule=rule, data__partition__name="dirichlet")
        run = build.build(config)
        population = run.guarantee.protection.population
        counts = np.asarray(run.splits.train.count, float)
        weight = expected(counts) / expected(counts).mean()
        np.testing.assert_allclose(population.weight, weight, rtol=1e-5)
        np.testing.assert_array_equal(population.tier, run.tiers)
        assert population.rate == 0.5


def test_hospitals_that_the_method_leaves_out_have_no_weight():
    run = build.build(
        changed(
            CLIENT,
            submodel__name="fedavg",
            submodel__fedavg__mode="exclusive",
            submodel__fedavg__tier=3,
        )
    )
    weight = np.asarray(run.guarantee.protection.population.weight)
    np.testing.assert_array_equal(weight > 0, run.tiers == 3)


# ------------------------------------------------------------------------------ records


def test_every_hospital_is_accounted_by_its_own_rate_and_steps():
    config = changed(RECORD, data__partition__name="dirichlet", local__epochs=2)
    run = build.build(config)
    counts = np.asarray(run.splits.train.count)
    parties = run.guarantee.parties
    assert list(parties) == list(run.splits.clients)
    slots = run.spec.local.dp.slots
    for name, n in zip(run.splits.clients, counts.tolist(), strict=True):
        mechanism = parties[name]
        assert mechanism.rate == min(1, 16 / n)
        assert mechanism.releases == 2 * math.ceil(n / 16)
        assert mechanism.neighbours == "zero_out"
        room, tail = poisson.room(n, mechanism.rate)
        assert room <= slots
        assert mechanism.overflow == mechanism.releases * tail
    spent = run.guarantee.spent(3)
    assert run.guarantee.epsilon(3) == max(spent.values())


@pytest.mark.parametrize(
    ("fields", "passes"), [({"local__epochs": 3}, 3), ({"local__steps": 10}, None)]
)
def test_shuffled_batches_claim_no_amplification(fields, passes):
    """A record is in one batch per epoch, begun epochs counted whole."""
    run = build.build(changed(RECORD, privacy__batches="shuffled", **fields))
    assert run.spec.local.dp.slots is None
    for n, mechanism in zip(
        np.asarray(run.splits.train.count), run.guarantee.parties.values(), strict=True
    ):
        assert mechanism.rate == 1
        expected = passes or math.ceil(10 / math.ceil(n / 16))
        assert mechanism.releases == expected


def test_noise_is_calibrated_for_the_hospital_that_is_exposed_most():
    fields = {"privacy__noise_multiplier": None, "privacy__epsilon": 4.0}
    config = changed(
        RECORD,
        data__partition__name="dirichlet",
        data__partition__num_clients=2,
        privacy__accountant="rdp",
        **fields,
    )
    run = build.build(config)
    spent = run.guarantee.spent(3).values()
    assert 3.99 < max(spent) <= 4
    assert min(spent) < 3.95
    assert not validate.extendable(run.config)
    assert validate.extendable(validate.plain(changed(RECORD)))


# ----------------------------------------------------------------------------- patients

PATIENT = RECORD | {"privacy.unit": "patient", "privacy.accountant": "rdp"}


def of_patients(shared, **fields):
    """The guarantee of three hospitals of 40 patients, 20 and 8, of 50 records each."""
    config = changed(PATIENT, local__batch_size=4, **fields)
    validate.check(config)
    model = fakes.small_mlp()
    facts = privacy.Facts(
        tiers=np.zeros(3, np.int32),
        counts=np.full(3, 50, np.int32),
        patients=np.array([40, 20, 8]),
        shared=shared,
        clients=["a", "b", "c"],
        classes=fakes.CLASSES,
        model=model,
        method=fedavg(model.axes),
        rule=weights.size(),
        x=jax.ShapeDtypeStruct((1, 6), jnp.float32),
    )
    return privacy.build(config, facts)


def test_patients_are_drawn_and_counted_in_place_of_records():
    guarantee = of_patients({}, local__epochs=2)
    assert guarantee.unit == "patient"
    for mechanism, n in zip(guarantee.parties.values(), (40, 20, 8), strict=True):
        assert mechanism.rate == 4 / n
        assert mechanism.releases == 2 * n / 4
        room, tail = poisson.room(n, 4 / n)
        assert room <= guarantee.records.slots
        assert mechanism.overflow == mechanism.releases * tail
    assert guarantee.records.per_patient == 4
    summary = guarantee.summary(3)
    assert summary["unit"] == "patient"
    assert summary["of"] == "one patient with all of its training records"
    assert not summary["notes"]
    known = "numbers of training records and patients of every hospital"
    assert known in summary["public"]
    with pytest.raises(
        require.InputError, match=r"privacy\.delta: expected below 1 / 40"
    ):
        of_patients({}, privacy__delta=1 / 40)


def test_a_patient_at_several_hospitals_spends_at_all_of_them():
    """What the same mechanisms spend, each at an equal part of delta, in sum."""
    shared = {(0, 2): 3, (1, 2): 1, (0, 1, 2): 1}
    alone, guarantee = of_patients({}), of_patients(shared)
    assert guarantee.spent(3) == alone.spent(3)
    part = [
        accounting.epsilon(each, 3, delta=1e-5 / 3, accountant="rdp")
        for each in guarantee.parties.values()
    ]
    assert guarantee.epsilon(3) == pytest.approx(sum(part), rel=1e-12)
    assert guarantee.epsilon(3) > max(alone.spent(3).values()) * 1.5
    summary = guarantee.summary(3)
    assert summary["epsilon"] == guarantee.epsilon(3)
    assert summary["of"].endswith(", at up to 3 hospitals")
    assert summary["notes"][0].startswith("5 patients are at several hospitals.")
    assert "who is a patient of which hospitals" in summary["public"]


@pytest.mark.slow
def test_noise_is_calibrated_for_patients_at_several_hospitals():
    fields = {"privacy__noise_multiplier": None, "privacy__epsilon": 6.0}
    guarantee = of_patients({(0, 1): 1}, **fields)
    assert 5.99 < guarantee.epsilon(3) <= 6
    alone = of_patients({}, **fields)
    sigmas = [each.parties["a"].noise_multiplier for each in (alone, guarantee)]
    assert sigmas[0] < sigmas[1]


def test_patients_of_a_file_are_protected_in_the_round(tmp_path):
    """Traced, not run; 64 records of 24 patients, some at both hospitals."""
    rng = np.random.default_rng(0)
    number = np.arange(80)
    patient = np.where(number < 64, rng.integers(0, 24, 80), number).astype(str)
    client = np.where(number % 3, "north", "south")
    images, labels = rng.normal(size=(80, 5)).astype(np.float32), number % 2
    np.savez(
        tmp_path / "d.npz",
        **{
            f"{split}_{name}": column[at]
            for split, at in (("train", number < 64), ("test", number >= 64))
            for name, column in (
                ("images", images),
                ("labels", labels),
                ("client", client),
                ("patient", patient),
            )
        },
    )
    run = build.build(
        changed(
            PATIENT,
            data__name="npz",
            data__path=str(tmp_path / "d.npz"),
            data__partition__name="natural",
            data__partition__val_fraction=0.0,
            tiers__budget=(1.0,),
            tiers__share=(1.0,),
            local__batch_size=4,
            privacy__records_per_patient=2,
        )
    )
    held = federation.patients(run.splits.train)
    steps = [-(-len(each) // 4) for each in held]
    assert [each.releases for each in run.guarantee.parties.values()] == steps
    assert run.spec.local.plan.steps == max(steps)
    assert run.spec.local.dp.per_patient == 2
    north, south = (set(patient[:64][client[:64] == k]) for k in ("north", "south"))
    both = {(0, 1): len(north & south)}
    assert run.guarantee.shared == run.splits.shared == both
    state = initial(run)

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = run.draw(state.key, state.round)
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)


# ----------------------------------------------------------------------------- refusals

REFUSED = {
    "privacy.unit": [
        *[(CLIENT, {"privacy__unit": unit}) for unit in ("record", "patient")],
        *[(LOCAL, {"privacy__unit": unit}) for unit in ("record", "patient")],
        (RECORD, {"privacy__unit": "client"}),
        (RECORD, {"privacy__unit": "patients"}),
        # The breast-cancer table names none.
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
                "fairness__gifair__groups": "hospital_group",
                "fairness__hospital_group": tuple("aabbcc"),
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
    "cohort": [
        (CLIENT, {"cohort": 0}),
        (CLIENT, {"cohort": 6}),
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
    "tiers.schedule": [(CLIENT, {"tiers__schedule": ((2, 0, 1),)})],
    "execution.slots": [(CLIENT, {"execution__slots": "stratified"})],
    "local.class_weights": [(RECORD, {"local__class_weights": "balanced"})],
    "model": [
        (
            base,
            {"model__name": "resmlp", "submodel__name": "fedavg", "cohort": 3},
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
        # On average a cohort has two hospitals of a tier.
        (SECRET, {"privacy__secure__minimum": 3}),
    ],
    "privacy.secure_sum": [
        # One, and less, of which no sum is secret, whatever the minimum.
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
        build.build(changed(base, **fields))
    assert str(error.value).startswith(f"{field}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["fedmgda", "q_fedavg", "fedce"])
def test_a_rule_that_needs_single_changes_gets_no_secret_sum(rule):
    config = changed(
        {"privacy.secure_sum": "quantized", "submodel.heterofl.masked_loss": False},
        fairness__rule=rule,
    )
    with pytest.raises(require.InputError, match="rule of sums alone"):
        build.build(config)


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
    """Traced, not run: trees, copies of tiers and states fit together."""
    fields = {"submodel__name": name, "privacy__accountant": "rdp"}
    if registry.METHODS[name].blocks or registry.METHODS[name].exits:
        fields["model__name"] = "resmlp"
        fields |= {"model__resmlp__norm": "layer", "model__resmlp__width": 8}
    run = build.build(changed(base, **fields))
    state = initial(run)

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = Cohort(jnp.arange(2), jnp.asarray(run.tiers[:2]), jnp.ones(2, bool))
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)


# --------------------------------------------------------------------------- whole runs


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in kept]


@pytest.mark.usefixtures("unfinal")
def test_a_run_goes_on_to_the_same_bytes_and_tells_what_it_spends(tmp_path):
    """The clip adapts and a rule climbs losses: their states have to survive, too."""
    base = CLIENT | {
        "fairness.rule": "afl",
        "fairness.cap": 2.0,
        "privacy.losses.noise_multiplier": 3.0,
        "privacy.accountant": "rdp",
        "privacy.adaptive.quantile": 0.5,
        "privacy.adaptive.count_noise": 2.0,
        "eval_every": 2,
    }
    whole = train(changed(base), tmp_path / "whole")
    spent = build.build(changed(base)).guarantee
    logged = rows(tmp_path / "whole")
    assert [row["privacy/epsilon"] for row in logged] == [
        spent.epsilon(number) for number in (1, 2, 3)
    ]
    told = whole.summary["privacy"]
    assert told["mechanism"] == "client_dp"
    assert max(told["tiers"].values()) == told["epsilon"] == spent.epsilon(3)
    assert "tier of every hospital" in told["public"]
    # Of training records too, whatever inputs are normalised by.
    assert any("missing inputs" in each for each in told["public"])
    assert told["sampling"] == "poisson"
    train(changed(base, rounds=2), tmp_path / "parts")
    parts = train(changed(base), tmp_path / "parts")
    by_round = {row["round"]: row for row in rows(tmp_path / "parts")}
    assert by_round[3] == logged[2]
    assert fakes.equal(parts.state.protection, whole.state.protection)
    assert fakes.equal(parts.state.rule, whole.state.rule)
    share = build.build(changed(base)).guarantee.shown
    assert not np.allclose(whole.state.rule, np.divide(share, sum(share)))


@pytest.mark.usefixtures("unfinal")
def test_noised_uploads_add_up_in_secret(tmp_path):
    fields = {"privacy__secure_sum": "masked", "privacy__secure__minimum": 2}
    base = LOCAL | {"privacy.accountant": "rdp", "rounds": 1}
    result = train(changed(base, **fields), tmp_path)
    told = result.summary["privacy"]
    assert (told["mechanism"], told["secure_sum"]) == ("local_dp", "masked")
    assert told["epsilon"] == result.metrics["privacy/epsilon"]
    assert max(told["tiers"].values()) == told["epsilon"]


@pytest.mark.usefixtures("unfinal")
def test_a_run_ends_where_its_budget_does(tmp_path, capsys):
    base = RECORD | {"privacy.accountant": "rdp", "eval_every": 5}
    spent = build.build(changed(base)).guarantee
    budget = (spent.epsilon(1) + spent.epsilon(2)) / 2
    result = train(changed(base, privacy__epsilon=budget), tmp_path)
    assert [row["round"] for row in rows(tmp_path)] == [1]
    told = result.summary["privacy"]
    assert told["epsilon"] == spent.epsilon(1) <= budget
    assert max(told["hospitals"].values()) == told["epsilon"]
    assert "eval/accuracy" in rows(tmp_path)[-1]
    printed = capsys.readouterr().out
    assert "the run ends after round 1" in printed
    # Beside the figure, in the headline: whose it is, and what it is not of.
    assert f"ε {told['epsilon']:.3g} of one record" in printed
    assert f"privacy: ε is of {told['of']}. It covers {told['covers']}." in printed
    assert told["does_not_cover"][0] in printed


def test_a_private_run_says_what_the_run_it_starts_from_has_spent(tmp_path):
    base = RECORD | {"privacy.accountant": "rdp", "model.init_from": str(tmp_path)}
    run = build.build(changed(base))
    before = {"mechanism": "record_dp", "epsilon": 2.5}
    about = {"privacy": before, "data": {"hash": run.splits.hash}}
    (tmp_path / "summary.json").write_text(json.dumps(about))
    (note,) = privacy_of(run, 1)["notes"]
    assert f"{tmp_path}, which spent epsilon 2.5 under record_dp: of the same" in note
    public = run.guarantee.summary(1)["public"]
    assert f"the model that the run starts from ({tmp_path})" in public
    assert privacy_of(build.build(changed(RECORD)), 1)["notes"] == []


def test_a_budget_that_only_warns_lets_all_rounds_pass():
    base = RECORD | {"privacy.accountant": "rdp"}
    spent = build.build(changed(base)).guarantee
    budget = (spent.epsilon(1) + spent.epsilon(2)) / 2
    fields = {"privacy__epsilon": budget, "privacy__on_budget": "warn"}
    warned = build.build(changed(base, **fields)).guarantee
    assert warned.allowed(3) == 3
    assert "exceeds it after round 1" in warned.limit(3)
    assert spent.limit(3) is None
