"""Defences and faults of a config: refusals, and runs that report what happened."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import report
from fairjax.core import require
from fairjax.core.rule import CohortStats
from fairjax.experiment import cli, compilation, evaluate, resume
from fairjax.experiment.config import build, conversion, robustness, validate
from fairjax.experiment.train import train
from fairjax.fairness import personal, weights
from fairjax.report import page
from tests import fakes
from tests.outline import Outline
from tests.trained import small
from tests.workdirs import fake_run

FLIP = (("sign_flip", 0.25, 1.0),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"robust__aggregator": "medean"},
            'robust.aggregator: .*Did you mean "median"',
        ),
        ({"robust__norm_bound": -1.0}, "robust.norm_bound: expected a finite number"),
        ({"robust__weight_cap": 0.5}, "robust.weight_cap: expected a finite number"),
        ({"robust__num_byzantine": -1}, "robust.num_byzantine"),
        ({"robust__trimmed_mean__beta": 0.5}, "robust.trimmed_mean.beta"),
        ({"robust__strength__scaling": -1.0}, "robust.strength.scaling"),
        ({"robust__deadline__most": 0.0}, "robust.deadline.most"),
        ({"robust__faults": (("nan", 0.5),)}, "robust.faults: expected .name, share"),
        ({"robust__faults": ("nan",)}, "robust.faults: expected .name, share"),
        ({"robust__faults": ((1, 0.5, 1.0),)}, "robust.faults: expected a name first"),
        (
            {"robust__faults": (("sign_flop", 0.5, 1.0),)},
            'robust.faults: .*Did you mean "sign_flip"',
        ),
        ({"robust__faults": (("nan", 0.0, 1.0),)}, "robust.faults share of nan"),
        ({"robust__faults": (("nan", 0.5, 1.5),)}, "robust.faults rate of nan"),
        (
            {"robust__faults": (("label_flip", 0.5, 0.5),)},
            "robust.faults rate of label_flip: expected 1",
        ),
        ({"robust__faults": FLIP * 2}, "robust.faults: expected every fault once"),
        (
            {"robust__faults": (("inflated_loss", 0.5, 1.0),)},
            "fairness.rule: expected a rule that reads losses",
        ),
        (
            {"robust__aggregator": "median", "robust__finite_guard": False},
            "robust.finite_guard: expected True with robust.aggregator median",
        ),
        (
            {"robust__norm_bound": 2.0, "robust__finite_guard": False},
            "robust.finite_guard: expected True with robust.norm_bound 2.0",
        ),
        (
            {"robust__aggregator": "krum", "fairness__rule": "fedmgda"},
            "robust.aggregator: expected mean with rule fedmgda",
        ),
        (
            {"robust__norm_bound": 2.0, "fairness__rule": "q_fedavg"},
            "robust.norm_bound: expected 0.0 with rule q_fedavg",
        ),
        (
            {"robust__aggregator": "trimmed_mean", "fairness__rule": "q_ffl"},
            "fairness.rule: expected one of .* with robust.aggregator trimmed_mean",
        ),
        (
            {"robust__aggregator": "median", "fairness__denominator": "fixed"},
            "fairness.denominator: expected cover with robust.aggregator median",
        ),
        (
            {"robust__aggregator": "multi_krum", "fairness__denominator": "fixed"},
            "fairness.denominator: expected cover with robust.aggregator multi_krum",
        ),
        (
            {"robust__aggregator": "krum", "fairness__rule": "q_ffl"},
            "fairness.rule: expected one of .* with robust.aggregator krum",
        ),
        (
            {
                "robust__aggregator": "krum",
                "privacy__secure_sum": "masked",
                "submodel__name": "fedavg",
            },
            "robust.aggregator: expected mean with privacy.secure_sum",
        ),
        (
            {
                "robust__norm_bound": 1.0,
                "privacy__secure_sum": "quantized",
                "submodel__name": "fedavg",
            },
            "robust.norm_bound: expected 0.0 with privacy.secure_sum",
        ),
        (
            {
                "robust__aggregator": "median",
                "privacy__mechanism": "client_dp",
                "privacy__noise_multiplier": 1.0,
                "fairness__denominator": "fixed",
            },
            "robust.aggregator: expected mean with client_dp",
        ),
        (
            {
                "robust__norm_bound": 2.0,
                "submodel__heterofl__masked_loss": False,
                "privacy__mechanism": "local_dp",
                "privacy__noise_multiplier": 1.0,
            },
            "robust.norm_bound: expected 0.0 with local_dp",
        ),
        (
            {
                "robust__faults": (("inflated_count", 0.5, 1.0),),
                "privacy__mechanism": "client_dp",
                "privacy__noise_multiplier": 1.0,
                "fairness__denominator": "fixed",
            },
            "robust.faults: expected no inflated_count with client_dp",
        ),
        (
            {
                "robust__faults": (("corrupted", 0.5, 1.0),),
                "submodel__heterofl__masked_loss": False,
                "privacy__mechanism": "record_dp",
                "privacy__noise_multiplier": 1.0,
            },
            "robust.faults: expected no corrupted with record_dp",
        ),
    ],
)
def test_what_cannot_hold_is_refused_by_name(fields, message):
    with pytest.raises(require.InputError, match=f"^{message}"):
        validate.check(small(**fields))


def test_a_cohort_too_small_for_its_byzantine_clients_is_refused():
    config = small(
        robust__aggregator="krum", robust__num_byzantine=1, clients_per_round=4
    )
    message = (
        r"^robust\.num_byzantine: expected at most 0 with a cohort of 4: K >= 2 f \+ 3"
    )
    with pytest.raises(require.InputError, match=message):
        build.run(config)
    assert build.run(
        small(robust__aggregator="krum", robust__num_byzantine=0, clients_per_round=4)
    )


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("robust.strength.scaling", {}),
        ("robust.deadline.most", {"robust__faults": FLIP}),
        ("robust.trimmed_mean.beta", {"robust__aggregator": "median"}),
        ("robust.num_byzantine", {"robust__aggregator": "median"}),
        ("robust.weight_cap", {}),
        ("robust.weight_cap", {"fairness__rule": "fedmgda"}),
        ("robust.weight_cap", {"robust__aggregator": "krum"}),
        (
            "robust.weight_cap",
            {"robust__aggregator": "median", "robust__norm_bound": 1.0},
        ),
    ],
)
def test_options_that_nothing_reads_are_refused(path, fields):
    with pytest.raises(require.InputError, match=rf"^{re.escape(path)}: expected"):
        validate.check(small(**fields), overridden=(path,))


def test_options_in_use_are_taken():
    fields = {"robust__aggregator": "trimmed_mean", "robust__faults": FLIP}
    config = small(**fields)
    used = (
        "robust.strength.sign_flip",
        "robust.trimmed_mean.beta",
        "robust.aggregator",
    )
    assert set(used) <= set(cli.fields_of(config))
    validate.check(config, overridden=used)


def test_no_claim_buys_more_than_the_cap_where_a_bound_is_in_force():
    scores = CohortStats(jnp.asarray([1, 1, 1, 97], jnp.int32))
    cohort = fakes.cohort()
    for fields, most in (
        ({"robust__norm_bound": 1.0}, 0.75),
        ({"robust__aggregator": "multi_krum"}, 0.75),
        ({"robust__norm_bound": 1.0, "robust__weight_cap": 2.0}, 0.5),
        ({"robust__norm_bound": 1.0, "robust__weight_cap": 0.0}, 0.97),
        ({"robust__aggregator": "median", "robust__norm_bound": 1.0}, 0.97),
        ({}, 0.97),
    ):
        rule = robustness.rule(conversion.to_typed(small(**fields)), weights.size())
        found, _ = rule.weights((), cohort, scores)
        np.testing.assert_allclose(found[3], most, rtol=1e-6)
        np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


def test_the_cap_holds_for_rules_that_leave_weights_to_the_records():
    scores = CohortStats(jnp.asarray([1, 1, 1, 97], jnp.int32))
    config = small(robust__norm_bound=1.0, robust__weight_cap=2.0)
    rule = robustness.rule(conversion.to_typed(config), personal.fedbn())
    found, _ = rule.weights((), fakes.cohort(), scores)
    np.testing.assert_allclose(found, [1 / 6] * 3 + [0.5], rtol=1e-6)
    assert rule.local_leaves is not None


# --------------------------------------------------------------------------- whole runs


def test_what_goes_wrong_follows_from_the_run_key():
    """The key decides who is faulty, who is absent, and who claims which tier."""
    entries = (
        ("drop_before", 1.0, 0.5),
        ("label_flip", 0.25, 1.0),
        ("impostor", 0.5, 1.0),
    )
    config = small(robust__faults=entries, clients_per_round=0)
    run, plain = build.run(config), build.run(small(clients_per_round=0))
    struck = {fault.name: fault.clients for fault in run.faults}
    assert [struck[name].sum() for name, *_ in entries] == [4, 1, 2]
    assert np.all(run.tiers[struck["impostor"]] == 3)
    honest = ~struck["impostor"]
    np.testing.assert_array_equal(run.tiers[honest], plain.tiers[honest])
    changed = np.asarray(run.splits.train.labels) != np.asarray(
        plain.splits.train.labels
    )
    np.testing.assert_array_equal(changed.any(axis=1), struck["label_flip"])
    np.testing.assert_array_equal(run.splits.test.y, plain.splits.test.y)
    key = jax.random.key(config.seed)
    came = [np.asarray(run.draw(key, jnp.asarray(n)).valid) for n in range(20)]
    again = [np.asarray(build.run(config).draw(key, jnp.asarray(3)).valid)]
    np.testing.assert_array_equal(came[3], again[0])
    assert 20 < np.sum(came) < 60


@pytest.mark.usefixtures("unfinal")
def test_a_run_names_the_hospital_that_sends_no_numbers(tmp_path):
    faults = (("nan", 0.25, 1.0), ("drop_after", 1.0, 0.3))
    config = small(
        robust__faults=faults,
        robust__aggregator="median",
        clients_per_round=0,
        baselines=False,
    )
    result = train(config, tmp_path / "run")
    told = result.summary["robust"]
    run, _ = resume.load(tmp_path / "run")
    (who,) = np.flatnonzero(run.faults[0].clients)
    by = {row["client"]: row for row in told["refused"]}
    assert by[run.splits.clients[who]] == {
        "client": run.splits.clients[who],
        "came": 3,
        "entered": 0.0,
    }
    assert told["aggregator"] == "median"
    assert [fault["name"] for fault in told["faults"]] == ["nan", "drop_after"]
    rings = told["rings"]
    assert [ring["hospitals"] for ring in rings] == [4, 3, 2, 1]
    assert [ring["breakdown"] for ring in rings] == [1, 1, 0, 0]
    total = sum(leaf.size for leaf in jax.tree.leaves(result.state.params))
    assert sum(ring["parameters"] for ring in rings) == total
    shown = Outline(tmp_path / "run" / "report.html")
    assert run.splits.clients[who] in shown.cells
    assert "median over the hospitals that hold it" in shown.text
    entered = sum(
        row["cohort/valid"] for row in report.read_run(tmp_path / "run").metrics
    )
    np.testing.assert_allclose(entered, result.state.participation.accepted.sum())


def test_a_hospital_without_numbers_is_left_out_for_a_whole_run():
    """The run equals, to the bit, one in which that client's uploads are lost."""
    ends = []
    for name in ("nan", "drop_after"):
        run = build.run(small(robust__faults=((name, 0.25, 1.0),), clients_per_round=0))
        state = resume.initial_state(run)
        step, _ = compilation.compile_round(run, state)
        for _ in range(3):
            state, (_, info) = step(state)
            assert info.valid.sum() == 3
        ends.append(state)
    assert fakes.equal(ends[0].params, ends[1].params)
    counts = [state.participation.accepted.tolist() for state in ends]
    assert counts[0] == counts[1]
    assert sorted(counts[0]) == [0, 3, 3, 3]


