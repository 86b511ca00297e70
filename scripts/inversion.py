"""Inverts updates on blood cells: who gives an image away, to whom, and what helps?

    python scripts/inversion.py

The small CNN of `config_of` sees one image of configs/pbc_blood28.py, whose data set is
a file that you need to have; twenty images are attacked, the same ones by everybody, on
the same first model. DynamicFL's victims have branches drawn uniformly from all that
fit, which is more of a secret than the method's own rule makes of them. Nothing is
tuned to a victim. Writes results/inversion.json after every part, and the page and the
figure beside it in the end, as the README's sentence. The same command again goes on
with the parts that are missing; another setting or other versions begin anew.
`--part=dynamicfl` runs some of them: two processes share the files.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl import flags

from configs import pbc_blood28
from fairjax.attacks import reconstruction
from fairjax.core import require
from fairjax.core.types import RunState
from fairjax.experiment import cli
from fairjax.experiment.config import build
from fairjax.experiment.io.workdir import number, write_json
from fairjax.experiment.train import initial, train
from fairjax.report import reconstructions
from fairjax.submodels import branches
from scripts import experiment
from scripts.experiment import fill

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "inversion.json"
FIGURE = ROOT / "results" / "inversion.png"
BEGIN = "<!-- results/inversion.json -->"
SECRET = 7
"""Seed of the branches that DynamicFL's victims have."""
HIDDEN = "hidden0"
"""The layer without branches, so that the others' can be searched through."""

MODEL = {
    "model.name": "two_conv",
    "model.two_conv.channels": (8, 16),
    "model.two_conv.hidden": (32,),
    "execution.form": "masked",
}
FEDAVG = {"submodel.name": "fedavg"}
HETEROFL = {"submodel.name": "heterofl", "submodel.heterofl.masked_loss": False}
DYNAMICFL = {
    "submodel.name": "dynamicfl",
    "tiers.branches": (0, 1, 2),
    "submodel.dynamicfl.skip": (HIDDEN,),
    "submodel.dynamicfl.moved": 0.0,
}
FEW = {"iterations": 300}


class Part(NamedTuple):
    """Attacks that share a config."""

    title: str
    fields: dict[str, Any]
    """What it changes in configs/pbc_blood28.py, beside `MODEL`."""
    settings: dict[str, Any]
    """Of `reconstruction.Inversion`."""
    rounds: int = 0
    """Of training before the round that is attacked."""


def _noisy(multiplier: float) -> Part:
    return Part(
        "FedAvg, local DP",
        FEDAVG
        | {
            "privacy.mechanism": "local_dp",
            "privacy.clip": 0.1,
            "privacy.noise_multiplier": multiplier,
            # Of noise as weak as this a PLD has no room in memory.
            "privacy.accountant": "rdp",
        },
        {"tier": (2,), "level": ("plain",)},
    )


PARTS = {
    "fedavg": Part("FedAvg", FEDAVG, {"tier": (2,), "level": ("plain",)}),
    "heterofl": Part(
        "HeteroFL", HETEROFL, {"tier": (0, 1), "level": ("plain", "tier")}
    ),
    "dynamicfl plain": Part(
        "DynamicFL", DYNAMICFL, {"tier": (0,), "level": ("plain",)}
    ),
    "dynamicfl": Part("DynamicFL", DYNAMICFL, {"tier": (1, 2)}),
    "fedavg steps": Part(
        "FedAvg",
        FEDAVG,
        {"observable": "steps", "tier": (2,), "level": ("plain",), **FEW},
    ),
    "dynamicfl steps": Part(
        "DynamicFL",
        DYNAMICFL,
        {"observable": "steps", "tier": (2,), "level": ("plain", "structure"), **FEW},
    ),
    "fedavg dlg": Part(
        "FedAvg",
        FEDAVG,
        {"variant": "dlg", "tier": (2,), "level": ("plain",), "iterations": 100},
    ),
    "fedavg trained": Part(
        "FedAvg, after 20 rounds", FEDAVG, {"tier": (2,), "level": ("plain",)}, 20
    ),
    "noise 0.001": _noisy(0.001),
    "noise 0.01": _noisy(0.01),
    "noise 0.1": _noisy(0.1),
}


