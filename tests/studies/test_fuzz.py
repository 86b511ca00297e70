"""studies/fuzz/run.py: a sample of it, what it calls a defect, and what was found."""

import json
import pathlib

import numpy as np
import pytest

from configs import default
from fairjax.core import require
from fairjax.experiment.config import conversion
from studies.experiment import fill
from studies.fuzz import inputs as fuzz_inputs
from studies.fuzz import run as fuzz
from tests.workdirs import fake_final, fake_run

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The files of a run, made up."""
    names, config = ["a", "b", "c"], conversion.to_plain(default.get_config())
    workdir = tmp_path_factory.mktemp("fuzz") / "run"
    final = fake_final(names, (3, 2))
    fake_run(workdir, names, final=final, config=config | {"rounds": 3})
    return {path.name: path.read_bytes() for path in sorted(workdir.glob("*.json*"))}


def test_broken_input_is_accepted_or_refused(content, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows, defects = fuzz.counts(content, 500, seed=1234)
    assert defects == []
    assert [row["accepted"] + row["refused"] for row in rows] == 5 * [100]
    # What only ever breaks at the door does not come to the rooms behind it.
    assert all(min(row["accepted"], row["refused"]) >= 5 for row in rows)


def test_a_number_makes_its_input_again(content, tmp_path):
    for name, kind in fuzz.kinds(content).items():
        made = []
        for folder in (tmp_path / f"{name}0", tmp_path / f"{name}1"):
            folder.mkdir()
            attempt = kind.make(np.random.default_rng([0, 7]), folder)
            found = {
                str(path.relative_to(folder)): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file()
            }
            flags = [flag for flag in attempt.argv if "workdir" not in flag]
            made.append((found, flags))
        assert made[0] == made[1]


def fails(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (fails(KeyError("x")), "KeyError: 'x'"),
        (lambda _: print("said"), r"exit code 0 and \('said\\n', ''\)"),
        (fails(SystemExit(1)), "exit code 1"),
        (fails(SystemExit(2)), r"exit code 2 and \('', ''\)"),
    ],
    ids=["traceback", "output", "code", "no line"],
)
def test_what_is_neither_is_a_defect(main, words):
    with pytest.raises(fuzz.Defect, match=words):
        fuzz.outcome(lambda *_: fuzz_inputs.Attempt(main), np.random.default_rng(0))


def test_what_is_written_is_a_defect():
    def make(_, folder):
        def main(_):
            (folder / "made").write_text("half")
            require.fail("a", "b", "c")

        return fuzz_inputs.Attempt(main)

    with pytest.raises(fuzz.Defect, match="something was written"):
        fuzz.outcome(make, np.random.default_rng(0))


def test_the_results_are_ten_thousand_inputs_without_a_defect(content):
    made = json.loads(fuzz.RESULTS.read_text())
    page = (fuzz.RESULTS.parent / "README.md").read_text()
    assert fill(page, fuzz.BEGIN, fuzz.table(made)) == page
    rows = {row["kind"]: row for row in made["runs"]}
    assert rows.keys() == fuzz.kinds(content).keys()
    counted = [sum(row[c] for c in ("accepted", "refused")) for row in rows.values()]
    assert sum(counted) >= 10_000
    assert not any(row["defect"] for row in rows.values())
