"""Inverts updates with a published budget: do conclusions from a smaller one hold?

    python studies/inversion/budget.py

The script runs the attacks of studies/inversion/run.py on five of its images, with that
script's budget and with 4,800 iterations from four starts, the default number of
iterations in the released code of Geiping et al. 2020
(github.com/JonasGeiping/invertinggradients, rec_mult.py). The starts of the smaller
budget are among those of the larger one; their iterations differ, and the learning rate
falls at the same fractions of them. DLG is left out because it has its own budget. The
script writes studies/inversion/budget.json after every case, and the pages when it
ends. The same command again continues with the missing cases; it starts anew after a
change of setting or versions. `--case=...` runs some of the cases.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from fairjax.attacks import reconstruction, reconstruction_figures
from fairjax.core import require
from fairjax.core.types import RunState
from fairjax.experiment import cli
from fairjax.experiment.config import build
from fairjax.experiment.io.workdir import number, write_json
from fairjax.experiment.resume import initial_state
from fairjax.experiment.train import train
from studies import experiment
from studies.experiment import fill
from studies.inversion import page as inversion_page
from studies.inversion import parts as inversion_parts
from studies.inversion.page import PAIRED
from studies.inversion.parts import PARTS

OVERVIEW = pathlib.Path(__file__).resolve().parents[1] / "README.md"
RESULTS = pathlib.Path(__file__).resolve().parent / "budget.json"
BEGIN = "<!-- studies/inversion/budget.json -->"
IMAGES = 5
"""The number of victims, which are the first ones of studies/inversion/run.py."""
LARGE = {"iterations": 4800, "restarts": 4}
SMALL: dict[str, int] = {}
"""No changes: the budget of the part in studies/inversion/parts.py."""
BUDGETS = {"small": SMALL, "large": LARGE}


class Case(NamedTuple):
    """One attacker of one tier, which is a row in the table of `run`."""

    part: str
    tier: int
    level: str


FIRST = (
    Case("fedavg", 2, "plain"),
    Case("noise 0.1", 2, "plain"),
    Case("dynamicfl", 2, "plain"),
    Case("dynamicfl", 2, "structure"),
    Case("heterofl", 0, "tier"),
    Case("noise 0.01", 2, "plain"),
    Case("dynamicfl", 1, "plain"),
    Case("dynamicfl", 1, "structure"),
    Case("heterofl", 1, "tier"),
    Case("fedavg trained", 2, "plain"),
    Case("heterofl", 0, "plain"),
    Case("heterofl", 1, "plain"),
)
"""The cases that matter most for the page, which are run first."""


def _cases() -> dict[str, Case]:
    remaining = [
        Case(name, tier, level)
        for name, part in PARTS.items()
        for settings in [reconstruction.Inversion(**part.settings)]
        if settings.variant == "cosine"
        for tier in settings.tier
        for level in settings.level
    ]
    return {
        f"{case.part}:{case.tier}:{case.level}": case
        for case in dict.fromkeys((*FIRST, *remaining))
    }


CASES = _cases()


def settings_of(case: Case, budget: str) -> reconstruction.Inversion:
    """The settings of a case's attack with a budget."""
    case_fields = {"tier": (case.tier,), "level": (case.level,), "images": IMAGES}
    fields = PARTS[case.part].settings | case_fields | BUDGETS[budget]
    return reconstruction.Inversion(**fields)


@functools.lru_cache(maxsize=1)
def attacked_run(name: str) -> tuple[build.Run, RunState]:
    """The run of a part, and the state before the attacked round."""
    part = PARTS[name]
    config = inversion_parts.config_of(part)
    run = build.run(config)
    if not part.rounds:
        return run, initial_state(run)
    config.rounds = part.rounds
    with experiment.temporary() as folder:
        return run, train(config, f"{folder}/run").state


def measure(case: Case, budget: str) -> dict[str, Any]:
    """The row of a case with a budget."""
    run, state = attacked_run(case.part)
    settings = settings_of(case, budget)
    # The memories are drawn as in studies/inversion/run.py, for all of its victims.
    image_count = reconstruction.Inversion().images
    memories = inversion_parts.secrets(run, state, image_count)
    memories = jax.tree.map(lambda leaf: leaf[:IMAGES], memories)
    results = reconstruction.invert(run, state, settings, memories=memories)
    result = results[case.tier, case.level]
    victims = reconstruction_figures.scores(run, settings, result) | {
        "objective": result.objective
    }
    return {
        **case._asdict(),
        "budget": budget,
        "setting": inversion_parts.setting(PARTS[case.part]),
        "iterations": settings.iterations,
        "restarts": settings.restarts,
        "epsilon": number(run.guarantee.epsilon(1)),
        **reconstruction_figures.evaluate(run, settings, result),
        "objective": float(np.mean(result.objective)),
        "victims": {n: np.round(v, 4).tolist() for n, v in victims.items()},
    }