def setting(part: Part) -> dict[str, Any]:
    """A part as JSON has it: rows of another one are out of date."""
    return json.loads(json.dumps(part._asdict()))


def config_of(part: Part) -> Any:
    """The config of a part."""
    config: Any = pbc_blood28.get_config()
    config.select = experiment.SELECT
    config.update_from_flattened_dict(MODEL | part.fields)
    return config


def secrets(run: build.Run, state: RunState, victims: int) -> Any:
    """What the victims of every tier remember: branches drawn uniformly."""
    if not isinstance(state.memory, dict) or "alive" not in state.memory:
        return None
    layers = branches.layers(run.spec.local.model.axes, (HIDDEN,))
    exists = branches.admitted(state.params, layers, branches.Form())
    rng = np.random.default_rng(SECRET)
    memories = []
    for branch in run.branches:
        alive = np.zeros((victims, exists.size), np.float32)
        for row in alive:
            row[rng.permutation(np.flatnonzero(exists))[: branch * len(layers)]] = 1
        table = jnp.asarray(alive.reshape(victims, *exists.shape))
        memories.append({"alive": table, "sensitivity": jnp.zeros_like(table)})
    return memories


def measure(name: str, pictures: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a part; what was found goes to `pictures`."""
    part = PARTS[name]
    config = config_of(part)
    run = build.build(config)
    state = initial(run)
    if part.rounds:
        config.rounds = part.rounds
        with experiment.temporary() as folder:
            state = train(config, f"{folder}/run").state
    settings = reconstruction.Inversion(**part.settings)
    made = reconstruction.invert(
        run, state, settings, memories=secrets(run, state, settings.images)
    )
    rows = []
    for (tier, level), one in made.items():
        each = reconstruction.scores(run, settings, one)
        rows.append(
            {
                "part": name,
                "setting": setting(part),
                "tier": tier,
                "level": level,
                "epsilon": number(run.guarantee.epsilon(1)),
                **reconstruction.judge(run, settings, one),
                "victims": {n: np.round(v, 4).tolist() for n, v in each.items()},
            }
        )
    pictures.mkdir(parents=True, exist_ok=True)
    shown = {f"{tier} {level}": one.found[:, 0] for (tier, level), one in made.items()}
    true = next(iter(made.values())).true[:, 0]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, original=true, **shown)
    (pictures / f"{name}.npz").write_bytes(buffer.getvalue())
    return rows


# ---------------------------------------------------------------------------- the table

PAIRED = ("psnr", "ssim")


def victim(row: dict[str, Any]) -> str:
    """Whose update was inverted."""
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


def sees(row: dict[str, Any]) -> str:
    """What the server saw, and by what it was inverted."""
    settings = reconstruction.Inversion(**PARTS[row["part"]].settings)
    what = "one step"
    if settings.observable == "steps":
        what = f"{settings.steps} steps"
    return what if settings.variant == "cosine" else f"{what} ({settings.variant})"


def paired(
    better: dict[str, Any], worse: dict[str, Any] | None, figure: str, guess: str = ""
) -> tuple[float, float, float]:
    """Mean difference over the victims and its interval; `worse` None: a guess."""
    other = (
        better["victims"][figure + guess]
        if worse is None
        else (worse["victims"][figure])
    )
    values = np.array(better["victims"][figure]) - np.array(other)
    return float(values.mean()), *reconstruction.interval(values)


def beats(row: dict[str, Any], guess: str, figures: Sequence[str] = PAIRED) -> bool:
    """Whether all these figures are above a guess's, by their intervals."""
    return all(paired(row, None, figure, guess)[1] > 0 for figure in figures)


def recognised(row: dict[str, Any]) -> bool:
    """Whether more are recognised than by chance: exact one-sided test, 5 %."""
    hits = row["victims"]["rank1"]
    test = scipy.stats.binomtest(
        round(sum(hits)), len(hits), row["baseline_rank1"], alternative="greater"
    )
    return test.pvalue < 0.05


def told(row: dict[str, Any]) -> str:
    """An attack in words."""
    name = victim(row).partition(" (")[0]
    return f"{name} by {row['level']}, {sees(row)}"


def which(rows: Sequence[dict[str, Any]], holds: Callable[[dict], bool]) -> str:
    """The attacks for which something holds, or the fewer for which it does not."""
    yes = [told(row) for row in rows if holds(row)]
    no = [told(row) for row in rows if not holds(row)]
    if not yes or not no:
        return "none" if not yes else "all"
    if len(no) < len(yes):
        return f"all but {'; '.join(no)}"
    return "; ".join(yes)


def hiding(rows: Sequence[dict[str, Any]], part: str, tier: int) -> str:
    """What an attacker gains who knows all that is hidden, over one who does not."""
    by = {
        row["level"]: row for row in rows if (row["part"], row["tier"]) == (part, tier)
    }
    (mean, low, high), (like, below, above) = (
        paired(by["structure"], by["plain"], figure) for figure in PAIRED
    )
    return (
        f"tier {tier}, {sees(by['plain'])}: {mean:+.1f} dB ({low:+.1f} to {high:+.1f}) "
        f"and {like:+.2f} SSIM ({below:+.2f} to {above:+.2f})"
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, and what it says."""
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
        cells = [victim(row), sees(row), row["level"]]
        cells += [
            f"{row[name]:.{digits}f} ({row[name + '_low']:.{digits}f}–"  # noqa: RUF001
            f"{row[name + '_high']:.{digits}f})"
            for name, digits in (("psnr", 1), ("ssim", 2))
        ]
        cells += [f"{row['label']:.0%}", f"{row['rank1']:.0%}"]
        cells.append("" if row["structure"] is None else f"{row['structure']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]
    mean, near = (guessed(first, guess) for guess in ("mean", "nearest"))
    mean_beaten, near_beaten, near_liked = (
        which(rows, functools.partial(beats, guess=guess, figures=figures))
        for guess, figures in (
            ("_mean", PAIRED),
            ("_nearest", PAIRED),
            ("_nearest", ("ssim",)),
        )
    )
    parts = [
        "\n".join(lines),
        f"Guesses without an update: the mean public image, {mean}; for every victim "
        f"the public image nearest to it, which nobody could pick, {near}; recognised "
        f"by chance, {first['baseline_rank1']:.1%}.",
        "Better than guesses, by the intervals of the paired differences: than the "
        f"mean public image in PSNR and SSIM, {mean_beaten}; than the nearest one in "
        f"both, {near_beaten}; in SSIM, {near_liked}. More "
        "victims recognised than by chance (exact test, 5 %): "
        f"{which(rows, recognised)}.",
        "What an attacker gains who knows all that DynamicFL hides, over one who "
        "simulates the plain model: "
        f"{'; '.join(hiding(rows, *pair) for pair in HIDING)}.",
        sentence(rows),
    ]
    return "\n\n".join(parts)


HIDING = (("dynamicfl", 1), ("dynamicfl", 2), ("dynamicfl steps", 2))
"""Part and tier of the pairs that say what hiding branches is worth."""


def noise(row: dict[str, Any]) -> float | None:
    """The noise on the upload, in clips; None without any."""
    return PARTS[row["part"]].fields.get("privacy.noise_multiplier")


def stops(rows: Sequence[dict[str, Any]]) -> tuple[float, float | None] | None:
    """(noise in clips, its epsilon) from which on nobody is recognised; None: never.

    Of noise that is too little to state an epsilon that is None.
    """
    noisy = {clips: row for row in rows if (clips := noise(row)) is not None}
    quiet = [
        clips
        for clips in noisy
        if not any(recognised(noisy[more]) for more in noisy if more >= clips)
    ]
    return (min(quiet), noisy[min(quiet)]["epsilon"]) if quiet else None


def sentence(rows: Sequence[dict[str, Any]]) -> str:
    """The README's sentence on privacy: what these figures support and no more."""
    blind = [
        row
        for row in rows
        if row["part"].startswith("dynamicfl")
        and row["tier"] > 0
        and row["level"] != "structure"
    ]
    read = [row for row in blind if recognised(row)]
    hidden = "does not keep patients' images from it"
    if len(read) < len(blind):
        hidden = f"kept {len(blind) - len(read)} of {len(blind)} such attacks from it"
    quiet, least = "no noise that was tried on the upload stops the attack", stops(rows)
    if least is not None:
        clips, epsilon = least
        bound = "but it is too little for any epsilon"
        if epsilon is not None:
            bound = f"its epsilon is {epsilon:,.0f} per round"
        quiet = (
            f"noise of {clips:g} clips on the upload stops this attack, {bound}, so "
            "that a better attack may succeed"
        )
    return (
        "So, of one image in one update of a small CNN: that a server does not know "
        f"DynamicFL's branches {hidden} ({len(read)} of {len(blind)} attacks without "
        f"that knowledge recognise victims), and tier 0 has none to hide; {quiet}. "
        "Larger batches, whole rounds and larger models were not attacked here."
    )


def guessed(row: dict[str, Any], guess: str) -> str:
    """How near a guess comes."""
    psnr, ssim = (row[f"baseline_{figure}_{guess}"] for figure in PAIRED)
    return f"{psnr:.1f} dB and {ssim:.2f}"


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
"""What of it the figure has room for."""


def draw(rows: Sequence[dict[str, Any]], pictures: pathlib.Path) -> None:
    """The figure: what the victims held, and what the attackers made of one step."""
    strips = {}
    for row in sorted(rows, key=lambda row: list(PARTS).index(row["part"])):
        if (row["part"], row["level"]) not in SHOWN:
            continue
        path = pictures / f"{row['part']}.npz"
        with np.load(path, allow_pickle=False) as found:
            strips.setdefault("original", found["original"][:VICTIMS])
            name = f"{victim(row).partition(' (')[0]}: {row['level']}"
            strips[name] = found[f"{row['tier']} {row['level']}"][:VICTIMS]
    FIGURE.write_bytes(reconstructions.grid(strips))


# ---------------------------------------------------------------------------- the files


def current(same: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are there, of parts as they are now."""
    rows = experiment.continued(RESULTS, same) or []
    now = {name: setting(part) for name, part in PARTS.items()}
    return [row for row in rows if row["setting"] == now.get(row["part"])]


def pages(rows: Sequence[dict[str, Any]]) -> dict[pathlib.Path, str]:
    """{page: what it says}: the README has the sentence alone."""
    return {
        RESULTS.parent / "README.md": table(rows),
        ROOT / "README.md": sentence(rows),
    }


def add(
    same: dict[str, Any], rows: Sequence[dict[str, Any]], pictures: pathlib.Path
) -> None:
    """Writes rows beside those that are there; with all, both pages."""
    with experiment.alone(RESULTS.parent):
        every = [*current(same), *rows]
        write_json(RESULTS, same | {"runs": every})
        if {row["part"] for row in every} == set(PARTS):
            for path, body in pages(every).items():
                path.write_text(fill(path.read_text(), BEGIN, body))
            draw(every, pictures)


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    what = "Parts of this process."
    flags.DEFINE_list("part", list(PARTS), what, flag_values=values)
    what = "Folder for what was found, of which the figure is drawn."
    flags.DEFINE_string("workdir", "runs/inversion", what, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs what is missing and writes the files."""
    for name in options.part:
        require.one_of("--part", name, PARTS)
    pictures = pathlib.Path(options.workdir)
    same = {
        "command": "python scripts/inversion.py",
        "attack": dataclasses.asdict(reconstruction.Inversion()),
        "model": MODEL,
        **experiment.surroundings(),
    }
    for name in options.part:
        if name not in {row["part"] for row in current(same)}:
            add(same, measure(name, pictures), pictures)
    add(same, [], pictures)


if __name__ == "__main__":
    cli.run(main, define)
