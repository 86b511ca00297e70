"""What a run guarantees, to whom, and what it has spent after some rounds.

A guarantee is a value: a mechanism for every party, the delta, the budget, and the
facts that have to be public. It covers what the mechanism releases, the models of all
rounds. A run also writes down losses, metrics and participation counts. They are the
simulator's own view and are not covered.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fairjax.core import aggregate
from fairjax.core.protocols import Protection
from fairjax.core.types import Scalar
from fairjax.privacy import accounting
from fairjax.privacy import statement as statements
from fairjax.privacy.accounting import Mechanism
from fairjax.privacy.records import DPSGD


class PoissonCohort(NamedTuple):
    """A cohort in which every client takes part with the same probability."""

    sampling_rate: float
    """q, the probability of a client per round."""
    slots: int
    """Slots of the whole cohort."""
    by_tier: tuple[int, ...]
    """Slots of every tier, where the cohort is laid out in runs of one tier."""
    overflow: float
    """Probability per round that more clients come than there are slots, in either
    layout."""

    def cohort_slots(self, sliced: bool) -> int | tuple[int, ...]:
        """The slots that the layout uses: one number, or one per tier if `sliced`."""
        return self.by_tier if sliced else self.slots


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """The privacy guarantee of a run.

    After R rounds a party has spent the epsilon of the R-fold composition of its
    mechanism at `delta`. A patient at several parties has spent the sum of their
    epsilons, each at an equal part of `delta` (`accounting.exposures`).

    Edge cases: without parties `epsilon` is None and `summary` names no figures.
    """

    mechanism: str
    unit: str = ""
    """"client", "record" or "patient": whose presence is protected."""
    parties: Mapping[str, Mechanism] = dataclasses.field(default_factory=dict)
    """What each party is exposed to per round: tiers, or clients under record_dp."""
    num_units: int = 0
    """Number of units: all clients, or the most records or patients of one client."""
    shared: Mapping[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
    """Numbers of parties -> the patients who are exposed to all of these together."""
    delta: float = 0.0
    accountant: str = "pld"
    sampling: str = ""
    clip: tuple[float, ...] = ()
    """Clip norm per tier; under record_dp one for all."""
    budget: float | None = None
    """Epsilon that no party may exceed; None: no limit."""
    on_budget: str = "stop"
    public: tuple[str, ...] = ()
    """Facts that the guarantee does not protect, because it holds given these facts."""
    protection: Protection = aggregate.OPEN
    secure_sum: str = "off"
    draw: PoissonCohort | None = None
    """How cohorts are drawn; None: cohorts of a fixed size."""
    tier_records: tuple[int, ...] = ()
    """Training records of every tier if the rule sees tiers; (): it sees clients."""
    with_noise: Callable[[Scalar], tuple[Protection, DPSGD | None]] | None = None
    """Another noise multiplier, traced or not -> (protection, DP-SGD settings) with it.
    None where a round releases more than updates. The accounting stays that of this
    guarantee."""

    @functools.cached_property
    def _epsilon_fns(self) -> dict[Mechanism, Callable[[int], float]]:
        return {
            mechanism: accounting.epsilon_by_round(
                mechanism, delta=self.delta, accountant=self.accountant
            )
            for mechanism in dict.fromkeys(self.parties.values())
        }

    @functools.cached_property
    def _exposure_fns(self) -> list[Callable[[int], float]]:
        if not self.shared:
            return list(self._epsilon_fns.values())
        settings = {"delta": self.delta, "accountant": self.accountant}
        parties = list(self.parties.values())
        return accounting.exposures(parties, self.shared, **settings)

    def epsilon_by_party(self, rounds: int) -> dict[str, float]:
        """Epsilon of every party after so many rounds, for units at no other party."""
        by_mechanism = {
            mechanism: epsilon_fn(rounds)
            for mechanism, epsilon_fn in self._epsilon_fns.items()
        }
        return {
            name: by_mechanism[mechanism] for name, mechanism in self.parties.items()
        }

    def epsilon(self, rounds: int) -> float | None:
        """Epsilon of the unit that is exposed most; None without a mechanism."""
        if not self.parties:
            return None
        return max(epsilon_fn(rounds) for epsilon_fn in self._exposure_fns)

    def affordable_rounds(self, rounds: int) -> int:
        """The most of these rounds that stay within the budget, if it stops the run."""
        if self.budget is None or self.on_budget != "stop":
            return rounds
        low, high = 0, rounds + 1
        while high - low > 1:
            middle = (low + high) // 2
            epsilon = self.epsilon(middle)
            assert epsilon is not None
            low, high = (middle, high) if epsilon <= self.budget else (low, middle)
        return low

    def budget_warning(self, rounds: int) -> str | None:
        """A line for the user if the budget does not last for these rounds."""
        last_round = dataclasses.replace(self, on_budget="stop").affordable_rounds(
            rounds
        )
        if last_round == rounds:
            return None
        consequence = (
            "the run ends" if self.on_budget == "stop" else "the run exceeds it"
        )
        return f"epsilon = {self.budget:g}: {consequence} after round {last_round}"

    def summary(self, rounds: int) -> dict[str, Any]:
        """The guarantee after so many rounds, as summary.json holds it."""
        if not self.parties:
            empty_summary = {"mechanism": "none", "epsilon": None, "delta": None}
            return empty_summary | {
                "sampling": self.sampling,
                "secure_sum": self.secure_sum,
            }

        def finite_or_none(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        parties_key = "hospitals" if self.mechanism == "record_dp" else "tiers"
        weakest_mechanism = self._weakest_mechanism
        return {
            "mechanism": self.mechanism,
            "unit": self.unit,
            "epsilon": finite_or_none(self.epsilon(rounds)),
            "delta": self.delta,
            "sampling": self.sampling,
            "neighbours": weakest_mechanism.neighbours,
            "accountant": self.accountant,
            "noise_multiplier": weakest_mechanism.noise_multiplier,
            "tail": max(mechanism.tail(rounds) for mechanism in self.parties.values()),
            "clip": list(self.clip),
            "budget": self.budget,
            "rounds": rounds,
            "secure_sum": self.secure_sum,
            parties_key: {
                name: finite_or_none(value)
                for name, value in self.epsilon_by_party(rounds).items()
            },
            "public": list(self.public),
            **statements.statement(self._facts(rounds)),
        }

    def notes(self, rounds: int) -> list[str]:
        """Sentences on points of the guarantee that readers easily mistake."""
        return statements.notes(self._facts(rounds)) if self.parties else []

    def _facts(self, rounds: int) -> statements.GuaranteeFacts:
        weakest_mechanism = self._weakest_mechanism
        epsilon = self.epsilon(rounds)
        assert epsilon is not None
        return statements.GuaranteeFacts(
            self.mechanism,
            self.unit,
            epsilon,
            self.delta,
            max(mechanism.tail(rounds) for mechanism in self.parties.values()),
            self.num_units,
            weakest_mechanism.noise_multiplier,
            self.sampling,
            weakest_mechanism.neighbours,
            sum(self.shared.values()),
            max(map(len, self.shared), default=1),
        )

    @property
    def _weakest_mechanism(self) -> Mechanism:
        """The mechanism with the least noise."""
        return min(
            self.parties.values(), key=lambda mechanism: mechanism.noise_multiplier
        )
