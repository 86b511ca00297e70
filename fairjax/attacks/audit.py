"""The audit of a run's guarantee: its mechanism runs with and without a canary."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.attacks import canaries, canary_runs, epsilon_bound, observables
from fairjax.core import layout, require, rng, trees
from fairjax.core.rng import Role
from fairjax.core.types import ClientView, Cohort, FederatedData, RunState
from fairjax.experiment import evaluate
from fairjax.experiment.config import build
from fairjax.experiment.io import workdir as files
from fairjax.experiment.resume import initial_state

CONFIDENCE = 0.95
"""The confidence that no row of an audit shows more than there is."""


def _single_record(train: FederatedData, client_rows: np.ndarray) -> np.ndarray:
    return client_rows[:1]


def _largest_patient(train: FederatedData, client_rows: np.ndarray) -> np.ndarray:
    """The records of the patient who has most of them there."""
    assert train.patient is not None
    patients = np.asarray(train.patient)[client_rows]
    return client_rows[patients == np.argmax(np.bincount(patients))]


UNITS = {
    "record": _single_record,
    "patient": _largest_patient,
    "client": lambda train, client_rows: client_rows,
}
"""Unit of a guarantee -> (training records, rows of a client) -> the rows of one unit,
which a canary replaces."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """How a guarantee is audited."""

    canary: tuple[str, ...] = tuple(canaries.CANARIES)
    """The canaries, of `canaries.CANARIES`; each gives a row."""
    rounds: int = 1
    """Rounds of a run; "epsilon" accounts for as many."""
    runs: int = 200
    """Runs with a canary, and as many without."""
    chunk: int = 20
    """Runs at the same time, which bounds the memory."""
    party: str | None = None
    """The party to which the canary belongs: a tier ("tier 0"), or a client under
    record_dp; None: the party that spends most."""
    single_client: bool = True
    """Whether the canary's client is a cohort by itself, where every client adds noise
    to what it sends. Then nothing else moves the observables. False: cohorts as the run
    draws them."""
    confidence: float = CONFIDENCE
    """The confidence of all rows together."""


class _Setting(NamedTuple):
    """What all canaries of an audit share."""

    party: str
    epsilon: float
    """The party's epsilon, as accounted."""
    target: canaries.Target
    client_view: ClientView
    """The target's client."""
    server: bool
    """Whether the server observes the runs, or the public."""
    single_client: bool


def audit(run: build.Run, settings: Audit) -> list[dict[str, Any]]:
    """Rows of attack.json: the epsilon that the runs show, beside the one claimed.

    The canary takes the place of a record or a patient of one client, or of one client
    of a tier. The observer sees what the mechanism protects against: the models of all
    rounds, or all that reaches the server.

    Args:
        run: under a mechanism.
        settings: of the audit.

    Returns:
        A row per canary: {"attack", "variant", "canary", "observable", "mechanism",
        "party", "tier", "runs", "rounds", "epsilon_low", "epsilon", "ceiling", "delta",
        "confidence", "exceeds"}.

    Raises:
        InputError: the run has no mechanism, or a canary or party is not known.
    """
    setting = _audit_setting(run, settings)
    mechanisms = run.guarantee.parties.values()
    replace_one = any(mechanism.neighbours == "replace_one" for mechanism in mechanisms)
    program = _feature_program(run, settings, setting)
    key = rng.fold_in(jax.random.key(run.config.seed), Role.ATTACK, 2)
    run_keys = jax.random.split(key, (2, settings.runs))
    confidence = 1 - (1 - settings.confidence) / len(settings.canary)
    rows = []
    for name in settings.canary:
        pair = canaries.neighbours(
            name,
            run.splits.train,
            setting.target,
            len(run.splits.classes),
            replace_one=replace_one,
        )
        canary_data, reference_data = (
            jax.tree.map(jnp.asarray, federation) for federation in pair
        )
        features = [
            np.asarray(program(keys, data, canary_data), np.float64)
            for keys, data in zip(run_keys, (canary_data, reference_data), strict=True)
        ]
        bound = epsilon_bound.bound(
            *epsilon_bound.statistics(*features),
            delta=run.guarantee.delta,
            confidence=confidence,
        )
        rows.append(_row(run, settings, setting, name, bound, confidence))
    return rows


