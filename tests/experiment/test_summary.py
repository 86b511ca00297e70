"""The final figures, entry by entry, of random logits."""

import dataclasses
import functools
import json
import math

import fairlearn.metrics
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
)

from fairjax.data.table import Attribute
from fairjax.experiment import breakdowns, intervals, summary
from fairjax.experiment.config import build
from fairjax.experiment.evaluate import Logits
from fairjax.experiment.resume import initial_state
from tests.trained import small

METRICS = (
    "accuracy balanced_accuracy loss auroc auprc sensitivity specificity brier ece "
    "calibration_slope calibration_intercept"
).split()


@functools.cache
def base():
    run = build.run(small())
    return run, initial_state(run)


def drawn(classes=2, seed=0):
    """(run, state, evaluate_fn) with 4 clients, of which the last has class 0 only.

    Sex "x" is too small a group, and some records have no sex; no record has the other
    attribute.
    """
    run, state = base()
    rng = np.random.default_rng(seed)
    splits = {"val": run.splits.val, "test": run.splits.test}
    full, own = {}, {}
    for name, split in splits.items():
        rows = len(split.y)
        y = rng.integers(0, classes, rows).astype(np.int32)
        y[split.offset[3] :] = 0
        group = np.where(rng.random(rows) < 0.1, -1, rng.integers(0, 2, rows))
        group[:7] = 2
        columns = np.stack([np.full(rows, -1), group], axis=1).astype(np.int32)
        splits[name] = dataclasses.replace(split, y=y, group=columns)
        logits = rng.normal(size=(5, rows, classes)) + np.eye(classes)[y]
        full[name] = jnp.asarray(logits[0], jnp.float32)
        own[name] = jnp.asarray(logits[1:], jnp.float32)
    names = tuple("abc"[:classes])
    attributes = (Attribute("age", ("young",)), Attribute("sex", ("f", "m", "x")))
    splits = dataclasses.replace(run.splits, **splits, groups=attributes, classes=names)
    run = dataclasses.replace(run, splits=splits)
    return run, state, lambda state: (None, Logits(full, own))


@pytest.fixture(scope="module")
def two():
    run, state, measure = drawn()
    return run, measure(state)[1], summary.final(run, measure, state, state)["last"]


def probability(logits):
    logits = np.asarray(logits, float)
    return 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))


def expected(y, p, threshold):
    """Figures by scikit-learn, without those that need bins or a fit."""
    predicted = p >= threshold
    return {
        "accuracy": np.mean((p > 0.5) == y),
        "auroc": roc_auc_score(y, p),
        "auprc": average_precision_score(y, p),
        "sensitivity": recall_score(y, predicted),
        "specificity": recall_score(y, predicted, pos_label=0),
        "brier": brier_score_loss(y, p),
    }


def test_the_threshold_is_the_best_of_the_validation_split(two):
    run, logits, entry = two
    for p, threshold in (
        (probability(logits.full["val"]), entry["threshold"]),
        *(
            (
                probability(logits.per_tier["val"][t]),
                entry["tiers"][t]["own"]["threshold"],
            )
            for t in range(4)
        ),
    ):
        y = run.splits.val.y
        index = [np.mean(p[y == 1] >= t) - np.mean(p[y == 0] >= t) for t in p]
        np.testing.assert_allclose(threshold, p[np.argmax(index)], rtol=1e-6)


def test_every_part_has_the_figures_of_its_own_records(two):
    run, logits, entry = two
    test = run.splits.test
    owner = np.repeat(np.arange(4), test.count)
    p = probability(logits.full["test"])
    assert set(entry["pooled"]) == set(METRICS)
    parts = [({k: v["value"] for k, v in entry["pooled"].items()}, owner >= 0, p)]
    cut = entry["threshold"]
    for k, row in enumerate(entry["clients"][:3]):
        assert row["client"] == run.splits.clients[k]
        assert row["n"] == test.count[k]
        parts.append((row, owner == k, p))
    for tier, row in enumerate(entry["tiers"]):
        rows = run.tiers[owner] == tier
        assert row["n"] == rows.sum()
        if len(np.unique(test.y[rows])) == 2:
            parts.append((row, rows, p))
            parts.append((row["own"], rows, probability(logits.per_tier["test"][tier])))
    assert len(parts) == 1 + 3 + 6
    for row, rows, of_model in parts:
        at = row.get("threshold", cut)
        for name, value in expected(test.y[rows], of_model[rows], at).items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, err_msg=name)


