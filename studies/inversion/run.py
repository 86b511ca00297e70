"""Inverts updates on blood cells: which updates reveal an image, and to whom?

    python studies/inversion/run.py

A victim trains a small CNN on one image of configs/pbc_blood28.py, whose data set is a
file that you need to have. All attacks are on the same twenty images and the same first
model. DynamicFL's victims have branches drawn uniformly from all that fit, which is a
larger secret than the branches of the method's own rule. No attack is tuned to a
victim. `parts.py` lists the attacks, `page.py` writes about them. The script writes
results.json after every part; in the end it writes the page, the figure and the
overview's sentence. The same command again continues with the missing parts; it starts
anew after a change of setting or versions. `--part=dynamicfl` runs some of the parts;
two processes share the files.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from fairjax.experiment.io import preemption

    preemption.listen()

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from fairjax.attacks import reconstruction, reconstruction_figures
from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.config import build
from fairjax.experiment.io.workdir import number, write_json
from fairjax.experiment.resume import initial_state
from fairjax.experiment.train import train
from studies import experiment
from studies.experiment import fill
from studies.inversion.page import draw, sentence, table
from studies.inversion.parts import MODEL, PARTS, config_of, secrets, setting

OVERVIEW = pathlib.Path(__file__).resolve().parents[1] / "README.md"

RESULTS = pathlib.Path(__file__).resolve().parent / "results.json"

BEGIN = "<!-- studies/inversion/results.json -->"


def measure(name: str, pictures: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a part; the reconstructed images go to the folder `pictures`."""
    part = PARTS[name]
    config = config_of(part)
    run = build.run(config)
    state = initial_state(run)
    if part.rounds:
        config.rounds = part.rounds
        with experiment.temporary() as folder:
            state = train(config, f"{folder}/run").state
    settings = reconstruction.Inversion(**part.settings)
    results = reconstruction.invert(
        run, state, settings, memories=secrets(run, state, settings.images)
    )
    rows = []
    for (tier, level), result in results.items():
        victim_scores = reconstruction_figures.scores(run, settings, result)
        rows.append(
            {
                "part": name,
                "setting": setting(part),
                "tier": tier,
                "level": level,
                "epsilon": number(run.guarantee.epsilon(1)),
                **reconstruction_figures.evaluate(run, settings, result),
                "victims": {
                    n: np.round(v, 4).tolist() for n, v in victim_scores.items()
                },
            }
        )
    pictures.mkdir(parents=True, exist_ok=True)
    strips = {
        f"{tier} {level}": result.images[:, 0]
        for (tier, level), result in results.items()
    }
    true = next(iter(results.values())).true[:, 0]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, original=true, **strips)
    (pictures / f"{name}.npz").write_bytes(buffer.getvalue())
    return rows


def current_rows(setup: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the results file whose parts have not changed since."""
    rows = experiment.load_runs(RESULTS, setup) or []
    settings = {name: setting(part) for name, part in PARTS.items()}
    return [row for row in rows if row["setting"] == settings.get(row["part"])]


def pages(rows: Sequence[dict[str, Any]]) -> dict[pathlib.Path, str]:
    """Page -> its text; the overview has only the sentence."""
    return {
        RESULTS.parent / "README.md": table(rows),
        OVERVIEW: sentence(rows),
    }


def add(
    setup: dict[str, Any], rows: Sequence[dict[str, Any]], pictures: pathlib.Path
) -> None:
    """Adds rows to the results file, and writes pages and figure once all have run."""
    with experiment.locked(RESULTS.parent):
        all_rows = [*current_rows(setup), *rows]
        write_json(RESULTS, setup | {"runs": all_rows})
        if {row["part"] for row in all_rows} == set(PARTS):
            for path, body in pages(all_rows).items():
                path.write_text(fill(path.read_text(), BEGIN, body))
            draw(all_rows, pictures)


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flags of this script."""
    description = "Parts that this process runs."
    flags.DEFINE_list("part", list(PARTS), description, flag_values=values)
    description = "Folder for the reconstructed images, from which the figure is drawn."
    flags.DEFINE_string("workdir", "runs/inversion", description, flag_values=values)


def main(options: flags.FlagValues) -> None:
    """Runs the missing parts and writes the files."""
    for name in options.part:
        require.one_of("--part", name, PARTS)
    pictures = pathlib.Path(options.workdir)
    setup = {
        "command": "python studies/inversion/run.py",
        "attack": dataclasses.asdict(reconstruction.Inversion()),
        "model": MODEL,
        **experiment.surroundings(),
    }
    for name in options.part:
        if name not in {row["part"] for row in current_rows(setup)}:
            add(setup, measure(name, pictures), pictures)
    add(setup, [], pictures)


if __name__ == "__main__":
    cli.run(main, define)