def test_an_undisturbed_run_has_nobody_to_name():
    run = build.run(small())
    state = resume.initial_state(run)
    step, _ = compilation.compile_round(run, state)
    after = step(state)[0]
    told = evaluate.robustness_summary(run, state, after)
    assert told["refused"] == told["faults"] == []
    assert told["rings"] == []  # the mean bears no Byzantine client


@pytest.mark.parametrize(
    ("fields", "hospitals"),
    [
        ({"submodel__heterofl__masked_loss": False}, [8, 6, 4, 2]),
        # A client without a class does not train that class's part of the head.
        ({"submodel__heterofl__masked_loss": True}, [7, 5, 3, 1]),
    ],
)
def test_holders_are_those_of_the_scarcest_coordinate(fields, hospitals):
    fields |= {"robust__aggregator": "median", "data__partition__num_clients": 8}
    run = build.run(small(clients_per_round=0, **fields))
    labels = np.asarray(run.splits.train.labels).copy()
    richest = int(np.argmax(run.tiers))
    labels[richest, 0] = 0
    train = dataclasses.replace(run.splits.train, labels=labels)
    run = dataclasses.replace(run, splits=dataclasses.replace(run.splits, train=train))
    state = resume.initial_state(run)
    told = evaluate.robustness_summary(run, state, state)
    assert [ring["hospitals"] for ring in told["rings"]] == hospitals


