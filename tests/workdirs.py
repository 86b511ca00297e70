"""Made-up files of runs, written in milliseconds."""

import json
import pathlib

import numpy as np


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def fake_principles(tiers: int) -> dict:
    """A value of every kind, and unknown values wherever they may occur."""
    known = [0.5] * tiers
    costs = ("parameters", "flops_train", "activation_floats")
    within = dict.fromkeys(costs, [True] * (tiers - 1) + [False])
    names = ("std", "worst", "worst10", "jain", "entropy", "tier_range")
    return {
        "opportunity": {
            "participation": known,
            "hospitals": [None] * tiers,
            "budget": [0.25] * tiers,
            "cost": dict.fromkeys(costs, [0.125] * (tiers - 1) + [0.375]),
            "within": within,
        },
        "contribution": dict.fromkeys(
            ("weight", "effective_weight", "coverage"), [1 / tiers] * tiers
        ),
        "shared_fruits": {
            "identical": [False] * (tiers - 1) + [True],
            "hospitals": 0.625,
            "sha256": "0123456789abcdef" * 4,
        },
        "equal_accuracy": dict.fromkeys(names, 0.1875) | {"tier_range": None},
        "sustainability": {
            "bytes_down": [1500] * tiers,
            "bytes_up": [1500] * tiers,
            "flops_train": [2_000_000] * tiers,
            "rounds_to_95_percent": 1234,
        },
    }


def fake_run(
    workdir: pathlib.Path,
    names: list[str],
    *,
    tiers: int = 2,
    rounds: int = 3,
    planned: int | None = None,
    auroc: bool = True,
    summary: bool = True,
    final: dict | None = None,
    baselines: dict | None = None,
    config: dict | None = None,
    shift: float = 0.0,
    n: int | list[int] = 10,
) -> pathlib.Path:
    """Writes the files of a run whose even rounds (and the last) are evaluated.

    Args:
        workdir: the folder, which is created.
        names: names of the hospitals; the first one has no accuracy, no one an AUROC.
        tiers: number of tiers; hospitals take turns in them.
        rounds: number of logged rounds.
        planned: rounds that the config asks for; None: those logged.
        auroc: whether the AUROC on all records is known.
        summary: whether the run has ended.
        final: summary.json's "final" and the records of every hospital; None: an older
            run without them.
        baselines: summary.json's "baselines"; None: the config asks for none.
        config: config fields that differ, by group.
        shift: added to every accuracy.
        n: test records of the hospitals.
    """
    workdir.mkdir(parents=True)
    clients = len(names)
    tier = np.arange(clients) % tiers
    accuracy = np.linspace(0.5, 0.9, clients) + shift
    metrics, client_rows = [], []
    for r in range(1, rounds + 1):
        is_evaluated = r % 2 == 0 or r == rounds
        metrics.append(fake_metrics(r, accuracy, tiers, is_evaluated, auroc, shift))
        if is_evaluated:
            client_rows += fake_client_rows(r, names, tier, accuracy, n)
    resolved = {
        "seed": 0,
        "rounds": planned or rounds,
        "data": {"name": "toy", "path": None},
        "submodel": {"name": "heterofl"},
        "tiers": {"budget": [0.25, 0.5, 1.0][-tiers:], "branches": [0] * tiers},
        "fairness": {"rule": "size"},
    } | (config or {})
    (workdir / "metrics.jsonl").write_text(lines(metrics))
    (workdir / "clients.jsonl").write_text(lines(client_rows))
    (workdir / "config.json").write_text(json.dumps(resolved))
    command = "train.py --x='<script>alert(1)</script>'"
    (workdir / "provenance.json").write_text(json.dumps({"command": command}))
    if summary:
        end = fake_summary(metrics[-1], tier, tiers)
        if final:
            end["final"] = final
            end["data"]["hospitals"] = fake_holdings(names, tier.tolist())
        if baselines:
            end["baselines"] = baselines
        (workdir / "summary.json").write_text(json.dumps(end))
    return workdir


def fake_metrics(
    r: int,
    accuracy: np.ndarray,
    tiers: int,
    is_evaluated: bool,
    auroc: bool,
    shift: float,
) -> dict:
    """A row of metrics.jsonl; its figures are null in a round without evaluation."""
    row = {"round": r, "train/loss": 1 / r}
    evaluation = {
        "eval/accuracy": 0.7 + shift,
        "eval/loss": 0.6,
        "eval/auroc": 0.8 if auroc else None,
        "eval/accuracy/client_mean": float(accuracy.mean()),
        "eval/accuracy/client_std": float(accuracy.std()),
        "eval/accuracy/client_worst": float(accuracy.min()),
        "eval/accuracy/client_worst10": 0.55,
        "eval/accuracy/tier_gap": -0.021,
        "fairness/jain": 0.987,
    }
    for t in range(tiers):
        evaluation |= {
            f"eval/accuracy/tier_{t}": 0.6 + 0.1 * t,
            f"eval/accuracy/tier_{t}/own": 0.5 + 0.1 * t,
            f"eval/accuracy/submodel_{t}": None,
        }
        row[f"fairness/weight_tier_{t}"] = 1 / tiers
    row |= evaluation if is_evaluated else dict.fromkeys(evaluation)
    return row | {"cohort/valid": len(accuracy), "time/round_s": 0.1}


