"""The privacy that a run spends, in (epsilon, delta).

Conventions. A *contribution* (one client's upload, or one record's gradient) is clipped
to norm C, and the sum of a sample of contributions is released with Gaussian noise of
standard deviation sigma C per coordinate. sigma is the noise multiplier. Two
federations are neighbours

    "zero_out"       if one contribution is absent from one of them (its place stays and
                     is empty: sizes are public); the sum moves by at most C;
    "replace_one"    if one contribution is another one; the sum moves by at most 2 C.

The kind of sample decides what may be claimed:

    Poisson, every contribution with probability q    amplified by q
    K of N without replacement, "replace_one"         amplified by K / N, by RDP
                                                      (theorem 27 of the source) for
                                                      noise sigma / 2 of the sensitivity
    everybody                                         not amplified

Only this file imports dp-accounting, and only when an epsilon is asked for.

Sources: for PLD, Koskela, Jälkö and Honkela, "Computing tight differential privacy
guarantees using FFT", AISTATS 2020, arXiv:1906.03049, and Doroshenko et al., "Connect
the dots: Tighter discrete approximations of privacy loss distributions", PoPETs 2022,
arXiv:2207.04380; for RDP, Mironov, "Rényi differential privacy", CSF 2017,
arXiv:1702.07476; for sampling without replacement, Wang, Balle and Kasiviswanathan,
"Subsampled Rényi differential privacy and analytical moments accountant", AISTATS 2019,
arXiv:1808.00087; all as in dp-accounting.
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
    sampling_rate: float = 1.0
    """q, the probability that a contribution is in a sum; 1: always."""
    fixed: tuple[int, int] | None = None
    """(N, K): a sum is over K of N contributions drawn without replacement."""
    neighbours: str = "zero_out"
    releases: int = 1
    """Sums per round."""
    overflow: float = 0.0
    """The probability per round that a Poisson sample is larger than its slots. The
    sample is then not the one that is accounted for."""
    num_coordinates: int = 0
    """Coordinates of a sum whose noise has bounded support; 0: unbounded noise."""

    def tail(self, rounds: int) -> float:
        """rho: the part of delta for noise that one neighbour has and the other cannot.

        Args:
            rounds: of the run.
        """
        if self.noise_multiplier == 0:
            return float(rounds > 0)
        sensitivity = 2 if self.neighbours == "replace_one" else 1
        per_release = noise.tail_bound(
            self.num_coordinates, sensitivity / self.noise_multiplier
        )
        return min(rounds * self.releases * per_release, 1.0)


def epsilon_by_round(
    mechanism: Mechanism, *, delta: float, accountant: str = "pld"
) -> Callable[[int], float]:
    """Rounds -> epsilon after that many, at this delta; infinity without noise.

        delta = delta' + rho + (1 + exp(epsilon)) tau,    epsilon accounted at delta'.

    rho, `Mechanism.tail`, bounds the probability that any noise so far is a value that
    the neighbour's noise cannot take. On all other outcomes G, given who else is drawn,
    both runs M and N have the law of real Gaussian noise. The accountant's epsilon and
    delta' belong to that law, so that for every event A

        M(A) <= M(A and G) + rho <= exp(epsilon) N(A and G) + delta' + rho.

    tau is the probability that any sample so far has overflowed. In total variation the
    run is within tau of one that never overflows, at both neighbours.

    Beyond some epsilon nothing finite holds at delta: laws of noise with bounded
    support can be told apart for certain when they are moved apart by more than its
    radius.

    Args:
        mechanism: one party's exposure.
        delta: of the guarantee, in (0, 1).
        accountant: "pld" or "rdp".

    Raises:
        InputError: dp-accounting has no such bound: fixed samples by "pld" or for
            "zero_out", Poisson samples for "replace_one" by "rdp".
    """
    require.one_of("accountant", accountant, ACCOUNTANTS)
    require.one_of("neighbours", mechanism.neighbours, NEIGHBOURS)
    require.in_range("delta", delta, 0, 1, open_low=True, open_high=True)
    require.in_range("noise_multiplier", mechanism.noise_multiplier, 0)
    require.in_range("sampling_rate", mechanism.sampling_rate, 0, 1, open_low=True)
    if mechanism.fixed is not None:
        if mechanism.neighbours != "replace_one":
            requirement = "replace_one with fixed cohorts"
            require.fail("neighbours", requirement, mechanism.neighbours)
        if accountant != "rdp":
            requirement = "rdp with fixed cohorts: PLD has no bound without replacement"
            require.fail("accountant", requirement, accountant)
    elif mechanism.sampling_rate < 1 and mechanism.neighbours == "replace_one":
        if accountant != "pld":
            requirement = "pld with Poisson cohorts and neighbours replace_one"
            require.fail("accountant", requirement, accountant)
    if mechanism.noise_multiplier == 0:
        return lambda rounds: math.inf if rounds else 0.0
    epsilon_fn = {"pld": _pld, "rdp": _rdp}[accountant](mechanism)

    def epsilon_after(rounds: int) -> float:
        if not rounds:
            return 0.0
        releases, remaining_delta = (
            rounds * mechanism.releases,
            delta - mechanism.tail(rounds),
        )
        if remaining_delta <= 0:
            return math.inf
        epsilon = epsilon_fn(releases, remaining_delta)
        tau = rounds * mechanism.overflow
        if not tau:
            return epsilon
        # Twice the cost of the overflow at this epsilon covers its cost at the slightly
        # larger epsilon.
        overflow_delta = 2 * (1 + math.exp(min(epsilon, 700.0))) * tau
        if overflow_delta >= remaining_delta:
            return math.inf
        larger_epsilon = epsilon_fn(releases, remaining_delta - overflow_delta)
        return (
            larger_epsilon
            if (1 + math.exp(larger_epsilon)) * tau <= overflow_delta
            else math.inf
        )

    return functools.cache(epsilon_after)


def epsilon(
    mechanism: Mechanism, rounds: int, *, delta: float, accountant: str = "pld"
) -> float:
    """Epsilon after `rounds` rounds, as `epsilon_by_round` gives it for many of them.

    Args:
        mechanism: one party's exposure.
        rounds: of the run.
        delta: of the guarantee, in (0, 1).
        accountant: "pld" or "rdp".
    """
    return epsilon_by_round(mechanism, delta=delta, accountant=accountant)(rounds)


def exposures(
    mechanisms: Sequence[Mechanism],
    combinations: Collection[tuple[int, ...]] = (),
    *,
    delta: float,
    accountant: str = "pld",
) -> list[Callable[[int], float]]:
    """Rounds -> epsilon of a party that one mechanism exposes, or several together.

    The epsilon of a party that several mechanisms expose is the sum of theirs, each at
    an equal part of delta: what n mechanisms spend adds up, in whatever order they take
    turns.

    Args:
        mechanisms: each exposes a party alone.
        combinations: tuples of indices of mechanisms that expose a party together.
        delta: of every epsilon.
        accountant: "pld" or "rdp".

    Returns:
        The functions of all mechanisms, then those of all combinations.

    Sources: for sequential composition, Dwork et al., "Our data, ourselves: Privacy via
    distributed noise generation", EUROCRYPT 2006, doi:10.1007/11761679_29; for
    concurrent mechanisms, Lyu, "Composition theorems for interactive differential
    privacy", NeurIPS 2022, arXiv:2207.09397.
    """
    settings = {"accountant": accountant}
    single_epsilons = [
        epsilon_by_round(mechanism, delta=delta, **settings)
        for mechanism in dict.fromkeys(mechanisms)
    ]
    if not combinations:
        return single_epsilons
    delta_share = delta / max(map(len, combinations))
    epsilon_by_mechanism = {
        mechanism: epsilon_by_round(mechanism, delta=delta_share, **settings)
        for mechanism in dict.fromkeys(mechanisms)
    }

    def summed_epsilon(indices: tuple[int, ...]) -> Callable[[int], float]:
        epsilon_fns = [epsilon_by_mechanism[mechanisms[index]] for index in indices]
        return lambda rounds: math.fsum(
            epsilon_fn(rounds) for epsilon_fn in epsilon_fns
        )

    return [*single_epsilons, *map(summed_epsilon, combinations)]


def calibrate(
    mechanisms: Callable[[float], Sequence[Mechanism]],
    rounds: int,
    *,
    epsilon: float,
    delta: float,
    accountant: str = "pld",
    combinations: Collection[tuple[int, ...]] = (),
) -> float:
    """The smallest noise multiplier, to 0.01 %, within a budget; never beyond it.

    Args:
        mechanisms: noise multiplier -> the mechanisms that expose the parties; none of
            them may exceed the budget.
        rounds: of the whole run.
        epsilon: the budget.
        delta: of the budget.
        accountant: "pld" or "rdp".
        combinations: as for `exposures`; none of them may exceed the budget.

    Raises:
        InputError: no noise multiplier up to 10^6 is enough.
    """
    require.positive("epsilon", epsilon)
    settings: dict[str, Any] = {"delta": delta, "accountant": accountant}

    def meets_budget(sigma: float) -> bool:
        epsilon_fns = exposures(mechanisms(sigma), combinations, **settings)
        return all(epsilon_fn(rounds) <= epsilon for epsilon_fn in epsilon_fns)

    high = 1.0
    while not meets_budget(high):
        high *= 2
        if high > 1e6:
            require.fail("epsilon", "a budget that noise can meet", epsilon)
    low = high / 2
    while meets_budget(low):
        low, high = low / 2, low
    while high > low * (1 + 1e-4):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if meets_budget(middle) else (middle, high)
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

    def loss_distribution(sigma: float) -> Any:
        return pld.from_gaussian_mechanism(
            sigma,
            value_discretization_interval=interval,
            sampling_prob=mechanism.sampling_rate,
            neighboring_relation=relation,
        )

    sigma = mechanism.noise_multiplier
    if mechanism.sampling_rate == 1:
        # The sum of n Gaussian releases is one of noise sigma / sqrt(n).
        return lambda n, delta: float(
            loss_distribution(sigma / math.sqrt(n)).get_epsilon_for_delta(delta)
        )
    per_release = loss_distribution(sigma)
    return lambda n, delta: float(
        per_release.self_compose(n).get_epsilon_for_delta(delta)
    )


def _rdp(mechanism: Mechanism) -> Callable[[int, float], float]:
    import dp_accounting
    from dp_accounting import NeighboringRelation, rdp

    sigma = mechanism.noise_multiplier
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    if mechanism.neighbours == "replace_one":
        # The Rényi divergences of dp-accounting take noise over *sensitivity*, 2 C.
        relation = NeighboringRelation.REPLACE_ONE
        sigma = sigma / 2
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(sigma)
    if mechanism.fixed is not None and mechanism.fixed[1] < mechanism.fixed[0]:
        event = dp_accounting.SampledWithoutReplacementDpEvent(*mechanism.fixed, event)
    elif mechanism.sampling_rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(mechanism.sampling_rate, event)

    def epsilon_fn(releases: int, delta: float) -> float:
        accountant = rdp.RdpAccountant(neighboring_relation=relation)
        with _silence_order_warnings():
            accountant.compose(event, releases)
            return float(accountant.get_epsilon(delta))

    return epsilon_fn


@contextlib.contextmanager
def _silence_order_warnings() -> Iterator[None]:
    """Hides the warnings about orders that do not converge.

    dp-accounting leaves such orders out, which is sound, and warns of each.
    """

    def keep_record(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep_record)
    try:
        yield
    finally:
        logger.removeFilter(keep_record)
