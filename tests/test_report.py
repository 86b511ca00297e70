import html.parser
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import rich.console

from fairjax import checks, report
from fairjax.report import figures, formats, page
from fairjax.report.formats import MISSING

VOID = {"meta", "img", "br", "hr", "link", "input"}
NAMES = ["<b>x</b>", "Cost $a$ & $b^$", "Été", "VA"]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def fake_principles(tiers: int) -> dict:
    """One of each kind of value, and unknown ones where there may be some."""
    known = [0.5] * tiers
    costs = ("parameters", "flops_train", "activation_floats")
    within = dict.fromkeys(costs, [True] * (tiers - 1) + [False])
    names = ("std", "worst", "worst10", "jain", "entropy", "tier_range")
    return {
        "opportunity": {
            "participation": known,
            "hospitals": [None] * tiers,
            "budget": [0.25] * tiers,
            "cost": dict.fromkeys(costs, [0.125] * (tiers - 1) + [0.375]),
            "within": within,
        },
        "contribution": dict.fromkeys(
            ("weight", "effective_weight", "coverage"), [1 / tiers] * tiers
        ),
        "shared_fruits": {
            "identical": [False] * (tiers - 1) + [True],
            "hospitals": 0.625,
            "sha256": "0123456789abcdef" * 4,
        },
        "equal_accuracy": dict.fromkeys(names, 0.1875) | {"tier_range": None},
        "sustainability": {
            "bytes_down": [1500] * tiers,
            "bytes_up": [1500] * tiers,
            "flops_train": [2_000_000] * tiers,
            "rounds_to_95_percent": 1234,
        },
    }


def fake_run(
    workdir: pathlib.Path,
    names: list[str],
    *,
    tiers: int = 2,
    rounds: int = 3,
    planned: int | None = None,
    auroc: bool = True,
    summary: bool = True,
) -> pathlib.Path:
    """Writes the files of a run whose even rounds (and the last) are evaluated."""
    workdir.mkdir()
    clients = len(names)
    tier = np.arange(clients) % tiers
    accuracy = np.linspace(0.5, 0.9, clients)
    metrics, of_clients = [], []
    for r in range(1, rounds + 1):
        row = {"round": r, "train/loss": 1 / r}
        evaluation = {
            "eval/accuracy": 0.7,
            "eval/loss": 0.6,
            "eval/auroc": 0.8 if auroc else None,
            "eval/accuracy/client_mean": float(accuracy.mean()),
            "eval/accuracy/client_std": float(accuracy.std()),
            "eval/accuracy/client_worst": float(accuracy.min()),
            "eval/accuracy/client_worst10": 0.55,
            "eval/accuracy/tier_gap": -0.021,
            "fairness/jain": 0.987,
        }
        for t in range(tiers):
            evaluation |= {
                f"eval/accuracy/tier_{t}": 0.6 + 0.1 * t,
                f"eval/accuracy/tier_{t}/own": 0.5 + 0.1 * t,
                f"eval/accuracy/submodel_{t}": None,
            }
            row[f"fairness/weight_tier_{t}"] = 1 / tiers
        evaluated = r % 2 == 0 or r == rounds
        row |= evaluation if evaluated else dict.fromkeys(evaluation)
        metrics.append(row | {"cohort/valid": clients, "time/round_s": 0.1})
        if evaluated:
            of_clients += [
                {
                    "round": r,
                    "client": name,
                    "tier": int(tier[i]),
                    "n": 10,
                    "weight": None if i == 1 else 1 / clients,
                    "loss": 0.5,
                    "accuracy": float(accuracy[i]) if i else None,
                    "auroc": None,
                    "own_accuracy": None,
                }
                for i, name in enumerate(names)
            ]
    config = {
        "rounds": planned or rounds,
        "data": {"name": "toy", "path": None},
        "submodel": {"name": "heterofl"},
        "tiers": {"budget": [0.25, 0.5, 1.0][-tiers:], "branches": [0] * tiers},
        "fairness": {"rule": "size"},
    }
    (workdir / "metrics.jsonl").write_text(lines(metrics))
    (workdir / "clients.jsonl").write_text(lines(of_clients))
    (workdir / "config.json").write_text(json.dumps(config))
    command = "train.py --x='<script>alert(1)</script>'"
    (workdir / "provenance.json").write_text(json.dumps({"command": command}))
    if summary:
        end = {
            "metrics": metrics[-1],
            "tiers": [
                {
                    "tier": t,
                    "budget": 0.5 * (t + 1),
                    "branches": 0,
                    "clients": int((tier == t).sum()),
                    "parameters": 12345 * (t + 1),
                    "flops_forward": None,
                    "flops_train": None,
                    "activation_floats": None,
                    "bytes_down": 1000,
                    "bytes_up": 500,
                }
                for t in range(tiers)
            ],
            "privacy": {"mechanism": "none", "epsilon": None},
            "principles": fake_principles(tiers),
            "data": {
                "name": "toy",
                "rows": {"train": 30, "val": 3, "test": 9},
                "hash": "abc123",
                "normalise": "client",
                "partition": "natural",
                "clients": clients,
                "classes": 2,
                "source": "https://example.org/toy",
                "notes": ["Made of <nothing>."],
            },
            "time": {"compile_s": 1.0, "rounds_per_s": 12.34},
        }
        (workdir / "summary.json").write_text(json.dumps(end))
    return workdir