def test_groups_and_gaps(two):
    run, logits, entry = two
    test, sex = run.splits.test, run.splits.test.group[:, 1]
    p = probability(logits.full["test"])
    for s, name in enumerate(("f", "m", "x")):
        rows, row = sex == s, entry["groups"]["sex"][name]
        assert row["n"] == rows.sum()
        assert row["positives"] == test.y[rows].sum()
        if name == "x":
            assert {row[metric]["value"] for metric in METRICS} == {None}
            continue
        for metric, value in expected(
            test.y[rows], p[rows], entry["threshold"]
        ).items():
            np.testing.assert_allclose(row[metric]["value"], value, rtol=1e-5)
    known = np.isin(sex, (0, 1))
    for name, gap in entry["gaps"]["sex"].items():
        assert 0 <= gap["low"] <= gap["value"] <= gap["high"] <= 1
        if name == "auroc_difference":
            areas = [entry["groups"]["sex"][g]["auroc"]["value"] for g in "fm"]
            np.testing.assert_allclose(gap["value"], np.ptp(areas), rtol=1e-5)
            continue
        value = getattr(fairlearn.metrics, name)(
            y_true=test.y[known],
            y_pred=p[known] >= entry["threshold"],
            sensitive_features=sex[known],
        )
        np.testing.assert_allclose(gap["value"], value, rtol=1e-5, err_msg=name)


def test_the_interval_of_the_ece_holds_it_and_reaches_to_both_sides(two):
    entries = [two[2]["pooled"], *(two[2]["groups"]["sex"][g] for g in "fm")]
    for ece in (entry["ece"] for entry in entries):
        assert 0 <= ece["low"] < ece["value"] < ece["high"] <= 1
        np.testing.assert_allclose(
            max(2 * ece["value"] - ece["high"], 0), ece["low"], atol=1e-6
        )


def test_patients_are_drawn_whole(two):
    """A client whose test records are one patient's has its own figures or none."""
    run, logits, _ = two
    owner = np.repeat(np.arange(4), run.splits.test.count).astype(np.int32)
    splits = dataclasses.replace(run.splits, patients=owner)
    records = breakdowns.segment_records(run, run.tiers)
    given = records, np.asarray(logits.full["test"]), np.float32(0.5)
    by_hospital = len(records.views) - 2

    def draw(run):
        return intervals.resampled_figures(run, base()[1], *given, by_hospital, 4, 40)

    whole = draw(dataclasses.replace(run, splits=splits)).quality.loss
    known = ~np.isnan(whole)
    assert known[0].all()
    assert not known.all()
    np.testing.assert_allclose(np.where(known, whole - whole[0], 0), 0, atol=1e-6)
    by_record = draw(run).quality.loss
    assert np.nanstd(by_record, axis=0).min() > 1e-3


def test_groups_of_hospitals_are_judged_beside_those_of_patients(two):
    run, logits, plain = two
    named = dataclasses.replace(
        run, client_groups=("north", "south"), group_of=(0, 1, 0, 1)
    )
    measure = lambda state: (None, logits)  # noqa: E731
    entry = summary.final(named, measure, base()[1], "none")["last"]
    test = run.splits.test
    owner = np.repeat(np.arange(4), test.count)
    p = probability(logits.full["test"])
    for number, name in enumerate(("north", "south")):
        rows, row = owner % 2 == number, entry["groups"]["client_group"][name]
        assert row["n"] == rows.sum()
        area = roc_auc_score(test.y[rows], p[rows])
        np.testing.assert_allclose(row["auroc"]["value"], area, rtol=1e-5)
    assert set(entry["gaps"]) == {"age", "sex", "client_group"}
    assert entry["groups"]["sex"] == plain["groups"]["sex"]


def nulls(entry):
    """The number of null values, without interval bounds."""
    if isinstance(entry, dict):
        if set(entry) == {"value", "low", "high"}:
            assert (entry["value"] is None) <= (entry["low"] is None)
            return int(entry["value"] is None)
        return sum(nulls(each) for key, each in entry.items() if key != "threshold")
    if isinstance(entry, list):
        return sum(map(nulls, entry))
    return int(entry is None)


