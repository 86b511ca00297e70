"""Trains fairness rules on two medical data sets, and judges their effects.

    python studies/fairness_rules/run.py

The script runs configs/heart_disease.py (four real hospitals) and
configs/diabetes130.py (sixteen specialties) with the rules of `RULES` and three seeds.
All rules have the same splits, tiers and first model with a seed. No setting is tuned,
and all settings that were run are shown. A baseline helps clients with small budgets
without a fairness rule: every client trains the smallest tier's model, with adjusted
logits. The script writes results.json after every run, and the page beside it in the
end. The same command again continues with the missing runs; it starts anew after a
change of config or versions. `--data=diabetes` runs one data set; two processes share
the files.
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
from studies import experiment
from studies.experiment import fill, interval

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"
BEGIN = "<!-- studies/fairness_rules/results.json -->"
DATA = {"heart disease": heart_disease, "diabetes": diabetes130}
SEEDS = (0, 1, 2)


class Entry(NamedTuple):
    """A row of the table."""

    rule: str
    options: dict[str, Any]
    """Fields below `fairness`; a leading dot marks a field of the whole config."""

    heading: str | None = None
    """The name of the row; None takes the rule with its settings."""

    @property
    def title(self) -> str:
        """The name of the row."""
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
"""The rule with which the others are compared."""
BASELINE = "smallest"
"""The smallest model for all clients, with adjusted logits."""
POOREST = "AUROC, poorest tier's own sub-model"
"""A figure on all test records of the poorest tier's clients together."""

FIGURES = {
    "AUROC, mean of hospitals": ("auroc", "mean"),
    "AUROC, worst hospital": ("auroc", "worst"),
    "balanced accuracy, mean": ("balanced_accuracy", "mean"),
    "balanced accuracy, worst": ("balanced_accuracy", "worst"),
    "loss, worst": ("loss", "worst"),
}
"""Head of a column -> (metric, statistic over clients), last round, test split."""
JUDGED = {"AUROC, worst hospital": 1, "loss, worst": -1}
"""Figures of the worst client -> 1 where more is better, or -1."""
PRICE = "AUROC, mean of hospitals"


def setting(data: str) -> Any:
    """The config shared by all rules of a data set."""
    config: Any = DATA[data].get_config()
    config.selection_metric = experiment.SELECT
    return config


