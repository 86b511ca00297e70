"""scripts/bench.py: figures are whole, and the page is made from them."""

from types import SimpleNamespace

import pytest

from benchmarks import branches
from fairjax.core import require
from scripts import bench


def test_all_but_those_of_an_accelerator_were_measured():
    measured = {name for name in bench.BENCHMARKS if bench.file(name).exists()}
    assert bench.BENCHMARKS.keys() - measured == {"gpu"}


@pytest.mark.parametrize("name", sorted(bench.BENCHMARKS.keys() - {"gpu"}))
def test_the_page_says_what_was_measured(name):
    page = (bench.FOLDER / "README.md").read_text()
    made = bench.read_results(name)
    assert bench.page_with_table(page, name, made) == page
    for each in made if name in bench.ROWS else [made]:
        assert each["command"] == f"python scripts/bench.py --name={name}"


def test_every_form_of_every_model_was_timed():
    made = bench.read_results("branches")
    assert (made["turns"], made["steps"]) == (branches.TURNS, branches.STEPS)
    for name, case in branches.CASES.items():
        assert tuple(made["client_step"][name]) == case.forms
        assert (name in made["convolutions"]) == bool(case.convolutions)


def test_a_ratio_is_taken_inside_a_turn():
    """A machine that halves its speed midway moves no ratio."""
    made = branches.relative_times({"plain": [1, 2, 2], "other": [3, 6, 8]}, 2)
    assert made["plain"] == {"seconds": 1, "ratio": 1, "lowest": 1, "highest": 1}
    assert made["other"] == {"seconds": 3, "ratio": 3, "lowest": 3, "highest": 4}


def test_runs_take_turns(monkeypatch):
    monkeypatch.setattr(branches, "TURNS", 2)
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = branches.time_turns(runs)
    assert "".join(order) == "ababab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}


def test_an_unknown_name_is_refused():
    with pytest.raises(require.InputError, match=r'Did you mean "branches"'):
        bench.main(SimpleNamespace(name="branch"))
