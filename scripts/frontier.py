"""Trains fairness rules on two medical data sets, and judges what they move.

    python scripts/frontier.py

Runs configs/heart_disease.py (four real hospitals) and configs/diabetes130.py (sixteen
specialties) with the rules of `RULES`, on three seeds. A seed draws the splits, the
tiers and the first model alike for all rules. No setting is tuned: all that were run
are shown. Beside them stands what helps poor hospitals without any rule between them:
the smallest tier's model for everybody, with adjusted logits. Writes
results/frontier.json after every run, and the page beside it in the end. The same
command again goes on with the runs that are missing; another config or other versions
begin anew. `--data=diabetes` runs a part: two processes share the files.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from configs import diabetes130, heart_disease
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.io.workdir import write_json
from fairjax.experiment.train import train
from scripts import experiment
from scripts.experiment import fill, interval

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "frontier.json"
BEGIN = "<!-- results/frontier.json -->"
DATA = {"heart disease": heart_disease, "diabetes": diabetes130}
SEEDS = (0, 1, 2)


class Entry(NamedTuple):
    """A row of the table."""

    rule: str
    options: dict[str, Any]
    """Fields below `fairness`; of the whole config where they have a dot in front."""

    heading: str | None = None
    """What its row is called; None: the rule with its settings."""

    @property
    def title(self) -> str:
        """What its row is called."""
        if self.heading is not None:
            return self.heading
        words = [f"{name.rpartition('.')[2]} {v:g}" for name, v in self.options.items()]
        return ", ".join([f"`{self.rule}`", *words])


RULES = {
    "size": Entry("size", {}),
    "uniform": Entry("uniform", {}),
    "q_ffl 1": Entry("q_ffl", {"q_ffl.q": 1.0}),
    "q_ffl 5": Entry("q_ffl", {"q_ffl.q": 5.0}),
    "term": Entry("term", {"term.t": 2.0}),
    "cvar": Entry("cvar", {"cvar.alpha": 0.5}),
    "gifair": Entry("gifair", {"gifair.c": 0.9}),
    "afl": Entry("afl", {"afl.rate": 0.1}),
    "tier_equal": Entry("tier_equal", {"tier_equal.strength": 1.0}),
    "tier_term": Entry("tier_term", {"tier_term.t": 2.0}),
    "q_fedavg": Entry("q_fedavg", {"q_fedavg.q": 1.0}),
    "fedmgda": Entry("fedmgda", {"fedmgda.epsilon": 1.0, ".server.learning_rate": 0.3}),
    "fedfv": Entry("fedfv", {"fedfv.alpha": 0.1}),
    "propfair": Entry("propfair", {"propfair.bound": 2.0}),
    "logit_adjust": Entry("logit_adjust", {"logit_adjust.tau": 1.0}),
    "both": Entry(
        "tier_term+logit_adjust", {"tier_term.t": 2.0, "logit_adjust.tau": 1.0}
    ),
    "smallest": Entry(
        "logit_adjust",
        {
            "logit_adjust.tau": 1.0,
            ".submodel.name": "fedavg",
            ".submodel.fedavg.mode": "smallest",
        },
        heading="no rule: the smallest model for everybody, adjusted logits",
    ),
}
FIRST = "size"
"""What the others are compared with."""
BASELINE = "smallest"
"""The smallest model for everybody, with adjusted logits."""
POOREST = "AUROC, poorest tier's own sub-model"
"""At the poorest tier's hospitals, all their test records together."""

FIGURES = {
    "AUROC, mean of hospitals": ("auroc", "mean"),
    "AUROC, worst hospital": ("auroc", "worst"),
    "balanced accuracy, mean": ("balanced_accuracy", "mean"),
    "balanced accuracy, worst": ("balanced_accuracy", "worst"),
    "loss, worst": ("loss", "worst"),
}
"""Heads of the table -> figure over hospitals, in the last round, on the test split."""
JUDGED = {"AUROC, worst hospital": 1, "loss, worst": -1}
"""Figures of the worst hospital, and whether more of them is better."""
PRICE = "AUROC, mean of hospitals"


def setting(data: str) -> Any:
    """The config that the rules of a data set share."""
    config: Any = DATA[data].get_config()
    config.select = experiment.SELECT
    return config


def config_of(data: str, rule: str, seed: int) -> Any:
    """The config of one run; the first rule's also trains every hospital alone."""
    config = setting(data)
    entry = RULES[rule]
    config.seed = seed
    config.eval_every = config.rounds
    config.checkpoint.every = config.rounds
    config.baselines = rule == FIRST
    config.fairness.rule = entry.rule
    config.update_from_flattened_dict(
        {
            name[1:] if name.startswith(".") else f"fairness.{name}": value
            for name, value in entry.options.items()
        }
    )
    return config


def measure(config: Any) -> dict[str, Any]:
    """One run: figures over hospitals, and by hospital, in its last round."""
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with experiment.temporary() as folder, experiment.without_intervals():
        log = lambda _, row: rows.append(row)  # noqa: E731
        summary = train(config, f"{folder}/run", log=log).summary
    last = summary["final"]["last"]
    return {
        "figures": {
            name: last["over_clients"][metric][part]
            for name, (metric, part) in FIGURES.items()
        },
        "poorest": rows[-1]["eval/auroc/tier_0/own"],
        "hospitals": {
            row["client"]: {"tier": row["tier"], "auroc": row["auroc"]}
            for row in last["clients"]
        },
        "worse_off": summary.get("baselines", {}).get("worse_off"),
        "seconds": round(time.perf_counter() - started, 1),
    }


