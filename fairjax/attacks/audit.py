"""The audit of a run's guarantee: its mechanism run again with and without a canary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, keys, layout, measure, specs, trees
from fairjax import workdir as files
from fairjax.attacks import canaries
from fairjax.keys import Role
from fairjax.privacy import audit as privacy
from fairjax.train import beginning
from fairjax.types import Cohort, RunState

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Audit:
    """How a guarantee is audited."""

    rounds: int = 1
    """Of a run; as many are accounted for in "epsilon"."""
    runs: int = 200
    """With the canary, and as many without."""
    chunk: int = 20
    """Runs side by side, which bounds the memory."""


def audit(run: specs.Run, settings: Audit) -> dict[str, Any]:
    """A row of attack.json: what so many runs show of epsilon, beside what is claimed.

    The canary takes the place of a record of the hospital that spends most, or of a
    hospital of the tier that does. It is loud, and all others are made silent: the
    guarantee is for any records.

    Args:
        run: under client_dp or record_dp.
        settings: of the audit.

    Returns:
        {"attack", "variant", "observable", "mechanism", "tier", "runs", "rounds",
        "epsilon_low", "epsilon", "ceiling", "delta", "confidence", "exceeds"}.

    Raises:
        InputError: the run has no such mechanism.
    """
    guarantee, spec, rounds = run.guarantee, run.spec, settings.rounds
    start = beginning(run)
    audited = ("client_dp", "record_dp")
    checks.one_of("privacy.mechanism", guarantee.mechanism, audited)
    spent = guarantee.spent(rounds)
    whose = max(spent, key=lambda name: spent[name])
    data, laid = jax.tree.map(jnp.asarray, run.splits.train), run.layout
    if guarantee.mechanism == "record_dp":
        who = run.splits.clients.index(whose)
    else:
        who = int(np.argmax(run.tiers == int(whose.removeprefix("tier "))))
    first = int(data.offset[who])
    member = trees.pick(measure.everybody(run, run.tiers_at(0)), who)
    classes = len(run.splits.classes)
    if guarantee.mechanism == "record_dp":
        inside, outside = canaries.record(data, first, classes)
        direction = canaries.of_record(inside, first, member, spec=spec)
        laid = layout.vmapped()
    else:
        inside, outside = canaries.hospital(data, who, classes)
        direction = canaries.of_hospital(inside, member, spec=spec)

    def draw(state: RunState) -> Cohort:
        if guarantee.mechanism == "client_dp":
            return run.draw(state.key, state.round)
        # Cohorts do not enter: a record's hospital alone, in every round.
        return Cohort(*(leaf[None] for leaf in member[:3]))

    def scores(drawn, data):
        return canaries.scores(
            drawn,
            start,
            data,
            direction,
            draw,
            spec=spec,
            layout=laid,
            rounds=rounds,
            chunk=settings.chunk,
        )

    scores = jax.jit(layout.on_devices(scores, run.mesh))
    key = keys.at(jax.random.key(run.config["seed"]), Role.ATTACK, 2)
    drawn = jax.random.split(key, (2, settings.runs))
    made = [
        np.asarray(scores(each, part), np.float64)
        for each, part in zip(drawn, (inside, outside), strict=True)
    ]
    shown = privacy.bound(*made, delta=guarantee.delta, confidence=CONFIDENCE)
    claimed = spent[whose]
    return {
        "attack": "audit",
        "variant": guarantee.unit,
        "observable": "models",
        "mechanism": guarantee.mechanism,
        "tier": int(run.tiers[who]),
        "runs": 2 * settings.runs,
        "rounds": rounds,
        "epsilon_low": shown.epsilon,
        "epsilon": files.number(claimed),
        "ceiling": shown.ceiling,
        "delta": guarantee.delta,
        "confidence": CONFIDENCE,
        "exceeds": shown.epsilon > claimed,
    }
