"""Imputation and normalisation by the moments of training records alone."""

import dataclasses

import numpy as np
import pytest

from fairjax.data.table import TEST, TRAIN, VAL
from tests.data.federations import (
    build,
    by_split,
    numbers,
    owners,
    split_of,
    table,
)


def with_gaps(records):
    gaps = np.random.default_rng(1).random(records.x.shape) < 0.1
    gaps[:, 0] = False
    return dataclasses.replace(records, x=np.where(gaps, np.nan, records.x))


@pytest.mark.parametrize("normalise", ["pooled", "client", "none"])
def test_nothing_is_learned_from_records_that_are_not_training_records(normalise):
    records = with_gaps(table())
    code_of = split_of(build(records), 240)
    witness = np.flatnonzero(code_of == TEST)[0]
    held_out = (code_of != TRAIN) & (np.arange(240) != witness)
    x = records.x.copy()
    x[held_out, 1:] = np.where(np.isnan(x[held_out, 1:]), -50, 1000)
    before = build(records, normalise=normalise)
    after = build(dataclasses.replace(records, x=x), normalise=normalise)
    np.testing.assert_array_equal(before.train.x, after.train.x)
    unchanged = np.all(before.test.x == after.test.x, axis=1)
    assert unchanged.sum() == 1
    assert np.all(np.isfinite(after.test.x))


def test_pooled_standardises_all_by_the_moments_of_training():
    raw, splits = build(table()), build(table(), normalise="pooled")
    mean, deviation = raw.train.x.mean(0), raw.train.x.std(0)
    for name, data in by_split(splits).items():
        expected = (getattr(raw, name).x - mean) / deviation
        np.testing.assert_allclose(data.x, expected, atol=1e-4)
        assert data.x.dtype == np.float32


def test_client_standardises_by_the_hospitals_own_training_records():
    raw, splits = build(table()), build(table(), normalise="client")
    for k in range(3):
        client_train = raw.train.x[owners(raw.train) == k]
        for name, data in by_split(splits).items():
            client_raw = getattr(raw, name).x[owners(data) == k]
            expected = (client_raw - client_train.mean(0)) / client_train.std(0)
            np.testing.assert_allclose(data.x[owners(data) == k], expected, atol=1e-4)


def test_missing_values_become_the_mean_of_training():
    records = with_gaps(table())
    for normalise, data in (
        ("none", build(records).train),
        ("pooled", build(records, normalise="pooled").train),
    ):
        missing = np.isnan(records.x[numbers(build(records).train)])
        measured = np.where(missing, np.nan, data.x)
        mean = np.broadcast_to(np.nanmean(measured, axis=0), measured.shape)
        np.testing.assert_allclose(data.x[missing], mean[missing], atol=1e-5)
        assert normalise == "none" or np.abs(data.x[missing]).max() < 1e-5


@pytest.mark.parametrize("normalise", ["pooled", "client"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, np.nan])
def test_a_column_without_spread_becomes_zero(normalise, value):
    records = table()
    records.x[:, 1] = value
    for data in by_split(build(records, normalise=normalise)).values():
        np.testing.assert_array_equal(data.x[:, 1], 0)
        assert np.abs(data.x[:, 2]).max() > 1


def test_a_column_without_spread_in_training_is_only_centred():
    records = table()
    code_of = split_of(build(records), 240)
    records.x[:, 1] = np.where(code_of == TRAIN, 0.1, 0.3)
    splits = build(records, normalise="pooled")
    np.testing.assert_allclose(splits.test.x[:, 1], 0.2, rtol=1e-5)


def test_the_rounding_of_a_constant_is_no_spread():
    records = table()
    steps = np.arange(240) % 2 * np.spacing(np.float32(1000))
    records.x[:, 1] = np.float32(1000) + steps
    assert len(set(records.x[:, 1])) == 2
    assert np.abs(build(records, normalise="pooled").train.x[:, 1]).max() < 1e-3


def test_a_column_that_a_hospital_never_measured_takes_the_pooled_moments():
    records = table()
    code_of = split_of(build(records), 240)
    ulm = records.client == "ulm"
    records.x[ulm & (code_of == TRAIN), 1] = np.nan
    records.x[ulm & (code_of == VAL), 1] = np.nan
    pooled = records.x[code_of == TRAIN, 1]
    splits = build(records, normalise="client")
    assert not np.any(splits.train.x[owners(splits.train) == 1, 1])
    assert not np.any(splits.val.x[owners(splits.val) == 1, 1])
    expected = (records.x[ulm & (code_of == TEST), 1] - np.nanmean(pooled)) / np.nanstd(
        pooled
    )
    standardised = splits.test.x[owners(splits.test) == 1, 1]
    np.testing.assert_allclose(standardised, expected, rtol=1e-4)


def pictures(**columns):
    pixels = np.random.default_rng(0).integers(0, [100, 201], (240, 4, 5, 2))
    return table(x=pixels.astype(np.uint8), scale=200.0, **columns)


def test_pixels_are_divided_by_their_scale():
    splits, records = build(pictures()), pictures()
    assert splits.train.x.dtype == np.float32
    assert 0.99 < splits.train.x.max() <= 1
    everything = np.concatenate([data.x for data in by_split(splits).values()])
    np.testing.assert_allclose(
        np.sort(everything.ravel()), np.sort(records.x.ravel()) / 200, rtol=1e-6
    )


def test_images_are_standardised_by_channel():
    x = build(pictures(), normalise="pooled").train.x
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-4)
    assert np.abs(x.mean(0)).max() > 0.01