class Job(NamedTuple):
    """What a run is identified by."""

    data: str
    rule: str
    seed: int


def done(runs: Sequence[dict[str, Any]]) -> dict[Job, dict[str, Any]]:
    """The runs by their job."""
    return {Job(*(run[name] for name in Job._fields)): run for run in runs}


def missing(made: dict[Job, dict[str, Any]], data: Sequence[str]) -> Iterator[Job]:
    """What is still to be run, in order."""
    for seed in SEEDS:
        for name in data:
            yield from (
                job for rule in RULES if (job := Job(name, rule, seed)) not in made
            )


# ---------------------------------------------------------------------------- the table


def differences(
    made: dict[Job, dict[str, Any]], data: str, rule: str, figure: str
) -> list[float]:
    """What a rule adds to a figure of the first rule, seed by seed."""
    return [
        made[Job(data, rule, seed)]["figures"][figure]
        - made[Job(data, FIRST, seed)]["figures"][figure]
        for seed in SEEDS
    ]


def moved(made: dict[Job, dict[str, Any]], data: str, figure: str) -> str:
    """Which rules moved a figure of the worst hospital at each seed; at what price."""
    better, worse, open_ = [], [], []
    for rule in RULES:
        if rule in (FIRST, BASELINE):
            continue
        by = JUDGED[figure] * np.array(differences(made, data, rule, figure))
        title = RULES[rule].title
        price = np.mean(differences(made, data, rule, PRICE))
        own = poorest(made, data, rule)
        text = f"{title} ({np.mean(by):+.3f}; mean AUROC {price:+.3f}; {own:.3f})"
        if by.min() > 0:
            better.append(text)
        elif by.max() < 0:
            worse.append(text)
        else:
            open_.append(title)
    said = {"better at each seed": better, "worse at each": worse}
    told = [f"{words}: {'; '.join(texts) or 'none'}" for words, texts in said.items()]
    served = (
        f"{poorest(made, data, FIRST):.3f} under `{FIRST}`, "
        f"{poorest(made, data, BASELINE):.3f} with the smallest model for everybody "
        "and adjusted logits"
    )
    return (
        f"{figure}, against `{FIRST}`: {'; '.join(told)}. Seeds disagree: "
        f"{'; '.join(open_) or 'none'}. Last in brackets: {POOREST} ({served})."
    )


def poorest(made: dict[Job, dict[str, Any]], data: str, rule: str) -> float:
    """`POOREST`, the mean over seeds."""
    return float(np.mean([made[Job(data, rule, seed)]["poorest"] for seed in SEEDS]))


def limits(made: dict[Job, dict[str, Any]], data: str) -> str:
    """What was tried, and what so many seeds can tell."""
    found = [
        [made[Job(data, rule, seed)]["figures"][PRICE] for seed in SEEDS]
        for rule in RULES
        if rule != BASELINE
    ]
    told = experiment.told_apart(len(SEEDS), experiment.resolution(found))
    return f"Every row is one trial a seed, of one setting. By {PRICE}, {told}"


def worse_off(made: dict[Job, dict[str, Any]], data: str) -> str:
    """The share of hospitals that the first rule serves worse than they would alone."""
    each = [made[Job(data, FIRST, seed)]["worse_off"] for seed in SEEDS]
    full, own = (
        np.mean([shares[model]["auroc"] for shares in each])
        for model in ("full", "own")
    )
    return (
        f"Under `{FIRST}`, by AUROC, {full:.0%} of the hospitals would have been "
        f"better off alone than with the full model, {own:.0%} than with their own "
        "tier's sub-model."
    )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Per data set a Markdown table, and what it says."""
    made, parts = done(runs), []
    for data in DATA:
        parts.append(f"{data.capitalize()}, {len(SEEDS)} seeds:")
        heads = ["rule", *FIGURES, POOREST]
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads[1:])]
        for rule, entry in RULES.items():
            seeds = [made[Job(data, rule, seed)] for seed in SEEDS]
            cells = [
                interval([run["figures"][name] for run in seeds]) for name in FIGURES
            ]
            if rule == BASELINE:  # most of whose full model was never trained
                cells = [""] * len(FIGURES)
            cells.append(interval([run["poorest"] for run in seeds]))
            lines.append("| " + " | ".join([entry.title, *cells]) + " |")
        parts.append("\n".join(lines))
        parts += [moved(made, data, figure) for figure in JUDGED]
        parts += [limits(made, data), worse_off(made, data)]
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------- the files


def add(same: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Writes runs beside those that are there; with all, the page's tables."""
    with experiment.alone(RESULTS.parent):
        every = [*(experiment.continued(RESULTS, same) or []), *runs]
        write_json(RESULTS, same | {"runs": every})
        if next(missing(done(every), list(DATA)), None) is None:
            path = RESULTS.parent / "README.md"
            path.write_text(fill(path.read_text(), BEGIN, table(every)))


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    what = "Data sets of this process."
    flags.DEFINE_list("data", list(DATA), what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes both files."""
    for name in options.data:
        require.one_of("--data", name, DATA)
    same = {
        "command": "python scripts/frontier.py",
        "seeds": list(SEEDS),
        "rules": {
            name: {"rule": entry.rule, **entry.options} for name, entry in RULES.items()
        },
        "setting": {name: experiment.changes(setting(name)) for name in DATA},
        **experiment.surroundings(),
    }
    while True:
        made = done(experiment.continued(RESULTS, same) or [])
        job = next(missing(made, options.data), None)
        if job is None:
            break
        add(same, [job._asdict() | measure(config_of(*job))])
    add(same, [])


if __name__ == "__main__":
    cli.run(main, define)
