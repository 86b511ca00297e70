"""What inverting its uploads makes of a run: reconstructions and their figures.

Here a checkpoint or a fresh model becomes victims and attackers; the attacks themselves
are `fairjax.attacks.inversion`, and what they simulate is `fairjax.attacks.exposure`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int

from fairjax.attacks import exposure, images, inversion
from fairjax.attacks.exposure import View
from fairjax.core import client, require, rng, scopes
from fairjax.core.rng import Role
from fairjax.core.types import Block, Member, Method, RunState
from fairjax.experiment.config import build, registry, validate
from fairjax.experiment.io import workdir as files
from fairjax.metrics import bootstrap
from fairjax.report import reconstructions
from fairjax.submodels import branches, dynamicfl

VARIANTS = ("cosine", "dlg")
OBSERVABLES = ("gradient", "steps", "round")
"""What the server sees: the change after one step on all records, after `steps` such
steps, or after the epochs or steps, in the batches, that the config asks for."""


@dataclasses.dataclass(frozen=True)
class Inversion:
    """How gradients are inverted."""

    variant: str = "cosine"
    observable: str = "gradient"
    tier: tuple[int, ...] = ()
    """Tiers that are victims; (): all."""
    level: tuple[str, ...] = exposure.LEVELS
    """What the attackers know, see `exposure.LEVELS`."""
    images: int = 20
    """Victims of every tier, the same ones for all: training records drawn at random.
    An image stands for its hospital, as if that were of the tier."""
    records: int = 1
    """That the victim trains on; only the first is `images`' own."""
    steps: int = 4
    """Of observable "steps"."""
    restarts: int = 2
    """Starts, of which the attacker's objective chooses."""
    iterations: int = 600
    rate: float = 0.05
    """Of "cosine", in pixel ranges per iteration at first."""
    variation: float = 0.1
    """Weight of the total variation in "cosine"."""
    gallery: int = 500
    """Public images, of the test split, beside the victims in re-identification."""
    seed: int = 0


