"""Epsilons that others have computed, and the claims that may not be made."""

import math

import numpy as np
import pytest

from fairjax.core import require
from fairjax.privacy import noise
from fairjax.privacy.accounting import Mechanism, calibrate, epsilon, epsilon_by_round

DELTA = 1e-5


@pytest.mark.parametrize(
    ("mechanism", "accountant", "known"),
    [
        (Mechanism(1.0, sampling_rate=0.1), "pld", 7.0466),
        (Mechanism(1.0, sampling_rate=0.1), "rdp", 7.9039),
        (Mechanism(1.0, sampling_rate=0.1, neighbours="replace_one"), "pld", 10.516),
        # dp-accounting's 14.05 is for noise of once the sensitivity, which is 2 C.
        (Mechanism(2.0, fixed=(100, 10), neighbours="replace_one"), "rdp", 14.0538),
        (Mechanism(1.0, sampling_rate=0.1, releases=2), "pld", None),
    ],
)
def test_known_epsilons_of_a_hundred_rounds(mechanism, accountant, known):
    spent = epsilon(mechanism, 100, delta=DELTA, accountant=accountant)
    if known is None:
        once = mechanism._replace(releases=1)
        assert spent == pytest.approx(epsilon(once, 200, delta=DELTA), rel=1e-3)
    else:
        assert spent == pytest.approx(known, abs=5e-4 if known > 10 else 5e-5)


def gaussian_delta(epsilon, sigma):
    """Balle and Wang 2018, theorem 8: the exact delta of one Gaussian release."""
    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    a, b = 1 / (2 * sigma), epsilon * sigma
    return phi(a - b) - math.exp(epsilon) * phi(-a - b)


@pytest.mark.parametrize("rounds", [1, 9])
def test_everybody_in_every_round_is_the_plain_gaussian(rounds):
    sigma = 2.0
    spent = epsilon(Mechanism(sigma), rounds, delta=DELTA)
    assert gaussian_delta(spent, sigma / math.sqrt(rounds)) == pytest.approx(
        DELTA, rel=1e-3
    )


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_replaced_contribution_moves_the_sum_twice_as_far(accountant):
    replaced = Mechanism(2.0, neighbours="replace_one")
    absent = Mechanism(1.0)
    assert epsilon(replaced, 3, delta=DELTA, accountant=accountant) == pytest.approx(
        epsilon(absent, 3, delta=DELTA, accountant=accountant), rel=1e-6
    )


def test_all_of_n_without_replacement_is_everybody():
    fixed = Mechanism(2.0, fixed=(10, 10), neighbours="replace_one")
    everybody = Mechanism(2.0, neighbours="replace_one")
    assert epsilon(fixed, 5, delta=DELTA, accountant="rdp") == epsilon(
        everybody, 5, delta=DELTA, accountant="rdp"
    )


def test_nothing_is_spent_before_the_first_round_and_more_in_every_round():
    spent = epsilon_by_round(Mechanism(1.0, sampling_rate=0.2), delta=DELTA)
    series = [spent(rounds) for rounds in (0, 1, 2, 5)]
    assert series[0] == 0
    assert series == sorted(set(series))


def test_without_noise_nothing_is_private():
    assert epsilon(Mechanism(0.0, sampling_rate=0.1), 1, delta=DELTA) == math.inf


def test_what_overflows_is_paid_for():
    exact = Mechanism(1.0, sampling_rate=0.1)
    spent = [
        epsilon(exact._replace(overflow=p), 100, delta=DELTA)
        for p in (0.0, 1e-13, 1e-12)
    ]
    assert spent == sorted(set(spent))
    # (1 + e^epsilon) tau alone is above delta.
    assert epsilon(exact._replace(overflow=1e-9), 100, delta=DELTA) == math.inf
    tau = 100 * 1e-12
    known = epsilon(exact, 100, delta=DELTA - 2 * (1 + math.exp(spent[0])) * tau)
    assert spent[2] == pytest.approx(known, rel=1e-9)


@pytest.mark.slow
def test_calibrated_noise_of_the_table():
    """q = 0.1, T = 100, epsilon 2; the budget is met and hardly wasted."""
    make = lambda sigma: [Mechanism(sigma, sampling_rate=0.1)]  # noqa: E731
    sigma = calibrate(make, 100, epsilon=2.0, delta=DELTA)
    assert sigma == pytest.approx(2.248, abs=1e-3)
    assert 1.998 < epsilon(*make(sigma), 100, delta=DELTA) <= 2