# ---------------------------------------------------------------------------- the page

Row = dict[str, Any]
Pair = tuple[Row, Row]
"""The rows of a case with the smaller and with the larger budget."""


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """The cases measured with both budgets, in the order of `run`."""
    row_by_case = {
        (row["part"], row["tier"], row["level"], row["budget"]): row for row in rows
    }
    part_order = list(PARTS)
    measured_pairs = [
        (row_by_case[*case, "small"], row_by_case[*case, "large"])
        for case in CASES.values()
        if all((*case, budget) in row_by_case for budget in BUDGETS)
    ]
    return sorted(measured_pairs, key=lambda pair: part_order.index(pair[0]["part"]))


def beats_for_all(row: Row, guess: str, figures: Sequence[str] = PAIRED) -> bool:
    """Whether the attack beats a guess for every victim.

    For five victims a sign test gives this a probability of 1 / 2^5 by chance.
    """
    return all(
        value > reference
        for figure in figures
        for value, reference in zip(
            row["victims"][figure], row["victims"][figure + guess], strict=True
        )
    )


CONCLUSIONS: dict[str, Callable[[Row], bool]] = {
    "All five better than the mean public image in PSNR and SSIM": functools.partial(
        beats_for_all, guess="_mean"
    ),
    "All five better than the nearest public image in both": functools.partial(
        beats_for_all, guess="_nearest"
    ),
    "All five better than the nearest one in SSIM": functools.partial(
        beats_for_all, guess="_nearest", figures=("ssim",)
    ),
    "More recognised than by chance (exact test, 5 %)": inversion_page.recognised,
}
"""Conclusion -> whether it holds for a row.

The conclusions are those of `run`, as far as five victims support them.
"""


def _gain(pair: Pair, figure: str) -> np.ndarray:
    """The gain in a figure by the larger budget, by victim."""
    small, large = (np.asarray(row["victims"][figure]) for row in pair)
    return large - small


def _mean_and_range(values: np.ndarray, digits: int) -> str:
    """Mean, lowest and highest value, with signs."""
    mean, low, high = (
        f"{value:+.{digits}f}" for value in (values.mean(), values.min(), values.max())
    )
    return f"{mean} ({low} to {high})"


def verdict(budget_pairs: Sequence[Pair], words: str) -> str:
    """The attacks for which a conclusion holds with each budget."""
    holds = CONCLUSIONS[words]
    small, large = ([pair[i] for pair in budget_pairs] for i in range(2))
    before, after = (
        inversion_page.attacks_where(rows, holds) for rows in (small, large)
    )
    if before == after:
        return f"{words}, with both budgets: {before}."
    return f"{words}, with the smaller: {before}; with the larger: {after}."