class Reconstruction(NamedTuple):
    """What one attacker made of all victims of one tier; pixels in [0, 1]."""

    found: Float[np.ndarray, "n H W ch"]
    true: Float[np.ndarray, "n H W ch"]
    label: np.ndarray
    """Whether the class was read right."""
    structure: np.ndarray | None
    """Whether the search hit on the victim's structure; None without a search."""
    objective: Float[np.ndarray, "n"]
    """The attacker's, at what was found: the less, the better the update is matched."""


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
        settings: of the attack; checked here.
        memories: what the victims remember of earlier rounds, [n, ...] a leaf by tier;
            None: what their hospitals do.
    """
    settings = _checked(run, settings)
    victims = _victims(run, settings)
    local = _observed(run, settings)
    simulated = {"plain": exposure.as_plain(local), "": exposure.quiet(local)}
    if "search" in settings.level and _secret(run):
        simulated["search"] = simulated[""]._replace(method=_still(run))
    attackers = {name: _attacker(run, of, settings) for name, of in simulated.items()}
    candidates = {
        level: jax.vmap(_candidates(run, state, local, level))
        for level in settings.level
    }
    see = jax.jit(
        jax.vmap(
            functools.partial(
                exposure.upload,
                local=local,
                bank=state.private,
                protection=run.spec.protection,
            )
        )
    )
    numbers = jnp.arange(settings.images, dtype=jnp.int32)
    key = rng.at(jax.random.key(settings.seed), Role.EVALUATE)
    noise, own, start = (
        jax.vmap(functools.partial(rng.at, rng.at(key, role)))(numbers)
        for role in (_NOISE, _OWN, _START)
    )
    found = {}
    for tier in settings.tier:
        views = _views(run, state, victims.owner, tier)
        if memories is not None:
            views = views._replace(memory=memories[tier])
        seen, after = see(noise, views, victims.x, victims.y)
        for level in settings.level:
            believed = candidates[level](own, views)
            attacker = attackers.get(level, attackers[""])
            best = jax.device_get(attacker(start, believed, seen))
            hit = None
            if level == "search" and _secret(run):
                guessed = believed.memory["alive"][numbers, best.choice]
                hit = np.all(after["alive"] == guessed, axis=(1, 2))
            found[tier, level] = _matched(victims, best, hit)
    return found


_NOISE, _OWN, _START = range(3)


class _Victims(NamedTuple):
    x: Float[Array, "n r H W ch"]
    """As the model sees them."""
    y: Int[Array, "n r"]
    owner: Int[Array, "n"]
    true: Float[np.ndarray, "n r H W ch"]
    """In pixels."""


def _checked(run: build.Run, settings: Inversion) -> Inversion:
    """The settings with all tiers named; refuses what cannot be attacked."""
    train, public = run.splits.train, run.splits.test
    if train.x.ndim != 4 or min(train.x.shape[1:3]) < images.WINDOW:
        what = f"images of at least {images.WINDOW} x {images.WINDOW} pixels"
        require.fail("data.name", what, list(train.x.shape[1:]))
    if not len(public.y):
        require.fail("data", "public images, in the test split", "none")
    privacy = run.config["privacy"]
    if privacy["mechanism"] == "client_dp":
        what = "another than client_dp, whose server is trusted with every upload"
        require.fail("privacy.mechanism", what, "client_dp")
    if privacy["secure_sum"] != "off":
        what = "off: uploads that are masked are read by nobody"
        require.fail("privacy.secure_sum", what, privacy["secure_sum"])
    require.one_of("--variant", settings.variant, VARIANTS)
    require.one_of("--observable", settings.observable, OBSERVABLES)
    tiers = settings.tier or tuple(range(len(run.budget)))
    for tier in tiers:
        require.in_range("--tier", tier, 0, len(run.budget) - 1)
    for level in settings.level:
        require.one_of("--level", level, exposure.LEVELS)
    for name in ("images", "records", "steps", "restarts", "iterations", "gallery"):
        require.count(f"--{name}", getattr(settings, name))
    most = int(np.sum(train.count[train.count >= settings.records]))
    if settings.images > most:
        what = f"at most the {most} records of hospitals with enough of them"
        require.fail("--images", what, settings.images)
    if settings.variant == "dlg":
        if "search" in settings.level:
            require.fail("--level", "no search with variant dlg", "search")
        if run.spec.local.method.objective is not None:
            what = "cosine where a method has a loss of its own"
            require.fail("--variant", what, "dlg")
    return dataclasses.replace(settings, tier=tiers)


def _range(run: build.Run) -> tuple[np.ndarray, np.ndarray]:
    """What pixels 0 and 1 are to the model, per channel, by the public images."""
    x = np.asarray(run.splits.test.x)
    low, high = x.min((0, 1, 2)), x.max((0, 1, 2))
    return low, np.where(high > low, high - low, 1)


def _pixels(run: build.Run, x: Block) -> np.ndarray:
    low, span = _range(run)
    return np.clip((np.asarray(x) - low) / span, 0, 1).astype(np.float32)


def _victims(run: build.Run, settings: Inversion) -> _Victims:
    train = jax.tree.map(np.asarray, run.splits.train)
    rng = np.random.default_rng([settings.seed, 0])
    owner = np.repeat(np.arange(len(train.count)), train.count)
    enough = np.flatnonzero(train.count[owner] >= settings.records)
    first = rng.permutation(enough)[: settings.images]
    rows = []
    for row in first:
        k = owner[row]
        mine = np.arange(train.offset[k], train.offset[k] + train.count[k])
        others = rng.permutation(mine[mine != row])[: settings.records - 1]
        rows.append([row, *others])
    index = np.asarray(rows)
    return _Victims(
        jnp.asarray(train.x[index]),
        jnp.asarray(train.y[index]),
        jnp.asarray(owner[first], jnp.int32),
        _pixels(run, train.x[index]),
    )


def _observed(run: build.Run, settings: Inversion) -> client.Local:
    """The local problem whose upload the server sees."""
    c, local = run.config["local"], run.spec.local
    counts = np.asarray([settings.records])
    if settings.observable == "round":
        stepped = c["steps"] is not None
        plan = client.plan(
            counts,
            batch_size=c["batch_size"],
            epochs=None if stepped else c["epochs"],
            steps=c["steps"],
        )
    else:
        steps = settings.steps if settings.observable == "steps" else 1
        plan = client.plan(counts, batch_size=settings.records, steps=steps)
    dp = run.guarantee.records
    if dp is not None:
        # The records that are attacked are in every step, each one a patient's only.
        dp = dp._replace(slots=None, per_patient=None)
    return local._replace(plan=plan, dp=dp)


def _views(run: build.Run, state: RunState, owner: Int[Array, "n"], tier: int) -> View:
    """The hospitals as they are in the coming round, at this tier, [n, ...] a leaf."""
    records = jax.tree.map(jnp.asarray, run.splits.train)

    def one(who: Array) -> View:
        member = Member(
            who,
            jnp.asarray(tier, jnp.int32),
            jnp.asarray(True),
            records.count[who],
            records.labels[who],
        )
        params = scopes.gather(state.private, state.params, member)
        memory = state.memory
        if memory is not None:
            memory = jax.tree.map(lambda leaf: leaf[who], memory)
        return View(
            params,
            _units(run, state, params, member),
            memory,
            member,
            rng.at(state.key, Role.LOCAL, state.round, who),
            state.round,
            jnp.asarray(run.spec.schedule(state.round), jnp.float32),
        )

    return jax.vmap(one)(owner)


def _units(run: build.Run, state: RunState, params: Any, member: Member) -> Any:
    key = rng.at(state.key, Role.UNITS, state.round)
    return run.spec.local.method.units(key, state.round, params, member)


def _candidates(
    run: build.Run, state: RunState, local: client.Local, level: str
) -> Callable[[Array, View], View]:
    """(key, victim) -> what an attacker takes it for, [M, ...] a leaf.

    Of the victim only what the level may know is read. The model is there once.
    """

    def alone(view: View) -> View:
        return jax.tree.map(lambda leaf: jnp.stack([leaf]), view)

    if level == "plain":
        return lambda key, victim: alone(exposure.plain(key, victim, state.params))
    if level == "tier":
        return lambda key, victim: alone(
            exposure.newcomer(key, _received(state, victim), local=local)
        )
    if level == "structure":
        return lambda key, victim: alone(victim)
    guesses = _guesses(run, state)

    def every(key: Array, victim: View) -> View:
        guess = functools.partial(_guessed, run, state, key, victim)
        sent = _received(state, victim).params
        one_model = jax.tree.map(lambda leaf: jnp.stack([leaf]), sent)
        return jax.vmap(guess)(guesses)._replace(params=one_model)

    return every


def _received(state: RunState, victim: View) -> View:
    """The victim with what the server sent it alone: its own leaves it keeps to itself.

    The server has the copies of tiers.
    """
    bank = {**state.private, "client": {}}
    return victim._replace(params=scopes.gather(bank, state.params, victim.member))


def _attacker(
    run: build.Run, local: client.Local, settings: Inversion
) -> Callable[..., inversion.Found]:
    """(keys, candidates, seen), [n, ...] each -> what is found of each."""
    low, span = (jnp.asarray(part, jnp.float32) for part in _range(run))
    attack = functools.partial(
        inversion.cosine, rate=settings.rate, variation=settings.variation
    )
    if settings.variant == "dlg":
        attack = functools.partial(inversion.dlg, classes=len(run.splits.classes))

    _, height, width, channels = run.splits.train.x.shape
    shape = height, width, channels

    def one(key: Array, views: View, seen: inversion.Seen) -> inversion.Found:
        params = jax.tree.map(lambda leaf: leaf[0], views.params)

        def simulate(view: View, pixels: Array, labels: Array) -> Any:
            x = low + span * pixels
            view = view._replace(params=params)
            return exposure.change(view, x, labels, local=local)[0]

        signal = inversion.class_signal(seen.change, local.model.axes)
        attempt = functools.partial(
            attack,
            simulate=simulate,
            candidates=views._replace(params=None),
            seen=seen,
            labels=inversion.labels(signal, settings.records),
            shape=shape,
            iterations=settings.iterations,
        )
        starts = None if alone else settings.restarts
        return inversion.restarted(key, attempt, settings.restarts, size=starts)

    # Side by side they would leave a CPU's cache.
    alone = jax.default_backend() == "cpu"
    size = None if alone else settings.images

    def every(*each: Any) -> inversion.Found:
        return jax.lax.map(lambda mine: one(*mine), each, batch_size=size)

    return jax.jit(every)


class _Guess(NamedTuple):
    """What a client may be, [M, ...] a leaf."""

    tier: Int[Array, "M"]
    alive: Float[Array, "M L R"] | None
    """Its branches; None where the tier says it all."""


MOST = 4096
"""Structures that a search goes through."""


def _secret(run: build.Run) -> bool:
    """Whether clients have branches by what they remember."""
    return any(run.branches) and registry.planned(validate.from_plain(run.config))


def _still(run: build.Run) -> Method:
    """The method, with the branches that a client is told of: a planner moves none."""
    config: Any = validate.from_plain(run.config)
    config.submodel.dynamicfl.moved = 0.0
    return registry.METHODS[config.submodel.name].method(
        config, run.spec.local.model.axes
    )


def _guesses(run: build.Run, state: RunState) -> _Guess:
    """All tiers, with all their structures."""
    if not _secret(run):
        return _Guess(jnp.arange(len(run.budget), dtype=jnp.int32), None)
    config: Any = validate.from_plain(run.config)
    options = config.submodel.dynamicfl
    layers = branches.layers(run.spec.local.model.axes, options.skip)
    form = branches.Form(tuple(options.families), options.rank)
    exists = branches.admitted(state.params, layers, form)
    wanted = [min(number * len(layers), exists.sum()) for number in run.branches]
    total = sum(math.comb(int(exists.sum()), int(number)) for number in wanted)
    if total > MOST:
        what = f"no search through more than {MOST} structures"
        require.fail("--level", what, f"search, through {total}")
    pairs = [
        (tier, table)
        for tier, number in enumerate(wanted)
        for table in dynamicfl.structures(exists, int(number))
    ]
    return _Guess(
        jnp.asarray([tier for tier, _ in pairs], jnp.int32),
        jnp.asarray(np.stack([table for _, table in pairs])),
    )


def _guessed(
    run: build.Run, state: RunState, key: Array, victim: View, guess: _Guess
) -> View:
    member = victim.member._replace(tier=guess.tier)
    view = exposure.newcomer(key, _received(state, victim), local=run.spec.local)
    memory = view.memory
    if guess.alive is not None:
        memory = memory | {"alive": guess.alive}
    kept = _units(run, state, victim.params, member)
    return view._replace(params=None, kept=kept, memory=memory, member=member)


def _matched(
    victims: _Victims, best: inversion.Found, structure: np.ndarray | None
) -> Reconstruction:
    """The images found, each beside the record of its victim that it fits best.

    A batch has no order: all attackers are judged by the order that flatters them most.
    """
    found = np.empty_like(victims.true)
    for i, (mine, true) in enumerate(zip(best.images, victims.true, strict=True)):
        cost = ((mine[:, None] - true[None]) ** 2).mean((2, 3, 4))
        rows, columns = scipy.optimize.linear_sum_assignment(cost)
        found[i, columns] = mine[rows]
    right = [
        _common(mine, true) / len(true)
        for mine, true in zip(best.labels, np.asarray(victims.y), strict=True)
    ]
    return Reconstruction(
        found, victims.true, np.asarray(right), structure, np.asarray(best.value)
    )


def _common(named: np.ndarray, true: np.ndarray) -> int:
    """How many labels two batches have in common, whatever their order."""
    pairs = ((np.sum(named == c), np.sum(true == c)) for c in np.unique(true))
    return int(sum(min(pair) for pair in pairs))


# ------------------------------------------------------------------------------ figures


def scores(
    run: build.Run, settings: Inversion, made: Reconstruction
) -> dict[str, Float[np.ndarray, "n"]]:
    """Figures of every victim, the mean over its records, and those of guessing.

    Guesses are the mean public image, and for every true image the public one nearest
    to it: the best that somebody could do who sees no update and picks a public image,
    knowing which to pick.
    """
    public = jnp.asarray(_pixels(run, run.splits.test.x))
    shape = made.true.shape
    flat = jnp.asarray(made.true.reshape(-1, *shape[2:]))
    rng = np.random.default_rng([settings.seed, 1])
    gallery = public[rng.permutation(len(public))[: settings.gallery]]
    near = jax.lax.map(lambda image: images.nearest(image, public), flat)
    shown = {
        "": made.found,
        "_mean": np.broadcast_to(np.mean(public, 0), shape),
        "_nearest": np.asarray(public[near]).reshape(shape),
    }
    true = jnp.asarray(made.true)
    found = {
        name + guess: np.asarray(jax.vmap(jax.vmap(measure))(picture, true))
        for name, measure in {"psnr": images.psnr, "ssim": images.ssim}.items()
        for guess, picture in shown.items()
    }
    hits = images.recognised(jnp.asarray(made.found.reshape(flat.shape)), flat, gallery)
    found["rank1"] = np.asarray(hits, float).reshape(shape[:2])
    return {name: values.mean(1) for name, values in found.items()} | {
        "label": made.label
    }


def judge(
    run: build.Run, settings: Inversion, made: Reconstruction
) -> dict[str, float | int | None]:
    """The figures of a row: means over victims, with 95 % bootstrap intervals."""
    of = scores(run, settings, made)
    row: dict[str, Any] = {}
    for name in ("psnr", "ssim"):
        row[name] = of[name].mean()
        row[f"{name}_low"], row[f"{name}_high"] = interval(of[name])
    row |= {"label": of["label"].mean(), "rank1": of["rank1"].mean()}
    row["structure"] = None if made.structure is None else made.structure.mean()
    for name in ("psnr", "ssim"):
        for guess in ("mean", "nearest"):
            row[f"baseline_{name}_{guess}"] = of[f"{name}_{guess}"].mean()
    number = min(settings.gallery, len(run.splits.test.y))
    row["baseline_rank1"] = 1 / (settings.images * settings.records + number)
    return {name: files.number(value) for name, value in row.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean."""
    found = _interval(jnp.asarray(values))
    return float(found.low), float(found.high)