def test_noise_is_calibrated_for_whoever_is_exposed_most():
    make = lambda sigma: [Mechanism(2 * sigma), Mechanism(sigma)]  # noqa: E731
    settings = {"delta": DELTA, "accountant": "rdp"}
    sigma = calibrate(make, 10, epsilon=8.0, **settings)
    spent = [epsilon(each, 10, **settings) for each in make(sigma)]
    assert spent[0] < 7.99 < spent[1] <= 8


@pytest.mark.parametrize(
    ("mechanism", "accountant", "field"),
    [
        (Mechanism(1.0, fixed=(9, 3)), "rdp", "neighbours"),
        (
            Mechanism(1.0, fixed=(9, 3), neighbours="replace_one"),
            "pld",
            "accountant",
        ),
        (
            Mechanism(1.0, sampling_rate=0.5, neighbours="replace_one"),
            "rdp",
            "accountant",
        ),
        (Mechanism(1.0, neighbours="add_one"), "pld", "neighbours"),
        (Mechanism(1.0), "moments", "accountant"),
        (Mechanism(-1.0), "pld", "noise_multiplier"),
        (Mechanism(1.0, sampling_rate=0.0), "pld", "sampling_rate"),
    ],
)
def test_what_cannot_be_accounted_is_refused(mechanism, accountant, field):
    with pytest.raises(require.InputError, match=f"^{field}: expected"):
        epsilon(mechanism, 1, delta=DELTA, accountant=accountant)


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_delta_is_a_probability_between(delta):
    with pytest.raises(require.InputError, match=r"^delta: expected"):
        epsilon(Mechanism(1.0), 1, delta=delta)


def test_a_budget_that_no_noise_meets_is_refused():
    with pytest.raises(
        require.InputError, match=r"^epsilon: expected a budget that noise can meet"
    ):
        calibrate(lambda sigma: [Mechanism(0.0)], 1, epsilon=1.0, delta=DELTA)


# ------------------------------------------------------------------ noise that ends


def test_noise_that_the_neighbour_cannot_draw_is_in_delta():
    exact = Mechanism(1.0, sampling_rate=0.1, releases=3)
    ends = exact._replace(num_coordinates=10**6)
    tail = 100 * 3 * noise.tail_bound(10**6, 1.0)
    assert ends.tail(100) == pytest.approx(tail)
    assert 0 < tail < 1e-7
    known = epsilon(exact, 100, delta=1e-7 - tail)
    assert epsilon(ends, 100, delta=1e-7) == known > epsilon(exact, 100, delta=1e-7)
    # Another record moves the sum by two clips.
    replaced = ends._replace(neighbours="replace_one")
    assert replaced.tail(1) == pytest.approx(3 * noise.tail_bound(10**6, 2.0))
    assert exact.tail(100) == 0
    assert ends._replace(noise_multiplier=0.0).tail(1) == 1


def test_no_epsilon_bounds_laws_that_hardly_meet():
    """Noise of 0.2 clips ends at 1.9 clips: a shift by 2 clips is certain to show."""
    replaced = Mechanism(0.2, neighbours="replace_one")
    settings = {"delta": DELTA, "accountant": "rdp"}
    assert math.isfinite(epsilon(replaced, 1, **settings))
    assert epsilon(replaced._replace(num_coordinates=1), 1, **settings) == math.inf


@pytest.mark.parametrize("shift", [0.5, 1.0])
@pytest.mark.parametrize("spent", [0.5, 1.0, 2.0])
def test_what_is_said_of_a_tail_covers_a_pair_s_law(spent, shift, monkeypatch):
    """The divergence of two pairs that end at 3, by sums over the plane.

    The divergence of real Gaussians is smaller, so delta is false without the tail.
    """
    monkeypatch.setattr(noise, "RADIUS", 3.0)
    ring = math.sqrt(9 + 2 * math.log(2))
    side = np.linspace(-6, 6, 1201)

    def law(at):
        square = (side[:, None] - at) ** 2 + side**2
        # The ring has all the mass beyond 3, of which a real pair has half there.
        times = np.where(square <= 9, 1, np.where(square <= ring**2, 2, 0))
        return times * np.exp(-square / 2) / (2 * math.pi) * 0.01**2

    here, there = law(0.0), law(shift)
    assert here.sum() == pytest.approx(1, abs=1e-4)
    shown = np.maximum(here - math.exp(spent) * there, 0).sum()
    real = gaussian_delta(spent, 1 / shift)
    assert real + 3e-4 < shown <= real + noise.tail_bound(1, shift)
