"""What a run spends of its privacy, in (epsilon, delta).

Conventions. A *contribution* (one hospital's upload, or one record's gradient) is
clipped to norm C, and the sum of a sample of contributions is released with Gaussian
noise of standard deviation sigma C per coordinate. sigma is the noise multiplier here
and in the config. Two federations are neighbours

    "zero_out"       if one contribution is absent from one of them (its place stays and
                     holds nothing: sizes are public); the sum moves by at most C;
    "replace_one"    if one contribution is another one; the sum moves by at most 2 C.

What a sample is decides what may be claimed:

    Poisson, every contribution with probability q    amplified by q
    K of N without replacement, "replace_one"         amplified by K / N, by RDP
                                                      (theorem 27 of the source) for
                                                      noise sigma / 2 of the sensitivity
    everybody                                         not amplified

Only this file imports dp-accounting, and only when it is asked something.

Source: PLD, Koskela, Jalko and Honkela 2020 and Doroshenko et al. 2022; RDP, Mironov
2017; sampling without replacement, Wang, Balle and Kasiviswanathan 2019; all as in
dp-accounting.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

from fairjax.core import require
from fairjax.privacy import noise

ACCOUNTANTS = ("pld", "rdp")
NEIGHBOURS = ("zero_out", "replace_one")


class Mechanism(NamedTuple):
    """Gaussian sums of clipped contributions, as one party is exposed to them."""

    noise_multiplier: float
    """sigma: standard deviation of the noise over the clipping norm."""
    rate: float = 1.0
    """Probability that a contribution is in a sum; 1: always."""
    fixed: tuple[int, int] | None = None
    """(N, K): a sum is over K of N contributions drawn without replacement."""
    neighbours: str = "zero_out"
    releases: int = 1
    """Sums per round."""
    overflow: float = 0.0
    """Probability per round that a Poisson sample is larger than its slots, and so not
    the one that is accounted for."""
    numbers: int = 0
    """Coordinates of a sum, whose noise ends somewhere; 0: noise that does not."""

    def tail(self, rounds: int) -> float:
        """What of delta is for noise that one neighbour has and the other cannot."""
        if self.noise_multiplier == 0:
            return float(rounds > 0)
        clips = 2 if self.neighbours == "replace_one" else 1
        each = noise.beyond(self.numbers, clips / self.noise_multiplier)
        return min(rounds * self.releases * each, 1.0)


def spending(
    mechanism: Mechanism, *, delta: float, accountant: str = "pld"
) -> Callable[[int], float]:
    """Rounds -> epsilon after that many, at this delta; infinity without noise.

        delta = delta' + rho + (1 + exp(epsilon)) tau,    epsilon accounted at delta'.

    rho, `Mechanism.tail`, bounds the probability that any noise so far is what the
    neighbour's cannot be. On all other outcomes G, given who else is drawn, both runs M
    and N have the law of real Gaussian noise, to which the accountant's epsilon and
    delta' belong, so that for every event A

        M(A) <= M(A and G) + rho <= exp(epsilon) N(A and G) + delta' + rho.

    tau is the probability that any sample so far has overflowed. The run is within tau
    of one that never does in total variation, at both neighbours.

    Beyond some epsilon nothing finite holds at delta: laws of noise that ends, moved
    apart by more than its radius, can be told apart for certain.

    Raises:
        InputError: dp-accounting has no such bound: fixed samples by "pld" or for
            "zero_out", Poisson samples for "replace_one" by "rdp".
    """
    require.one_of("privacy.accountant", accountant, ACCOUNTANTS)
    require.one_of("privacy.neighbours", mechanism.neighbours, NEIGHBOURS)
    require.in_range("privacy.delta", delta, 0, 1, open_low=True, open_high=True)
    require.in_range("privacy.noise_multiplier", mechanism.noise_multiplier, 0)
    require.in_range("sampling rate", mechanism.rate, 0, 1, open_low=True)
    if mechanism.fixed is not None:
        if mechanism.neighbours != "replace_one":
            what = "replace_one with fixed cohorts"
            require.fail("privacy.neighbours", what, mechanism.neighbours)
        if accountant != "rdp":
            what = "rdp with fixed cohorts: PLD has no bound without replacement"
            require.fail("privacy.accountant", what, accountant)
    elif mechanism.rate < 1 and mechanism.neighbours == "replace_one":
        if accountant != "pld":
            what = "pld with Poisson cohorts and neighbours replace_one"
            require.fail("privacy.accountant", what, accountant)
    if mechanism.noise_multiplier == 0:
        return lambda rounds: math.inf if rounds else 0.0
    at = {"pld": _pld, "rdp": _rdp}[accountant](mechanism)

    def spent(rounds: int) -> float:
        if not rounds:
            return 0.0
        releases, left = rounds * mechanism.releases, delta - mechanism.tail(rounds)
        if left <= 0:
            return math.inf
        epsilon = at(releases, left)
        tau = rounds * mechanism.overflow
        if not tau:
            return epsilon
        # Twice what the overflow costs at this epsilon covers what it costs at the
        # slightly larger one.
        aside = 2 * (1 + math.exp(min(epsilon, 700.0))) * tau
        if aside >= left:
            return math.inf
        larger = at(releases, left - aside)
        return larger if (1 + math.exp(larger)) * tau <= aside else math.inf

    return functools.cache(spent)


def epsilon(
    mechanism: Mechanism, rounds: int, *, delta: float, accountant: str = "pld"
) -> float:
    """Epsilon after `rounds` rounds; see `spending`, which is quicker for many."""
    return spending(mechanism, delta=delta, accountant=accountant)(rounds)


def exposures(
    mechanisms: Sequence[Mechanism],
    together: Collection[tuple[int, ...]] = (),
    *,
    delta: float,
    accountant: str = "pld",
) -> list[Callable[[int], float]]:
    """Rounds -> epsilon of whoever is exposed to each mechanism, or to several.

    Whoever is exposed to several is accounted by their sum, each at an equal part of
    delta: what n mechanisms spend adds up, in whatever order they take turns.

    Args:
        mechanisms: each alone exposes somebody.
        together: the numbers of those that expose somebody together.
        delta: of every epsilon.
        accountant: "pld" or "rdp".

    Source: sequential composition, Dwork et al. 2006, "Our data, ourselves"; of
    mechanisms that go on side by side, Lyu 2022, "Composition theorems for interactive
    differential privacy".
    """
    settings = {"accountant": accountant}
    alone = [
        spending(each, delta=delta, **settings) for each in dict.fromkeys(mechanisms)
    ]
    if not together:
        return alone
    part = delta / max(map(len, together))
    shared = {
        each: spending(each, delta=part, **settings)
        for each in dict.fromkeys(mechanisms)
    }

    def added(numbers: tuple[int, ...]) -> Callable[[int], float]:
        spent = [shared[mechanisms[number]] for number in numbers]
        return lambda rounds: math.fsum(at(rounds) for at in spent)

    return [*alone, *map(added, together)]


def calibrate(
    mechanisms: Callable[[float], Sequence[Mechanism]],
    rounds: int,
    *,
    epsilon: float,
    delta: float,
    accountant: str = "pld",
    together: Collection[tuple[int, ...]] = (),
) -> float:
    """The smallest noise multiplier, to 0.01 %, within a budget; never beyond it.

    Args:
        mechanisms: noise multiplier -> what every party is exposed to; none of them may
            exceed the budget.
        rounds: of the whole run.
        epsilon: the budget.
        delta: of the budget.
        accountant: "pld" or "rdp".
        together: as for `exposures`; nobody may exceed the budget.

    Raises:
        InputError: no noise multiplier up to 10^6 is enough.
    """
    require.positive("privacy.epsilon", epsilon)
    settings: dict[str, Any] = {"delta": delta, "accountant": accountant}

    def enough(sigma: float) -> bool:
        spent = exposures(mechanisms(sigma), together, **settings)
        return all(at(rounds) <= epsilon for at in spent)

    high = 1.0
    while not enough(high):
        high *= 2
        if high > 1e6:
            require.fail("privacy.epsilon", "a budget that noise can meet", epsilon)
    low = high / 2
    while enough(low):
        low, high = low / 2, low
    while high > low * (1 + 1e-4):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _pld(mechanism: Mechanism) -> Callable[[int, float], float]:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

    # Any interval gives an upper bound; a long composition needs no finer one.
    interval = 1e-4 if mechanism.releases == 1 else 1e-3
    relation = {
        "zero_out": NeighboringRelation.REPLACE_SPECIAL,
        "replace_one": NeighboringRelation.REPLACE_ONE,
    }[mechanism.neighbours]

    def one(sigma: float) -> Any:
        return pld.from_gaussian_mechanism(
            sigma,
            value_discretization_interval=interval,
            sampling_prob=mechanism.rate,
            neighboring_relation=relation,
        )

    sigma = mechanism.noise_multiplier
    if mechanism.rate == 1:
        # The sum of n Gaussian releases is one of noise sigma / sqrt(n).
        return lambda n, delta: float(
            one(sigma / math.sqrt(n)).get_epsilon_for_delta(delta)
        )
    base = one(sigma)
    return lambda n, delta: float(base.self_compose(n).get_epsilon_for_delta(delta))


def _rdp(mechanism: Mechanism) -> Callable[[int, float], float]:
    import dp_accounting
    from dp_accounting import NeighboringRelation, rdp

    sigma = mechanism.noise_multiplier
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    if mechanism.neighbours == "replace_one":
        # Renyi divergences of dp-accounting are told noise over *sensitivity*, 2 C.
        relation = NeighboringRelation.REPLACE_ONE
        sigma = sigma / 2
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(sigma)
    if mechanism.fixed is not None and mechanism.fixed[1] < mechanism.fixed[0]:
        event = dp_accounting.SampledWithoutReplacementDpEvent(*mechanism.fixed, event)
    elif mechanism.rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(mechanism.rate, event)

    def at(releases: int, delta: float) -> float:
        accountant = rdp.RdpAccountant(neighboring_relation=relation)
        with _without_notes_on_orders():
            accountant.compose(event, releases)
            return float(accountant.get_epsilon(delta))

    return at


@contextlib.contextmanager
def _without_notes_on_orders() -> Iterator[None]:
    """Orders that do not converge are left out, as they may be; each says so."""

    def other(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
