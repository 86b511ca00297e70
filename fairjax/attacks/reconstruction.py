"""Gradient inversion of a run: reconstructions of its training images.

A checkpoint or a fresh model becomes victims (`fairjax.attacks.victims`) and attackers
(`fairjax.attacks.hypotheses`). The attacks are `fairjax.attacks.inversion`, and the
client that they simulate is `fairjax.attacks.exposure`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from fairjax.attacks import exposure, hypotheses, images, inversion, victims
from fairjax.attacks.exposure import View
from fairjax.attacks.victims import Victims
from fairjax.core import require, rng
from fairjax.core.problem import LocalProblem
from fairjax.core.rng import Role
from fairjax.core.types import RunState
from fairjax.experiment.config import build

VARIANTS = ("cosine", "dlg")
_NOISE, _DRAW, _START = range(3)


@dataclasses.dataclass(frozen=True)
class Inversion:
    """How gradients are inverted."""

    variant: str = "cosine"
    """One of `VARIANTS`."""
    observable: str = "gradient"
    """One of `victims.OBSERVABLES`."""
    tier: tuple[int, ...] = ()
    """The victims' tiers; (): all."""
    level: tuple[str, ...] = exposure.LEVELS
    """What the attackers know, see `exposure.LEVELS`."""
    images: int = 20
    """The number n of victims in every tier. All tiers have the same ones, see
    `victims.draw`."""
    records: int = 1
    """The number r of records that a victim trains on."""
    steps: int = 4
    """Local steps under observable "steps"."""
    restarts: int = 2
    """Starts, among which the attacker's objective chooses."""
    iterations: int = 600
    """Iterations from every start."""
    rate: float = 0.05
    """Learning rate of "cosine" at first, in pixel ranges per iteration."""
    variation: float = 0.1
    """Weight of the total variation in "cosine"."""
    gallery: int = 500
    """Public images of the test split, beside the victims in re-identification."""
    seed: int = 0


class Reconstruction(NamedTuple):
    """What one attacker found of all victims of one tier; pixels are in [0, 1]."""

    images: Float[np.ndarray, "n r H W ch"]
    true: Float[np.ndarray, "n r H W ch"]
    label: np.ndarray
    """The share of each victim's classes that the attacker read correctly, [n]."""
    structure: np.ndarray | None
    """Whether the search chose the victim's structure, [n]; None without a search."""
    objective: Float[np.ndarray, "n"]
    """The attacker's objective at its result; a smaller one is a better match."""


def invert(
    run: build.Run,
    state: RunState,
    settings: Inversion,
    *,
    memories: Any = None,
) -> dict[tuple[int, str], Reconstruction]:
    """Reconstructions by tier and level.

    Args:
        run: the run.
        state: the state whose coming round is attacked.
        settings: of the attack; they are checked here.
        memories: the victims' memories of earlier rounds, by tier, [n, ...] a leaf;
            None: the memories of their clients.

    Raises:
        InputError: a setting is out of range, or the run cannot be attacked so.
    """
    settings = _check_settings(run, settings)
    targets = victims.draw(
        run, images=settings.images, records=settings.records, seed=settings.seed
    )
    local = attacked_problem(run, settings)
    attackers = {
        name: _attacker(run, problem, settings)
        for name, problem in _simulated_problems(run, settings, local).items()
    }
    candidates = {
        level: jax.vmap(hypotheses.candidates(run, state, local, level))
        for level in settings.level
    }
    observe = jax.jit(
        jax.vmap(
            functools.partial(
                exposure.observe_upload,
                local=local,
                bank=state.leaf_copies,
                protection=run.spec.protection,
            )
        )
    )
    numbers = jnp.arange(settings.images, dtype=jnp.int32)
    key = rng.fold_in(jax.random.key(settings.seed), Role.EVALUATE)
    noise_keys, draw_keys, start_keys = (
        jax.vmap(functools.partial(rng.fold_in, rng.fold_in(key, role)))(numbers)
        for role in (_NOISE, _DRAW, _START)
    )
    results = {}
    for tier in settings.tier:
        views = victims.views(run, state, targets.owner, tier)
        if memories is not None:
            views = views._replace(memory=memories[tier])
        observations, new_memory = observe(noise_keys, views, targets.x, targets.y)
        for level in settings.level:
            guesses = candidates[level](draw_keys, views)
            attacker = attackers.get(level, attackers[""])
            result = jax.device_get(attacker(start_keys, guesses, observations))
            hit = None
            if level == "search" and hypotheses.has_secret_branches(run):
                alive = guesses.memory["alive"][numbers, result.choice]
                hit = np.all(new_memory["alive"] == alive, axis=(1, 2))
            results[tier, level] = match_records(targets, result, hit)
    return results


def attacked_problem(run: build.Run, settings: Inversion) -> LocalProblem:
    """The local problem whose upload the server sees."""
    return victims.local_problem(
        run,
        observable=settings.observable,
        records=settings.records,
        steps=settings.steps,
    )


def _simulated_problems(
    run: build.Run, settings: Inversion, local: LocalProblem
) -> dict[str, LocalProblem]:
    """Level -> the local problem that its attacker simulates; "": all other levels."""
    problems = {
        "plain": exposure.plain_problem(local),
        "": exposure.noiseless_problem(local),
    }
    if "search" in settings.level and hypotheses.has_secret_branches(run):
        method = hypotheses.static_method(run)
        problems["search"] = problems[""]._replace(method=method)
    return problems


