"""Trains with Byzantine clients: every aggregator, attack and share of clients.

    python studies/byzantine/run.py --data=heart
    python studies/byzantine/run.py --data=blood

The data are heart disease at 20 clients, all of them in every round, and blood cells at
30 clients, 9 of them in a round (configs/heart_disease.py and configs/pbc_blood28.py,
which both need their files). The script writes results.json after every program, and
the page beside it. The same command again continues. Heart disease takes twenty minutes
of a CPU core, because one vmapped program trains all shares and seeds of an aggregator
and an attack. Blood cells are trained run by run and take two hours.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import heart_disease, pbc_blood28
from fairjax.core import require, round
from fairjax.evaluation import deployed
from fairjax.experiment import cli, evaluate
from fairjax.experiment.config import build
from fairjax.experiment.io.workdir import write_json
from fairjax.robust import faults
from fairjax.robust.faults import Deadline, Fault
from studies import experiment
from studies.experiment import fill

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
BEGIN = "<!-- studies/byzantine/results.json -->"


def heart_config() -> Any:
    """Heart disease at 20 clients, 60 rounds with all of them."""
    c = heart_disease.get_config()
    c.selection_metric = experiment.SELECT
    c.rounds = 60
    c.data.partition.name = "iid"
    c.data.partition.num_clients = 20
    return c


def blood_config() -> Any:
    """Blood cells at 30 clients, 20 rounds with 9 of them."""
    c = pbc_blood28.get_config()
    c.selection_metric = experiment.SELECT
    c.rounds = 20
    return c


class Setting(NamedTuple):
    """A federation, its assumed Byzantine clients, and the attacks on it."""

    title: str
    config: Callable[[], Any]
    methods: tuple[str, ...]
    attacks: tuple[str, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    num_byzantine: int
    """f, the most Byzantine clients that the K clients of a round allow."""
    beta: float
    """The trimmed share, f / K."""
    side_by_side: bool
    """Whether one vmapped program trains all shares and seeds."""


ATTACKS: dict[str, dict[str, float]] = {
    "sign_flip": {"sign_flip": 5.0},
    "scaling": {"scaling": 10.0},
    "gaussian": {"gaussian": 10.0},
    "free_rider": {"free_rider": 1.0},
    "label_flip": {"label_flip": 1.0},
    "claimed": {"label_flip": 1.0, "inflated_count": 20.0},
    "nan": {"nan": 1.0},
}
"""Name of an attack -> its faults with their strengths."""
SETTINGS = {
    "heart": Setting(
        "Heart disease, 20 hospitals",
        heart_config,
        ("fedavg", "heterofl"),
        tuple(ATTACKS),
        (0.1, 0.2, 0.3, 0.4),
        (0, 1, 2),
        num_byzantine=8,
        beta=0.4,
        side_by_side=True,
    ),
    "blood": Setting(
        "Blood cells, 9 of 30 hospitals a round",
        blood_config,
        ("fedavg",),
        tuple(ATTACKS),
        (0.1, 0.2, 0.3, 0.4),
        (0,),
        num_byzantine=3,
        beta=1 / 3,
        side_by_side=False,
    ),
}
AGGREGATORS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean, norm bound 1": {"robust.norm_bound": 1.0},
    "median": {"robust.aggregator": "median"},
    "trimmed mean": {"robust.aggregator": "trimmed_mean"},
    "trimmed mean, norm bound 1": {
        "robust.aggregator": "trimmed_mean",
        "robust.norm_bound": 1.0,
    },
    "Krum": {"robust.aggregator": "krum"},
    "Multi-Krum": {"robust.aggregator": "multi_krum"},
}
NOBODY = "none"
"""The attack of a program without Byzantine clients."""


class Job(NamedTuple):
    """The identity of a program, which yields a row per share."""

    data: str
    method: str
    fold: str
    attack: str


def jobs(data: str) -> Iterator[Job]:
    """All programs of a data set, those without attacks first."""
    setting = SETTINGS[data]
    attacks = (NOBODY, *setting.attacks)
    for attack, method, fold in itertools.product(
        attacks, setting.methods, AGGREGATORS
    ):
        yield Job(data, method, fold, attack)


def config_of(job: Job) -> Any:
    """The config of a program without its faults."""
    setting = SETTINGS[job.data]
    c = setting.config()
    c.submodel.name = job.method
    if job.method == "fedavg":
        c.execution.form = "masked"
    c.robust.num_byzantine, c.robust.trimmed_mean.beta = (
        setting.num_byzantine,
        setting.beta,
    )
    c.update_from_flattened_dict(AGGREGATORS[job.fold])
    return c


def measure(job: Job) -> list[dict[str, Any]]:
    """Trains with all shares and seeds.

    Returns:
        A row per share. "honest_entered" and "hostile_entered" are mean shares of the
        rounds of honest and of Byzantine clients whose updates the server accepted.
    """
    setting = SETTINGS[job.data]
    run = build.run(config_of(job), vmapped=setting.side_by_side)
    shares = (0.0,) if job.attack == NOBODY else setting.shares
    clients = len(run.splits.clients)
    vmapped_runs = [
        (seed, faults.faulty_clients(share, clients, seed))
        for share in shares
        for seed in setting.seeds
    ]
    training_data = [
        faults.corrupt_records(run.splits.train, _faults(job, is_faulty), seed)
        for seed, is_faulty in vmapped_runs
    ]
    batch = jax.vmap if setting.side_by_side else _sequential
    stacked = (
        jnp.asarray([seed for seed, _ in vmapped_runs], jnp.int32),
        jnp.asarray([is_faulty for _, is_faulty in vmapped_runs]),
        jnp.asarray([data.y for data in training_data]),
        jnp.asarray([data.labels for data in training_data]),
    )
    data = jax.tree.map(jnp.asarray, (run.splits.train, run.splits.test))
    program = jax.jit(
        lambda *data: batch(functools.partial(_train_and_score, job, run, *data))(
            stacked
        )
    )
    auroc, accuracy, participation = jax.device_get(program(*data))
    accepted_share = participation.accepted / np.maximum(participation.selected, 1)
    scores = {"auroc": auroc, "accuracy": accuracy}
    return _rows(job, shares, vmapped_runs, scores, accepted_share)


def _faults(job: Job, is_faulty: Any) -> list[Fault]:
    """The faults of a job's attack, in every round of the faulty clients."""
    strengths = {} if job.attack == NOBODY else ATTACKS[job.attack]
    return [Fault(name, is_faulty, 1.0, s) for name, s in strengths.items()]


