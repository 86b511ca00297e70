"""What the federation is worth to each client, beside training alone and fine-tuning.

`summary.json` has it as "baselines" where the config asks for it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fairjax import metrics
from fairjax.core import layout
from fairjax.core.types import ClientView, RunState
from fairjax.evaluation import personalised
from fairjax.experiment.config import build, registry
from fairjax.experiment.evaluate import RunEvaluation, all_clients
from fairjax.experiment.io import workdir as files
from fairjax.metrics import clients

FIGURES = {"accuracy": 1, "balanced_accuracy": 1, "auroc": 1, "loss": -1}
"""{figure: 1 if more is better, else -1}."""


_ByModel = dict[str, dict[str, np.ndarray]]
"""{model: {figure: its value at every client, [N]}}."""


def baselines(
    run: build.Run, start: RunState, last_state: RunState, evaluation: RunEvaluation
) -> dict[str, Any]:
    """Every client's figures on its own test records, by each of its models.

    "full" is the model at the server; "own" its tier's sub-model; "personal" the model
    that the rule leaves at the client; "tuned" the plain model after one more round's
    training at the client; "alone" a model that it trained without the others for as
    many rounds (`personalised.train_local_models`). "worse_off" is, by figure and by
    model, the share of clients for which training alone would have been better, among
    those where both figures are known.

    Args:
        run: the run.
        start: its state before the first round.
        last_state: its state in the end.
        evaluation: of that state.
    """
    tiers = np.asarray(run.tiers_at(int(last_state.round) - 1))
    local_only, tuned = _evaluate_baselines(run, start, last_state, tiers)
    tier_submodel = jax.tree.map(
        lambda leaf: leaf[tiers, np.arange(len(tiers))], evaluation.per_tier.clients
    )
    models = {"full": evaluation.full.clients, "own": tier_submodel}
    if evaluation.personal is not None:
        models["personal"] = evaluation.personal
    models |= {"tuned": tuned, "alone": local_only}
    figures_by_model = {
        model: {name: np.asarray(getattr(values, name), np.float64) for name in FIGURES}
        for model, values in models.items()
    }
    return {
        "rounds": int(last_state.round),
        "clients": [
            {"client": name, "tier": int(tiers[client])}
            | {
                model: {
                    figure: files.number(values[client])
                    for figure, values in model_figures.items()
                }
                for model, model_figures in figures_by_model.items()
            }
            for client, name in enumerate(run.splits.clients)
        ],
        "mean": {
            model: {
                figure: files.number(clients.mean(values))
                for figure, values in model_figures.items()
            }
            for model, model_figures in figures_by_model.items()
        },
        "worse_off": _worse_off(figures_by_model),
    }


def _evaluate_baselines(
    run: build.Run,
    start: RunState,
    last_state: RunState,
    tiers: Int[np.ndarray, "N"],
) -> tuple[metrics.Figures, metrics.Figures]:
    """Figures of clients, [N] a leaf: (of models trained alone, of fine-tuned models).

    Args:
        run: the run.
        start: its state before the first round.
        last_state: its state in the end.
        tiers: of all clients in the last round.
    """
    # Not the config's rounds: a privacy budget may have ended the run before.
    rounds = int(last_state.round)
    initial_clients = all_clients(run, run.tiers_at(start.round))
    last_clients = all_clients(run, jnp.asarray(tiers))
    train, test = jax.tree.map(jnp.asarray, (run.splits.train, run.splits.test))
    size = sum(leaf.size for leaf in jax.tree.leaves(start.params))
    client_layout = layout.choose_batching(
        "auto",
        chunk=1,
        backend=jax.default_backend(),
        parameters=size,
        convolutional=registry.MODELS[run.config.model.name].convolutional,
        clients=len(tiers),
    )

    def predict(client_model: Any, client_views: ClientView) -> Float[Array, "E C"]:
        return personalised.predict(
            client_model,
            test,
            train,
            client_views,
            spec=run.spec,
            max_records=int(np.max(run.splits.test.count)),
        )

    @jax.jit
    def predict_baselines(start: RunState, last_state: RunState) -> tuple[Array, Array]:
        models = personalised.train_local_models(
            start,
            train,
            initial_clients,
            spec=run.spec,
            layout=client_layout,
            rounds=rounds,
        )
        local_only = personalised.local_models(models, start, spec=run.spec)
        tuned = personalised.fine_tuned_models(last_state, train, spec=run.spec)
        return predict(local_only, initial_clients), predict(tuned, last_clients)

    def figures(logits: Float[Array, "E C"]) -> metrics.Figures:
        return metrics.evaluation_of(logits, test).clients

    local_only, tuned = map(jax.jit(figures), predict_baselines(start, last_state))
    return local_only, tuned


def _worse_off(figures_by_model: _ByModel) -> dict[str, dict[str, float | None]]:
    return {
        model: {
            figure: _worse_share(
                sign * model_figures[figure],
                sign * figures_by_model["alone"][figure],
            )
            for figure, sign in FIGURES.items()
        }
        for model, model_figures in figures_by_model.items()
        if model != "alone"
    }


def _worse_share(
    figure: Float[np.ndarray, "N"], local_only: Float[np.ndarray, "N"]
) -> float | None:
    has_both = ~np.isnan(figure) & ~np.isnan(local_only)
    return (
        float(np.mean(figure[has_both] < local_only[has_both]))
        if has_both.any()
        else None
    )
