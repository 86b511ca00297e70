"""From a config to a guarantee: known epsilons, clients, records and patients."""

import math

import dp_accounting as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import pld, rdp

from fairjax.core import require, round
from fairjax.data import federation
from fairjax.experiment.config import (
    build,
    calibration,
    compatibility,
    conversion,
    mechanisms,
    validate,
)
from fairjax.experiment.resume import initial_state
from fairjax.fairness import weights
from fairjax.privacy import accounting, poisson
from fairjax.submodels.fedavg import fedavg
from tests import fakes
from tests.private_configs import BY_LOSS, CLIENT, PATIENT, RECORD, changed

# ----------------------------------------------------------------------- known epsilons


def of_a_hundred(**fields):
    """The guarantee of a config for a hundred clients of five records, without data."""
    config = changed(CLIENT, **{"clients_per_round": 10, "rounds": 100, **fields})
    checked = validate.check(config)
    model = fakes.small_mlp()
    facts = calibration.RunFacts(
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
    guarantee, _ = mechanisms.build(checked.config, facts)
    return guarantee


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
    """The table has 0.98, 2.34 and 7.05 for C / 4, C / 2 and C."""
    guarantee = of_a_hundred(privacy__tier_clip=(0.25, 0.25, 0.5, 1.0))
    spent = guarantee.epsilon_by_party(100)
    known = {"tier 0": 0.98, "tier 1": 0.98, "tier 2": 2.34, "tier 3": 7.05}
    assert spent == pytest.approx(known, abs=5e-3)
    assert guarantee.epsilon(100) == spent["tier 3"]


def test_in_a_fixed_cohort_a_small_tier_is_swapped_for_a_large_one():
    """2 C_t would be too little: another client, clipped at C, may take the place."""
    config = changed(
        CLIENT,
        tiers__budget=(0.5, 1.0),
        tiers__proportions=(1.0, 1.0),
        privacy__sampling="fixed",
        privacy__tier_clip=(0.5, 1.0),
        privacy__noise_multiplier=3.0,
    )
    parties = build.run(config).guarantee.parties
    sigmas = [each.noise_multiplier for each in parties.values()]
    # Noise over half the sensitivity: 3 / ((0.5 + 1) / 2) and 3 / ((1 + 1) / 2).
    assert sigmas == pytest.approx([4.0, 3.0])


def test_a_count_that_is_noised_too_is_within_the_same_epsilon():
    fields = {"privacy__sampling": "full", "clients_per_round": 0}
    fixed = build.run(changed(CLIENT, **fields)).guarantee
    moving = build.run(
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
        build.run(changed(CLIENT, privacy__adaptive__quantile=0.5, **fields))


@pytest.mark.parametrize(
    ("fields", "sampled", "accountant"),
    [
        (
            {"privacy__sampling": "full", "clients_per_round": 0},
            lambda event: event,
            pld,
        ),
        ({}, lambda event: da.PoissonSampledDpEvent(0.1, event), rdp),
    ],
)
def test_losses_are_in_epsilon_as_a_release_of_the_same_sample(
    fields, sampled, accountant
):
    """dp-accounting composes the noise multipliers sigma_Delta and 3.3 to the same."""
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
        build.run(changed(base, **fields)).guarantee for base in (CLIENT, BY_LOSS)
    )
    assert 7.99 < shown.epsilon(3) <= 8
    sigma = shown.parties["tier 0"].noise_multiplier
    assert sigma == pytest.approx(plain.parties["tier 0"].noise_multiplier)
    # Such losses would spend as much as the whole budget allows.
    few = {"privacy__losses__noise_multiplier": 0.9 * sigma}
    with pytest.raises(require.InputError, match=r"^privacy\.losses\.noise"):
        build.run(changed(BY_LOSS, **fields, **few))


def test_a_tier_of_smaller_clip_spends_as_much_on_losses():
    fields = {
        "privacy__sampling": "full",
        "clients_per_round": 0,
        "privacy__tier_clip": (0.25, 0.25, 0.5, 1.0),
        "privacy__losses__noise_multiplier": 2.0,
    }
    parties = build.run(changed(BY_LOSS, **fields)).guarantee.parties
    changes = 1 - 2.0**-2
    for tier, share in enumerate((0.25, 0.25, 0.5, 1.0)):
        if f"tier {tier}" in parties:
            expected = (share**2 * changes + 2.0**-2) ** -0.5
            got = parties[f"tier {tier}"].noise_multiplier
            assert got == pytest.approx(expected)


@pytest.mark.parametrize("rule", compatibility.names_of(compatibility.follows_losses))
def test_every_rule_by_losses_is_shown_tiers_in_the_round(rule):
    """The round is traced, not run, with another rule beside it and a warm-up."""
    run = build.run(
        changed(BY_LOSS, fairness__rule=f"{rule}+private_head", fairness__warmup=2)
    )
    state = initial_state(run)
    counts = np.bincount(run.tiers, np.asarray(run.splits.train.count), minlength=4)
    assert run.guarantee.tier_records == tuple(counts.astype(int))

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = run.draw(state.key, state.round)
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)


def test_weights_are_those_of_everybody_and_of_mean_one():
    for rule, expected in (("uniform", lambda n: n**0), ("size", lambda n: n)):
        config = changed(CLIENT, fairness__rule=rule, data__partition__name="dirichlet")
        run = build.run(config)
        population = run.guarantee.protection.population
        counts = np.asarray(run.splits.train.count, float)
        weight = expected(counts) / expected(counts).mean()
        np.testing.assert_allclose(population.weight, weight, rtol=1e-5)
        np.testing.assert_array_equal(population.tier, run.tiers)
        assert population.sampling_rate == 0.5


