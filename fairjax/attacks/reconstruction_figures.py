"""How good reconstructions are: the figures and pictures of attack.json.

Every figure has a guess beside it that reads no update, see `scores`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fairjax.attacks import images, victims
from fairjax.attacks.reconstruction import (
    Inversion,
    Reconstruction,
    attacked_problem,
    invert,
)
from fairjax.core.types import RunState
from fairjax.experiment.config import build
from fairjax.experiment.io import workdir as files
from fairjax.metrics import bootstrap
from fairjax.report import reconstructions


def scores(
    run: build.Run, settings: Inversion, reconstruction: Reconstruction
) -> dict[str, Float[np.ndarray, "n"]]:
    """Figures of every victim, as means over its records, and those of guessing.

    There are two guesses. One is the mean public image. The other is the public image
    nearest to each true image: nobody who sees no update and picks a public image can
    do better, since this guess knows which one to pick.

    Args:
        run: the run that was attacked.
        settings: of the attack.
        reconstruction: what one attacker found.

    Returns:
        {"psnr", "psnr_mean", "psnr_nearest", "ssim", "ssim_mean", "ssim_nearest",
        "rank1", "label"}, [n] each.
    """
    public = jnp.asarray(victims.to_pixels(run, run.splits.test.x))
    shape = reconstruction.true.shape
    flat = jnp.asarray(reconstruction.true.reshape(-1, *shape[2:]))
    generator = np.random.default_rng([settings.seed, 1])
    gallery = public[generator.permutation(len(public))[: settings.gallery]]
    nearest_indices = jax.lax.map(
        lambda image: images.nearest_index(image, public), flat
    )
    pictures = {
        "": reconstruction.images,
        "_mean": np.broadcast_to(np.mean(public, 0), shape),
        "_nearest": np.asarray(public[nearest_indices]).reshape(shape),
    }
    true = jnp.asarray(reconstruction.true)
    figures = {
        name + guess: np.asarray(jax.vmap(jax.vmap(measure))(picture, true))
        for name, measure in {"psnr": images.psnr, "ssim": images.ssim}.items()
        for guess, picture in pictures.items()
    }
    hits = images.rank1_hits(
        jnp.asarray(reconstruction.images.reshape(flat.shape)), flat, gallery
    )
    figures["rank1"] = np.asarray(hits, float).reshape(shape[:2])
    return {name: values.mean(1) for name, values in figures.items()} | {
        "label": reconstruction.label
    }


def evaluate(
    run: build.Run, settings: Inversion, reconstruction: Reconstruction
) -> dict[str, float | int | None]:
    """The figures of a row: means over victims, with 95 % bootstrap intervals.

    Args:
        run: the run that was attacked.
        settings: of the attack.
        reconstruction: what one attacker found.
    """
    figures = scores(run, settings, reconstruction)
    row: dict[str, Any] = {}
    for name in ("psnr", "ssim"):
        row[name] = figures[name].mean()
        row[f"{name}_low"], row[f"{name}_high"] = interval(figures[name])
    row |= {"label": figures["label"].mean(), "rank1": figures["rank1"].mean()}
    row["structure"] = (
        None if reconstruction.structure is None else reconstruction.structure.mean()
    )
    for name in ("psnr", "ssim"):
        for guess in ("mean", "nearest"):
            row[f"baseline_{name}_{guess}"] = figures[f"{name}_{guess}"].mean()
    number = min(settings.gallery, len(run.splits.test.y))
    row["baseline_rank1"] = 1 / (settings.images * settings.records + number)
    return {name: files.number(value) for name, value in row.items()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean."""
    bounds = _interval(jnp.asarray(values))
    return float(bounds.low), float(bounds.high)


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
    """The attack's rows of attack.json, one for every tier and level, and its picture.

    Args:
        run: the run.
        state: the state whose coming round is attacked.
        settings: of the attack.

    Returns:
        (rows, {file name: picture of the victims}).
    """
    results = invert(run, state, settings)
    privacy = run.config.privacy
    common = {
        "variant": settings.variant,
        "observable": settings.observable,
        "round": int(state.round),
        "mechanism": privacy.mechanism,
        "noise_multiplier": privacy.noise_multiplier,
        "images": settings.images,
        "records": settings.records,
        "steps": attacked_problem(run, settings).schedule.steps,
        "restarts": settings.restarts,
        "iterations": settings.iterations,
    }
    table = [
        {
            "tier": tier,
            "level": level,
            **common,
            **evaluate(run, settings, reconstruction),
        }
        for (tier, level), reconstruction in results.items()
    ]
    strips = {"original": next(iter(results.values())).true[:, 0]}
    strips |= {
        f"tier {t}, {level}": reconstruction.images[:, 0]
        for (t, level), reconstruction in results.items()
    }
    return table, {"attack_inversion.png": reconstructions.grid(strips)}
