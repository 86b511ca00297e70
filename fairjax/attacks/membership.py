"""The attacks on membership of a finished run, by tier of the hospital that is robbed.

Members are the training records, non-members the test records of the same hospitals.
The attacker knows the config and has the full model of the last round; for "update" it
also sees of the traffic what the config lets a server see. For calibration it trains
shadow models on candidates of whom it does not know which were members.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fairjax import metrics
from fairjax.attacks import observed, shadows
from fairjax.attacks import scores as attacks
from fairjax.core import layout, losses, require, rng, round
from fairjax.core.rng import Role
from fairjax.core.types import RunState
from fairjax.evaluation import deployed
from fairjax.experiment import evaluate
from fairjax.experiment.config import build
from fairjax.experiment.io import workdir as files
from fairjax.experiment.train import beginning
from fairjax.metrics import bootstrap

RATES = {"tpr_at_1": 0.01, "tpr_at_0.1": 0.001}
"""Figure -> false positive rate at which members are counted that are found."""
RESAMPLES, LEVEL = 1000, 0.95
CALIBRATED = ("class", "calibrated", "likelihood", "rmia", "rmia_offline")
"""Attacks that need shadow models."""
_SHADOWS, _RESAMPLES = range(2)


@dataclasses.dataclass(frozen=True)
class Membership:
    """How membership is inferred."""

    shadows: int = 32
    """Shadow runs."""
    chunk: int = 8
    """Shadow runs side by side, which bounds the memory."""
    gamma: float = 1.0
    """Of RMIA, at least 1."""
    scale: float = 0.3
    """Of offline RMIA, in [0, 1]: the a in p_in = a p_out + 1 - a."""


def attack(
    run: build.Run, state: RunState, settings: Membership
) -> list[dict[str, Any]]:
    """A row of attack.json for every attack, what it looks at, and tier.

    Args:
        run: the run.
        state: its state in the end.
        settings: of the attack.

    Returns:
        {"attack", "variant", "observable", "mechanism", "tier", "members",
        "nonmembers", "auc", "auc_low", "auc_high", "tpr_at_1", "tpr_at_1_low",
        "tpr_at_1_high", "tpr_at_0.1", ..., "baseline_auc", "blind_auc", "shadows",
        "roc", "reason"}. "observable" is the "model" of the last round, "models" of all
        rounds, or single "uploads"; "tier" None: all hospitals; "members" and
        "nonmembers" those who have a score; "tpr_at_1" and "tpr_at_0.1" the shares of
        members found at 1 % and 0.1 % false positives, with `attacks.interval`;
        "blind_auc" that of `attacks.difficulty`, which looks at no model; "roc" the
        points of `attacks.curve`, for all hospitals alone; "reason" says why a figure
        is null, or what has no score.
    """
    require.in_range("--gamma", settings.gamma, 1)
    require.in_range("--scale", settings.scale, 0, 1)
    if run.guarantee.unit == "patient":
        what = "another than patient with membership, whose shadow runs draw records"
        require.fail("privacy.unit", what, "patient")
    candidates = shadows.pool(run.splits.train, run.splits.test)
    scores = _scores(run, state, candidates, settings)
    tiers = np.asarray(run.tiers_at(state.round - 1))
    tier = tiers[candidates.owner]
    key = rng.at(jax.random.key(run.config["seed"]), Role.ATTACK, _RESAMPLES)
    segments = [None, *range(len(run.budget))]
    wheres = np.stack([tier >= 0 if t is None else tier == t for t in segments])
    names = list(scores)
    stacked = jnp.stack([scores[name] for name in names])
    figures = jax.device_get(
        _figures(stacked, jnp.asarray(candidates.member), jnp.asarray(wheres), key)
    )
    blind = names.index(("blind", "model"))
    shown = np.asarray(stacked, np.float64)

    def row(at: int, segment: int) -> dict[str, Any]:
        variant, observable = names[at]
        where = wheres[segment]
        auc, low, high, *shares = (part[at, segment] for part in figures)
        known = where & ~np.isnan(shown[at])
        inside, outside = (
            shown[at, known & (candidates.member == kind)] for kind in (True, False)
        )
        members, others = len(inside), len(outside)
        unknown = int(np.sum(where)) - members - others
        found = {}
        for (name, rate), share in zip(RATES.items(), shares, strict=True):
            ends = (np.nan, np.nan)
            if not np.isnan(share):
                ends = attacks.interval(inside, outside, rate=rate, confidence=LEVEL)
            for end, value in zip(("", "_low", "_high"), (share, *ends), strict=True):
                found[name + end] = files.number(value)
        return {
            "attack": "membership",
            "variant": variant,
            "observable": observable,
            "mechanism": run.guarantee.mechanism,
            "tier": segments[segment],
            "members": members,
            "nonmembers": others,
            "auc": files.number(auc),
            "auc_low": files.number(low),
            "auc_high": files.number(high),
            **found,
            "baseline_auc": 0.5,
            "blind_auc": files.number(figures[0][blind, segment]),
            "shadows": settings.shadows if variant in CALIBRATED else 0,
            "roc": _roc(inside, outside) if segments[segment] is None else None,
            "reason": _reason(members, others, unknown),
        }

    return [
        row(at, segment)
        for at in range(len(names))
        if at != blind
        for segment in range(len(segments))
    ]


def _roc(inside: np.ndarray, outside: np.ndarray) -> list[list[int]]:
    return [list(point) for point in attacks.curve(inside, outside)]


def _reason(members: int, others: int, unknown: int) -> str | None:
    """Why a figure is null."""
    said = []
    if not members or not others:
        said.append("no members or no non-members")
    else:
        few = [f"{rate:.1%}" for rate in RATES.values() if others * rate < 1]
        if few:
            rates = " and ".join(few).replace(".0%", "%")
            said.append(f"{others} non-members are too few for {rates} false positives")
    if unknown:
        said.append(f"{unknown} records without a score")
    return "; ".join(said) or None


def _scores(
    run: build.Run,
    state: RunState,
    candidates: shadows.Pool,
    settings: Membership,
) -> dict[tuple[str, str], Float[Array, "E"]]:
    """(variant, observable) -> the score of every candidate."""
    train, x = jax.tree.map(jnp.asarray, (run.splits.train, candidates.data.x))
    y = jnp.asarray(candidates.data.y)
    members, now = evaluate.representatives(run), run.tiers_at(state.round - 1)
    start, rounds, validation = beginning(run), int(state.round), None
    if "validation" in run.spec.rule.needs:
        validation = jax.tree.map(jnp.asarray, run.splits.val)
    begun = None if run.config["model"]["init_from"] is None else start.params

    def begin(key: Array) -> RunState:
        return round.init(
            key,
            x[:1],
            counts=run.splits.train.count,
            tiers=len(run.budget),
            spec=run.spec,
            params=begun,
        )

    common: dict[str, Any] = {
        "draw": lambda state: run.draw(state.key, state.round),
        "spec": run.spec,
        "layout": run.layout,
        "rounds": rounds,
        "validation": validation,
    }

    def compiled(program):
        return jax.jit(layout.on_devices(program, run.mesh))

    @compiled
    def shadowed(drawn: Array):
        logits, inside = shadows.train(
            drawn,
            candidates,
            np.asarray(run.splits.train.count),
            now,
            members,
            begin=begin,
            chunk=settings.chunk,
            **common,
        )
        return _losses(logits, y), attacks.margin(logits, y), inside

    @jax.jit
    def attacked(state: RunState):
        logits, _ = deployed.answers(state, x, train, now, members, spec=run.spec)
        return _losses(logits, y), attacks.margin(logits, y)

    sees = run.guarantee.mechanism == "local_dp"

    @compiled
    def followed(start: RunState):
        return observed.alignments(
            start,
            train,
            candidates.data,
            jnp.asarray(candidates.owner),
            lambda finished: evaluate.everybody(run, run.tiers_at(finished)),
            uploads=run.guarantee.protection if sees else None,
            **common,
        )

    seed = rng.at(jax.random.key(run.config["seed"]), Role.ATTACK, _SHADOWS)
    shadow, shadow_phi, inside = shadowed(jax.random.split(seed, settings.shadows))
    loss, phi = attacked(state)
    by_upload, by_model = followed(start)
    classes = len(run.splits.classes)
    relative = functools.partial(attacks.relative, gamma=settings.gamma)
    made = {
        ("blind", "model"): attacks.difficulty(shadow, inside),
        ("loss", "model"): -loss,
        ("class", "model"): attacks.by_class(loss, y, shadow, inside, classes=classes),
        ("calibrated", "model"): attacks.calibrated(loss, shadow, inside),
        ("likelihood", "model"): attacks.likelihood(phi, shadow_phi, inside),
        ("rmia", "model"): relative(loss, shadow, inside),
        ("rmia_offline", "model"): relative(loss, shadow, inside, scale=settings.scale),
    }
    if run.guarantee.secure_sum == "off":
        made["update", "uploads"] = by_upload
    made["update", "models"] = by_model
    return made


def _losses(logits: Float[Array, "*M E C"], y: Array) -> Float[Array, "*M E"]:
    flat = logits.reshape(-1, logits.shape[-1])
    labels = jnp.broadcast_to(y, logits.shape[:-1]).ravel()
    return losses.cross_entropy(flat, labels).reshape(logits.shape[:-1])


@jax.jit
def _figures(
    scores: Float[Array, "A E"],
    member: Bool[Array, "E"],
    wheres: Bool[Array, "S E"],
    key: Array,
) -> tuple[Array, ...]:
    """(AUC, lower, upper bound, members found at each of `RATES`), [A, S] each."""

    def one(at: tuple[Array, Array]) -> tuple[Array, ...]:
        score, where = at
        known = where & ~jnp.isnan(score)
        segment = jnp.where(known, 0, -1)

        def area(weight: Array | None = None) -> Array:
            return metrics.auroc(score, member, segment, 1, weight=weight)[0]

        ends = bootstrap.interval(
            area,
            functools.partial(bootstrap.records, rows=score.shape[0]),
            key,
            resamples=RESAMPLES,
            level=LEVEL,
        )
        shares = (attacks.found(score, member, known, rate=r) for r in RATES.values())
        return area(), *ends, *shares

    pairs = [
        jnp.repeat(scores, wheres.shape[0], axis=0),
        jnp.tile(wheres, (scores.shape[0], 1)),
    ]
    found = jax.lax.map(one, tuple(pairs))
    return tuple(leaf.reshape(scores.shape[0], -1) for leaf in found)