@jax.jit
def _interval(values: Float[Array, "V"]) -> bootstrap.Interval:
    def mean(weight: Array) -> Array:
        weight = weight.astype(values.dtype)
        return jnp.sum(weight * values) / jnp.sum(weight)

    draw = functools.partial(bootstrap.records, rows=len(values))
    return bootstrap.interval(mean, draw, jax.random.key(0))


def rows(
    run: build.Run, state: RunState, settings: Inversion
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """A row of figures for every tier and level; and {file: picture} of the victims."""
    made = invert(run, state, settings)
    privacy = run.config["privacy"]
    common = {
        "variant": settings.variant,
        "observable": settings.observable,
        "round": int(state.round),
        "mechanism": privacy["mechanism"],
        "noise_multiplier": privacy["noise_multiplier"],
        "images": settings.images,
        "records": settings.records,
        "steps": _observed(run, settings).plan.steps,
        "restarts": settings.restarts,
        "iterations": settings.iterations,
    }
    found = [
        {"tier": tier, "level": level, **common, **judge(run, settings, one)}
        for (tier, level), one in made.items()
    ]
    strips = {"original": next(iter(made.values())).true[:, 0]}
    strips |= {
        f"tier {t}, {level}": one.found[:, 0] for (t, level), one in made.items()
    }
    return found, {"attack_inversion.png": reconstructions.grid(strips)}
