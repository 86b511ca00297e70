"""The models of a run on its splits, compiled once for as many states as are asked for.

Training sees the training split, selection the validation split, and the figures that
are reported the test split; nothing that is decided here or later rests on the last.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from fairjax import metrics
from fairjax.core import client, require, rng, round, scopes, trees
from fairjax.core.rng import Role
from fairjax.core.types import Cohort, Federation, Masks, Member, RunState
from fairjax.evaluation import deployed, personalised
from fairjax.experiment.config import build, robustness
from fairjax.experiment.io import workdir as files
from fairjax.metrics import clients
from fairjax.robust import folds


class Measured(NamedTuple):
    """One state of a run."""

    full: metrics.Evaluation
    """The full model on the test split."""
    own: metrics.Evaluation
    """Every tier's own sub-model on the test split, [T, ...] a leaf."""
    val: metrics.Figures | None
    """The full model on the validation split, pooled; None where that is empty."""
    personal: metrics.Figures | None
    """What every hospital keeps for itself, on its own test records, [N] a leaf; None
    for rules by which nothing stays."""


class Logits(NamedTuple):
    """By split: "test", and "val" where that has records."""

    full: dict[str, Float[Array, "E C"]]
    own: dict[str, Float[Array, "T E C"]]


Measure = Callable[[RunState], tuple[Measured, Logits]]


def representatives(run: build.Run) -> Member:
    """For every tier its first hospital (hospital 0 where it has none), [T] a leaf."""
    tiers = np.arange(len(run.budget))
    first = [int(np.argmax(run.tiers == tier)) for tier in tiers]
    return _members(run, jnp.asarray(first, jnp.int32), jnp.asarray(tiers, jnp.int32))


def everybody(run: build.Run, tiers: Int[Array, "N"]) -> Member:
    """All hospitals at these tiers, [N] a leaf."""
    everyone = jnp.arange(len(run.splits.clients), dtype=jnp.int32)
    return _members(run, everyone, tiers.astype(jnp.int32))


def _members(
    run: build.Run, clients: Int[Array, "M"], tiers: Int[Array, "M"]
) -> Member:
    train = run.splits.train
    return Member(
        clients,
        tiers,
        jnp.ones(clients.shape, bool),
        jnp.asarray(train.count)[clients],
        jnp.asarray(train.labels)[clients],
    )


def stays(run: build.Run) -> bool:
    """Whether hospitals keep something for themselves."""
    rule = run.spec.rule
    return rule.keeps is not None or rule.personal is not None


def compiled(run: build.Run, state: RunState) -> Measure:
    """Measures states that are shaped like this one, on test and validation split."""

    def measure(state, splits, train, tiers, members) -> tuple[Measured, Logits]:
        x = {name: split.x for name, split in splits.items()}
        full, own = deployed.answers(state, x, train, tiers, members, spec=run.spec)
        judge = functools.partial(metrics.evaluation_of, data=splits["test"])
        # As one more model: its figures are compiled once, with those of the others.
        models = jnp.concatenate([full["test"][None], own["test"]])
        judged = jax.lax.map(judge, models)
        val = None
        if "val" in splits:
            val = metrics.evaluation_of(full["val"], splits["val"]).pooled
        kept = None
        if stays(run):
            of_own = personalised.answers(
                personalised.personal(state, spec=run.spec),
                splits["test"],
                train,
                everybody(run, tiers),
                spec=run.spec,
                longest=int(np.max(run.splits.test.count)),
            )
            kept = metrics.evaluation_of(of_own, splits["test"]).clients
        measured = Measured(
            jax.tree.map(lambda leaf: leaf[0], judged),
            jax.tree.map(lambda leaf: leaf[1:], judged),
            val,
            kept,
        )
        return measured, Logits(full, own)

    splits = {"test": run.splits.test, "val": run.splits.val}
    with_records = {name: split for name, split in splits.items() if len(split.y)}
    train = run.splits.train
    if run.records == "host":
        # No batch norm asks for records, and no hospital keeps a model.
        x, y, group = train.x[:1], train.y[:1], train.group[:1]
        train = dataclasses.replace(train, x=x, y=y, group=group, patient=None)
    data = jax.tree.map(jnp.asarray, (with_records, train))
    members = representatives(run)

    def given(state: RunState) -> tuple[Any, ...]:
        return state, *data, run.tiers_at(state.round - 1), members

    program = jax.jit(measure).lower(*given(state)).compile()
    return lambda state: program(*given(state))


def row(
    measured: Measured, tiers: Int[np.ndarray, "N"], *, least: int
) -> dict[str, float]:
    """The keys of metrics.jsonl that an evaluated round adds.

    Args:
        measured: of the round's state.
        tiers: of all hospitals.
        least: see `metrics.summary`.
    """
    made = metrics.summary(measured.full, measured.own, tiers, least=least)
    if measured.val is not None:
        for name in ("accuracy", "balanced_accuracy", "loss", "auroc"):
            made[f"val/{name}"] = float(getattr(measured.val, name))
    personal = measured.personal
    if personal is not None:
        judged = np.asarray(personal.count) >= least
        for name in ("accuracy", "balanced_accuracy"):
            each = np.asarray(getattr(personal, name), np.float64)
            made[f"eval/{name}/personal/client_mean"] = clients.mean(each)
            made[f"eval/{name}/personal/client_std"] = clients.std(each)
            worst = clients.lowest(each[judged])
            made[f"eval/{name}/personal/client_worst"] = worst
    return made


