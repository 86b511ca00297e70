"""Membership attacks on a finished run, by tier of the client that has the record.

Members are the training records, non-members the test records of the same clients. The
attacker knows the config and has the full model of the last round. For "update" it also
sees as much of the traffic as the config lets a server see. For calibration it trains
shadow models on candidates without knowing which of them were members.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fairjax import metrics
from fairjax.attacks import alignment, roc, scores, shadows
from fairjax.core import layout, losses, require, rng, round
from fairjax.core.rng import Role
from fairjax.core.types import ClientView, FederatedData, RunState
from fairjax.evaluation import deployed
from fairjax.experiment import evaluate
from fairjax.experiment.config import build
from fairjax.experiment.io import workdir as files
from fairjax.experiment.resume import initial_state
from fairjax.metrics import bootstrap

RATES = {"tpr_at_1": 0.01, "tpr_at_0.1": 0.001}
"""Figure -> the false positive rate at which it counts the members that are found."""
RESAMPLES, LEVEL = 1000, 0.95
CALIBRATED = ("class", "calibrated", "likelihood", "rmia", "rmia_offline")
"""Attacks that read shadow models."""
_SHADOWS, _RESAMPLES = range(2)
_BLIND = ("blind", "model")

Name = tuple[str, str]
"""(variant, observable) of an attack."""


@dataclasses.dataclass(frozen=True)
class Membership:
    """How membership is inferred."""

    shadows: int = 32
    """Shadow runs."""
    chunk: int = 8
    """Shadow runs at the same time, which bounds the memory."""
    gamma: float = 1.0
    """The gamma of RMIA, at least 1."""
    scale: float = 0.3
    """The a of offline RMIA, in [0, 1]: p_in = a p_out + 1 - a."""


def attack(
    run: build.Run, state: RunState, settings: Membership
) -> list[dict[str, Any]]:
    """Rows of attack.json, one for every attack, observable and tier.

    Args:
        run: the run.
        state: the run's last state.
        settings: of the attack.

    Returns:
        {"attack", "variant", "observable", "mechanism", "tier", "members",
        "nonmembers", "auc", "auc_low", "auc_high", "tpr_at_1", "tpr_at_1_low",
        "tpr_at_1_high", "tpr_at_0.1", ..., "baseline_auc", "blind_auc", "shadows",
        "roc", "reason"}. "observable" is the "model" of the last round, the "models" of
        all rounds, or single "uploads". "tier" None stands for all clients. "members"
        and "nonmembers" count the records that have a score. "tpr_at_1" and
        "tpr_at_0.1" are the shares of members found at 1 % and 0.1 % false positives,
        with `roc.tpr_interval`. "blind_auc" is the AUC of `scores.difficulty`, which
        reads no attacked model. "roc" has the points of `roc.roc_curve`, for all
        clients only. "reason" says why a figure is null, or what has no score.

    Raises:
        InputError: a setting is out of range, or the run protects patients.
    """
    require.in_range("--gamma", settings.gamma, 1)
    require.in_range("--scale", settings.scale, 0, 1)
    if run.guarantee.unit == "patient":
        expected = (
            "another than patient with membership, whose shadow runs draw records"
        )
        require.fail("privacy.unit", expected, "patient")
    candidates = shadows.pool_candidates(run.splits.train, run.splits.test)
    by_name = _scores(run, state, candidates, settings)
    tiers = np.asarray(run.tiers_at(state.round - 1))
    owner_tier = tiers[candidates.owner]
    key = rng.fold_in(jax.random.key(run.config.seed), Role.ATTACK, _RESAMPLES)
    segments = [None, *range(len(run.budget))]
    segment_masks = np.stack(
        [owner_tier >= 0 if t is None else owner_tier == t for t in segments]
    )
    names = list(by_name)
    score_matrix = jnp.stack([by_name[name] for name in names])
    figures = jax.device_get(
        _figures(
            score_matrix,
            jnp.asarray(candidates.member),
            jnp.asarray(segment_masks),
            key,
        )
    )
    blind_auc = figures[0][names.index(_BLIND)]
    host_scores = np.asarray(score_matrix, np.float64)
    return [
        {
            "attack": "membership",
            "variant": name[0],
            "observable": name[1],
            "mechanism": run.guarantee.mechanism,
            "tier": tier,
            **_row_figures(
                host_scores[index],
                candidates.member,
                segment_masks[segment],
                tuple(figure[index, segment] for figure in figures),
                blind_auc=blind_auc[segment],
                num_shadows=settings.shadows if name[0] in CALIBRATED else 0,
                has_roc=tier is None,
            ),
        }
        for index, name in enumerate(names)
        if name != _BLIND
        for segment, tier in enumerate(segments)
    ]


def _row_figures(
    score: Float[np.ndarray, "E"],
    member: Bool[np.ndarray, "E"],
    where: Bool[np.ndarray, "E"],
    figures: tuple[np.ndarray, ...],
    *,
    blind_auc: np.ndarray,
    num_shadows: int,
    has_roc: bool,
) -> dict[str, Any]:
    """The figures of one row of attack.json.

    Args:
        score: of every record; NaN where there is none.
        member: whether the record is a member.
        where: the records of the row's tier.
        figures: the row's entries of `_figures`.
        blind_auc: the AUC of the blind attack on the same records.
        num_shadows: shadow models that the score reads.
        has_roc: whether the row has a ROC curve.
    """
    auc, low, high, *shares = figures
    has_score = where & ~np.isnan(score)
    member_scores, nonmember_scores = (
        score[has_score & (member == is_member)] for is_member in (True, False)
    )
    members, nonmembers = len(member_scores), len(nonmember_scores)
    missing_scores = int(np.sum(where)) - members - nonmembers
    tprs = {}
    for (name, rate), share in zip(RATES.items(), shares, strict=True):
        ends = (np.nan, np.nan)
        if not np.isnan(share):
            ends = roc.tpr_interval(
                member_scores, nonmember_scores, fpr=rate, confidence=LEVEL
            )
        for suffix, value in zip(("", "_low", "_high"), (share, *ends), strict=True):
            tprs[name + suffix] = files.number(value)
    roc_points = [list(p) for p in roc.roc_curve(member_scores, nonmember_scores)]
    return {
        "members": members,
        "nonmembers": nonmembers,
        "auc": files.number(auc),
        "auc_low": files.number(low),
        "auc_high": files.number(high),
        **tprs,
        "baseline_auc": 0.5,
        "blind_auc": files.number(blind_auc),
        "shadows": num_shadows,
        "roc": roc_points if has_roc else None,
        "reason": _reason(members, nonmembers, missing_scores),
    }


def _reason(members: int, nonmembers: int, missing_scores: int) -> str | None:
    """Why a figure is null, or which records have no score."""
    reasons = []
    if not members or not nonmembers:
        reasons.append("no members or no non-members")
    else:
        percentages = [
            f"{rate:.1%}" for rate in RATES.values() if nonmembers * rate < 1
        ]
        if percentages:
            rates = " and ".join(percentages).replace(".0%", "%")
            reasons.append(
                f"{nonmembers} non-members are too few for {rates} false positives"
            )
    if missing_scores:
        reasons.append(f"{missing_scores} records without a score")
    return "; ".join(reasons) or None


class _Setting(NamedTuple):
    """What the attacks on one run share."""

    train: FederatedData
    """The run's training records."""
    x: Array
    """The candidates' inputs, [E, ...]."""
    y: Int[Array, "E"]
    """The candidates' classes."""
    tiers: Int[Array, "N"]
    """The tiers of the last round."""
    clients: ClientView
    """One client of every tier."""
    start: RunState
    """The run's first state."""
    rounds: dict[str, Any]
    """How the run's rounds are simulated."""


