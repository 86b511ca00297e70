"""Inverts updates with a published budget: do the conclusions of less of it hold?

    python scripts/inversion_budget.py

The attacks of scripts/inversion.py, on five of its images, with its own budget and with
4,800 iterations from four starts: as many iterations as the released code of Geiping
et al. 2020 takes by default (github.com/JonasGeiping/invertinggradients, rec_mult.py).
The starts of the smaller budget are among those of the larger; only how long they are
followed differs, and the rate falls at the same shares of it. DLG is left out, which
has a budget of its own. Writes results/inversion_budget.json after every case, and the
pages when it ends. The same command again goes on with the cases that are missing;
another setting or other versions begin anew. `--case=...` runs some of them.
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

from fairjax.attacks import reconstruction
from fairjax.core import require
from fairjax.core.types import RunState
from fairjax.experiment import cli
from fairjax.experiment.config import build
from fairjax.experiment.io.workdir import number, write_json
from fairjax.experiment.train import initial, train
from scripts import experiment, inversion
from scripts.experiment import fill
from scripts.inversion import PAIRED, PARTS

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "inversion_budget.json"
BEGIN = "<!-- results/inversion_budget.json -->"
IMAGES = 5
"""Victims: the first of scripts/inversion.py's."""
LARGE = {"iterations": 4800, "restarts": 4}
SMALL: dict[str, int] = {}
"""The part's own."""
BUDGETS = {"small": SMALL, "large": LARGE}


class Case(NamedTuple):
    """One attacker of one tier, a row of the other table."""

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
"""On these more of the page stands than on the others."""


def _cases() -> dict[str, Case]:
    rest = [
        Case(name, tier, level)
        for name, part in PARTS.items()
        for settings in [reconstruction.Inversion(**part.settings)]
        if settings.variant == "cosine"
        for tier in settings.tier
        for level in settings.level
    ]
    return {
        f"{case.part}:{case.tier}:{case.level}": case
        for case in dict.fromkeys((*FIRST, *rest))
    }


CASES = _cases()


def settings_of(case: Case, budget: str) -> reconstruction.Inversion:
    """The attack of a case."""
    alone = {"tier": (case.tier,), "level": (case.level,), "images": IMAGES}
    fields = PARTS[case.part].settings | alone | BUDGETS[budget]
    return reconstruction.Inversion(**fields)


@functools.lru_cache(maxsize=1)
def attacked(name: str) -> tuple[build.Run, RunState]:
    """The run of a part, and the state whose coming round is attacked."""
    part = PARTS[name]
    config = inversion.config_of(part)
    run = build.build(config)
    if not part.rounds:
        return run, initial(run)
    config.rounds = part.rounds
    with experiment.temporary() as folder:
        return run, train(config, f"{folder}/run").state


def measure(case: Case, budget: str) -> dict[str, Any]:
    """The row of a case with a budget."""
    run, state = attacked(case.part)
    settings = settings_of(case, budget)
    # What is drawn for the other study's victims, of whom these are the first.
    every = reconstruction.Inversion().images
    memories = inversion.secrets(run, state, every)
    memories = jax.tree.map(lambda leaf: leaf[:IMAGES], memories)
    made = reconstruction.invert(run, state, settings, memories=memories)
    one = made[case.tier, case.level]
    victims = reconstruction.scores(run, settings, one) | {"objective": one.objective}
    return {
        **case._asdict(),
        "budget": budget,
        "setting": inversion.setting(PARTS[case.part]),
        "iterations": settings.iterations,
        "restarts": settings.restarts,
        "epsilon": number(run.guarantee.epsilon(1)),
        **reconstruction.judge(run, settings, one),
        "objective": float(np.mean(one.objective)),
        "victims": {n: np.round(v, 4).tolist() for n, v in victims.items()},
    }


# ---------------------------------------------------------------------------- the page

