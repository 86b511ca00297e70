"""From a config to the privacy guarantee of a run, or to a refusal that says why not.

A guarantee is a mechanism, what every party is exposed to in a round, and what has to
be public for it to hold. Configs whose releases depend on records in ways that the
accountant is not told of are refused, not guessed at.

It speaks of what the mechanism releases: the models of all rounds. Losses, metrics and
counts of who came, which a run writes down besides, are the simulator's own view and
are not covered.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fairjax.core import aggregate, axes, require, scopes, simplex
from fairjax.core.types import (
    Cohort,
    Member,
    Method,
    Model,
    Population,
    Protection,
    Rule,
    Scalar,
    Scores,
)
from fairjax.privacy import accounting, client_level, poisson, securesum
from fairjax.privacy import clip as clipping
from fairjax.privacy import statement as statements
from fairjax.privacy.accounting import Mechanism
from fairjax.privacy.means import Means
from fairjax.privacy.records import Records

MECHANISMS = ("none", "client_dp", "record_dp", "local_dp")
UNITS = {
    "client_dp": ("client",),
    "record_dp": ("record", "patient"),
    "local_dp": ("client",),
}
"""Whose presence a mechanism may protect, first what it does unless it is asked."""
SAMPLINGS = ("poisson", "fixed", "full")
BATCHES = ("poisson", "shuffled")
ON_BUDGET = ("stop", "warn")
RULES = ("size", "uniform", "fedbn", "private_head")
"""Rules whose weights follow from the hospitals' sizes alone."""
BY_LOSS = (
    "q_ffl", "term", "cvar", "ordered", "gifair", "afl", "agnostic", "tier_term",
    "tier_afl",
)  # fmt: skip
"""Rules that client_dp shows noisy mean losses of tiers, which they weigh."""

USED = {
    "mechanism": MECHANISMS,
    "secure_sum": MECHANISMS,
    "secure": MECHANISMS,
    "tier_clip": ("client_dp", "local_dp"),
    "sampling": ("client_dp",),
    "adaptive": ("client_dp",),
    "losses": ("client_dp",),
    "batches": ("record_dp",),
    "microbatch": ("record_dp",),
    "records_per_patient": ("record_dp",),
}
"""Fields of the config -> mechanisms that read them; not named: all but none."""


