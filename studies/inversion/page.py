"""The page of studies/inversion/run.py: its table, its conclusions and its figure."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from configs import pbc_blood28
from fairjax.attacks import reconstruction, reconstruction_figures
from fairjax.report import reconstructions
from studies.inversion.parts import DYNAMICFL, HETEROFL, PARTS

FIGURE = pathlib.Path(__file__).resolve().parent / "inversion.png"

PAIRED = ("psnr", "ssim")

HIDING = (("dynamicfl", 1), ("dynamicfl", 2), ("dynamicfl steps", 2))
"""(part, tier) of the attacks that are compared with and without hidden branches."""

SHOWN = (
    ("fedavg", "plain"),
    ("heterofl", "tier"),
    ("dynamicfl", "plain"),
    ("dynamicfl", "structure"),
    ("fedavg trained", "plain"),
    ("noise 0.01", "plain"),
    ("noise 0.1", "plain"),
)

VICTIMS = 5
"""The number of victims in the figure."""


def victim(row: dict[str, Any]) -> str:
    """The method, tier and noise of the inverted update, in words."""
    part = PARTS[row["part"]]
    if part.fields.get("submodel.name") == "fedavg":
        clips = noise(row)
        return part.title if clips is None else f"{part.title}, noise {clips:g} clips"
    budget = pbc_blood28.get_config().tiers.budget[row["tier"]]
    tier = f"{part.title}, tier {row['tier']}"
    if part.fields is HETEROFL:
        return f"{tier} ({budget:g} of the widths)"
    number = DYNAMICFL["tiers.branches"][row["tier"]]
    return f"{tier} ({number} {'branch' if number == 1 else 'branches'} per layer)"


def observation(row: dict[str, Any]) -> str:
    """The observation of the server, and the attack if it is not the default one."""
    settings = reconstruction.Inversion(**PARTS[row["part"]].settings)
    text = "one step"
    if settings.observable == "steps":
        text = f"{settings.steps} steps"
    return text if settings.variant == "cosine" else f"{text} ({settings.variant})"


def noise(row: dict[str, Any]) -> float | None:
    """The noise on the upload in clips; None without noise."""
    return PARTS[row["part"]].fields.get("privacy.noise_multiplier")


def paired_difference(
    row: dict[str, Any], other_row: dict[str, Any] | None, figure: str, guess: str = ""
) -> tuple[float, float, float]:
    """The paired mean difference over the victims, and its interval.

    Args:
        row: the row whose figure is expected to be larger.
        other_row: the row to compare with; None compares with a guess.
        figure: the figure, one of `PAIRED`.
        guess: the suffix of the guess's figures in `row`.

    Returns:
        (mean, low, high).
    """
    reference = (
        row["victims"][figure + guess]
        if other_row is None
        else other_row["victims"][figure]
    )
    values = np.array(row["victims"][figure]) - np.array(reference)
    return float(values.mean()), *reconstruction_figures.interval(values)


def beats(row: dict[str, Any], guess: str, figures: Sequence[str] = PAIRED) -> bool:
    """Whether the intervals show that all figures are above those of a guess."""
    return all(paired_difference(row, None, figure, guess)[1] > 0 for figure in figures)


def recognised(row: dict[str, Any]) -> bool:
    """Whether more victims are recognised than by chance (exact one-sided, 5 %)."""
    hits = row["victims"]["rank1"]
    test = scipy.stats.binomtest(
        round(sum(hits)), len(hits), row["baseline_rank1"], alternative="greater"
    )
    return test.pvalue < 0.05


def attack_title(row: dict[str, Any]) -> str:
    """An attack in words."""
    name = victim(row).partition(" (")[0]
    return f"{name} by {row['level']}, {observation(row)}"


def attacks_where(rows: Sequence[dict[str, Any]], holds: Callable[[dict], bool]) -> str:
    """The attacks for which a condition holds, or "all but" those for which it fails.

    The shorter of the two lists is given.
    """
    yes = [attack_title(row) for row in rows if holds(row)]
    no = [attack_title(row) for row in rows if not holds(row)]
    if not yes or not no:
        return "none" if not yes else "all"
    if len(no) < len(yes):
        return f"all but {'; '.join(no)}"
    return "; ".join(yes)


def hiding_gain(rows: Sequence[dict[str, Any]], part: str, tier: int) -> str:
    """The gain of an attacker who knows the hidden branches over one who does not."""
    by_level = {
        row["level"]: row for row in rows if (row["part"], row["tier"]) == (part, tier)
    }
    (psnr, psnr_low, psnr_high), (ssim, ssim_low, ssim_high) = (
        paired_difference(by_level["structure"], by_level["plain"], figure)
        for figure in PAIRED
    )
    return (
        f"tier {tier}, {observation(by_level['plain'])}: {psnr:+.1f} dB "
        f"({psnr_low:+.1f} to {psnr_high:+.1f}) "
        f"and {ssim:+.2f} SSIM ({ssim_low:+.2f} to {ssim_high:+.2f})"
    )


def stopping_noise(rows: Sequence[dict[str, Any]]) -> tuple[float, float | None] | None:
    """The least noise in clips from which on no attack recognises victims.

    Returns:
        (noise, epsilon), where the epsilon is None if noise is too weak for one; None
        if some attack recognises victims under the strongest noise.
    """
    noisy = {clips: row for row in rows if (clips := noise(row)) is not None}
    quiet = [
        clips
        for clips in noisy
        if not any(recognised(noisy[higher]) for higher in noisy if higher >= clips)
    ]
    return (min(quiet), noisy[min(quiet)]["epsilon"]) if quiet else None


def guess_quality(row: dict[str, Any], guess: str) -> str:
    """PSNR and SSIM of a guess in words."""
    psnr, ssim = (row[f"baseline_{figure}_{guess}"] for figure in PAIRED)
    return f"{psnr:.1f} dB and {ssim:.2f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with its findings."""
    order = list(PARTS)
    rows = sorted(rows, key=lambda row: order.index(row["part"]))
    heads = [
        "update of",
        "the server sees",
        "attacker",
        "PSNR, dB",
        "SSIM",
        "class read",
        "recognised",
        "structure found",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|" + "--:|" * 5]
    for row in rows:
        cells = [victim(row), observation(row), row["level"]]
        cells += [
            f"{row[name]:.{digits}f} ({row[name + '_low']:.{digits}f}–"  # noqa: RUF001
            f"{row[name + '_high']:.{digits}f})"
            for name, digits in (("psnr", 1), ("ssim", 2))
        ]
        cells += [f"{row['label']:.0%}", f"{row['rank1']:.0%}"]
        cells.append("" if row["structure"] is None else f"{row['structure']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]
    mean, near = (guess_quality(first, guess) for guess in ("mean", "nearest"))
    mean_beaten, near_beaten, near_liked = (
        attacks_where(rows, functools.partial(beats, guess=guess, figures=figures))
        for guess, figures in (
            ("_mean", PAIRED),
            ("_nearest", PAIRED),
            ("_nearest", ("ssim",)),
        )
    )
    blocks = [
        "\n".join(lines),
        f"Guesses without an update: the mean public image, {mean}; for every victim "
        f"the public image nearest to it, which nobody could pick, {near}; recognised "
        f"by chance, {first['baseline_rank1']:.1%}.",
        "Better than guesses, by the intervals of the paired differences: than the "
        f"mean public image in PSNR and SSIM, {mean_beaten}; than the nearest one in "
        f"both, {near_beaten}; in SSIM, {near_liked}. More "
        "victims recognised than by chance (exact test, 5 %): "
        f"{attacks_where(rows, recognised)}.",
        "What an attacker gains who knows all that DynamicFL hides, over one who "
        "simulates the plain model: "
        f"{'; '.join(hiding_gain(rows, *pair) for pair in HIDING)}.",
        sentence(rows),
    ]
    return "\n\n".join(blocks)


def sentence(rows: Sequence[dict[str, Any]]) -> str:
    """The README's statement on privacy, limited to what these figures support."""
    uninformed = [
        row
        for row in rows
        if row["part"].startswith("dynamicfl")
        and row["tier"] > 0
        and row["level"] != "structure"
    ]
    recognising = [row for row in uninformed if recognised(row)]
    hidden = "does not prevent image reconstruction"
    if len(recognising) < len(uninformed):
        failed = len(uninformed) - len(recognising)
        hidden = f"prevented {failed} of {len(uninformed)} such attacks"
    quiet, threshold = (
        "no noise that was tried on the upload stops the attack",
        stopping_noise(rows),
    )
    if threshold is not None:
        clips, epsilon = threshold
        bound = "but it is too little for any epsilon"
        if epsilon is not None:
            bound = f"its epsilon is {epsilon:,.0f} per round"
        quiet = (
            f"noise of {clips:g} clips on the upload stops this attack, {bound}, so "
            "that a better attack may succeed"
        )
    return (
        "With one image in one update of a small CNN, hiding DynamicFL's branches from "
        f"the server {hidden} ({len(recognising)} of {len(uninformed)} attacks without "
        "knowledge of the branches recognise victims); tier 0 has no branches to hide; "
        f"{quiet}. Larger batches, whole rounds and larger models were not attacked."
    )


def draw(rows: Sequence[dict[str, Any]], pictures: pathlib.Path) -> None:
    """Draws the victims' images and their reconstructions from one step.

    Args:
        rows: all rows.
        pictures: the folder of the reconstructed images.
    """
    strips = {}
    for row in sorted(rows, key=lambda row: list(PARTS).index(row["part"])):
        if (row["part"], row["level"]) not in SHOWN:
            continue
        path = pictures / f"{row['part']}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            strips.setdefault("original", arrays["original"][:VICTIMS])
            name = f"{victim(row).partition(' (')[0]}: {row['level']}"
            strips[name] = arrays[f"{row['tier']} {row['level']}"][:VICTIMS]
    FIGURE.write_bytes(reconstructions.grid(strips))