def _scores(
    run: build.Run,
    state: RunState,
    candidates: shadows.Pool,
    settings: Membership,
) -> dict[Name, Float[Array, "E"]]:
    """The score of every candidate by every attack."""
    train, x = jax.tree.map(jnp.asarray, (run.splits.train, candidates.data.x))
    y = jnp.asarray(candidates.data.y)
    clients, tiers = evaluate.representatives(run), run.tiers_at(state.round - 1)
    start, validation = initial_state(run), None
    if "validation" in run.spec.rule.reads:
        validation = jax.tree.map(jnp.asarray, run.splits.val)
    rounds: dict[str, Any] = {
        "draw": lambda state: run.draw(state.key, state.round),
        "spec": run.spec,
        "layout": run.layout,
        "rounds": int(state.round),
        "validation": validation,
    }
    setting = _Setting(train, x, y, tiers, clients, start, rounds)
    shadow_loss, shadow_phi, membership = _shadow_scores(
        run, candidates, settings, setting
    )
    loss, phi = _target_scores(run, state, setting)
    by_upload, by_model = _alignments(run, candidates, setting)
    rmia = functools.partial(scores.rmia, gamma=settings.gamma)
    by_name = {
        _BLIND: scores.difficulty(shadow_loss, membership),
        ("loss", "model"): -loss,
        ("class", "model"): scores.class_quantile(
            loss, y, shadow_loss, membership, classes=len(run.splits.classes)
        ),
        ("calibrated", "model"): scores.loss_calibration(loss, shadow_loss, membership),
        ("likelihood", "model"): scores.likelihood_ratio(phi, shadow_phi, membership),
        ("rmia", "model"): rmia(loss, shadow_loss, membership),
        ("rmia_offline", "model"): rmia(
            loss, shadow_loss, membership, scale=settings.scale
        ),
    }
    if run.guarantee.secure_sum == "off":
        by_name["update", "uploads"] = by_upload
    by_name["update", "models"] = by_model
    return by_name