Row = dict[str, Any]
Pair = tuple[Row, Row]
"""A case with the smaller and with the larger budget."""


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """The cases that were measured with both budgets, in the other page's order."""
    of = {(row["part"], row["tier"], row["level"], row["budget"]): row for row in rows}
    parts = list(PARTS)
    both = [
        (of[*case, "small"], of[*case, "large"])
        for case in CASES.values()
        if all((*case, budget) in of for budget in BUDGETS)
    ]
    return sorted(both, key=lambda pair: parts.index(pair[0]["part"]))


def always(row: Row, guess: str, figures: Sequence[str] = PAIRED) -> bool:
    """Whether every victim is found better than a guess is: a sign test's 1 / 2^5."""
    return all(
        mine > other
        for figure in figures
        for mine, other in zip(
            row["victims"][figure], row["victims"][figure + guess], strict=True
        )
    )


CONCLUSIONS: dict[str, Callable[[Row], bool]] = {
    "All five better than the mean public image in PSNR and SSIM": functools.partial(
        always, guess="_mean"
    ),
    "All five better than the nearest public image in both": functools.partial(
        always, guess="_nearest"
    ),
    "All five better than the nearest one in SSIM": functools.partial(
        always, guess="_nearest", figures=("ssim",)
    ),
    "More recognised than by chance (exact test, 5 %)": inversion.recognised,
}
"""What the other page says of an attack, as five victims let it be said."""


def _moved(pair: Pair, figure: str) -> np.ndarray:
    """What the larger budget adds, by victim."""
    small, large = (np.asarray(row["victims"][figure]) for row in pair)
    return large - small


def _spread(values: np.ndarray, digits: int) -> str:
    """Mean, lowest and highest, with signs."""
    mean, low, high = (
        f"{value:+.{digits}f}" for value in (values.mean(), values.min(), values.max())
    )
    return f"{mean} ({low} to {high})"


def verdict(both: Sequence[Pair], words: str) -> str:
    """For which attacks a conclusion holds with either budget."""
    holds = CONCLUSIONS[words]
    small, large = ([pair[i] for pair in both] for i in range(2))
    before, after = (inversion.which(rows, holds) for rows in (small, large))
    if before == after:
        return f"{words}, with both budgets: {before}."
    return f"{words}, with the smaller: {before}; with the larger: {after}."