class Outline(html.parser.HTMLParser):
    """What the tests ask of a page; fails on unbalanced tags while it reads."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.rows: dict[str, int] = {}
        self.section = ""
        self.text = ""
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "tr":
            self.rows[self.section] = self.rows.get(self.section, 0) + 1
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def values(self, attribute):
        return [attrs[attribute] for _, attrs in self.tags if attribute in attrs]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    workdir = fake_run(tmp_path_factory.mktemp("runs") / "small", NAMES)
    assert report.write(workdir) == workdir / "report.html"
    return workdir


@pytest.fixture(scope="module")
def outline(small):
    return Outline(small / "report.html")


def test_every_section_is_there(outline):
    sections = [attrs["id"] for tag, attrs in outline.tags if tag == "section"]
    assert sections == [
        "learning",
        "tiers",
        "hospitals",
        "privacy",
        "principles",
        "data",
        "configuration",
        "provenance",
    ]
    assert outline.count("table") >= 3
    assert outline.count("details") == 1
    assert "by each hospital's own training records" in outline.text
    assert "abc123" in outline.cells
    assert "unfinished" not in outline.text


def test_page_needs_no_network(outline):
    assert outline.count("script") == outline.count("link") == 0
    links = outline.values("src") + outline.values("href")
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)


def test_every_figure_is_a_file_with_a_text_in_its_stead(small, outline):
    images = [attrs for tag, attrs in outline.tags if tag == "img"]
    files = sorted(path.name for path in (small / "figures").iterdir())
    assert len(images) == len(files) == 9
    assert all(len(image["alt"]) > 20 for image in images)
    for name in files:
        content = (small / "figures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000


def test_unknown_values_are_dashes(outline):
    assert outline.cells.count(MISSING) >= 2 * len(NAMES) + 2
    assert "None" not in outline.text
    assert "nan" not in outline.cells
    # The hospital without an accuracy comes last and is never the worst.
    first = outline.cells.index("hospital") + 8
    assert [outline.cells[first + 8 * i] for i in range(4)] == [*NAMES[1:], NAMES[0]]


def test_principles_have_a_row_per_figure_and_a_column_per_tier(outline):
    start = outline.cells.index("Equal opportunity")
    head = outline.cells[start - 5 : start]
    assert head == ["measure", "tier 0", "tier 1", "all", "formula"]

    def row(name):
        at = outline.cells.index(name, start)
        return outline.cells[at + 1 : at + 5]

    assert row("participation")[:3] == ["50.0%", "50.0%", ""]
    assert row("hospitals reached")[:3] == [MISSING, MISSING, ""]
    assert row("parameters")[:3] == ["12.5% within", "37.5% over", ""]
    assert row("plain model deployed")[:3] == ["no", "yes", ""]
    assert row("hospitals with it")[:3] == ["", "", "62.5%"]
    assert row("plain model")[2] == "012345…abcdef"
    assert row("entropy")[2] == "0.188"
    assert row("range over tiers")[2] == MISSING
    assert row("bytes down")[:3] == ["1.5 kB", "1.5 kB", ""]
    assert row("rounds to 95 %")[2] == "1,234"
    titles = ("Fair contribution", "Shared fruits", "Equal accuracy", "Sustainability")
    assert all(outline.cells.count(title) == 1 for title in titles)
    assert row("coverage")[3] == "Σ_p m_t[p] / P"
    assert "this project's operational ones" in outline.text


def test_principles_of_a_shorter_past_are_not_shown(tmp_path):
    workdir = fake_run(tmp_path / "longer", NAMES, planned=6)
    assert "Equal opportunity" not in report.write(workdir).read_text()


def test_all_text_is_escaped(small, outline):
    source = (small / "report.html").read_text()
    assert not any(tag in source for tag in ("<b>", "<script", "<nothing>"))
    assert "&lt;b&gt;x&lt;/b&gt;" in source
    assert "<b>x</b>" in outline.cells


def test_headline(small):
    assert report.headline(small) == (
        "accuracy 70.0%, AUROC 0.800, loss 0.600, worst hospital 50.0%, "
        "tier gap \N{MINUS SIGN}2.1 pp, rounds 3, rounds/s 12.3"
    )


def test_table_has_one_row_per_tier_and_fits_a_terminal(small):
    table = report.table(small)
    assert table.row_count == 2
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    row = next(line for line in text.split("\n") if "24,690" in line)
    assert row.split() == [*"112", "24,690", "1.5", "kB", "70.0%", "60.0%", MISSING]


def test_many_hospitals_are_summarised(tmp_path):
    names = [f"hospital {i}" for i in range(300)]
    path = report.write(fake_run(tmp_path / "many", names, tiers=3))
    outline = Outline(path)
    assert path.stat().st_size < 2_000_000
    head, gap = 1, 1
    assert outline.rows["hospitals"] == page.WORST + page.BEST + head + gap
    assert "20 worst and the 5 best of 300" in outline.text
    assert "1 have no estimate" in outline.text
    assert f"… {299 - 25} hospitals in between" in outline.cells


def test_interrupted_run(tmp_path):
    workdir = fake_run(tmp_path / "cut", NAMES, planned=9, auroc=False, summary=False)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "train/lo')
    outline = Outline(report.write(workdir))
    assert "This run is unfinished" in outline.text
    assert "3 of 9 rounds" in outline.text
    assert "AUROC could not be estimated" in outline.text
    headline = report.headline(workdir)
    assert headline.startswith(f"unfinished: accuracy 70.0%, AUROC {MISSING}, loss")
    assert report.table(workdir).row_count == 2


def test_run_without_a_round_yet(tmp_path):
    workdir = fake_run(tmp_path / "new", NAMES, rounds=0, planned=9, summary=False)
    outline = Outline(report.write(workdir))
    assert "No round has been evaluated yet" in outline.text
    assert outline.count("img") == 0


def test_summary_of_a_shorter_past_does_not_finish_a_run(tmp_path):
    workdir = fake_run(tmp_path / "longer", NAMES, planned=6)
    assert f"rounds 3 of 6, rounds/s {MISSING}" in report.headline(workdir)


def test_equal_runs_give_equal_reports(small, tmp_path):
    workdir = tmp_path / "small"
    shutil.copytree(
        small, workdir, ignore=shutil.ignore_patterns("report.html", "figures")
    )
    assert report.write(workdir).read_bytes() == (small / "report.html").read_bytes()


@pytest.mark.parametrize("broken", ["fairjax.report.page.render", "os.replace"])
def test_failure_leaves_the_old_report(tmp_path, monkeypatch, broken):
    workdir = fake_run(tmp_path / "run", NAMES, rounds=0, planned=1, summary=False)
    (workdir / "report.html").write_text("old")
    before = sorted(path.name for path in workdir.iterdir())

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="no"):
        report.write(workdir)
    assert (workdir / "report.html").read_text() == "old"
    after = {path.name for path in workdir.iterdir()} - {"figures"}
    assert sorted(after) == before


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(checks.InputError, match=r"config\.json"):
        report.headline(tmp_path)


def test_broken_file_is_named_with_its_line(tmp_path):
    workdir = fake_run(tmp_path / "run", NAMES)
    (workdir / "metrics.jsonl").write_text('{"round": 1}\n{"round"\n')
    with pytest.raises(checks.InputError, match=r"metrics\.jsonl:2: expected JSON"):
        report.headline(workdir)


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_their_distance_and_order(seed):
    rng = np.random.default_rng(seed)
    heights = rng.beta(0.3, 0.3, size=rng.integers(1, 9)).tolist()
    moved = figures._apart(heights, 0.1)
    order = np.argsort(heights, kind="stable")
    steps = np.diff(np.asarray(moved)[order])
    assert np.all(steps > 0.1 - 1e-9)
    assert min(moved) >= 0
    assert max(moved) <= 1 + 1e-9


def test_labels_with_room_stay():
    np.testing.assert_allclose(figures._apart([0.9, 0.1, 0.5], 0.1), [0.9, 0.1, 0.5])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.percent(0.8421), "84.2%"),
        (formats.points(-0.0213), "\N{MINUS SIGN}2.1 pp"),
        (formats.points(0.0), "+0.0 pp"),
        (formats.si(999), "999"),
        (formats.si(999.6, "B"), "1 kB"),
        (formats.si(1_234_567, "B"), "1.23 MB"),
        (formats.si(0, "B"), "0 B"),
        (formats.count(12345), "12,345"),
        (formats.plain([0.25, 1]), "[0.25, 1]"),
        (formats.plain(False), "false"),
        (formats.shorten("University Hospital North", 11), "Unive…North"),
    ],
)
def test_numbers(shown, expected):
    assert shown == expected


@pytest.mark.parametrize("show", [formats.percent, formats.points, formats.decimal])
def test_unknown_number(show):
    assert show(None) == formats.si(None) == formats.plain(None) == MISSING