def _check_settings(run: build.Run, settings: Inversion) -> Inversion:
    """The settings with all tiers named; refuses what cannot be attacked."""
    train, public = run.splits.train, run.splits.test
    if train.x.ndim != 4 or min(train.x.shape[1:3]) < images.WINDOW:
        expected = f"images of at least {images.WINDOW} x {images.WINDOW} pixels"
        require.fail("data.name", expected, list(train.x.shape[1:]))
    if not len(public.y):
        require.fail("data", "public images, in the test split", "none")
    privacy = run.config.privacy
    if privacy.mechanism == "client_dp":
        expected = "another than client_dp, whose server is trusted with every upload"
        require.fail("privacy.mechanism", expected, "client_dp")
    if privacy.secure_sum != "off":
        expected = "off: uploads that are masked are read by nobody"
        require.fail("privacy.secure_sum", expected, privacy.secure_sum)
    require.one_of("--variant", settings.variant, VARIANTS)
    require.one_of("--observable", settings.observable, victims.OBSERVABLES)
    tiers = settings.tier or tuple(range(len(run.budget)))
    for tier in tiers:
        require.in_range("--tier", tier, 0, len(run.budget) - 1)
    for level in settings.level:
        require.one_of("--level", level, exposure.LEVELS)
    for name in ("images", "records", "steps", "restarts", "iterations", "gallery"):
        require.count(f"--{name}", getattr(settings, name))
    limit = int(np.sum(train.count[train.count >= settings.records]))
    if settings.images > limit:
        expected = f"at most the {limit} records of hospitals with enough of them"
        require.fail("--images", expected, settings.images)
    if settings.variant == "dlg":
        if "search" in settings.level:
            require.fail("--level", "no search with variant dlg", "search")
        if run.spec.local.method.objective is not None:
            expected = "cosine where a method has a loss of its own"
            require.fail("--variant", expected, "dlg")
    return dataclasses.replace(settings, tier=tiers)


def _attacker(
    run: build.Run, local: LocalProblem, settings: Inversion
) -> Callable[..., inversion.Result]:
    """(keys, hypotheses, observations), [n, ...] each -> the result of each victim."""
    low, span = (jnp.asarray(array, jnp.float32) for array in victims.pixel_range(run))
    attack = functools.partial(
        inversion.cosine, learning_rate=settings.rate, variation=settings.variation
    )
    if settings.variant == "dlg":
        attack = functools.partial(inversion.dlg, classes=len(run.splits.classes))

    _, height, width, channels = run.splits.train.x.shape
    shape = height, width, channels

    def per_victim(
        key: Array, views: View, observation: inversion.Observation
    ) -> inversion.Result:
        params = jax.tree.map(lambda leaf: leaf[0], views.params)

        def simulate(view: View, pixels: Array, labels: Array) -> Any:
            x = low + span * pixels
            view = view._replace(params=params)
            return exposure.simulate_update(view, x, labels, local=local)[0]

        signal = inversion.class_signal(observation.update, local.model.axes)
        attempt = functools.partial(
            attack,
            simulate=simulate,
            candidates=views._replace(params=None),
            observation=observation,
            labels=inversion.labels(signal, settings.records),
            shape=shape,
            iterations=settings.iterations,
        )
        batch_size = None if is_cpu else settings.restarts
        return inversion.best_of_restarts(
            key, attempt, settings.restarts, size=batch_size
        )

    # Victims that are attacked at the same time would leave a CPU's cache.
    is_cpu = jax.default_backend() == "cpu"
    size = None if is_cpu else settings.images

    def attack_all(*batch: Any) -> inversion.Result:
        return jax.lax.map(lambda victim: per_victim(*victim), batch, batch_size=size)

    return jax.jit(attack_all)


def match_records(
    targets: Victims, result: inversion.Result, structure: np.ndarray | None
) -> Reconstruction:
    """Puts every image beside the record of its victim that it fits best.

    A batch has no order, so every attacker is measured in the order that flatters it
    most.

    Args:
        targets: the victims.
        result: what the attacker found of each, [n, ...] a leaf.
        structure: see `Reconstruction`.
    """
    matched_images = np.empty_like(targets.true)
    for i, (estimate, true) in enumerate(zip(result.images, targets.true, strict=True)):
        cost = ((estimate[:, None] - true[None]) ** 2).mean((2, 3, 4))
        rows, columns = scipy.optimize.linear_sum_assignment(cost)
        matched_images[i, columns] = estimate[rows]
    label_accuracy = [
        _count_common(estimate, true) / len(true)
        for estimate, true in zip(result.labels, np.asarray(targets.y), strict=True)
    ]
    return Reconstruction(
        matched_images,
        targets.true,
        np.asarray(label_accuracy),
        structure,
        np.asarray(result.value),
    )


def _count_common(predictions: np.ndarray, true: np.ndarray) -> int:
    """The number of labels that two batches have in common, in any order."""
    pairs = ((np.sum(predictions == c), np.sum(true == c)) for c in np.unique(true))
    return int(sum(min(pair) for pair in pairs))