def client_rows(
    run: build.Run,
    number: int,
    tiers: Int[np.ndarray, "N"],
    cohort: Cohort,
    info: round.RoundInfo,
    measured: Measured,
) -> Iterator[dict[str, Any]]:
    """The rows of clients.jsonl that an evaluated round adds.

    "score" is the training loss that the rule weighed by, of the hospital's own
    sub-model at the incoming model. "own_loss" and "smallest_loss" are test losses of
    its own and of the smallest tier's sub-model: where they differ it is capacity, not
    neglect, that a loss shows.
    """
    full, own = measured.full.clients, measured.own.clients
    valid = np.asarray(cohort.valid)
    who = np.asarray(cohort.client)[valid].tolist()

    def of_cohort(values: Array | None) -> dict[int, float]:
        if values is None:
            return {}
        each = np.asarray(values, np.float64)[valid]
        return dict(zip(who, each.tolist(), strict=True))

    weights, scores = of_cohort(info.weights), of_cohort(info.scores)

    def kept(k: int) -> dict[str, Any]:
        if measured.personal is None:
            return {}
        return {
            "personal_accuracy": files.number(measured.personal.accuracy[k]),
            "personal_loss": files.number(measured.personal.loss[k]),
        }

    for k, name in enumerate(run.splits.clients):
        tier = int(tiers[k])
        yield {
            "round": number,
            "client": name,
            "tier": tier,
            "n": int(full.count[k]),
            "weight": files.number(weights.get(k)),
            "loss": files.number(full.loss[k]),
            "accuracy": files.number(full.accuracy[k]),
            "auroc": files.number(full.auroc[k]),
            "own_accuracy": files.number(own.accuracy[tier, k]),
            "score": files.number(scores.get(k)),
            "own_loss": files.number(own.loss[tier, k]),
            "smallest_loss": files.number(own.loss[0, k]),
        } | kept(k)


def evaluate(
    run: build.Run, state: RunState, split: str
) -> tuple[dict[str, float], tuple[metrics.Evaluation, metrics.Evaluation]]:
    """The evaluation keys of metrics.jsonl on a split, and the figures behind them."""
    return evaluator(run, split)(state)


def evaluator(
    run: build.Run, split: str
) -> Callable[
    [RunState], tuple[dict[str, float], tuple[metrics.Evaluation, metrics.Evaluation]]
]:
    """`evaluate` on one split, compiled once for many states of a run."""
    data: Federation = getattr(
        run.splits, require.one_of("split", split, ("train", "val", "test"))
    )
    if not data.y.shape[0]:
        require.fail("split", "a split with records", split)
    program = jax.jit(functools.partial(deployed.evaluate, spec=run.spec))
    data, train = jax.tree.map(jnp.asarray, (data, run.splits.train))
    members = representatives(run)

    def measure(state: RunState):
        tiers = run.tiers_at(state.round - 1)
        full, own = program(state, data, train, tiers, members)
        least = run.config["min_test_records"]
        figures = metrics.summary(full, own, np.asarray(tiers), least=least)
        return figures, (full, own)

    return measure


def withstands(run: build.Run, start: RunState, state: RunState) -> dict[str, Any]:
    """summary.json's "robust": how many liars the run bears, and whom it left out.

    Args:
        run: the run.
        start: its first state, at whose round the rings of coordinates are taken.
        state: its last one.
    """
    asked, rings = run.config["robust"], []
    if asked["fold"] in folds.BY_COORDINATE:
        clients = len(run.splits.clients)
        rings = robustness.rings(
            run.config, start.params, holders(run, start), clients, run.cohort
        )
    came, entered = (np.asarray(leaf) for leaf in state.attendance)
    # Sums of shares in float32.
    short = np.flatnonzero(entered < came * (1 - 1e-5))
    return {
        "fold": asked["fold"],
        "norm_bound": asked["norm_bound"],
        "rings": [ring._asdict() | {"tiers": list(ring.tiers)} for ring in rings],
        "faults": [
            {"name": fault.name, "hospitals": int(fault.hospitals.sum())}
            | {"rate": fault.rate, "strength": fault.strength}
            for fault in run.faults
        ],
        "refused": [
            {"client": run.splits.clients[k], "came": int(came[k])}
            | {"entered": float(entered[k])}
            for k in short
        ],
    }


def holders(run: build.Run, state: RunState) -> PyTree[Int[np.ndarray, "T ..."]]:
    """How many hospitals of every tier hold a coordinate in a round, [T, ...] a leaf.

    Every hospital is asked: a mask may be drawn for it, or follow from its labels.
    """
    local = run.spec.local
    key = rng.at(state.key, Role.UNITS, state.round)
    members = everybody(run, run.tiers_at(state.round))

    def cover(member: Member) -> Masks:
        params = scopes.gather(state.private, state.params, member)
        kept = local.method.units(key, state.round, params, member)
        return client.masks(local, params, kept)[1]

    def add(count: PyTree, member: Member) -> tuple[PyTree, None]:
        def one(number: Array, mask: Array) -> Array:
            return number.at[member.tier].add((mask > 0).astype(jnp.int32))

        return jax.tree.map(one, count, cover(member)), None

    shapes = jax.eval_shape(cover, trees.pick(members, 0))
    none = jax.tree.map(
        lambda mask: jnp.zeros((len(run.budget), *mask.shape), jnp.int32), shapes
    )
    count, _ = jax.jit(functools.partial(jax.lax.scan, add))(none, members)
    return jax.device_get(count)