def hiding(both: Sequence[Pair]) -> list[str]:
    """What an attacker gains who knows DynamicFL's branches, with either budget."""
    of = {(pair[0]["part"], pair[0]["tier"], pair[0]["level"]): pair for pair in both}
    said = []
    for part, tier in inversion.HIDING:
        plain, whole = (of.get((part, tier, at)) for at in ("plain", "structure"))
        if plain is None or whole is None:
            continue
        gains = [
            np.subtract(known["victims"]["psnr"], blind["victims"]["psnr"])
            for known, blind in zip(whole, plain, strict=True)
        ]
        before, after = (_spread(gain, 1) for gain in gains)
        seen = inversion.sees(plain[0])
        said.append(f"tier {tier}, {seen}: {before} dB, then {after}")
    return said


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of both budgets, and which conclusions hold."""
    both = pairs(rows)
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
    for pair in both:
        small, large = pair
        cells = [inversion.victim(small), inversion.sees(small), small["level"]]
        for figure, digits in (("psnr", 1), ("ssim", 2)):
            cells.append(f"{small[figure]:.{digits}f} → {large[figure]:.{digits}f}")
            cells.append(_spread(_moved(pair, figure), digits))
        cells.append(f"{small['objective']:.3f} → {large['objective']:.3f}")
        cells.append(
            " → ".join(
                f"{sum(row['victims']['rank1']):.0f} of {IMAGES}" for row in pair
            )
        )
        lines.append("| " + " | ".join(cells) + " |")
    parts = ["\n".join(lines), " ".join(verdict(both, each) for each in CONCLUSIONS)]
    gains = hiding(both)
    if gains:
        parts.append(
            "What an attacker gains who knows all that DynamicFL hides, mean (least to "
            f"most of five victims), first with the smaller budget: {'; '.join(gains)}."
        )
    missing = len(CASES) - len(both)
    if missing:
        parts.append(f"Not measured with both: {missing} of {len(CASES)} cases.")
    parts.append(sentence(rows))
    return "\n\n".join(parts)


def sentence(rows: Sequence[Row]) -> str:
    """The README's sentence: what the larger budget changes."""
    both = pairs(rows)
    open_ = [pair for pair in both if inversion.noise(pair[0]) is None]
    moved = [_moved(pair, "psnr").mean() for pair in open_]
    nearest = CONCLUSIONS["All five better than the nearest public image in both"]
    before, after = ([pair[i] for pair in both if nearest(pair[i])] for i in (0, 1))
    best = (
        "all five are nearer than the nearest public image, which nobody could pick, "
        f"for {_told(after)} (with the smaller budget: {_told(before)})"
    )
    gained, lost = (
        [
            pair[with_it]
            for pair in both
            if inversion.recognised(pair[with_it])
            and not inversion.recognised(pair[1 - with_it])
        ]
        for with_it in (1, 0)
    )
    changes = [
        f"{_told(changed)} {words}"
        for changed, words in (
            (gained, "recognises victims too"),
            (lost, "does so no more"),
        )
        if changed
    ]
    found = ", ".join(changes) or "the same attacks recognise victims"
    least = inversion.stops([large for _, large in both])
    noise = "no noise that was tried stops them"
    if least is not None:
        noise = f"noise of {least[0]:g} clips stops them"
    return (
        f"With {LARGE['iterations']:,} iterations and {LARGE['restarts']} starts, a "
        f"published budget, {len(both)} of these attacks on {IMAGES} of the images: "
        f"without noise the mean PSNR moves by {min(moved):+.1f} to {max(moved):+.1f} "
        f"dB; {best}; {found}; {noise}."
    )


def _told(rows: Sequence[Row]) -> str:
    return "; ".join(map(inversion.told, rows)) or "none"


# ---------------------------------------------------------------------------- the files


def current(same: dict[str, Any]) -> list[Row]:
    """The rows that are there, of cases as they are now."""
    rows = experiment.continued(RESULTS, same) or []

    def fresh(row: Row) -> bool:
        case = Case(row["part"], row["tier"], row["level"])
        if case not in CASES.values() or row["budget"] not in BUDGETS:
            return False
        settings = settings_of(case, row["budget"])
        return row["setting"] == inversion.setting(PARTS[case.part]) and (
            row["iterations"],
            row["restarts"],
        ) == (settings.iterations, settings.restarts)

    return [row for row in rows if fresh(row)]


def pages(rows: Sequence[Row]) -> dict[pathlib.Path, str]:
    """{page: what it says}: the README has the sentence alone."""
    return {
        RESULTS.parent / "README.md": table(rows),
        ROOT / "README.md": sentence(rows),
    }


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    what = "Cases of this process, as part:tier:level."
    flags.DEFINE_list("case", list(CASES), what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes the files."""
    for name in options.case:
        require.one_of("--case", name, CASES)
    same = {
        "command": "python scripts/inversion_budget.py",
        "attack": dataclasses.asdict(reconstruction.Inversion()),
        "images": IMAGES,
        "larger": LARGE,
        "model": inversion.MODEL,
        **experiment.surroundings(),
    }

    def there(case: Case, budget: str) -> bool:
        return any(
            (row["part"], row["tier"], row["level"], row["budget"]) == (*case, budget)
            for row in current(same)
        )

    for name in options.case:
        for budget in BUDGETS:
            if not there(CASES[name], budget):
                row = measure(CASES[name], budget)
                with experiment.alone(RESULTS.parent):
                    write_json(RESULTS, same | {"runs": [*current(same), row]})
    with experiment.alone(RESULTS.parent):
        for path, body in pages(current(same)).items():
            path.write_text(fill(path.read_text(), BEGIN, body))


if __name__ == "__main__":
    cli.run(main, define)
