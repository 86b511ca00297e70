"""Trains beside liars: every fold against every attack, at rising shares of hospitals.

    python scripts/byzantine.py --data=heart
    python scripts/byzantine.py --data=blood

Heart disease cut into 20 hospitals of which all are in every round, and blood cells at
30 of which 9 are (configs/heart_disease.py, configs/pbc_blood28.py; both need their
files). Writes results/byzantine.json after every program, and the page beside it; the
same command again goes on. Heart disease takes twenty minutes of a CPU core, all
shares and seeds of a fold and an attack side by side in one program; blood cells, one
after the other, two hours.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
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
from scripts import experiment
from scripts.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "byzantine.json"
BEGIN = "<!-- results/byzantine.json -->"


def heart() -> Any:
    """Heart disease at 20 hospitals, 60 rounds with all of them."""
    c = heart_disease.get_config()
    c.select = experiment.SELECT
    c.rounds = 60
    c.data.partition.name = "iid"
    c.data.partition.num_clients = 20
    return c


def blood() -> Any:
    """Blood cells at 30 hospitals of which 9 are in a round, 20 rounds."""
    c = pbc_blood28.get_config()
    c.select = experiment.SELECT
    c.rounds = 20
    return c


class Setting(NamedTuple):
    """A federation, the liars it is to bear, and what is tried on it."""

    title: str
    config: Callable[[], Any]
    methods: tuple[str, ...]
    attacks: tuple[str, ...]
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    hostile: int
    """f, and with it beta = f / K: the most that K clients of a round allow."""
    beta: float
    side_by_side: bool


ATTACKS: dict[str, dict[str, float]] = {
    "sign_flip": {"sign_flip": 5.0},
    "scaling": {"scaling": 10.0},
    "gaussian": {"gaussian": 10.0},
    "free_rider": {"free_rider": 1.0},
    "label_flip": {"label_flip": 1.0},
    "claimed": {"label_flip": 1.0, "inflated_count": 20.0},
    "nan": {"nan": 1.0},
}
"""Name -> strength of every fault."""
SETTINGS = {
    "heart": Setting(
        "Heart disease, 20 hospitals",
        heart,
        ("fedavg", "heterofl"),
        tuple(ATTACKS),
        (0.1, 0.2, 0.3, 0.4),
        (0, 1, 2),
        hostile=8,
        beta=0.4,
        side_by_side=True,
    ),
    "blood": Setting(
        "Blood cells, 9 of 30 hospitals a round",
        blood,
        ("fedavg",),
        tuple(ATTACKS),
        (0.1, 0.2, 0.3, 0.4),
        (0,),
        hostile=3,
        beta=1 / 3,
        side_by_side=False,
    ),
}
FOLDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean, norm bound 1": {"robust.norm_bound": 1.0},
    "median": {"robust.fold": "median"},
    "trimmed mean": {"robust.fold": "trimmed_mean"},
    "trimmed mean, norm bound 1": {
        "robust.fold": "trimmed_mean",
        "robust.norm_bound": 1.0,
    },
    "Krum": {"robust.fold": "krum"},
    "Multi-Krum": {"robust.fold": "multi_krum"},
}
NOBODY = "none"
"""The attack of a program without liars."""


class Job(NamedTuple):
    """What a program is identified by; it has a row per share."""

    data: str
    method: str
    fold: str
    attack: str


def jobs(data: str) -> Iterator[Job]:
    """All programs of a data set, the undisturbed ones first."""
    setting = SETTINGS[data]
    attacks = (NOBODY, *setting.attacks)
    for attack, method, fold in itertools.product(attacks, setting.methods, FOLDS):
        yield Job(data, method, fold, attack)


def config_of(job: Job) -> Any:
    """The config of a program, without its faults."""
    setting = SETTINGS[job.data]
    c = setting.config()
    c.submodel.name = job.method
    if job.method == "fedavg":
        c.execution.form = "masked"
    c.robust.hostile, c.robust.trimmed_mean.beta = setting.hostile, setting.beta
    c.update_from_flattened_dict(FOLDS[job.fold])
    return c


def measured(job: Job) -> list[dict[str, Any]]:
    """Trains with all shares and seeds: a row per share."""
    setting = SETTINGS[job.data]
    run = build.build(config_of(job), vmapped=setting.side_by_side)
    shares = (0.0,) if job.attack == NOBODY else setting.shares
    clients = len(run.splits.clients)
    lanes = [
        (seed, faults.hospitals(share, clients, seed))
        for share in shares
        for seed in setting.seeds
    ]
    strengths = {} if job.attack == NOBODY else ATTACKS[job.attack]

    def faulty(struck: Any) -> list[Fault]:
        return [Fault(name, struck, 1.0, s) for name, s in strengths.items()]

    trained = [
        faults.corrupted(run.splits.train, faulty(struck), seed)
        for seed, struck in lanes
    ]

    def one(train: Any, test: Any, lane: Any) -> Any:
        seed, struck, y, labels = lane
        train = dataclasses.replace(train, y=y, labels=labels)
        spec = dataclasses.replace(
            run.spec,
            sending=faults.sending(faulty(struck), Deadline(1.0, 0.0)),
            rule=faults.claiming(run.spec.rule, faulty(struck)),
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
            rounds=run.config["rounds"],
        )
        members = evaluate.representatives(run)
        tiers = jnp.asarray(run.tiers)
        full, _ = deployed.evaluate(state, test, train, tiers, members, spec=spec)
        return full.pooled.auroc, full.pooled.accuracy, state.attendance

    over = jax.vmap if setting.side_by_side else _one_by_one
    stacked = (
        jnp.asarray([seed for seed, _ in lanes], jnp.int32),
        jnp.asarray([struck for _, struck in lanes]),
        jnp.asarray([data.y for data in trained]),
        jnp.asarray([data.labels for data in trained]),
    )
    data = jax.tree.map(jnp.asarray, (run.splits.train, run.splits.test))
    program = jax.jit(lambda *data: over(functools.partial(one, *data))(stacked))
    auroc, accuracy, attendance = jax.device_get(program(*data))
    entered = attendance.entered / np.maximum(attendance.came, 1)
    rows = []
    for place, share in enumerate(shares):
        mine = range(place * len(setting.seeds), (place + 1) * len(setting.seeds))
        hostile = np.concatenate([entered[i][lanes[i][1]] for i in mine])
        honest = np.concatenate([entered[i][~lanes[i][1]] for i in mine])
        rows.append(
            job._asdict()
            | {
                "share": share,
                "auroc": [_number(auroc[i]) for i in mine],
                "accuracy": [float(accuracy[i]) for i in mine],
                "honest_entered": float(honest.mean()),
                "hostile_entered": float(hostile.mean()) if len(hostile) else None,
            }
        )
    return rows


def _one_by_one(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda lanes: jax.lax.map(one, lanes)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


# ---------------------------------------------------------------------------- the table


def mean(row: dict[str, Any], of: str = "accuracy") -> float:
    """Over the seeds of a row."""
    return float(np.mean(row[of]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table per federation and method that is there whole."""
    parts = []
    by = {(Job(*(r[name] for name in Job._fields)), r["share"]): r for r in rows}
    for data, setting in SETTINGS.items():
        for method in setting.methods:
            done = {job for job, _ in by if (job.data, job.method) == (data, method)}
            if done != {job for job in jobs(data) if job.method == method}:
                continue
            parts += _tables(by, data, method)
    return "\n\n".join(parts)