def _train_and_score(
    job: Job, run: build.Run, train: Any, test: Any, vmapped_run: Any
) -> Any:
    """(AUROC, accuracy, participation) of one seed and one set of faulty clients.

    Args:
        job: the program.
        run: its run, whose seed and records are replaced.
        train: training records of all clients.
        test: test records of all clients.
        vmapped_run: (seed, faulty clients, labels, label counts).
    """
    seed, is_faulty, y, labels = vmapped_run
    train = dataclasses.replace(train, y=y, labels=labels)
    spec = dataclasses.replace(
        run.spec,
        transmission=faults.upload_faults(_faults(job, is_faulty), Deadline(1.0, 0.0)),
        rule=faults.with_false_claims(run.spec.rule, _faults(job, is_faulty)),
    )
    state = round.init(
        jax.random.key(seed),
        train.x[:1],
        counts=run.splits.train.count,
        tiers=len(run.budget),
        spec=spec,
    )
    state = round.run(
        state,
        train,
        lambda state: run.draw(state.key, state.round),
        spec=spec,
        layout=run.layout,
        rounds=run.config.rounds,
    )
    members = evaluate.representatives(run)
    tiers = jnp.asarray(run.tiers)
    full, _ = deployed.evaluate(state, test, train, tiers, members, spec=spec)
    return full.pooled.auroc, full.pooled.accuracy, state.participation


def _rows(
    job: Job,
    shares: Sequence[float],
    vmapped_runs: Sequence[tuple[int, Any]],
    scores: Mapping[str, Any],
    accepted_share: np.ndarray,
) -> list[dict[str, Any]]:
    """A row per share from the figures of all runs, which are ordered by share."""
    seeds = len(SETTINGS[job.data].seeds)
    rows = []
    for position, share in enumerate(shares):
        indices = range(position * seeds, (position + 1) * seeds)
        byzantine_share = np.concatenate(
            [accepted_share[i][vmapped_runs[i][1]] for i in indices]
        )
        honest_share = np.concatenate(
            [accepted_share[i][~vmapped_runs[i][1]] for i in indices]
        )
        rows.append(
            job._asdict()
            | {
                "share": share,
                "auroc": [_number(scores["auroc"][i]) for i in indices],
                "accuracy": [float(scores["accuracy"][i]) for i in indices],
                "honest_entered": float(honest_share.mean()),
                "hostile_entered": float(byzantine_share.mean())
                if len(byzantine_share)
                else None,
            }
        )
    return rows