def _audit_setting(run: build.Run, settings: Audit) -> _Setting:
    """The audited party and its canary's place; refuses what cannot be audited."""
    guarantee = run.guarantee
    if not guarantee.parties:
        expected = "a mechanism, whose guarantee is audited"
        require.fail("privacy.mechanism", expected, guarantee.mechanism)
    require.one_of("unit of the guarantee", guarantee.unit, UNITS)
    for name in settings.canary:
        require.one_of("--canary", name, canaries.CANARIES)
    epsilons = guarantee.epsilon_by_party(settings.rounds)
    # Among parties of equal epsilon the last one: the richest tier has most leaves of
    # its own.
    party = max(reversed(epsilons), key=lambda name: epsilons[name])
    if settings.party is not None:
        party = require.one_of("--party", settings.party, epsilons)
    # A server that adds the noise itself sees the unprotected uploads.
    server = guarantee.protection.population is None
    target = _choose_target(run, party)
    return _Setting(
        party,
        epsilons[party],
        target,
        trees.pick(evaluate.all_clients(run, run.tiers_at(0)), target.client),
        server,
        settings.single_client and server,
    )


def _choose_target(run: build.Run, party: str) -> canaries.Target:
    """A place for the canary to which the party is exposed."""
    train, unit = run.splits.train, run.guarantee.unit
    if unit == "client":
        client_index = int(np.argmax(run.tiers == int(party.removeprefix("tier "))))
    else:
        client_index = run.splits.clients.index(party)
    first, count = int(train.offset[client_index]), int(train.count[client_index])
    rows = UNITS[unit](train, np.arange(first, first + count))
    return canaries.Target(client_index, rows, unit == "client")


def _feature_program(
    run: build.Run, settings: Audit, setting: _Setting
) -> Callable[..., jax.Array]:
    """(keys, federation, federation with the canary) -> features of a run per key."""
    start = initial_state(run)
    target, client_view = setting.target, setting.client_view
    cohort_layout = layout.vmapped() if setting.single_client else run.layout
    direction = None
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(start.params))
    if coordinates > observables.MAX_COORDINATES:
        direction = canary_runs.record_direction(target, client_view, spec=run.spec)
        if target.is_client:
            direction = canary_runs.client_direction(client_view, spec=run.spec)

    def draw(state: RunState) -> Cohort:
        if not setting.single_client:
            return run.draw(state.key, state.round)
        return Cohort(*(leaf[None] for leaf in client_view[:3]))

    def run_features(run_keys, data, canary_data):
        return canary_runs.run_features(
            run_keys,
            start,
            data,
            canary_data,
            direction,
            draw,
            spec=run.spec,
            layout=cohort_layout,
            rounds=settings.rounds,
            chunk=settings.chunk,
            server=setting.server,
        )

    return jax.jit(layout.on_devices(run_features, run.mesh))


def _row(
    run: build.Run,
    settings: Audit,
    setting: _Setting,
    canary: str,
    bound: epsilon_bound.Bound,
    confidence: float,
) -> dict[str, Any]:
    """One row of attack.json; the confidence is that of this row."""
    return {
        "attack": "audit",
        "variant": run.guarantee.unit,
        "canary": canary,
        "observable": "uploads" if setting.server else "models",
        "mechanism": run.guarantee.mechanism,
        "party": setting.party,
        "tier": int(run.tiers[setting.target.client]),
        "runs": 2 * settings.runs,
        "rounds": settings.rounds,
        "epsilon_low": bound.epsilon,
        "epsilon": files.number(setting.epsilon),
        "ceiling": bound.ceiling,
        "delta": run.guarantee.delta,
        "confidence": confidence,
        "exceeds": bound.epsilon > setting.epsilon,
    }