def _tables(by: dict[Any, dict[str, Any]], data: str, method: str) -> list[str]:
    setting = SETTINGS[data]
    named = ", ".join(f"{share:.0%}" for share in setting.shares)
    seeds = f"{len(setting.seeds)} seed{'s' if len(setting.seeds) > 1 else ''}"
    said = f"{setting.title}, {method}: accuracy with {named} liars, mean of {seeds}."
    heads = ["fold", "none", "rejected", *setting.attacks]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for fold in FOLDS:
        calm = by[Job(data, method, fold, NOBODY), 0.0]
        cells = [fold, f"{mean(calm):.3f}", f"{1 - calm['honest_entered']:.0%}"]
        for attack in setting.attacks:
            job = Job(data, method, fold, attack)
            kept = (mean(by[job, share]) for share in setting.shares)
            cells.append(" ".join(f"{value:.2f}" for value in kept))
        lines.append("| " + " | ".join(cells) + " |")
    return [said, "\n".join(lines)]


def add(rows: Sequence[dict[str, Any]], same: dict[str, Any]) -> None:
    """Writes rows beside those that are there, and the page's tables."""
    with experiment.alone(RESULTS.parent):
        runs = [*(experiment.continued(RESULTS, same) or []), *rows]
        write_json(RESULTS, same | {"runs": runs})
        path = RESULTS.parent / "README.md"
        path.write_text(fill(path.read_text(), BEGIN, table(runs)))


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    what = f"Federations of this process: {', '.join(SETTINGS)}."
    flags.DEFINE_list("data", list(SETTINGS), what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes both files."""
    for name in options.data:
        require.one_of("--data", name, SETTINGS)
    same = {
        "command": "python scripts/byzantine.py",
        "attacks": ATTACKS,
        "settings": {
            data: experiment.changes(setting.config()) | {"seeds": setting.seeds}
            for data, setting in SETTINGS.items()
        },
        **experiment.surroundings(),
    }
    for job in itertools.chain.from_iterable(map(jobs, options.data)):
        made = experiment.continued(RESULTS, same) or []
        if any(all(row[k] == v for k, v in job._asdict().items()) for row in made):
            continue
        add(measured(job), same)
    add([], same)


if __name__ == "__main__":
    cli.run(main, define)