def _sequential(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Maps a function over runs one by one, as `jax.vmap` does over all at once."""
    return lambda vmapped_runs: jax.lax.map(function, vmapped_runs)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---------------------------------------------------------------------------- the table


def mean(row: dict[str, Any], figure: str = "accuracy") -> float:
    """Mean of a figure over the seeds of a row."""
    return float(np.mean(row[figure]))


def finding(rows: Sequence[dict[str, Any]]) -> str:
    """What each aggregator keeps under its worst attack, at the largest share."""
    sentences = []
    for data, setting in SETTINGS.items():
        method, share = setting.methods[0], max(setting.shares)
        attacked = {
            fold: min(
                mean(row)
                for row in rows
                if (row["data"], row["method"], row["fold"], row["share"])
                == (data, method, fold, share)
            )
            for fold in AGGREGATORS
        }
        undisturbed = next(
            mean(row)
            for row in rows
            if (row["data"], row["method"], row["fold"], row["attack"])
            == (data, method, "mean", NOBODY)
        )
        texts = [f"{fold} {accuracy:.2f}" for fold, accuracy in attacked.items()]
        sentences.append(
            f"{setting.title}, {method}, {share:.0%} Byzantine: accuracy under the "
            f"worst of {len(setting.attacks)} attacks, of {undisturbed:.2f} without "
            f"any: {', '.join(texts)}."
        )
    return " ".join(sentences)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table per federation and method whose programs have all run."""
    tables = []
    row_by_job = {
        (Job(*(r[name] for name in Job._fields)), r["share"]): r for r in rows
    }
    for data, setting in SETTINGS.items():
        for method in setting.methods:
            finished_jobs = {
                job for job, _ in row_by_job if (job.data, job.method) == (data, method)
            }
            if finished_jobs != {job for job in jobs(data) if job.method == method}:
                continue
            tables += _tables(row_by_job, data, method)
    return "\n\n".join(tables)


def _tables(row_by_job: dict[Any, dict[str, Any]], data: str, method: str) -> list[str]:
    setting = SETTINGS[data]
    share_text = ", ".join(f"{share:.0%}" for share in setting.shares)
    seed_text = f"{len(setting.seeds)} seed{'s' if len(setting.seeds) > 1 else ''}"
    caption = (
        f"{setting.title}, {method}: accuracy with {share_text} Byzantine hospitals, "
        f"mean of {seed_text}."
    )
    heads = ["aggregator", "none", "rejected", *setting.attacks]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for fold in AGGREGATORS:
        undisturbed_row = row_by_job[Job(data, method, fold, NOBODY), 0.0]
        cells = [
            fold,
            f"{mean(undisturbed_row):.3f}",
            f"{1 - undisturbed_row['honest_entered']:.0%}",
        ]
        for attack in setting.attacks:
            job = Job(data, method, fold, attack)
            accuracies = (mean(row_by_job[job, share]) for share in setting.shares)
            cells.append(" ".join(f"{value:.2f}" for value in accuracies))
        lines.append("| " + " | ".join(cells) + " |")
    return [caption, "\n".join(lines)]


def add(rows: Sequence[dict[str, Any]], setup: dict[str, Any]) -> None:
    """Adds rows to the results file, and updates the page's tables."""
    with experiment.locked(RESULTS.parent):
        runs = [*(experiment.load_runs(RESULTS, setup) or []), *rows]
        write_json(RESULTS, setup | {"runs": runs})
        path = RESULTS.parent / "README.md"
        path.write_text(fill(path.read_text(), BEGIN, table(runs)))


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    description = f"Federations that this process runs: {', '.join(SETTINGS)}."
    flags.DEFINE_list("data", list(SETTINGS), description, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs the missing programs and writes the results and the page."""
    for name in options.data:
        require.one_of("--data", name, SETTINGS)
    setup = {
        "command": "python studies/byzantine/run.py",
        "attacks": ATTACKS,
        "settings": {
            data: experiment.changes(setting.config()) | {"seeds": setting.seeds}
            for data, setting in SETTINGS.items()
        },
        **experiment.surroundings(),
    }
    for job in itertools.chain.from_iterable(map(jobs, options.data)):
        rows = experiment.load_runs(RESULTS, setup) or []
        if any(all(row[k] == v for k, v in job._asdict().items()) for row in rows):
            continue
        add(measure(job), setup)
    add([], setup)


if __name__ == "__main__":
    cli.run(main, define)
