"""What the federation is worth to each hospital: beside itself alone, and tuned.

`summary.json`'s "baselines", written where the config asks for it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fairjax import metrics
from fairjax.core import layout
from fairjax.core.types import RunState
from fairjax.evaluation import personalised
from fairjax.experiment.config import build, registry
from fairjax.experiment.evaluate import Measured, everybody
from fairjax.experiment.io import workdir as files
from fairjax.metrics import clients

FIGURES = {"accuracy": 1, "balanced_accuracy": 1, "auroc": 1, "loss": -1}
"""Whether more of them is better."""


def baselines(
    run: build.Run, start: RunState, last: RunState, measured: Measured
) -> dict[str, Any]:
    """Every hospital's figures on its own test records, by each of its models.

    "full", the model at the server; "own", its tier's sub-model; "personal", what it
    keeps under the rule; "tuned", the plain model after one more round's training at
    the hospital; "alone", a model that it trained without the others for as many rounds
    (`personalised.alone`). "worse_off" is the share of hospitals, of those where both
    are known, that would have been better off alone, by figure and by model.

    Args:
        run: the run.
        start: its state before the first round.
        last: its state in the end.
        measured: of that state.
    """
    # Not the config's: a privacy budget may have ended the run before.
    rounds = int(last.round)
    tiers = np.asarray(run.tiers_at(rounds - 1))
    first = everybody(run, run.tiers_at(start.round))
    now = everybody(run, jnp.asarray(tiers))
    train, test = jax.tree.map(jnp.asarray, (run.splits.train, run.splits.test))
    size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
    laid = layout.choose(
        "auto",
        chunk=1,
        backend=jax.default_backend(),
        parameters=size,
        convolutional=run.config["model"]["name"] in registry.CONVOLUTIONAL,
        clients=len(tiers),
    )
    judge = functools.partial(
        personalised.answers,
        data=test,
        train=train,
        spec=run.spec,
        longest=int(np.max(run.splits.test.count)),
    )

    @jax.jit
    def trained(start: RunState, last: RunState) -> tuple[Array, Array]:
        models = personalised.alone(
            start,
            train,
            first,
            spec=run.spec,
            layout=laid,
            rounds=rounds,
        )
        alone = personalised.by_itself(models, start, spec=run.spec)
        tuned = personalised.tuned(last, train, spec=run.spec)
        return judge(alone, members=first), judge(tuned, members=now)

    def figures(logits: Float[Array, "E C"]) -> metrics.Figures:
        return metrics.evaluation_of(logits, test).clients

    alone, tuned = map(jax.jit(figures), trained(start, last))
    own = jax.tree.map(
        lambda leaf: leaf[tiers, np.arange(len(tiers))], measured.own.clients
    )
    models = {"full": measured.full.clients, "own": own}
    if measured.personal is not None:
        models["personal"] = measured.personal
    models |= {"tuned": tuned, "alone": alone}
    each = {
        model: {name: np.asarray(getattr(values, name), np.float64) for name in FIGURES}
        for model, values in models.items()
    }
    return {
        "rounds": rounds,
        "clients": [
            {"client": name, "tier": int(tiers[client])}
            | {
                model: {
                    figure: files.number(values[client])
                    for figure, values in of.items()
                }
                for model, of in each.items()
            }
            for client, name in enumerate(run.splits.clients)
        ],
        "mean": {
            model: {
                figure: files.number(clients.mean(values))
                for figure, values in of.items()
            }
            for model, of in each.items()
        },
        "worse_off": {
            model: {
                figure: _worse(sign * of[figure], sign * each["alone"][figure])
                for figure, sign in FIGURES.items()
            }
            for model, of in each.items()
            if model != "alone"
        },
    }


def _worse(
    figure: Float[np.ndarray, "N"], alone: Float[np.ndarray, "N"]
) -> float | None:
    known = ~np.isnan(figure) & ~np.isnan(alone)
    return float(np.mean(figure[known] < alone[known])) if known.any() else None