def test_holders_of_masks_that_are_drawn_are_counted():
    """Every client of a tier draws its own units, so few clients train the same one."""
    run = build.run(
        small(
            robust__aggregator="median",
            submodel__name="federated_dropout",
            clients_per_round=0,
            data__partition__num_clients=12,
            model__mlp__hidden=(64,),
            tiers__budget=(0.5, 1.0),
            tiers__proportions=(11.0, 1.0),
            tiers__branches=(0, 0),
        )
    )
    state = resume.initial_state(run)
    count = evaluate.holder_counts(run, state)["hidden0"]["kernel"].sum(axis=0)
    assert count.min() < 8
    assert count.max() > count.min()
    both = evaluate.robustness_summary(run, state, state)["rings"][0]
    assert both["tiers"] == [0, 1]
    assert both["hospitals"] < 11
    assert both["breakdown"] == (both["hospitals"] - 1) // 2


FIGURES = (
    "learning",
    "hospitals",
    "calibration",
    "weights",
    "tiers",
    "privacy",
    "data",
)


def told_of(workdir, **robust):
    """The page of a finished run without figures."""
    run = report.read_run(workdir)
    if robust:
        run = dataclasses.replace(run, summary={**run.summary, "robust": robust})
    return page.render(run, {section: [] for section in FIGURES})


def test_the_page_says_nothing_of_a_run_without_faults_or_defences(tmp_path):
    workdir = fake_run(tmp_path / "run", ["north", "south"])
    assert "Faults and Byzantine hospitals" not in told_of(workdir)
    assert "Faults and Byzantine hospitals" not in told_of(
        workdir, aggregator="mean", norm_bound=0.0
    )
    assert "Faults and Byzantine hospitals" in told_of(
        workdir, aggregator="median", norm_bound=0.0
    )


def test_krums_page_speaks_of_cohorts_and_never_of_rings(tmp_path):
    workdir = fake_run(
        tmp_path / "run", ["north", "south"], config={"robust": {"num_byzantine": 2}}
    )
    ring = {"tiers": [0, 1], "parameters": 9, "hospitals": 2, "holders": 2}
    rings = [ring | {"breakdown": 0}]
    shown = told_of(workdir, aggregator="krum", norm_bound=0.0, rings=rings)
    assert "at most 2 hospitals of a round are Byzantine" in shown
    assert "fewer than 7 hospitals send finite changes" in shown
    assert "Byzantine tolerated" not in shown
    shown = told_of(workdir, aggregator="median", norm_bound=0.0, rings=rings)
    assert "Byzantine tolerated" in shown
