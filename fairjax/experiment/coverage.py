"""What nobody trains, and what a scaler does that no norm takes back.

Both follow from the config, the data and the first model. They are said before the
first round, and again beside the figures of the run.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from fairjax.core import client, rng, trees
from fairjax.core.rng import Role
from fairjax.core.types import Kept, Member, Params, RunState
from fairjax.experiment import evaluate
from fairjax.experiment.config import build

SMALL_SCALE = 0.25
"""A scaler below this share is looked at."""
MOST_MASKS = 10_000
"""Looked at, of a method that draws new ones in every round."""
_REPEATS = 32
"""Rounds whose masks all were there before, after which no others are expected."""

_Leaves = dict[str, np.ndarray]
"""By path; every leaf broadcasts to its parameter."""


class Untrained(NamedTuple):
    """What of the full model stays as it is."""

    share: float
    """Of its parameters."""
    parameters: int
    reason: str | None
    """None where there are none."""


def notes(run: build.Run, start: RunState) -> tuple[Untrained, list[str]]:
    """What is untrained, and what else to know of a run's figures, a sentence each."""
    left = untrained(run, start)
    said = []
    if left.parameters:
        said.append(
            f"{left.share:.1%} of the full model ({left.parameters:,} parameters) "
            f"stays as it was before the first round: {left.reason}. Its figures "
            "(eval/*) are of a model that was not wholly trained."
        )
    return left, [*said, *magnified(run, start)]


# ------------------------------------------------------------------- what nobody trains