def _shadow_scores(
    run: build.Run,
    candidates: shadows.Pool,
    settings: Membership,
    setting: _Setting,
) -> tuple[Float[Array, "M E"], Float[Array, "M E"], Bool[Array, "M E"]]:
    """(losses, margins, membership) of the shadow models."""
    start = setting.start
    initial_params = None if run.config.model.init_from is None else start.params

    def init_state(key: Array) -> RunState:
        return round.init(
            key,
            setting.x[:1],
            counts=run.splits.train.count,
            tiers=len(run.budget),
            spec=run.spec,
            params=initial_params,
        )

    def train_shadows(shadow_keys: Array):
        logits, membership = shadows.train(
            shadow_keys,
            candidates,
            np.asarray(run.splits.train.count),
            setting.tiers,
            setting.clients,
            init_state=init_state,
            chunk=settings.chunk,
            **setting.rounds,
        )
        return _losses(logits, setting.y), scores.margin(logits, setting.y), membership

    seed = rng.fold_in(jax.random.key(run.config.seed), Role.ATTACK, _SHADOWS)
    program = jax.jit(layout.on_devices(train_shadows, run.mesh))
    return program(jax.random.split(seed, settings.shadows))


def _target_scores(
    run: build.Run, state: RunState, setting: _Setting
) -> tuple[Float[Array, "E"], Float[Array, "E"]]:
    """(losses, margins) of the attacked model."""

    @jax.jit
    def target_scores(state: RunState):
        logits, _ = deployed.predict(
            state,
            setting.x,
            setting.train,
            setting.tiers,
            setting.clients,
            spec=run.spec,
        )
        return _losses(logits, setting.y), scores.margin(logits, setting.y)

    return target_scores(state)


def _alignments(
    run: build.Run, candidates: shadows.Pool, setting: _Setting
) -> Float[Array, "2 E"]:
    """`alignment.alignments` of the run that is attacked."""
    is_local_dp = run.guarantee.mechanism == "local_dp"

    def run_alignments(start: RunState):
        return alignment.alignments(
            start,
            setting.train,
            candidates.data,
            jnp.asarray(candidates.owner),
            lambda round_index: evaluate.all_clients(run, run.tiers_at(round_index)),
            protection=run.guarantee.protection if is_local_dp else None,
            **setting.rounds,
        )

    return jax.jit(layout.on_devices(run_alignments, run.mesh))(setting.start)


def _losses(logits: Float[Array, "*M E C"], y: Array) -> Float[Array, "*M E"]:
    flat = logits.reshape(-1, logits.shape[-1])
    labels = jnp.broadcast_to(y, logits.shape[:-1]).ravel()
    return losses.cross_entropy(flat, labels).reshape(logits.shape[:-1])


@jax.jit
def _figures(
    scores: Float[Array, "A E"],
    member: Bool[Array, "E"],
    segment_masks: Bool[Array, "S E"],
    key: Array,
) -> tuple[Array, ...]:
    """(AUC, its lower and upper end, members found at each of `RATES`), [A, S] each.

    A attacks on the records of S segments: a segment is a tier, or all clients.
    """

    def per_pair(pair: tuple[Array, Array]) -> tuple[Array, ...]:
        score, where = pair
        has_score = where & ~jnp.isnan(score)
        segment = jnp.where(has_score, 0, -1)

        def auc(weight: Array | None = None) -> Array:
            return metrics.auroc(score, member, segment, 1, weight=weight)[0]

        ends = bootstrap.interval(
            auc,
            functools.partial(bootstrap.records, rows=score.shape[0]),
            key,
            resamples=RESAMPLES,
            level=LEVEL,
        )
        shares = (
            roc.tpr_at_fpr(score, member, has_score, fpr=r) for r in RATES.values()
        )
        return auc(), *ends, *shares

    pairs = [
        jnp.repeat(scores, segment_masks.shape[0], axis=0),
        jnp.tile(segment_masks, (scores.shape[0], 1)),
    ]
    figures = jax.lax.map(per_pair, tuple(pairs))
    return tuple(leaf.reshape(scores.shape[0], -1) for leaf in figures)