def test_hospitals_that_the_method_leaves_out_have_no_weight():
    run = build.run(
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
    run = build.run(config)
    counts = np.asarray(run.splits.train.count)
    parties = run.guarantee.parties
    assert list(parties) == list(run.splits.clients)
    slots = run.spec.local.dp.slots
    for name, n in zip(run.splits.clients, counts.tolist(), strict=True):
        mechanism = parties[name]
        assert mechanism.sampling_rate == min(1, 16 / n)
        assert mechanism.releases == 2 * math.ceil(n / 16)
        assert mechanism.neighbours == "zero_out"
        room, tail = poisson.capacity(n, mechanism.sampling_rate)
        assert room <= slots
        assert mechanism.overflow == mechanism.releases * tail
    spent = run.guarantee.epsilon_by_party(3)
    assert run.guarantee.epsilon(3) == max(spent.values())


@pytest.mark.parametrize(
    ("fields", "passes"), [({"local__epochs": 3}, 3), ({"local__steps": 10}, None)]
)
def test_shuffled_batches_claim_no_amplification(fields, passes):
    """A record is in one batch per epoch, and an epoch that has begun counts whole."""
    run = build.run(changed(RECORD, privacy__batches="shuffled", **fields))
    assert run.spec.local.dp.slots is None
    for n, mechanism in zip(
        np.asarray(run.splits.train.count), run.guarantee.parties.values(), strict=True
    ):
        assert mechanism.sampling_rate == 1
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
    run = build.run(config)
    spent = run.guarantee.epsilon_by_party(3).values()
    assert 3.99 < max(spent) <= 4
    assert min(spent) < 3.95
    assert not validate.is_extendable(run.config)
    assert validate.is_extendable(conversion.to_typed(changed(RECORD)))


# ----------------------------------------------------------------------------- patients


def of_patients(shared, **fields):
    """(guarantee, DP-SGD settings) of three clients with 40, 20 and 8 patients.

    Each client has 50 records.
    """
    config = changed(PATIENT, local__batch_size=4, **fields)
    checked = validate.check(config)
    model = fakes.small_mlp()
    facts = calibration.RunFacts(
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
    return mechanisms.build(checked.config, facts)


def test_patients_are_drawn_and_counted_in_place_of_records():
    guarantee, dp = of_patients({}, local__epochs=2)
    assert guarantee.unit == "patient"
    for mechanism, n in zip(guarantee.parties.values(), (40, 20, 8), strict=True):
        assert mechanism.sampling_rate == 4 / n
        assert mechanism.releases == 2 * n / 4
        room, tail = poisson.capacity(n, 4 / n)
        assert room <= dp.slots
        assert mechanism.overflow == mechanism.releases * tail
    assert dp.per_patient == 4
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
    """The patient spends the sum of the epsilons, each at an equal part of delta."""
    shared = {(0, 2): 3, (1, 2): 1, (0, 1, 2): 1}
    (alone, _), (guarantee, _) = of_patients({}), of_patients(shared)
    assert guarantee.epsilon_by_party(3) == alone.epsilon_by_party(3)
    part = [
        accounting.epsilon(each, 3, delta=1e-5 / 3, accountant="rdp")
        for each in guarantee.parties.values()
    ]
    assert guarantee.epsilon(3) == pytest.approx(sum(part), rel=1e-12)
    assert guarantee.epsilon(3) > max(alone.epsilon_by_party(3).values()) * 1.5
    summary = guarantee.summary(3)
    assert summary["epsilon"] == guarantee.epsilon(3)
    assert summary["of"].endswith(", at up to 3 hospitals")
    assert summary["notes"][0].startswith("5 patients are at several hospitals.")
    assert "who is a patient of which hospitals" in summary["public"]


@pytest.mark.slow
def test_noise_is_calibrated_for_patients_at_several_hospitals():
    fields = {"privacy__noise_multiplier": None, "privacy__epsilon": 6.0}
    guarantee, _ = of_patients({(0, 1): 1}, **fields)
    assert 5.99 < guarantee.epsilon(3) <= 6
    alone, _ = of_patients({}, **fields)
    sigmas = [each.parties["a"].noise_multiplier for each in (alone, guarantee)]
    assert sigmas[0] < sigmas[1]


def test_patients_of_a_file_are_protected_in_the_round(tmp_path):
    """The round is traced, not run: 64 records, 24 patients, some at both clients."""
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
    run = build.run(
        changed(
            PATIENT,
            data__name="npz",
            data__path=str(tmp_path / "d.npz"),
            data__partition__name="natural",
            data__partition__val_fraction=0.0,
            tiers__budget=(1.0,),
            tiers__proportions=(1.0,),
            local__batch_size=4,
            privacy__records_per_patient=2,
        )
    )
    held = federation.records_per_patient(run.splits.train)
    steps = [-(-len(each) // 4) for each in held]
    assert [each.releases for each in run.guarantee.parties.values()] == steps
    assert run.spec.local.schedule.steps == max(steps)
    assert run.spec.local.dp.per_patient == 2
    north, south = (set(patient[:64][client[:64] == k]) for k in ("north", "south"))
    both = {(0, 1): len(north & south)}
    assert run.guarantee.shared == run.splits.shared == both
    state = initial_state(run)

    def step(state):
        data = jax.tree.map(jnp.asarray, run.splits.train)
        cohort = run.draw(state.key, state.round)
        return round.step(state, data, cohort, spec=run.spec, layout=run.layout)

    new, _ = jax.eval_shape(step, state)
    assert require.describe(new) == require.describe(state)
