"""The rows that a round adds to metrics.jsonl and clients.jsonl."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from fairjax import metrics
from fairjax.core.spec import RoundInfo
from fairjax.core.types import Cohort
from fairjax.data import federation
from fairjax.experiment.config import build
from fairjax.experiment.evaluate import RunEvaluation
from fairjax.experiment.io import workdir as files
from fairjax.metrics import clients, principles


def of_round(
    run: build.Run,
    number: int,
    cohort: Cohort,
    info: RoundInfo,
    evaluation: RunEvaluation | None,
    round_s: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of metrics.jsonl and the rows of clients.jsonl of a finished round.

    Args:
        run: the run.
        number: the round, counted from 1.
        cohort: of the round.
        info: what the round reported.
        evaluation: of the state after the round; None: the round is not evaluated and
            has no rows of clients.
        round_s: seconds that the round took.
    """
    row = {"round": number} | round_row(run, cohort, info)
    epsilon = run.guarantee.epsilon(number)
    if epsilon is not None:
        row["privacy/epsilon"] = epsilon
    rows_of_clients = []
    if evaluation is not None:
        tiers = np.asarray(run.tiers_at(number - 1))
        min_records = run.config.min_test_records
        row |= evaluation_row(evaluation, tiers, min_records=min_records)
        rows_of_clients = [*client_rows(run, number, tiers, cohort, info, evaluation)]
    row["time/round_s"] = round_s
    return {name: files.number(value) for name, value in row.items()}, rows_of_clients


def round_row(run: build.Run, cohort: Cohort, info: RoundInfo) -> dict[str, Any]:
    """The keys of metrics.jsonl that every round has, but for clock and privacy."""
    tier, weight = np.asarray(cohort.tier), np.asarray(info.weights, np.float64)
    steps = np.asarray(info.clients.steps, np.int64)
    slots = {
        "drawn": np.asarray(cohort.valid),
        "trained": steps > 0,
        "valid": np.asarray(info.valid),
        "steps": steps,
        "records": _records(run, np.asarray(cohort.client), steps),
    }
    row: dict[str, Any] = {"train/loss": float(info.loss)}
    for t in range(len(run.budget)):
        row[f"fairness/weight_tier_{t}"] = float(weight[tier == t].sum())
    row["cohort/valid"] = int(np.sum(info.valid))
    finite = np.asarray(info.clients.finite)
    row["cohort/not_finite"] = int(np.sum(slots["trained"] & ~finite))
    row["cohort/coverage"] = float(info.coverage)
    for name, values in slots.items():
        for t in range(len(run.budget)):
            row[f"cohort/{name}_tier_{t}"] = int(values[tier == t].sum())
    return row


def _records(
    run: build.Run, client_index: Int[np.ndarray, "K"], steps: Int[np.ndarray, "K"]
) -> Int[np.ndarray, "K"]:
    """The number of records that went through the local steps of clients."""
    train, record_dp = run.splits.train, run.dpsgd
    size = run.spec.local.schedule.batch_size
    max_per_patient = None if record_dp is None else record_dp.per_patient
    if max_per_patient is None:
        return principles.records(
            np.asarray(train.count, np.int64)[client_index], steps, size
        )
    # A lot of patients counts as many records as the client's patients have on average.
    patient_counts = federation.records_per_patient(train)
    patients = np.array([len(counts) for counts in patient_counts], np.int64)
    average = np.array(
        [np.minimum(counts, max_per_patient).mean() for counts in patient_counts]
    )
    number = principles.records(patients[client_index], steps, size)
    return np.rint(number * average[client_index]).astype(np.int64)


def evaluation_row(
    evaluation: RunEvaluation, tiers: Int[np.ndarray, "N"], *, min_records: int
) -> dict[str, float]:
    """The keys of metrics.jsonl that an evaluated round adds.

    Args:
        evaluation: of the round's state.
        tiers: of all clients.
        min_records: see `metrics.summary`.
    """
    figures = metrics.summary(
        evaluation.full, evaluation.per_tier, tiers, min_records=min_records
    )
    if evaluation.val is not None:
        for name in ("accuracy", "balanced_accuracy", "loss", "auroc"):
            figures[f"val/{name}"] = float(getattr(evaluation.val, name))
    personal = evaluation.personal
    if personal is not None:
        has_min_records = np.asarray(personal.count) >= min_records
        for name in ("accuracy", "balanced_accuracy"):
            values = np.asarray(getattr(personal, name), np.float64)
            figures[f"eval/{name}/personal/client_mean"] = clients.mean(values)
            figures[f"eval/{name}/personal/client_std"] = clients.std(values)
            worst = clients.minimum(values[has_min_records])
            figures[f"eval/{name}/personal/client_worst"] = worst
    return figures


def client_rows(
    run: build.Run,
    number: int,
    tiers: Int[np.ndarray, "N"],
    cohort: Cohort,
    info: RoundInfo,
    evaluation: RunEvaluation,
) -> Iterator[dict[str, Any]]:
    """The rows of clients.jsonl that an evaluated round adds.

    "score" is the training loss by which the rule weighted the client: the loss of the
    client's own sub-model at the incoming model. "own_loss" and "smallest_loss" are
    test losses of the client's own sub-model and of the smallest tier's. Where the two
    differ, a high loss comes from too little capacity and not from neglect.

    Args:
        run: the run.
        number: the round, counted from 1.
        tiers: of all clients.
        cohort: of the round.
        info: what the round reported.
        evaluation: of the round's state.
    """
    full, per_tier = evaluation.full.clients, evaluation.per_tier.clients
    valid = np.asarray(cohort.valid)
    client_index = np.asarray(cohort.client)[valid].tolist()

    def by_client(values: Array | None) -> dict[int, float]:
        if values is None:
            return {}
        cohort_values = np.asarray(values, np.float64)[valid]
        return dict(zip(client_index, cohort_values.tolist(), strict=True))

    weights, scores = by_client(info.weights), by_client(info.incoming_losses)

    def personal_figures(k: int) -> dict[str, Any]:
        if evaluation.personal is None:
            return {}
        return {
            "personal_accuracy": files.number(evaluation.personal.accuracy[k]),
            "personal_loss": files.number(evaluation.personal.loss[k]),
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
            "own_accuracy": files.number(per_tier.accuracy[tier, k]),
            "score": files.number(scores.get(k)),
            "own_loss": files.number(per_tier.loss[tier, k]),
            "smallest_loss": files.number(per_tier.loss[0, k]),
        } | personal_figures(k)