def untrained(run: build.Run, start: RunState) -> Untrained:
    """The coordinates of the full model that no round of a run can move.

    In a round one can be moved if enough hospitals that a cohort may have train it:
    one, or as many as a secure sum asks for (under `client_dp` in an average cohort).
    Who is drawn and what goes wrong is left open, so that more may stay as it was;
    cohort/coverage says what every round moved. Masks that follow from parameters are
    those of the first model, others of all rounds, but of at most `MOST_MASKS` masks.
    Of a leaf that tiers keep for themselves, the full model has the richest tier's.

    Args:
        run: the run.
        start: its first state.
    """
    paths, owners = trees.named(start.params), _owners(start, len(run.budget))
    least, most = _asked(run)
    able: _Leaves = {p: np.zeros((1,) * leaf.ndim, bool) for p, leaf in paths.items()}
    held, looked = dict(able), 0
    for tiers in _rounds(run, start):
        total = {path: leaf.astype(int) * 0 for path, leaf in able.items()}
        # From the richest on: mostly it holds all that there is.
        for tier in reversed(range(len(tiers))):
            looked += len(tiers[tier])
            for path, number in _holders(run, start, tiers[tier]).items():
                if owners[path][tier]:
                    held[path] = held[path] | (number > 0)
                    total[path] = total[path] + np.minimum(number, most[tier])
            enough = {path: able[path] | (total[path] >= least) for path in paths}
            if all(map(np.all, enough.values())):
                return Untrained(0.0, 0, None)
        able = enough
        if looked >= MOST_MASKS:
            break

    def count(where: _Leaves) -> int:
        return sum(
            int(np.sum(leaf)) * (paths[path].size // leaf.size)
            for path, leaf in where.items()
        )

    def those(of: Callable[[str], Any]) -> _Leaves:
        return {path: ~able[path] & of(path) for path in paths}

    few = "fewer hospitals train it than the secure sum asks for"
    why = {
        "every hospital keeps its own": those(lambda p: not np.any(owners[p])),
        "no hospital trains it": those(lambda p: ~held[p] & bool(np.any(owners[p]))),
        few: those(lambda p: held[p]),
    }
    parameters = count(those(lambda p: True))
    whole = sum(leaf.size for leaf in paths.values())
    reason = ", or ".join(words for words, where in why.items() if count(where))
    return Untrained(parameters / whole, parameters, reason or None)


def _owners(start: RunState, tiers: int) -> dict[str, Bool[np.ndarray, "T"]]:
    """Whose change moves a leaf of the full model (`scopes.whole`)."""
    bank = start.private
    owners = {path: np.ones(tiers, bool) for path in trees.named(start.params)}
    for path in bank["tier"]:
        row = np.asarray(bank["row"][path])
        owners[path] = row == row[-1]
    return owners | {path: np.zeros(tiers, bool) for path in bank["client"]}


def _asked(run: build.Run) -> tuple[float, Int[np.ndarray, "T"]]:
    """(holders that a coordinate must have, the most of every tier in a cohort)."""
    least, population = 1.0, run.spec.protection.population
    if run.guarantee.secure_sum != "off":
        least = float(run.config["privacy"]["secure"]["minimum"])
        if population is not None:
            least /= population.rate
    most = np.full(len(run.budget), len(run.splits.clients))
    if run.config["execution"]["slots"] == "stratified" and run.slots is not None:
        most = np.asarray(run.slots)
    return least, most


def _holders(
    run: build.Run, start: RunState, kepts: list[tuple[Kept, int]]
) -> dict[str, Any]:
    """How many train a coordinate, of hospitals of which so many keep this and that."""
    number: dict[str, Any] = {}
    for kept, times in kepts:
        _, cover = client.masks(run.spec.local, start.params, kept)
        for path, leaf in trees.named(cover).items():
            number[path] = number.get(path, 0) + times * (np.asarray(leaf) > 0)
    return number


def _rounds(run: build.Run, start: RunState) -> Iterator[list[list[tuple[Kept, int]]]]:
    """Of rounds unlike those before: what hospitals keep and how many, tier by tier.

    Those that the method leaves out of a round are not among them.
    """
    method, key = run.spec.local.method, start.key

    @jax.jit
    def keep(params: Params, number: Array, tiers: Array) -> tuple[Kept, Array]:
        everybody = evaluate.everybody(run, tiers)
        below = rng.at(key, Role.UNITS, number)

        def one(member: Member) -> Kept:
            kept = method.units(below, number, params, member)
            # Nothing else of it says which coordinates are trained.
            extra = None if method.mask is None else kept.extra
            return Kept(kept.forward, kept.update, None, extra)

        return jax.vmap(one)(everybody), jax.vmap(method.admits)(everybody)

    before, repeats = set(), 0
    moved = max((number for number, _, _ in run.changes), default=0)
    for number in range(run.guarantee.allowed(run.config["rounds"])):
        tiers = run.tiers_at(number)
        given = start.params, jnp.asarray(number, jnp.int32), tiers
        kept, admitted = jax.device_get(keep(*given))
        tiers = np.where(admitted, np.asarray(tiers), -1)
        rows = _rows(kept, len(tiers))
        same = rows.tobytes() + tiers.tobytes()
        repeats = repeats + 1 if same in before else 0
        if repeats >= _REPEATS and number >= moved:
            return
        if repeats:
            continue
        before.add(same)
        yield [
            _alike(kept, rows, np.flatnonzero(tiers == tier))
            for tier in range(len(run.budget))
        ]


def _alike(
    kept: Kept, rows: np.ndarray, who: Int[np.ndarray, "n"]
) -> list[tuple[Kept, int]]:
    """What these hospitals keep, each once, and how many keep it."""
    if not len(who):
        return []
    _, first, times = np.unique(
        rows[who], axis=0, return_index=True, return_counts=True
    )
    return [
        (trees.pick(kept, who[one]), int(often))
        for one, often in zip(first, times, strict=True)
    ]


def _rows(tree: Any, number: int) -> np.ndarray:
    """The bytes of every row of a stack of trees, [number, bytes]."""
    parts = [
        np.ascontiguousarray(leaf).reshape(number, -1).view(np.uint8)
        for leaf in jax.tree.leaves(tree)
    ]
    return np.concatenate([np.zeros((number, 0), np.uint8), *parts], axis=1)


# ------------------------------------------------------------------------------ scalers


def magnified(run: build.Run, start: RunState) -> list[str]:
    """A warning for every tier whose scaler makes its answers more than twice as large.

    Scalers below `SMALL_SCALE` are looked at. Activations divided by a share s grow by
    1 / s with every layer, unless a norm behind it takes that back; which it is, the
    first model's logits on some records say, with and without.
    """
    local, found = run.spec.local, []
    x = jnp.asarray(run.splits.train.x[:8])
    key = rng.at(start.key, Role.UNITS, start.round)
    members = evaluate.representatives(run)

    def length(kept: Kept) -> float:
        return float(jnp.linalg.norm(client.answer(local, start.params, x, kept)))

    for tier in np.unique(run.tiers):
        member = trees.pick(members, tier)
        kept = local.method.units(key, start.round, start.params, member)
        if kept.scale is None or kept.scale >= SMALL_SCALE:
            continue
        times = length(kept) / max(length(kept._replace(scale=None)), 1e-30)
        if times > 2:
            found.append(
                f"tier {tier} divides activations by {float(kept.scale):.3g} and no "
                f"norm takes that back: its first answers are {times:.3g} times as "
                "large, and training may diverge (try a norm, local.clip, no scaler)."
            )
    return found