@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_not_known_is_null_and_counted_by_reason(classes):
    run, state, measure = drawn(classes)
    entry = summary.final(run, measure, state, "none")["last"]
    json.dumps(entry, allow_nan=False)
    reasons = entry["not_estimated"]
    parts = {
        name: entry[name] for name in ("pooled", "tiers", "clients", "groups", "gaps")
    }
    if classes == 3:  # three classes have no positive class
        for attribute in parts["groups"].values():
            for row in attribute.values():
                assert row.pop("positives") is None
        assert entry["threshold"] is None
        assert reasons["more than two classes"] >= 4 * 4
    whys = {k: n for k, n in reasons.items() if not k.startswith("interval")}
    assert nulls(parts) == sum(whys.values())
    assert reasons["patient group too small"] == len(METRICS)
    assert reasons["no records"] == len(METRICS)
    assert reasons["fewer than two patient groups"] >= 5
    alone = entry["clients"][3]
    assert alone["auroc"] is alone["sensitivity"] is None
    assert alone["accuracy"] is not None
    assert reasons["one class"] >= 2


def test_scores_that_are_not_finite(two):
    run, state, _ = drawn()
    logits = two[1]
    broken = {name: leaf.at[0].set(math.nan) for name, leaf in logits.full.items()}
    entry = summary.final(
        run, lambda state: (None, Logits(broken, logits.per_tier)), state, "none"
    )["last"]
    json.dumps(entry, allow_nan=False)
    assert entry["pooled"]["auroc"] == {"value": None, "low": None, "high": None}
    assert entry["not_estimated"]["scores are not finite"] > 0
    assert entry["threshold"] is None


def test_over_clients_leaves_out_what_is_not_known(two):
    entry = two[2]
    areas = [row["auroc"] for row in entry["clients"][:3]]
    spread = entry["over_clients"]["auroc"]
    np.testing.assert_allclose(spread["mean"], np.mean(areas))
    np.testing.assert_allclose(spread["std"], np.std(areas))
    assert spread["worst"] == spread["worst10"] == min(areas)
    assert spread["best10"] == max(areas)
    losses = [row["loss"] for row in entry["clients"]]
    assert entry["over_clients"]["loss"]["worst"] == max(losses)
    assert entry["over_clients"]["loss"]["best10"] == min(losses)
    assert "calibration_slope" not in entry["over_clients"]


def test_the_worst_hospital_has_its_name_records_and_interval(two):
    """Its interval resamples its own patients: an accuracy's resamples are binomial."""
    run, _, entry = two
    rows = entry["clients"]
    for name, sign in (("accuracy", 1), ("loss", -1), ("auroc", 1)):
        known = [row for row in rows if row[name] is not None]
        worst = min(known, key=lambda row: sign * row[name])
        told = entry["over_clients"][name]["worst_client"]
        assert (told["client"], told["n"]) == (worst["client"], worst["n"])
        assert told["value"] == entry["over_clients"][name]["worst"] == worst[name]
        assert told["low"] <= told["value"] <= told["high"]
        assert told["low"] < told["high"]
    head = entry["headlines"]["client_worst"]
    assert head == entry["over_clients"]["accuracy"]["worst_client"]
    deviation = np.sqrt(head["value"] * (1 - head["value"]) / head["n"])
    assert 2.5 < (head["high"] - head["low"]) / deviation < 5
    assert entry["headlines"]["below"] == {"clients": [], "tiers": []}
    gap = entry["headlines"]["tier_gap"]
    last = run.splits.test.count
    assert gap["n"] == [int(last[run.tiers == t][0]) for t in (0, 3)]
    ends = [row["accuracy"] for t in (0, 3) for row in rows if row["tier"] == t]
    np.testing.assert_allclose(gap["value"], ends[0] - ends[1], rtol=1e-6)
    assert gap["low"] < gap["value"] < gap["high"]


def test_the_calibration_plot_holds_every_record(two):
    run, logits, entry = two
    bins = entry["calibration"]
    assert sum(each["n"] for each in bins) == len(run.splits.test.y)
    p = probability(logits.full["test"])
    for name, values in (("predicted", p), ("observed", run.splits.test.y)):
        mean = np.average([b[name] for b in bins], weights=[b["n"] for b in bins])
        np.testing.assert_allclose(mean, values.mean(), rtol=1e-5)
    gaps = [b["n"] * abs(b["predicted"] - b["observed"]) for b in bins]
    ece = entry["pooled"]["ece"]["value"]
    np.testing.assert_allclose(np.sum(gaps) / len(p), ece, rtol=1e-5)


def test_the_last_and_the_selected_model():
    run, state, measure = drawn()
    later = dataclasses.replace(state, round=state.round + 2)
    made = summary.final(run, measure, later, state)
    assert (made["last"]["round"], made["selected"]["round"]) == (2, 0)
    assert "note" not in made
    same = summary.final(run, measure, state, state)
    assert same["selected"] == same["last"] == made["selected"]
    none = summary.final(run, measure, state, "it is lost")
    assert none["selected"] is None
    assert none["note"] == "it is lost"
