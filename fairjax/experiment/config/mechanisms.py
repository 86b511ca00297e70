"""From a checked config and its data to the privacy guarantee of a run.

`build` refuses what only the model, the method or the data can tell. Every mechanism
has one builder: `record_dp` and `local_dp` here, `client_dp` in a file of its own.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from fairjax.core import aggregate, require
from fairjax.core.protocols import Protection
from fairjax.core.types import Scalar
from fairjax.experiment.config import calibration, paths
from fairjax.experiment.config.calibration import RunFacts
from fairjax.experiment.config.client_dp import client_dp
from fairjax.experiment.config.options.privacy import Privacy, Secure
from fairjax.experiment.config.schema import Config
from fairjax.privacy import client_level, poisson, securesum
from fairjax.privacy.accounting import Mechanism
from fairjax.privacy.guarantee import Guarantee
from fairjax.privacy.records import DPSGD

_ARGUMENTS = {
    **paths.fields_of(Privacy, "privacy"),
    "adaptive": "privacy.adaptive.count_noise",
    "loss_release": "privacy.losses.noise_multiplier",
    "mode": "privacy.secure_sum",
    **paths.fields_of(Secure, "privacy.secure"),
}
"""{argument of a mechanism, an accountant or a secure sum: config field}."""


@paths.field_names(_ARGUMENTS)
def build(c: Config, facts: RunFacts) -> tuple[Guarantee, DPSGD | None]:
    """The guarantee of a checked config on its data, and its DP-SGD settings.

    The settings belong into the local problem, their one place in a run; they are None
    unless the mechanism is record_dp.

    Args:
        c: a checked config.
        facts: those of its run.

    Raises:
        InputError: the model, the method or the data do not allow the mechanism, or the
            budget is below what one round spends.
    """
    mechanism = c.privacy.mechanism
    if mechanism == "none":
        sampling = "fixed" if 0 < c.clients_per_round < len(facts.tiers) else "full"
        return _with_secure_sum(c, facts, Guarantee("none", sampling=sampling)), None
    _refuse_batch_norm(mechanism, facts)
    dp = None
    if mechanism == "record_dp":
        guarantee, dp = record_dp(c, facts)
    else:
        make = {"client_dp": client_dp, "local_dp": local_dp}[mechanism]
        guarantee = make(c, facts)
    guarantee.epsilon_by_party(0)  # refuses what the accountant has no bound for
    if not guarantee.affordable_rounds(1):
        min_epsilon = guarantee.epsilon(1)
        expected = f"at least {min_epsilon:.4g}, which one round spends"
        require.fail("privacy.epsilon", expected, guarantee.budget)
    return _with_secure_sum(c, facts, guarantee), dp


def protected_patients(c: Config, facts: RunFacts) -> Int[np.ndarray, "N"] | None:
    """Patients of every client, if they are the protected unit; else None.

    Args:
        c: a checked config.
        facts: those of its run.

    Raises:
        InputError: the data name no patients.
    """
    if c.privacy.mechanism != "record_dp" or c.privacy.unit != "patient":
        return None
    if facts.patients is None:
        expected = "record for data that name no patients (of a csv: data.patient)"
        require.fail("privacy.unit", expected, "patient")
    return facts.patients


def _with_secure_sum(c: Config, facts: RunFacts, guarantee: Guarantee) -> Guarantee:
    """The guarantee with secure sums, where the config asks for them."""
    p = c.privacy
    if p.secure_sum == "off":
        return guarantee
    cohort = c.clients_per_round or len(facts.tiers)
    if cohort < 2:
        expected = (
            "at least 2 hospitals with privacy.secure_sum: of one alone no sum hides"
        )
        require.fail("clients_per_round", expected, cohort)
    require.in_range("privacy.secure.minimum", p.secure.minimum, 2, cohort)
    # Any client may be in a Poisson cohort.
    max_cohort = cohort if guarantee.draw is None else len(facts.tiers)
    securesum.check_capacity(p.secure.bits, max_cohort)
    protection = guarantee.protection
    if guarantee.mechanism != "client_dp":  # its integers stay within the clip already
        protection = securesum.secure(protection, mode=p.secure_sum, **vars(p.secure))
    with_noise = guarantee.with_noise if guarantee.mechanism == "client_dp" else None
    return dataclasses.replace(
        guarantee, protection=protection, secure_sum=p.secure_sum, with_noise=with_noise
    )


def _refuse_batch_norm(mechanism: str, facts: RunFacts) -> None:
    def stats(x: jax.Array) -> Any:
        params = facts.model.init(jax.random.key(0), x)
        return facts.model.apply(params, x, train=True).stats

    if jax.tree.leaves(jax.eval_shape(stats, facts.x)):
        expected = (
            f"a model without batch norm with {mechanism}: its moments have no noise"
        )
        require.fail("model", expected, "batch norm")


# ---------------------------------------------------------------------------- record_dp


class _Batches(NamedTuple):
    """The batches of all clients, by the client's units n (records or patients)."""

    counts: Int[np.ndarray, "N"]
    """n."""
    steps: Int[np.ndarray, "N"]
    """Local steps per round."""
    epochs: Int[np.ndarray, "N"]
    """Epochs per round, begun ones counted whole."""
    size: int
    """Units of a batch."""
    poisson: bool
    """Whether batches are Poisson samples; else they are cut from shuffled epochs."""
    capacities: list[tuple[int, float]]
    """(slots of a Poisson batch, probability that it needs more)."""

    def releases(self, k: int) -> dict[str, Any]:
        """What client k releases in a round, as fields of `Mechanism`."""
        if not self.poisson:
            return {"releases": int(self.epochs[k])}
        # All clients share the number of slots of the client that needs most; the
        # overflow at its own capacity bounds the true one.
        return {
            "sampling_rate": min(self.size / int(self.counts[k]), 1.0),
            "releases": int(self.steps[k]),
            "overflow": int(self.steps[k]) * self.capacities[k][1],
        }