def config_of(data: str, rule: str, seed: int) -> Any:
    """The config of one run; with the first rule it also trains every client alone."""
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
    """Figures of one run over clients and by client in its last round."""
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with experiment.temporary() as folder, experiment.without_intervals():
        log = lambda _, row: rows.append(row)  # noqa: E731
        summary = train(config, f"{folder}/run", log=log).summary
    last = summary["final"]["last"]
    return {
        "figures": {
            name: last["over_clients"][metric][statistic]
            for name, (metric, statistic) in FIGURES.items()
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
    """The identity of a run."""

    data: str
    rule: str
    seed: int


def runs_by_job(runs: Sequence[dict[str, Any]]) -> dict[Job, dict[str, Any]]:
    """The runs by their job."""
    return {Job(*(run[name] for name in Job._fields)): run for run in runs}


def missing_jobs(
    run_by_job: dict[Job, dict[str, Any]], data: Sequence[str]
) -> Iterator[Job]:
    """The missing jobs, in order."""
    for seed in SEEDS:
        for name in data:
            yield from (
                job
                for rule in RULES
                if (job := Job(name, rule, seed)) not in run_by_job
            )


# ---------------------------------------------------------------------------- the table


def differences(
    run_by_job: dict[Job, dict[str, Any]], data: str, rule: str, figure: str
) -> list[float]:
    """The difference of a figure between a rule and the first rule, by seed."""
    return [
        run_by_job[Job(data, rule, seed)]["figures"][figure]
        - run_by_job[Job(data, FIRST, seed)]["figures"][figure]
        for seed in SEEDS
    ]


def rule_effects(run_by_job: dict[Job, dict[str, Any]], data: str, figure: str) -> str:
    """The rules that improve or worsen a figure of the worst client with every seed.

    The text gives the mean effect, the change of `PRICE` and `POOREST` of each rule.
    """
    better, worse, undecided = [], [], []
    for rule in RULES:
        if rule in (FIRST, BASELINE):
            continue
        gains = JUDGED[figure] * np.array(differences(run_by_job, data, rule, figure))
        title = RULES[rule].title
        price = np.mean(differences(run_by_job, data, rule, PRICE))
        score = poorest_score(run_by_job, data, rule)
        text = f"{title} ({np.mean(gains):+.3f}; mean AUROC {price:+.3f}; {score:.3f})"
        if gains.min() > 0:
            better.append(text)
        elif gains.max() < 0:
            worse.append(text)
        else:
            undecided.append(title)
    groups = {"better at each seed": better, "worse at each": worse}
    group_texts = [
        f"{words}: {'; '.join(texts) or 'none'}" for words, texts in groups.items()
    ]
    references = (
        f"{poorest_score(run_by_job, data, FIRST):.3f} under `{FIRST}`, "
        f"{poorest_score(run_by_job, data, BASELINE):.3f} with the smallest model for "
        "everybody and adjusted logits"
    )
    return (
        f"{figure}, against `{FIRST}`: {'; '.join(group_texts)}. Seeds disagree: "
        f"{'; '.join(undecided) or 'none'}. Last in brackets: {POOREST} ({references})."
    )


def poorest_score(run_by_job: dict[Job, dict[str, Any]], data: str, rule: str) -> float:
    """The mean of `POOREST` over seeds."""
    return float(
        np.mean([run_by_job[Job(data, rule, seed)]["poorest"] for seed in SEEDS])
    )


def limits_note(run_by_job: dict[Job, dict[str, Any]], data: str) -> str:
    """A note on the number of trials, and on the difference that seeds can resolve."""
    scores = [
        [run_by_job[Job(data, rule, seed)]["figures"][PRICE] for seed in SEEDS]
        for rule in RULES
        if rule != BASELINE
    ]
    note = experiment.resolution_note(len(SEEDS), experiment.resolution(scores))
    return f"Every row is one trial a seed, of one setting. By {PRICE}, {note}"


def worse_off_note(run_by_job: dict[Job, dict[str, Any]], data: str) -> str:
    """A note on the share of clients that would be better off alone."""
    shares_by_seed = [run_by_job[Job(data, FIRST, seed)]["worse_off"] for seed in SEEDS]
    full_share, own_share = (
        np.mean([shares[model]["auroc"] for shares in shares_by_seed])
        for model in ("full", "own")
    )
    return (
        f"Under `{FIRST}`, by AUROC, {full_share:.0%} of the hospitals would have been "
        f"better off alone than with the full model, {own_share:.0%} than with their "
        "own tier's sub-model."
    )


def finding(runs: Sequence[dict[str, Any]]) -> str:
    """What the rules do to the worst hospital, a paragraph per data set."""
    run_by_job = runs_by_job(runs)
    figure = next(iter(JUDGED))
    return "\n\n".join(
        f"{data.capitalize()}. {rule_effects(run_by_job, data, figure)}"
        for data in DATA
    )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A Markdown table per data set, with its findings."""
    run_by_job, blocks = runs_by_job(runs), []
    for data in DATA:
        blocks.append(f"{data.capitalize()}, {len(SEEDS)} seeds:")
        heads = ["rule", *FIGURES, POOREST]
        lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads[1:])]
        for rule, entry in RULES.items():
            seeds = [run_by_job[Job(data, rule, seed)] for seed in SEEDS]
            cells = [
                interval([run["figures"][name] for run in seeds]) for name in FIGURES
            ]
            if rule == BASELINE:  # most of its full model was never trained
                cells = [""] * len(FIGURES)
            cells.append(interval([run["poorest"] for run in seeds]))
            lines.append("| " + " | ".join([entry.title, *cells]) + " |")
        blocks.append("\n".join(lines))
        blocks += [rule_effects(run_by_job, data, figure) for figure in JUDGED]
        blocks += [limits_note(run_by_job, data), worse_off_note(run_by_job, data)]
    return "\n\n".join(blocks)


# ---------------------------------------------------------------------------- the files


def add(setup: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Adds runs to the results file, and writes the page once all have run."""
    with experiment.locked(RESULTS.parent):
        all_runs = [*(experiment.load_runs(RESULTS, setup) or []), *runs]
        write_json(RESULTS, setup | {"runs": all_runs})
        if next(missing_jobs(runs_by_job(all_runs), list(DATA)), None) is None:
            path = RESULTS.parent / "README.md"
            path.write_text(fill(path.read_text(), BEGIN, table(all_runs)))


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    description = "Data sets that this process runs."
    flags.DEFINE_list("data", list(DATA), description, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs the missing jobs and writes the results and the page."""
    for name in options.data:
        require.one_of("--data", name, DATA)
    setup = {
        "command": "python studies/fairness_rules/run.py",
        "seeds": list(SEEDS),
        "rules": {
            name: {"rule": entry.rule, **entry.options} for name, entry in RULES.items()
        },
        "setting": {name: experiment.changes(setting(name)) for name in DATA},
        **experiment.surroundings(),
    }
    while True:
        run_by_job = runs_by_job(experiment.load_runs(RESULTS, setup) or [])
        job = next(missing_jobs(run_by_job, options.data), None)
        if job is None:
            break
        add(setup, [job._asdict() | measure(config_of(*job))])
    add(setup, [])


if __name__ == "__main__":
    cli.run(main, define)
