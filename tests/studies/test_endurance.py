"""The endurance: what is counted, and that the page says what came out."""

import json

from studies.endurance import run as endurance

PAGE = endurance.RESULTS.parent / "README.md"


def test_what_a_kill_left_is_counted(tmp_path):
    for name in ("8", "9", "10.orbax-checkpoint-tmp", "invalid-9"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n' * 11 + '{"rou')
    assert endurance.leftovers(tmp_path) == {"half a step": 1, "rounds again": 2}


def test_memory_counts_once_it_has_settled():
    counted = [
        {"round": number, "megabytes": megabytes}
        for number, megabytes in (
            (100, 900.0),
            (200, 700.0),
            (300, 714.0),
            (400, 707.0),
        )
    ]
    assert endurance.growth(counted, "megabytes") == (700.0, 714.0)


def test_nothing_is_lost_and_nothing_grows():
    results = json.loads(endurance.RESULTS.read_text())
    killed, soak = results["killed"], results["soak"]
    assert len(killed["lives"]) == 30
    assert {life["phase"] for life in killed["lives"]} == {*endurance.PHASES}
    assert len(killed["same"]) == 4
    assert all(killed["same"].values())
    assert soak["counted"][-1]["round"] == soak["rounds"] == 2000
    was, most = endurance.growth(soak["counted"], "megabytes")
    assert most < 1.02 * was
    # A save in hand holds five files: a count is taken with or without them.
    half = len(soak["counted"]) // 2
    for name in ("threads", "files"):
        counts = [counted[name] for counted in soak["counted"]]
        assert max(counts[half:]) <= max(counts[:half]), name


def test_the_page_says_what_came_out():
    results = json.loads(endurance.RESULTS.read_text())
    said = f"{endurance.BEGIN}\n\n{endurance.summary_text(results)}\n"
    assert said in PAGE.read_text()