def fake_client_rows(
    r: int,
    names: list[str],
    tier: np.ndarray,
    accuracy: np.ndarray,
    n: int | list[int],
) -> list[dict]:
    """The rows of clients.jsonl of an evaluated round."""
    return [
        {
            "round": r,
            "client": name,
            "tier": int(tier[i]),
            "n": n if isinstance(n, int) else n[i],
            "weight": None if i == 1 else 1 / len(names),
            "loss": 0.5,
            "accuracy": float(accuracy[i]) if i else None,
            "auroc": None,
            "own_accuracy": None,
        }
        for i, name in enumerate(names)
    ]


def fake_summary(last_row: dict, tier: np.ndarray, tiers: int) -> dict:
    """summary.json without final figures and baselines."""
    return {
        "metrics": last_row,
        "tiers": [
            {
                "tier": t,
                "budget": 0.5 * (t + 1),
                "branches": 0,
                "clients": int((tier == t).sum()),
                "parameters": 12345 * (t + 1),
                "flops_forward": None,
                "flops_train": None,
                "activation_floats": None,
                "bytes_down": 1000,
                "bytes_up": 500,
            }
            for t in range(tiers)
        ],
        "privacy": {"mechanism": "none", "epsilon": None},
        "principles": fake_principles(tiers),
        "data": {
            "name": "toy",
            "rows": {"train": 30, "val": 3, "test": 9},
            "hash": "abc123",
            "normalise": "client",
            "partition": "natural",
            "clients": len(tier),
            "classes": 2,
            "source": "https://example.org/toy",
            "notes": ["Made of <nothing>."],
        },
        "time": {"compile_s": 1.0, "rounds_per_s": 12.34},
    }


def estimate(value: float) -> dict:
    return {"value": value, "low": value - 0.125, "high": value + 0.0625}


UNKNOWN = {"value": None, "low": None, "high": None}


def fake_final(names: list[str], rounds: tuple[int, int | None]) -> dict:
    """Final figures at the last round and at the selected round, which may be None."""

    def at(number: int, value: float) -> dict:
        over = ("mean", "std", "worst", "worst10", "best10", "jain", "gini")
        worst = {"worst_client": {"client": names[1], "n": 18} | estimate(value)}
        groups = {
            "old": {"n": 40, "positives": 12, "auroc": estimate(value)},
            "young": {"n": 4, "positives": 0, "auroc": UNKNOWN},
        }
        gaps = {
            "demographic_parity_difference": estimate(0.25),
            "equalized_odds_difference": UNKNOWN,
            "equal_opportunity_difference": estimate(0.5),
            "auroc_difference": UNKNOWN,
        }
        return {
            "round": number,
            "threshold": 0.375,
            "pooled": {"auroc": estimate(value), "balanced_accuracy": UNKNOWN},
            "tiers": [
                {"tier": t, "n": 20, "auroc": value, "own": {"auroc": 0.6875}}
                for t in range(2)
            ],
            "clients": [
                {"client": name, "tier": 0, "n": 10, "accuracy": 0.5, "brier": 0.1875}
                for name in names
            ],
            "over_clients": {"auroc": dict.fromkeys(over, value) | worst},
            "headlines": {
                "min_test_records": 10,
                "below": {"clients": [{"client": names[0], "n": 3}], "tiers": []},
                "client_worst": {"client": names[1], "n": 18} | estimate(value),
                "tier_gap": {"tiers": [0, 1], "n": [20, 21]} | estimate(-0.0625),
            },
            "positive": "ill",
            "groups": {"age_group": groups},
            "gaps": {"age_group": gaps},
            "calibration": [
                {"predicted": p, "observed": p**2, "n": n}
                for p, n in ((0.125, 9), (0.5, 30), (0.875, 3))
            ]
            + [{"predicted": None, "observed": None, "n": 0}],
            "not_estimated": {"one class only": 3, "fewer than 10": 1},
        }

    last, selected = rounds
    chosen = None if selected is None else at(selected, 0.8125)
    return {"last": at(last, 0.75), "selected": chosen}


def fake_holdings(names: list[str], tiers: list[int]) -> list[dict]:
    return [
        {
            "client": name,
            "tier": tier,
            "train": 10 * i + 8,
            "val": 1,
            "test": 3,
            "classes": {"healthy": 9, "ill": 10 * i + 3},
            "groups": {"age_group": {"old": 5, "young": i}},
        }
        for i, (name, tier) in enumerate(zip(names, tiers, strict=True))
    ]