class Draw(NamedTuple):
    """Poisson cohorts."""

    rate: float
    """q."""
    slots: int
    """Of the cohort."""
    by_tier: tuple[int, ...]
    """Of every tier, where the cohort is laid in runs of one tier."""
    overflow: float
    """Probability per round that more come than there are slots, however it is laid."""

    def laid(self, sliced: bool) -> int | tuple[int, ...]:
        """The slots that are used."""
        return self.by_tier if sliced else self.slots


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """What a run guarantees, to whom, and what it has spent after some rounds."""

    mechanism: str
    unit: str = ""
    """"client", "record" or "patient": whose presence is protected."""
    parties: Mapping[str, Mechanism] = dataclasses.field(default_factory=dict)
    """What each is exposed to per round: tiers, or hospitals under record_dp."""
    members: int = 0
    """Units: hospitals, or those of the hospital that has most records or patients."""
    shared: Mapping[tuple[int, ...], int] = dataclasses.field(default_factory=dict)
    """Numbers of parties -> the patients who are exposed to all of these together."""
    delta: float = 0.0
    accountant: str = "pld"
    sampling: str = ""
    clip: tuple[float, ...] = ()
    """Per tier; of record_dp one for all."""
    budget: float | None = None
    """Epsilon that no party may exceed; None: no limit."""
    on_budget: str = "stop"
    public: tuple[str, ...] = ()
    """What the guarantee does not protect because it holds given it."""
    protection: Protection = aggregate.OPEN
    secure_sum: str = "off"
    records: Records | None = None
    draw: Draw | None = None
    """None: cohorts of a fixed size."""
    shown: tuple[int, ...] = ()
    """Training records of every tier, where the rule is shown tiers; (): hospitals."""
    noised: Callable[[Scalar], tuple[Protection, Records | None]] | None = None
    """Another noise multiplier, traced or not -> (protection, records) with it, where
    nothing else is released; what is accounted for stays that of this guarantee."""

    @functools.cached_property
    def _spending(self) -> dict[Mechanism, Callable[[int], float]]:
        return {
            each: accounting.spending(
                each, delta=self.delta, accountant=self.accountant
            )
            for each in dict.fromkeys(self.parties.values())
        }

    @functools.cached_property
    def _exposures(self) -> list[Callable[[int], float]]:
        if not self.shared:
            return list(self._spending.values())
        settings = {"delta": self.delta, "accountant": self.accountant}
        parties = list(self.parties.values())
        return accounting.exposures(parties, self.shared, **settings)

    def spent(self, rounds: int) -> dict[str, float]:
        """Epsilon of every party after so many rounds, for who is at no other one."""
        by_mechanism = {each: at(rounds) for each, at in self._spending.items()}
        return {name: by_mechanism[each] for name, each in self.parties.items()}

    def epsilon(self, rounds: int) -> float | None:
        """Epsilon of whoever is exposed most; None without a mechanism."""
        if not self.parties:
            return None
        return max(at(rounds) for at in self._exposures)

    def allowed(self, rounds: int) -> int:
        """The most of these rounds that stay within the budget, where it stops."""
        if self.budget is None or self.on_budget != "stop":
            return rounds
        low, high = 0, rounds + 1
        while high - low > 1:
            middle = (low + high) // 2
            epsilon = self.epsilon(middle)
            assert epsilon is not None
            low, high = (middle, high) if epsilon <= self.budget else (low, middle)
        return low

    def limit(self, rounds: int) -> str | None:
        """A line for the user if the budget does not last for these rounds."""
        allowed = dataclasses.replace(self, on_budget="stop").allowed(rounds)
        if allowed == rounds:
            return None
        then = "the run ends" if self.on_budget == "stop" else "the run exceeds it"
        return f"privacy.epsilon = {self.budget:g}: {then} after round {allowed}"

    def summary(self, rounds: int) -> dict[str, Any]:
        """What summary.json says of it."""
        if not self.parties:
            nothing = {"mechanism": "none", "epsilon": None, "delta": None}
            return nothing | {"sampling": self.sampling, "secure_sum": self.secure_sum}

        def number(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        whose = "hospitals" if self.mechanism == "record_dp" else "tiers"
        loudest = self._loudest
        return {
            "mechanism": self.mechanism,
            "unit": self.unit,
            "epsilon": number(self.epsilon(rounds)),
            "delta": self.delta,
            "sampling": self.sampling,
            "neighbours": loudest.neighbours,
            "accountant": self.accountant,
            "noise_multiplier": loudest.noise_multiplier,
            "tail": max(each.tail(rounds) for each in self.parties.values()),
            "clip": list(self.clip),
            "budget": self.budget,
            "rounds": rounds,
            "secure_sum": self.secure_sum,
            whose: {name: number(value) for name, value in self.spent(rounds).items()},
            "public": list(self.public),
            **statements.statement(self._facts(rounds)),
        }

    def notes(self, rounds: int) -> list[str]:
        """What of it is easily taken for something else, a sentence each."""
        return statements.notes(self._facts(rounds)) if self.parties else []

    def _facts(self, rounds: int) -> statements.Facts:
        loudest = self._loudest
        epsilon = self.epsilon(rounds)
        assert epsilon is not None
        return statements.Facts(
            self.mechanism,
            self.unit,
            epsilon,
            self.delta,
            max(each.tail(rounds) for each in self.parties.values()),
            self.members,
            loudest.noise_multiplier,
            self.sampling,
            loudest.neighbours,
            sum(self.shared.values()),
            max(map(len, self.shared), default=1),
        )

    @property
    def _loudest(self) -> Mechanism:
        """What hides least."""
        return min(self.parties.values(), key=lambda each: each.noise_multiplier)


def check_rule(c: Any) -> None:
    """Refuses a rule that cannot be had with the mechanism.

    It comes before any check of what goes with a rule (its denominator, its cap), which
    would ask for what the next one forbids.
    """
    mechanism = require.one_of("privacy.mechanism", c.privacy.mechanism, MECHANISMS)
    if mechanism == "none":
        return
    known = (*RULES, *BY_LOSS) if mechanism == "client_dp" else RULES
    for part in c.fairness.rule.split("+"):
        if part not in known:
            what = f"one of {', '.join(known)} with {mechanism}: other rules read "
            what += "losses, labels or single changes without noise"
            require.fail("fairness.rule", what, part)


def check_sums(c: Any, rule: Rule) -> None:
    """Refuses a rule that sees single changes, where only their sum is shown.

    Args:
        c: a config.
        rule: its fairness rule.
    """
    secret = require.one_of("privacy.secure_sum", c.privacy.secure_sum, securesum.MODES)
    if secret != "off" and (rule.needs - {"loss"} or rule.combine is not None):
        what = "a rule of sums alone with privacy.secure_sum"
        require.fail("fairness.rule", what, c.fairness.rule)


def check(c: Any) -> None:
    """Refuses what no data could make private, by the name of the field."""
    p = c.privacy
    mechanism = require.one_of("privacy.mechanism", p.mechanism, MECHANISMS)
    clipping.check("privacy.clip", p.clip)
    for bound in p.tier_clip:
        clipping.check("privacy.tier_clip", bound)
    require.in_range("privacy.delta", p.delta, 0, 1, open_low=True, open_high=True)
    require.one_of("privacy.sampling", p.sampling, SAMPLINGS)
    require.one_of("privacy.batches", p.batches, BATCHES)
    require.count("privacy.microbatch", p.microbatch)
    require.count("privacy.records_per_patient", p.records_per_patient)
    require.one_of(
        "privacy.accountant", p.accountant, ("auto", *accounting.ACCOUNTANTS)
    )
    if p.neighbours is not None:
        require.one_of("privacy.neighbours", p.neighbours, accounting.NEIGHBOURS)
    require.one_of("privacy.on_budget", p.on_budget, ON_BUDGET)
    if p.noise_multiplier is not None:
        require.in_range("privacy.noise_multiplier", p.noise_multiplier, 0)
    if p.epsilon is not None:
        require.positive("privacy.epsilon", p.epsilon)
    _check_denominator(c)
    _check_secure(c)
    if mechanism == "none":
        for field in ("noise_multiplier", "epsilon", "neighbours", "unit"):
            if p[field] is not None:
                require.fail(f"privacy.{field}", "a privacy.mechanism for it", p[field])
        return
    if p.unit is not None and p.unit not in UNITS[mechanism]:
        what = f"{' or '.join(UNITS[mechanism])} with {mechanism}"
        require.fail("privacy.unit", what, p.unit)
    if p.noise_multiplier is None and p.epsilon is None:
        what = f"this, or privacy.epsilon, with {mechanism}"
        require.fail("privacy.noise_multiplier", what, None)
    if p.tier_clip and len(p.tier_clip) != len(c.tiers.budget):
        what = f"{len(c.tiers.budget)} values, as tiers.budget"
        require.fail("privacy.tier_clip", what, p.tier_clip)
    if not c.robust.finite_guard:
        what = f"True with {mechanism}: a change that is no number has no norm to clip"
        require.fail("robust.finite_guard", what, False)
    if c.fairness.warmup and not _by_loss(c):
        what = f"0 with {mechanism}: its weights are the same in every round"
        require.fail("fairness.warmup", what, c.fairness.warmup)
    if c.submodel.name == "fiarse":
        what = f"a method with masks that are public with {mechanism}"
        require.fail("submodel.name", what, "fiarse")
    {"client_dp": _check_client, "record_dp": _check_record, "local_dp": _check_local}[
        mechanism
    ](c)


def _by_loss(c: Any) -> list[str]:
    return [part for part in c.fairness.rule.split("+") if part in BY_LOSS]


def check_used(path: str, field: str, c: Any) -> None:
    """Refuses a field of privacy that was set by hand and that nothing reads."""
    p, mechanism = c.privacy, c.privacy.mechanism
    users = USED.get(field, MECHANISMS[1:])
    if field == "secure" and p.secure_sum == "off":
        require.fail(path, "privacy.secure_sum for this option", p.secure_sum)
    if path == "privacy.secure.bound" and mechanism == "client_dp":
        what = "another mechanism than client_dp, whose clip bounds every entry"
        require.fail(path, what, mechanism)
    if field == "losses" and mechanism == "client_dp" and not _by_loss(c):
        what = f"one of fairness.rule {', '.join(BY_LOSS)} for this option"
        require.fail(path, what, c.fairness.rule)
    if path == "privacy.records_per_patient" and p.unit != "patient":
        require.fail(path, "privacy.unit patient for this option", p.unit)
    if mechanism not in users:
        raise require.InputError(
            f"{path}: expected privacy.mechanism {' or '.join(users)} for this option; "
            f"got {mechanism!r}"
        )


def _check_denominator(c: Any) -> None:
    if c.privacy.mechanism == "client_dp" and c.fairness.denominator != "fixed":
        what = (
            "fixed with client_dp: divided by who came, a sum moves by more than the "
            "clip"
        )
        require.fail("fairness.denominator", what, c.fairness.denominator)


def _check_secure(c: Any) -> None:
    p = c.privacy
    require.one_of("privacy.secure_sum", p.secure_sum, securesum.MODES)
    require.positive("privacy.secure.bound", p.secure.bound)
    require.in_range("privacy.secure.minimum", p.secure.minimum, 2)
    if p.secure_sum == "off":
        return
    if p.mechanism != "client_dp":  # which sends no masks
        _refuse_masked_loss(c, "secure_sum: the mask that is sent names its classes")


def _check_client(c: Any) -> None:
    p = c.privacy
    if c.tiers.schedule:
        require.fail("tiers.schedule", "none with client_dp", c.tiers.schedule)
    if c.execution.slots != "padded":
        what = "padded with client_dp: a cohort drawn by tier is accounted by nobody"
        require.fail("execution.slots", what, c.execution.slots)
    if p.sampling == "full" and c.cohort:
        require.fail("cohort", "0 (all hospitals) with privacy.sampling full", c.cohort)
    if p.sampling != "full" and not c.cohort:
        what = f"fewer than all with privacy.sampling {p.sampling}; for all: full"
        require.fail("cohort", what, c.cohort)
    if p.sampling == "fixed" and p.neighbours == "zero_out":
        what = "replace_one with privacy.sampling fixed"
        require.fail("privacy.neighbours", what, p.neighbours)
    adaptive = p.adaptive
    if adaptive.quantile is not None:
        where = "privacy.adaptive"
        require.in_range(f"{where}.quantile", adaptive.quantile, 0, 1)
        require.positive(f"{where}.rate", adaptive.rate)
        if adaptive.count_noise is not None:
            require.positive(f"{where}.count_noise", adaptive.count_noise)
    _check_losses(c)


def _check_losses(c: Any) -> None:
    """What a rule by losses may be under client_dp, which shows it those of tiers."""
    require.positive("privacy.losses.bound", c.privacy.losses.bound)
    if c.privacy.losses.noise_multiplier is not None:
        where = "privacy.losses.noise_multiplier"
        require.positive(where, c.privacy.losses.noise_multiplier)
    parts = _by_loss(c)
    if parts and not c.fairness.cap:
        what = f"at least 1 with client_dp and {parts[0]}: noise alone can make a tier "
        require.fail("fairness.cap", what + "look worst", c.fairness.cap)
    for rule, field in (("gifair", "groups"), ("agnostic", "domain")):
        of = c.fairness[rule][field]
        if rule in parts and of not in ("client", "tier"):
            what = "tier with client_dp, which releases losses of tiers alone"
            require.fail(f"fairness.{rule}.{field}", what, of)


def _check_record(c: Any) -> None:
    p = c.privacy
    if p.tier_clip:
        what = "none with record_dp, which clips records"
        require.fail("privacy.tier_clip", what, p.tier_clip)
    _only_client(c, "record_dp")
    _refuse_masked_loss(c, "record_dp: one record would unmask a class for all others")
    if c.local.class_weights != "none":
        what = "none with record_dp: one record would change the weight of others"
        require.fail("local.class_weights", what, c.local.class_weights)
    if c.data.partition.name == "dirichlet_overlap":
        what = "a partition with record_dp: where hospitals overlap records are at two"
        require.fail("data.partition.name", what, "dirichlet_overlap")
    if p.unit == "patient" and p.batches != "poisson":
        what = "poisson with privacy.unit patient: shuffled batches are of records"
        require.fail("privacy.batches", what, p.batches)


def _check_local(c: Any) -> None:
    _only_client(c, "local_dp")
    if c.privacy.neighbours == "zero_out":
        what = "replace_one with local_dp: that a hospital sent something is seen"
        require.fail("privacy.neighbours", what, "zero_out")
    _refuse_masked_loss(c, "local_dp: the mask that is sent names its classes")


def _only_client(c: Any, mechanism: str) -> None:
    if c.privacy.adaptive.quantile is not None:
        what = f"none with {mechanism}; client_dp has it"
        require.fail("privacy.adaptive.quantile", what, c.privacy.adaptive.quantile)


def _refuse_masked_loss(c: Any, why: str) -> None:
    options = c.submodel[c.submodel.name]
    if options.get("masked_loss"):
        where = f"submodel.{c.submodel.name}.masked_loss"
        require.fail(where, f"False with {why}", True)


class Facts(NamedTuple):
    """What a guarantee needs to know of a run."""

    tiers: Int[np.ndarray, "N"]
    counts: Int[np.ndarray, "N"]
    """Training records."""
    patients: Int[np.ndarray, "N"] | None
    """Training patients; None where the data name none."""
    shared: Mapping[tuple[int, ...], int]
    """See `Splits.shared`."""
    clients: Sequence[str]
    """Names."""
    classes: int
    model: Model
    method: Method
    rule: Rule
    x: jax.ShapeDtypeStruct
    """A batch of inputs."""


def build(c: Any, facts: Facts) -> Guarantee:
    """The guarantee of a checked config on its data.

    Raises:
        InputError: the model, the method or the data do not allow it, or the budget is
            below what one round spends.
    """
    mechanism = c.privacy.mechanism
    if mechanism == "none":
        sampling = "fixed" if 0 < c.cohort < len(facts.tiers) else "full"
        return _secured(c, facts, Guarantee("none", sampling=sampling))
    _refuse_batch_norm(mechanism, facts)
    make = {"client_dp": _client, "record_dp": _record, "local_dp": _local}[mechanism]
    guarantee = make(c, facts)
    guarantee.spent(0)  # refuses what the accountant has no bound for
    if not guarantee.allowed(1):
        least = guarantee.epsilon(1)
        what = f"at least {least:.4g}, which one round spends"
        require.fail("privacy.epsilon", what, guarantee.budget)
    return _secured(c, facts, guarantee)


def _secured(c: Any, facts: Facts, guarantee: Guarantee) -> Guarantee:
    """The guarantee with sums in secret, where they are asked for."""
    p = c.privacy
    if p.secure_sum == "off":
        return guarantee
    cohort = c.cohort or len(facts.tiers)
    if cohort < 2:
        what = "at least 2 hospitals with privacy.secure_sum: of one alone no sum hides"
        require.fail("cohort", what, cohort)
    require.in_range("privacy.secure.minimum", p.secure.minimum, 2, cohort)
    # Of a Poisson cohort anybody may be.
    most = cohort if guarantee.draw is None else len(facts.tiers)
    securesum.check_room(p.secure.bits, most)
    protection = guarantee.protection
    if guarantee.mechanism != "client_dp":  # whose integers keep its norm
        protection = securesum.secure(
            protection, mode=p.secure_sum, **p.secure.to_dict()
        )
    noised = guarantee.noised if guarantee.mechanism == "client_dp" else None
    return dataclasses.replace(
        guarantee, protection=protection, secure_sum=p.secure_sum, noised=noised
    )


def _refuse_batch_norm(mechanism: str, facts: Facts) -> None:
    def stats(x: jax.Array) -> Any:
        params = facts.model.init(jax.random.key(0), x)
        return facts.model.apply(params, x, train=True).stats

    if jax.tree.leaves(jax.eval_shape(stats, facts.x)):
        what = f"a model without batch norm with {mechanism}: its moments have no noise"
        require.fail("model", what, "batch norm")


def _account(c: Any) -> dict[str, Any]:
    """Settings that all guarantees take from the config."""
    accountant = c.privacy.accountant
    if accountant == "auto":
        fixed = c.privacy.mechanism == "client_dp" and c.privacy.sampling == "fixed"
        accountant = "rdp" if fixed else "pld"
    return {"delta": c.privacy.delta, "accountant": accountant}


def _sigma(
    c: Any,
    settings: dict[str, Any],
    parties: Callable[[float], dict[str, Mechanism]],
    together: Mapping[tuple[int, ...], int] | None = None,
) -> float:
    """The noise multiplier that is given, or that the budget asks for."""
    if c.privacy.noise_multiplier is not None:
        return c.privacy.noise_multiplier
    return accounting.calibrate(
        lambda sigma: list(parties(sigma).values()),
        c.rounds,
        epsilon=c.privacy.epsilon,
        together=together or {},
        **settings,
    )


def _public(c: Any, *facts: str) -> tuple[str, ...]:
    named = [*facts, "tier of every hospital"]
    constants = "constants that stand for missing inputs"
    if c.data.normalise != "none":
        constants += " and that inputs are normalised by"
    named.append(constants)
    if c.model.init_from is not None:
        named.append(f"the model that the run starts from ({c.model.init_from})")
    return tuple(named)


def _uploaded(c: Any, facts: Facts) -> int:
    """Coordinates that are noised of an upload: the plain model, all tiers' copies."""

    def upload(x: jax.Array) -> Any:
        params = facts.model.init(jax.random.key(0), x)
        bank = scopes.init(facts.method, params, 1, len(c.tiers.budget))
        copies = scopes.by_tier(bank, params, params, jnp.zeros((), jnp.int32))
        return params, {path: num for path, (num, _) in copies.items()}

    return _size(jax.eval_shape(upload, facts.x))


def _trained(facts: Facts) -> int:
    """Coordinates that are noised of a local step: those of the local tree."""
    method, zero = facts.method, jnp.zeros((), jnp.int32)
    labels = jnp.ones(facts.classes, jnp.int32)

    def tree(x: jax.Array) -> Any:
        key = jax.random.key(0)
        params = facts.model.init(key, x)
        if method.enter is None:
            return params
        member = Member(zero, zero, zero == 0, zero + 1, labels)
        kept = method.units(key, zero, params, member)
        forward, update = (
            axes.masks(params, facts.model.axes, units)
            for units in (kept.forward, kept.update or kept.forward)
        )
        memory = None if method.memory is None else method.memory.init(params)
        return method.enter(key, params, kept, memory, forward, update)[0]

    return _size(jax.eval_shape(tree, facts.x))


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _small_delta(c: Any, members: int, what: str) -> None:
    if c.privacy.delta * members >= 1:
        least = f"below 1 / {members}, the {what} that are protected"
        require.fail("privacy.delta", least, c.privacy.delta)


def _client(c: Any, facts: Facts) -> Guarantee:
    p, clients = c.privacy, len(facts.tiers)
    _small_delta(c, clients, "hospitals")
    clips = tuple(p.tier_clip) or (p.clip,) * len(c.tiers.budget)
    weight = _weights(facts)
    neighbours = p.neighbours or (
        "replace_one" if p.sampling == "fixed" else "zero_out"
    )
    settings = _account(c)
    rate = 1.0 if p.sampling == "full" else c.cohort / clients
    if rate == 1 and p.sampling != "full":
        what = f"fewer than the {clients} hospitals with privacy.sampling {p.sampling}"
        require.fail("cohort", what, c.cohort)
    draw = None
    # Of the changes, a count, and a loss of every tier.
    numbers = _uploaded(c, facts) + 1 + len(c.tiers.budget)
    law: dict[str, Any] = {"neighbours": neighbours, "numbers": numbers}
    if p.sampling == "poisson":
        pool, overflow = poisson.room(clients, rate)
        sizes = np.bincount(facts.tiers, minlength=len(c.tiers.budget))
        rooms = [poisson.room(int(size), rate) for size in sizes]
        overflow = max(overflow, math.fsum(tail for _, tail in rooms))
        draw = Draw(rate, pool, tuple(slots for slots, _ in rooms), overflow)
        law |= {"rate": rate, "overflow": overflow}
    elif p.sampling == "fixed":
        law |= {"fixed": (clients, c.cohort)}
    adaptive = None
    if p.adaptive.quantile is not None:
        expected = rate * float(np.count_nonzero(weight))
        noise = p.adaptive.count_noise
        adaptive = clipping.Adaptive(
            expected,
            expected / 20 if noise is None else noise,
            p.adaptive.quantile,
            p.adaptive.rate,
        )

    by_tier = functools.partial(np.bincount, facts.tiers, minlength=len(c.tiers.budget))
    records = by_tier(np.where(weight > 0, facts.counts, 0)).astype(np.int32)
    # Integers before the division: whole numbers stay whole.
    expected = by_tier(weight > 0) * (c.cohort or clients) / clients

    def means(sigma: float) -> Means | None:
        if not _by_loss(c):
            return None
        given = p.losses.noise_multiplier
        return Means(
            p.losses.bound,
            math.sqrt(10) * sigma if given is None else given,
            jnp.asarray(expected, jnp.float32),
            jnp.asarray(records),
        )

    secret = None
    if p.secure_sum != "off":
        secret = securesum.Sums(
            p.secure_sum, p.secure.bits, p.secure.minimum, jnp.trunc
        )
        fewest = float(expected[expected > 0].min())
        if _by_loss(c) and fewest < 2:
            what = "off with a rule by losses, which are summed by tier, where an "
            what += f"average cohort has {fewest:g} hospitals of one: a sum takes 2"
            require.fail("privacy.secure_sum", what, p.secure_sum)
        if _by_loss(c) and fewest < p.secure.minimum:
            what = f"at most {fewest:g} with a rule by losses, which are summed by "
            what += "tier: what an average cohort has of the smallest one"
            require.fail("privacy.secure.minimum", what, p.secure.minimum)

    def parties(sigma: float) -> dict[str, Mechanism]:
        named, beside = {}, client_level.others(adaptive, means(sigma))
        for tier in np.unique(facts.tiers):
            share = clips[tier] / max(clips)
            if p.sampling == "fixed":
                # Where a hospital is not drawn another one of any tier is: the sum
                # then moves by both clips.
                share = (1 + share) / 2
            own = clipping.exposed(sigma, share, beside)
            named[f"tier {tier}"] = Mechanism(own, **law)
        return named

    population = Population(
        jnp.asarray(facts.tiers), jnp.asarray(weight, jnp.float32), rate
    )

    beside = adaptive is not None or bool(_by_loss(c))

    def protection(sigma: Scalar, means: Means | None = None) -> Protection:
        return client_level.central(
            population,
            clip=clips,
            noise_multiplier=sigma,
            adaptive=adaptive,
            means=means,
            secret=secret,
        )

    sigma = _sigma(c, settings, parties)
    return Guarantee(
        "client_dp",
        "client",
        parties(sigma),
        members=clients,
        sampling=p.sampling,
        clip=clips,
        budget=p.epsilon,
        on_budget=p.on_budget,
        public=_public(c, "number of hospitals and their weights"),
        protection=protection(sigma, means(sigma)),
        draw=draw,
        shown=tuple(records.tolist()) if _by_loss(c) else (),
        noised=None if beside else lambda sigma: (protection(sigma), None),
        **settings,
    )


def _weights(facts: Facts) -> Float[np.ndarray, "N"]:
    """The rule's weights of all hospitals at once, of mean 1 over those that take part.

    A rule weighs who came; here everybody is taken to have come, so that a weight
    depends on sizes, which are public, and not on the cohort. A rule by losses, which
    are not public, begins from records.
    """
    # Also where the noise is traced: nothing here hangs on it.
    with jax.ensure_compile_time_eval():
        clients = len(facts.tiers)
        ids = jnp.arange(clients, dtype=jnp.int32)
        tiers, counts = jnp.asarray(facts.tiers), jnp.asarray(facts.counts)
        labels = jnp.ones((clients, facts.classes), jnp.int32)
        members = Member(ids, tiers, jnp.ones(clients, bool), counts, labels)
        cohort = Cohort(ids, tiers, jax.vmap(facts.method.admits)(members))
        scores = Scores(counts)
        weights = simplex.by_records(scores, cohort.valid)
        if facts.rule.weigh is not None and not facts.rule.needs:
            weights, _ = facts.rule.weigh((), cohort, scores)
        return np.asarray(weights) * int(np.sum(cohort.valid))


def units(c: Any, facts: Facts) -> Int[np.ndarray, "N"] | None:
    """Patients of every hospital where they are what is protected; None: records are.

    Raises:
        InputError: the data name no patients.
    """
    if c.privacy.mechanism != "record_dp" or c.privacy.unit != "patient":
        return None
    if facts.patients is None:
        what = "record for data that name no patients (of a csv: data.patient)"
        require.fail("privacy.unit", what, "patient")
    return facts.patients


def _record(c: Any, facts: Facts) -> Guarantee:
    p = c.privacy
    patients = units(c, facts)
    counts = facts.counts if patients is None else patients
    unit = "record" if patients is None else "patient"
    shared = {} if patients is None else facts.shared
    _small_delta(c, int(counts.max()), f"{unit}s")
    if facts.method.objective is not None:
        what = "a method whose objective is a mean over records with record_dp"
        require.fail("submodel.name", what, c.submodel.name)
    neighbours = p.neighbours or "zero_out"
    settings = _account(c)
    size = c.local.batch_size
    per_epoch = -(-counts // size)
    steps = per_epoch * c.local.epochs
    if c.local.steps is not None:
        steps = np.full_like(per_epoch, c.local.steps)
    epochs = -(-steps // per_epoch)
    rooms = [poisson.room(int(n), min(size / int(n), 1.0)) for n in counts]
    slots = max(room for room, _ in rooms) if p.batches == "poisson" else None

    numbers = _trained(facts)

    def parties(sigma: float) -> dict[str, Mechanism]:
        named = {}
        for k, name in enumerate(facts.clients):
            law: dict[str, Any] = {"releases": int(epochs[k])}
            if p.batches == "poisson":
                # Slots are those of the hospital that needs most of them.
                law = {
                    "rate": min(size / int(counts[k]), 1.0),
                    "releases": int(steps[k]),
                    "overflow": int(steps[k]) * rooms[k][1],
                }
            named[name] = Mechanism(
                sigma, neighbours=neighbours, numbers=numbers, **law
            )
        return named

    def noised(sigma: Scalar) -> tuple[Protection, Records]:
        per_patient = None if patients is None else p.records_per_patient
        dp = Records(p.clip, sigma, size, slots, p.microbatch, per_patient)
        return aggregate.OPEN, dp

    sigma = _sigma(c, settings, parties, shared)
    known = ["number of training records of every hospital"]
    if patients is not None:
        known[0] = "numbers of training records and patients of every hospital"
    if shared:
        known.append("who is a patient of which hospitals")
    return Guarantee(
        "record_dp",
        unit,
        parties(sigma),
        members=int(counts.max()),
        shared=shared,
        sampling=p.batches,
        clip=(p.clip,),
        budget=p.epsilon,
        on_budget=p.on_budget,
        public=_public(c, *known),
        records=noised(sigma)[1],
        noised=noised,
        **settings,
    )


def _local(c: Any, facts: Facts) -> Guarantee:
    p = c.privacy
    _small_delta(c, len(facts.tiers), "hospitals")
    settings = _account(c)
    clips = tuple(p.tier_clip) or (p.clip,) * len(c.tiers.budget)
    numbers = _uploaded(c, facts)

    def parties(sigma: float) -> dict[str, Mechanism]:
        each = Mechanism(sigma, neighbours="replace_one", numbers=numbers)
        return {f"tier {tier}": each for tier in np.unique(facts.tiers)}

    def protection(sigma: Scalar) -> Protection:
        return client_level.local(clip=clips, noise_multiplier=sigma)

    sigma = _sigma(c, settings, parties)
    return Guarantee(
        "local_dp",
        "client",
        parties(sigma),
        members=len(facts.tiers),
        sampling="full",
        clip=clips,
        budget=p.epsilon,
        on_budget=p.on_budget,
        public=_public(c, "number of training records of every hospital"),
        protection=protection(sigma),
        noised=lambda sigma: (protection(sigma), None),
        **settings,
    )