def _batches(c: Config, counts: Int[np.ndarray, "N"]) -> _Batches:
    size = c.local.batch_size
    per_epoch = -(-counts // size)
    steps = per_epoch * c.local.epochs
    if c.local.steps is not None:
        steps = np.full_like(per_epoch, c.local.steps)
    epochs = -(-steps // per_epoch)
    capacities = [poisson.capacity(int(n), min(size / int(n), 1.0)) for n in counts]
    is_poisson = c.privacy.batches == "poisson"
    return _Batches(counts, steps, epochs, size, is_poisson, capacities)


def record_dp(c: Config, facts: RunFacts) -> tuple[Guarantee, DPSGD]:
    """DP-SGD inside every client, for its records or its patients.

    Args:
        c: a checked config.
        facts: those of its run.

    Raises:
        InputError: the method's objective is no mean over records, delta is too large,
            or the data name no patients.
    """
    p = c.privacy
    patients = protected_patients(c, facts)
    counts = facts.counts if patients is None else patients
    unit = "record" if patients is None else "patient"
    shared = {} if patients is None else facts.shared
    calibration.check_delta(c, int(counts.max()), f"{unit}s")
    if facts.method.objective is not None:
        expected = "a method whose objective is a mean over records with record_dp"
        require.fail("submodel.name", expected, c.submodel.name)
    neighbours = p.neighbours or "zero_out"
    settings = calibration.accounting_settings(c)
    batches = _batches(c, counts)
    slots = max(slots for slots, _ in batches.capacities) if batches.poisson else None
    num_coordinates = calibration.local_tree_size(facts)

    def parties(sigma: float) -> dict[str, Mechanism]:
        return {
            name: Mechanism(
                sigma,
                neighbours=neighbours,
                num_coordinates=num_coordinates,
                **batches.releases(k),
            )
            for k, name in enumerate(facts.clients)
        }

    def dpsgd(sigma: Scalar) -> DPSGD:
        per_patient = None if patients is None else p.records_per_patient
        return DPSGD(p.clip, sigma, batches.size, slots, p.microbatch, per_patient)

    sigma = calibration.noise_multiplier(c, settings, parties, shared)
    public = ["number of training records of every hospital"]
    if patients is not None:
        public[0] = "numbers of training records and patients of every hospital"
    if shared:
        public.append("who is a patient of which hospitals")
    guarantee = Guarantee(
        "record_dp",
        unit,
        parties(sigma),
        num_units=int(counts.max()),
        shared=shared,
        sampling=p.batches,
        clip=(p.clip,),
        budget=p.epsilon,
        on_budget=p.on_budget,
        public=calibration.public_facts(c, *public),
        with_noise=lambda sigma: (aggregate.OPEN, dpsgd(sigma)),
        **settings,
    )
    return guarantee, dpsgd(sigma)


# ----------------------------------------------------------------------------- local_dp


def local_dp(c: Config, facts: RunFacts) -> Guarantee:
    """Clipping and noise on every upload.

    Args:
        c: a checked config.
        facts: those of its run.

    Raises:
        InputError: delta is too large.
    """
    p = c.privacy
    calibration.check_delta(c, len(facts.tiers), "hospitals")
    settings = calibration.accounting_settings(c)
    clips = p.tier_clip or (p.clip,) * len(c.tiers.budget)
    num_coordinates = calibration.upload_size(c, facts)

    def parties(sigma: float) -> dict[str, Mechanism]:
        mechanism = Mechanism(
            sigma, neighbours="replace_one", num_coordinates=num_coordinates
        )
        return {f"tier {tier}": mechanism for tier in np.unique(facts.tiers)}

    def protection(sigma: Scalar) -> Protection:
        return client_level.local(clip=clips, noise_multiplier=sigma)

    sigma = calibration.noise_multiplier(c, settings, parties)
    return Guarantee(
        "local_dp",
        "client",
        parties(sigma),
        num_units=len(facts.tiers),
        sampling="full",
        clip=clips,
        budget=p.epsilon,
        on_budget=p.on_budget,
        public=calibration.public_facts(
            c, "number of training records of every hospital"
        ),
        protection=protection(sigma),
        with_noise=lambda sigma: (protection(sigma), None),
        **settings,
    )
