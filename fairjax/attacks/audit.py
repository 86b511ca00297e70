"""The audit of a run's guarantee: its mechanism run again with and without a canary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.attacks import canaries
from fairjax.attacks import epsilon as privacy
from fairjax.core import layout, require, rng, trees
from fairjax.core.rng import Role
from fairjax.core.types import Cohort, Federation, RunState
from fairjax.experiment import evaluate
from fairjax.experiment.config import build
from fairjax.experiment.io import workdir as files
from fairjax.experiment.train import beginning

CONFIDENCE = 0.95
"""That none of an audit's rows shows more than there is."""


def _first(train: Federation, mine: np.ndarray) -> np.ndarray:
    return mine[:1]


def _patient(train: Federation, mine: np.ndarray) -> np.ndarray:
    """Who has most records there."""
    assert train.patient is not None
    whose = np.asarray(train.patient)[mine]
    return mine[whose == np.argmax(np.bincount(whose))]


UNITS = {"record": _first, "patient": _patient, "client": lambda train, mine: mine}
"""Unit of a guarantee -> (training records, rows of a hospital) -> those of one unit,
in whose place a canary comes."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """How a guarantee is audited."""

    canary: tuple[str, ...] = tuple(canaries.CANARIES)
    """Which ones, a row each."""
    rounds: int = 1
    """Of a run; as many are accounted for in "epsilon"."""
    runs: int = 200
    """With a canary, and as many without."""
    chunk: int = 20
    """Runs side by side, which bounds the memory."""
    party: str | None = None
    """The tier ("tier 0"), or under record_dp the hospital, that the canary is of;
    None: that which spends most."""
    alone: bool = True
    """Whether the canary's hospital is a cohort by itself, where every hospital noises
    what it sends: nothing else then moves what is seen. False: cohorts as the run draws
    them."""
    confidence: float = CONFIDENCE


def audit(run: build.Run, settings: Audit) -> list[dict[str, Any]]:
    """Rows of attack.json: what so many runs show of epsilon, beside what is claimed.

    The canary takes the place of a record or a patient of one hospital, or of a
    hospital of one tier. Who looks sees what the mechanism protects against:
    the models of all rounds, or all that reaches the server.

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
    guarantee, spec, rounds = run.guarantee, run.spec, settings.rounds
    if not guarantee.parties:
        what = "a mechanism, whose guarantee is audited"
        require.fail("privacy.mechanism", what, guarantee.mechanism)
    require.one_of("unit of the guarantee", guarantee.unit, UNITS)
    for name in settings.canary:
        require.one_of("--canary", name, canaries.CANARIES)
    start = beginning(run)
    spent = guarantee.spent(rounds)
    # Of those who spend alike the last: the richest tier has most for itself.
    whose = max(reversed(spent), key=lambda name: spent[name])
    if settings.party is not None:
        whose = require.one_of("--party", settings.party, spent)
    mechanisms = guarantee.parties.values()
    replaced = any(each.neighbours == "replace_one" for each in mechanisms)
    # A server that adds the noise sees what it protects.
    server = guarantee.protection.population is None
    place = _place(run, whose)
    member = trees.pick(evaluate.everybody(run, run.tiers_at(0)), place.client)
    alone = settings.alone and server
    laid = layout.vmapped() if alone else run.layout
    direction = None
    if sum(leaf.size for leaf in jax.tree.leaves(start.params)) > canaries.FEW:
        direction = canaries.of_records(place, member, spec=spec)
        if place.whole:
            direction = canaries.of_hospital(member, spec=spec)

    def draw(state: RunState) -> Cohort:
        if not alone:
            return run.draw(state.key, state.round)
        return Cohort(*(leaf[None] for leaf in member[:3]))

    def observed(drawn, data, inside):
        return canaries.observed(
            drawn,
            start,
            data,
            inside,
            direction,
            draw,
            spec=spec,
            layout=laid,
            rounds=rounds,
            chunk=settings.chunk,
            server=server,
        )

    program = jax.jit(layout.on_devices(observed, run.mesh))
    key = rng.at(jax.random.key(run.config["seed"]), Role.ATTACK, 2)
    drawn = jax.random.split(key, (2, settings.runs))
    confidence = 1 - (1 - settings.confidence) / len(settings.canary)
    claimed = spent[whose]
    rows = []
    for name in settings.canary:
        pair = canaries.neighbours(
            name, run.splits.train, place, len(run.splits.classes), replaced=replaced
        )
        inside, outside = (jax.tree.map(jnp.asarray, each) for each in pair)
        made = [
            np.asarray(program(each, data, inside), np.float64)
            for each, data in zip(drawn, (inside, outside), strict=True)
        ]
        shown = privacy.bound(
            *privacy.statistics(*made), delta=guarantee.delta, confidence=confidence
        )
        rows.append(
            {
                "attack": "audit",
                "variant": guarantee.unit,
                "canary": name,
                "observable": "uploads" if server else "models",
                "mechanism": guarantee.mechanism,
                "party": whose,
                "tier": int(run.tiers[place.client]),
                "runs": 2 * settings.runs,
                "rounds": rounds,
                "epsilon_low": shown.epsilon,
                "epsilon": files.number(claimed),
                "ceiling": shown.ceiling,
                "delta": guarantee.delta,
                "confidence": confidence,
                "exceeds": shown.epsilon > claimed,
            }
        )
    return rows


def _place(run: build.Run, party: str) -> canaries.Place:
    """Where the canary is, so that the party is exposed to it."""
    train, unit = run.splits.train, run.guarantee.unit
    if unit == "client":
        who = int(np.argmax(run.tiers == int(party.removeprefix("tier "))))
    else:
        who = run.splits.clients.index(party)
    first, count = int(train.offset[who]), int(train.count[who])
    rows = UNITS[unit](train, np.arange(first, first + count))
    return canaries.Place(who, rows, unit == "client")
