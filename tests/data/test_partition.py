"""Partition laws: every unit has a client, minima hold, and draws follow the law."""

import fractions
import hashlib
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fairjax.core import require
from fairjax.data import partition
from fairjax.data.table import FREE, TEST, TRAIN

seeds = st.integers(0, 2**31 - 1)


def cohort(rows=600, classes=3, splits=(FREE,), seed=0):
    """(label, split) of units with one record each."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, rows), rng.choice(splits, rows)


def dirichlet(label, split, clients=5, *, alpha=0.5, seed=0, counts=None, **overrides):
    """(owner, training records of every client, notes)."""
    counts = np.ones(len(label), int) if counts is None else np.asarray(counts)
    is_train = split != TEST
    owner, notes = partition.dirichlet(
        np.random.default_rng(seed),
        label,
        split,
        clients,
        alpha=alpha,
        counts=counts,
        is_train=is_train,
        **{"min_size": 0, **overrides},
    )
    assert owner.shape == label.shape
    assert set(owner) <= set(range(clients))
    sizes = np.bincount(owner[is_train], counts[is_train], minlength=clients)
    return owner, sizes, notes


def shares(label, owner, clients):
    """The share of every class that a client has, [C, N]."""
    table = np.zeros((label.max() + 1, clients))
    np.add.at(table, (label, owner), 1)
    return table / table.sum(1, keepdims=True)


# -------------------------------------------------------------------- largest remainder


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), seeds)
def test_largest_remainder_adds_up_near_the_quota(share, seed):
    total = seed % 1000
    counts = partition.largest_remainder(np.asarray(share, float), total)
    assert counts.sum() == total
    for s, n in zip(share, counts.tolist(), strict=True):
        assert abs(n - fractions.Fraction(s * total, sum(share))) < 1
        assert s or n == 0


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.integers(0, 1000))
def test_a_larger_share_never_gets_less(share, total):
    counts = partition.largest_remainder(np.asarray(share, float), total)
    for a, m in zip(share, counts, strict=True):
        assert all(m >= n for b, n in zip(share, counts, strict=True) if a > b)


def test_ties_of_remainders_go_to_the_first():
    counts = partition.largest_remainder(np.ones(4), 6)
    np.testing.assert_array_equal(counts, [2, 2, 1, 1])


# ---------------------------------------------------------------------- natural and iid


def test_natural_clients_are_the_names_in_order():
    client, names = partition.natural(np.array(["va", "bonn", "va", "ulm"]))
    assert names == ("bonn", "ulm", "va")
    np.testing.assert_array_equal(client, [2, 0, 2, 1])


@given(st.integers(1, 200), st.integers(1, 12), seeds)
def test_iid_deals_every_split_evenly(rows, clients, seed):
    _, split = cohort(rows, splits=(FREE, TRAIN, TEST), seed=seed)
    owner = partition.iid(np.random.default_rng(seed), split, clients)
    assert owner.shape == split.shape
    for code in np.unique(split):
        sizes = np.bincount(owner[split == code], minlength=clients)
        assert len(sizes) == clients
        assert np.ptp(sizes) <= 1


def test_iid_does_not_follow_the_order_of_the_records():
    owner = partition.iid(np.random.default_rng(0), np.full(1000, FREE), 2)
    assert 400 < np.sum(owner[:-1] != owner[1:]) < 600


# ---------------------------------------------------------------------------- dirichlet


@given(st.sampled_from([0.01, 0.1, 1.0, 100.0]), st.integers(1, 10), seeds)
def test_every_client_gets_its_minimum(alpha, clients, seed):
    label, split = cohort(300, splits=(TRAIN, TEST), seed=seed)
    *_, sizes, _ = dirichlet(label, split, clients, alpha=alpha, seed=seed, min_size=5)
    assert sizes.min() >= 5
    assert sizes.sum() == np.sum(split == TRAIN)


def test_a_draw_that_cannot_succeed_is_repaired_and_said_so():
    label, split = cohort(200, splits=(TRAIN, TEST))
    *_, sizes, notes = dirichlet(label, split, 30, alpha=1e-3, min_size=3)
    assert sizes.min() >= 3
    (note,) = notes
    assert note.startswith("partition drawn 100 times; then ")
    assert note.endswith("so that all have 3 training records")


def test_a_draw_that_succeeds_late_says_how_often():
    label, split = cohort(60)
    *_, sizes, (note,) = dirichlet(label, split, 4, alpha=0.3, min_size=6, seed=1)
    times = int(re.fullmatch(r"partition drawn (\d+) times", note)[1])
    assert 1 < times < partition.REDRAWS
    assert sizes.min() >= 6


def test_a_draw_that_succeeds_at_once_needs_no_note():
    *_, notes = dirichlet(*cohort(), alpha=100.0, min_size=10)
    assert notes == ()


@pytest.mark.parametrize(
    ("counts", "min_size"),
    [([10] * 10, 20), ([50] + [1] * 15, 5), ([7, 7, 7] + [1] * 20, 6)],
)
def test_the_minimum_counts_records_not_patients(counts, min_size):
    label, split = cohort(len(counts))
    clients = 5 if counts[0] == 10 else 4
    *_, sizes, _ = dirichlet(
        label, split, clients, alpha=1e-3, counts=counts, min_size=min_size
    )
    assert sizes.min() >= min_size
    assert sizes.sum() == sum(counts)


def test_the_minimum_holds_after_the_cut():
    *_, sizes, _ = dirichlet(*cohort(90), 4, alpha=0.1, min_size=7, train_fraction=0.4)
    assert sizes.min() >= 18


def test_an_impossible_minimum_is_refused():
    label, split = cohort(10)
    with pytest.raises(require.InputError) as refusal:
        dirichlet(label, split, 4, min_size=3)
    assert str(refusal.value) == (
        "data.partition.min_size: expected at most what 4 hospitals can all have; got 3"
    )


@given(seeds)
def test_training_and_test_records_follow_one_law(seed):
    label, split = cohort(2000, splits=(TRAIN, TRAIN, TEST), seed=seed)
    owner, *_ = dirichlet(label, split, alpha=0.3, seed=seed)
    train, test = (
        shares(label[split == code], owner[split == code], 5) for code in (TRAIN, TEST)
    )
    class_counts = [np.bincount(label[split == code]) for code in (TRAIN, TEST)]
    rounding = 1 / class_counts[0] + 1 / class_counts[1]
    assert np.all(np.abs(train - test) <= rounding[:, None])


def test_the_seed_decides():
    label, split = cohort()
    owner, *_ = dirichlet(label, split, seed=1)
    np.testing.assert_array_equal(owner, dirichlet(label, split, seed=1)[0])
    assert np.any(owner != dirichlet(label, split, seed=2)[0])


def test_large_alpha_is_even_and_small_alpha_is_skewed():
    label, split = cohort(8000, classes=8)
    even, *_ = dirichlet(label, split, 10, alpha=1e6)
    assert np.all(np.abs(shares(label, even, 10) - 0.1) < 0.01)
    skewed, *_ = dirichlet(label, split, 10, alpha=0.05, min_size=1)
    of_client = np.stack([np.bincount(label[skewed == k], None, 8) for k in range(10)])
    p = of_client / of_client.sum(1, keepdims=True)
    entropy = -np.sum(p * np.log2(np.where(p > 0, p, 1)), axis=1)
    assert np.median(entropy) < 0.8


def test_classes_are_skewed_independently_and_no_client_is_preferred():
    """Over many draws: E p = 1/N and Var p = (N - 1) / (N^2 (N alpha + 1))."""
    label, split = cohort(300, classes=2)
    draws = np.stack(
        [shares(label, dirichlet(label, split, 4, seed=s)[0], 4) for s in range(400)]
    )
    np.testing.assert_allclose(draws.mean(0), 0.25, atol=0.05)
    np.testing.assert_allclose(draws.var(0), 3 / (16 * 3), atol=0.015)
    correlation = np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]
    assert abs(correlation) < 0.15


# ----------------------------------------------------------------------- recorded draws


@pytest.mark.parametrize(
    ("law", "recorded"),
    [
        ("iid", "4e529aaa453419e1"),
        ("dirichlet", "67adcb2acb54553d"),
        ("repaired", "cb3385f95a095454"),
    ],
)
def test_the_assignment_of_a_seed_is_the_recorded_one(law, recorded):
    label, split = cohort(97, splits=(TRAIN, TEST))
    if law == "iid":
        owner = partition.iid(np.random.default_rng(0), split, 5)
    elif law == "dirichlet":
        owner, *_ = dirichlet(label, split, alpha=0.5)
    else:
        owner, *_ = dirichlet(label, split, 12, alpha=1e-3, min_size=2)
    assert hashlib.sha256(owner.astype("<i4")).hexdigest()[:16] == recorded


# --------------------------------------------------------------- other kinds of skew


def test_sizes_are_skewed_and_contents_are_not():
    label, split = cohort(rows=6000)
    owner, *_ = dirichlet(np.zeros_like(label), split, 5, alpha=0.5)
    sizes = np.bincount(owner, minlength=5)
    assert sizes.max() > 3 * sizes.min() > 0
    large = sizes > 200
    class_counts = shares(label, owner, 5)[:, large] * np.bincount(label)[:, None]
    of_class = class_counts / class_counts.sum(axis=0)
    assert np.all(np.abs(of_class - 1 / 3) < 0.12)


@given(seeds, st.integers(2, 9), st.integers(1, 3))
def test_shards_hold_neighbouring_classes_and_lose_nobody(seed, clients, per_client):
    label, split = cohort(rows=211, classes=4, splits=(TRAIN, TEST), seed=seed)
    rng = np.random.default_rng(seed)
    owner = partition.shards(rng, label, split, clients, per_client)
    assert set(owner) == set(range(clients))
    for code in (TRAIN, TEST):
        in_split = split == code
        sizes = np.bincount(owner[in_split], minlength=clients)
        assert sizes.max() - sizes.min() <= per_client
        for client in range(clients):
            # A shard spans two classes at most, unless a class is smaller than it.
            number = len(np.unique(label[in_split & (owner == client)]))
            smallest = np.bincount(label[in_split]).min()
            shard = -(-in_split.sum() // (clients * per_client))
            assert number <= per_client * (2 if shard <= smallest else 4)


def test_the_same_client_has_alike_shards_in_every_split():
    label, split = cohort(rows=4000, classes=8, splits=(TRAIN, TEST))
    owner = partition.shards(np.random.default_rng(1), label, split, 8, 1)
    class_shares = [
        shares(label[split == p], owner[split == p], 8) for p in (TRAIN, TEST)
    ]
    assert np.all(np.abs(class_shares[0] - class_shares[1]) < 0.25)


@given(seeds, st.integers(2, 12), st.integers(1, 4))
def test_clients_have_as_many_classes_as_asked_for(seed, clients, per_client):
    label, split = cohort(rows=900, classes=4, splits=(TRAIN, TEST), seed=seed)
    rng = np.random.default_rng(seed)
    if clients * per_client < 4:
        with pytest.raises(require.InputError, match=r"data\.partition\.classes"):
            partition.pathological(rng, label, split, clients, per_client)
        return
    owner = partition.pathological(rng, label, split, clients, per_client)
    has_class = shares(label, owner, clients) > 0
    assert has_class.sum(axis=0).tolist() == [per_client] * clients
    assert np.all(has_class[np.arange(clients) % 4, np.arange(clients)])
    for c in range(4):
        counts = np.bincount(owner[label == c], minlength=clients)[has_class[c]]
        assert counts.max() - counts.min() <= 2


def test_more_classes_each_than_there_are_is_refused():
    label, split = cohort()
    with pytest.raises(require.InputError, match="at most the 3 that there are"):
        partition.pathological(np.random.default_rng(0), label, split, 5, 4)


def test_overlapping_clients_are_equal_in_size_and_share_units():
    """Sizes follow the released code, and no client draws a unit twice."""
    label, split = cohort(rows=3000, splits=(TRAIN, TEST))
    rng = np.random.default_rng(0)
    unit, owner = partition.dirichlet_overlap(rng, label, split, 6, alpha=0.5)
    shares_of = np.random.default_rng(0).dirichlet(np.full(3, 0.5), 6)
    for code in (TRAIN, TEST):
        size = np.sum(split == code) // 6
        pool = np.bincount(label[split == code])
        for client in range(6):
            client_units = unit[(owner == client) & (split[unit] == code)]
            assert len(client_units) == len(set(client_units))
            expected = np.floor(shares_of[client] * size).astype(int)
            expected[-1] = size - expected[:-1].sum()
            got = np.bincount(label[client_units], minlength=3)
            np.testing.assert_array_equal(got, np.minimum(expected, pool))
    times = np.bincount(unit, minlength=3000)
    assert times.max() > 1
    assert times.min() == 0