def hiding_gains(budget_pairs: Sequence[Pair]) -> list[str]:
    """The gain from knowing DynamicFL's branches with each budget, a line per tier."""
    pair_by_case = {
        (pair[0]["part"], pair[0]["tier"], pair[0]["level"]): pair
        for pair in budget_pairs
    }
    lines = []
    for part, tier in inversion_page.HIDING:
        plain, structure = (
            pair_by_case.get((part, tier, level)) for level in ("plain", "structure")
        )
        if plain is None or structure is None:
            continue
        gains = [
            np.subtract(informed["victims"]["psnr"], blind["victims"]["psnr"])
            for informed, blind in zip(structure, plain, strict=True)
        ]
        before, after = (_mean_and_range(gain, 1) for gain in gains)
        observation = inversion_page.observation(plain[0])
        lines.append(f"tier {tier}, {observation}: {before} dB, then {after}")
    return lines


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of both budgets, and the conclusions that hold."""
    budget_pairs = pairs(rows)
    heads = [
        "update of",
        "the server sees",
        "attacker",
        "PSNR, dB",
        "moved by",
        "SSIM",
        "moved by",
        "objective",
        "recognised",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|" + "--:|" * 6]
    for pair in budget_pairs:
        small, large = pair
        cells = [
            inversion_page.victim(small),
            inversion_page.observation(small),
            small["level"],
        ]
        for figure, digits in (("psnr", 1), ("ssim", 2)):
            cells.append(f"{small[figure]:.{digits}f} → {large[figure]:.{digits}f}")
            cells.append(_mean_and_range(_gain(pair, figure), digits))
        cells.append(f"{small['objective']:.3f} → {large['objective']:.3f}")
        cells.append(
            " → ".join(
                f"{sum(row['victims']['rank1']):.0f} of {IMAGES}" for row in pair
            )
        )
        lines.append("| " + " | ".join(cells) + " |")
    blocks = [
        "\n".join(lines),
        " ".join(verdict(budget_pairs, conclusion) for conclusion in CONCLUSIONS),
    ]
    gains = hiding_gains(budget_pairs)
    if gains:
        blocks.append(
            "What an attacker gains who knows all that DynamicFL hides, mean (least to "
            f"most of five victims), first with the smaller budget: {'; '.join(gains)}."
        )
    missing = len(CASES) - len(budget_pairs)
    if missing:
        blocks.append(f"Not measured with both: {missing} of {len(CASES)} cases.")
    blocks.append(sentence(rows))
    return "\n\n".join(blocks)


def sentence(rows: Sequence[Row]) -> str:
    """The README's sentence on the changes by the larger budget."""
    budget_pairs = pairs(rows)
    noiseless = [pair for pair in budget_pairs if inversion_page.noise(pair[0]) is None]
    gains = [_gain(pair, "psnr").mean() for pair in noiseless]
    nearest = CONCLUSIONS["All five better than the nearest public image in both"]
    before, after = (
        [pair[i] for pair in budget_pairs if nearest(pair[i])] for i in (0, 1)
    )
    best = (
        "all five are nearer than the nearest public image, which nobody could pick, "
        f"for {_titles(after)} (with the smaller budget: {_titles(before)})"
    )
    gained_rows, lost_rows = (
        [
            pair[with_it]
            for pair in budget_pairs
            if inversion_page.recognised(pair[with_it])
            and not inversion_page.recognised(pair[1 - with_it])
        ]
        for with_it in (1, 0)
    )
    changes = [
        f"{_titles(changed_rows)} {words}"
        for changed_rows, words in (
            (gained_rows, "recognises victims too"),
            (lost_rows, "does so no more"),
        )
        if changed_rows
    ]
    change_text = ", ".join(changes) or "the same attacks recognise victims"
    threshold = inversion_page.stopping_noise([large for _, large in budget_pairs])
    noise = "no noise that was tried stops them"
    if threshold is not None:
        noise = f"noise of {threshold[0]:g} clips stops them"
    return (
        f"With {LARGE['iterations']:,} iterations and {LARGE['restarts']} starts, a "
        f"published budget, {len(budget_pairs)} of these attacks on {IMAGES} of the "
        f"images: without noise the mean PSNR moves by {min(gains):+.1f} to "
        f"{max(gains):+.1f} dB; {best}; {change_text}; {noise}."
    )


def _titles(rows: Sequence[Row]) -> str:
    return "; ".join(map(inversion_page.attack_title, rows)) or "none"


# ---------------------------------------------------------------------------- the files


def current_rows(setup: dict[str, Any]) -> list[Row]:
    """The rows of the results file whose cases have not changed since."""
    rows = experiment.load_runs(RESULTS, setup) or []

    def fresh(row: Row) -> bool:
        case = Case(row["part"], row["tier"], row["level"])
        if case not in CASES.values() or row["budget"] not in BUDGETS:
            return False
        settings = settings_of(case, row["budget"])
        return row["setting"] == inversion_parts.setting(PARTS[case.part]) and (
            row["iterations"],
            row["restarts"],
        ) == (settings.iterations, settings.restarts)

    return [row for row in rows if fresh(row)]


def pages(rows: Sequence[Row]) -> dict[pathlib.Path, str]:
    """Page -> its text; the overview has only the sentence."""
    return {
        RESULTS.parent / "README.md": table(rows),
        OVERVIEW: sentence(rows),
    }


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    description = "Cases that this process runs, as part:tier:level."
    flags.DEFINE_list("case", list(CASES), description, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs the missing cases and writes the files."""
    for name in options.case:
        require.one_of("--case", name, CASES)
    setup = {
        "command": "python studies/inversion/budget.py",
        "attack": dataclasses.asdict(reconstruction.Inversion()),
        "images": IMAGES,
        "larger": LARGE,
        "model": inversion_parts.MODEL,
        **experiment.surroundings(),
    }

    def is_measured(case: Case, budget: str) -> bool:
        return any(
            (row["part"], row["tier"], row["level"], row["budget"]) == (*case, budget)
            for row in current_rows(setup)
        )

    for name in options.case:
        for budget in BUDGETS:
            if not is_measured(CASES[name], budget):
                row = measure(CASES[name], budget)
                with experiment.locked(RESULTS.parent):
                    write_json(RESULTS, setup | {"runs": [*current_rows(setup), row]})
    with experiment.locked(RESULTS.parent):
        for path, body in pages(current_rows(setup)).items():
            path.write_text(fill(path.read_text(), BEGIN, body))


if __name__ == "__main__":
    cli.run(main, define)
