import io
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import rich.console

from fairjax import report
from fairjax.core import require
from fairjax.report import canvas, clients_section, formats
from fairjax.report.formats import MISSING
from tests.outline import Outline
from tests.workdirs import fake_final, fake_run

pytestmark = pytest.mark.usefixtures("drawn")

NAMES = ["<b>x</b>", "Cost $a$ & $b^$", "Été", "VA"]


def interval(value, low, high):
    return f"{value} ({low}\N{EN DASH}{high})"


SECTIONS = [
    "learning",
    "final",
    "hospitals",
    "groups",
    "calibration",
    "weights",
    "tiers",
    "privacy",
    "principles",
    "data",
    "unknown",
    "configuration",
    "provenance",
]
MANY = [f"hospital {i}" for i in range(300)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    fake_run(workdir, NAMES, final=fake_final(NAMES, (3, 2)))
    assert report.write(workdir) == workdir / "report.html"
    return workdir


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "large"
    fake_run(workdir, MANY, tiers=3, final=fake_final(MANY, (3, 3)))
    report.write(workdir)
    return workdir


@pytest.fixture(scope="module")
def outline(small):
    return Outline(small / "report.html")


@pytest.fixture(scope="module", params=["small", "large"])
def page_of_any_size(request):
    return request.getfixturevalue(request.param) / "report.html"


def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def test_a_page_of_any_size_is_whole(page_of_any_size, tmp_path):
    outline = Outline(page_of_any_size)
    ids = outline.values("id")
    assert ids == SECTIONS
    links = [attrs["href"] for tag, attrs in outline.tags if tag == "a"]
    assert links == [f"#{key}" for key in SECTIONS]
    images = [attrs for tag, attrs in outline.tags if tag == "img"]
    assert all(len(image["alt"]) > 20 for image in images)
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in outline.tags}
    style = page_of_any_size.read_text().partition("<style>")[2].partition("</style")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert page_of_any_size.stat().st_size < 2_000_000
    if browser():
        # A page without a script has nothing to say on the console but what is wrong.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        flags += [f"--user-data-dir={tmp_path}"]
        shown = subprocess.run(
            [browser(), *flags, "--enable-logging=stderr", page_of_any_size.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert "CONSOLE" not in shown.stderr
        assert shown.stdout.count("<section") == len(SECTIONS)


def test_an_older_run_has_a_page_without_what_it_lacks(tmp_path):
    workdir = fake_run(tmp_path / "old", NAMES)
    outline = Outline(report.write(workdir))
    lacking = {"final", "groups", "calibration", "unknown"}
    assert outline.values("id") == [key for key in SECTIONS if key not in lacking]
    assert outline.count("img") == 13


def test_a_model_whose_answers_are_no_numbers_has_a_page(tmp_path):
    final = fake_final(NAMES, (3, 2))
    for row in final["last"]["calibration"] + final["selected"]["calibration"]:
        row["predicted"] = None
    workdir = fake_run(tmp_path / "lost", NAMES, final=final)
    assert "calibration" not in Outline(report.write(workdir)).values("id")


def test_every_section_has_its_content(outline):
    assert outline.count("details") == 1
    assert "by each hospital's own training records" in outline.text
    assert "abc123" in outline.cells
    assert "unfinished" not in outline.text


def test_every_figure_is_a_file_with_a_text_in_its_stead(small, outline):
    files = sorted(path.name for path in (small / "figures").iterdir())
    assert outline.count("img") == len(files) == 15
    for name in files:
        content = (small / "figures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000


def test_unknown_values_are_dashes(outline):
    assert outline.cells.count(MISSING) >= 2 * len(NAMES) + 2
    assert "None" not in outline.text
    assert "nan" not in outline.cells
    # The hospital without an accuracy comes last and is never the worst.
    first = outline.cells.index("hospital") + 9
    assert [outline.cells[first + 9 * i] for i in range(4)] == [*NAMES[1:], NAMES[0]]


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
    minus = "\N{MINUS SIGN}"
    assert report.headline(small) == (
        "accuracy 70.0%, AUROC 0.800, loss 0.600, worst hospital 50.0% (Cost $a$ & "
        f"$b^$, 10 test records, 62.5% to 81.2%), tier gap {minus}2.1 pp (20 and 21 "
        f"test records, {minus}18.8 pp to +0.0 pp), rounds 3, rounds/s 12.3"
    )
    assert report.cautions(small) == []


def test_a_hospital_with_few_test_records_is_marked_and_no_headline(tmp_path):
    names = ["[red]", "tiny", "B", "C"]  # the first one has no accuracy
    few = {"n": [30, 1, 40, 50], "config": {"min_test_records": 10}}
    workdir = fake_run(tmp_path / "run", names, rounds=2, summary=False, **few)
    headline = report.headline(workdir)
    assert "worst hospital 50.0% (B, 40 test records)" in headline
    said = "Fewer than 10 test records, so never called the worst: tiny (1)."
    assert report.cautions(workdir) == [said]
    outline = Outline(report.write(workdir))
    assert said in outline.text
    assert "hospital with fewer than 10 test records: it may lie anywhere" in (
        outline.text
    )
    cells = outline.cells
    start = cells.index("test records") - 2
    width = cells.index("loss", start) - start + 1
    rows = [cells[start + width * i : start + width * i + 3] for i in range(1, 5)]
    mark = formats.SMALL_MARK
    assert rows == [
        ["B", "0", "40"],
        ["C", "1", "50"],
        ["tiny", "1", f"1 {mark}"],
        ["[red]", "0", "30"],
    ]
    table = report.table(fake_run(tmp_path / "all", names, **few | {"n": 2}))
    assert [*table.columns[0].cells] == [f"0{mark}", f"1{mark}"]


def test_where_nobody_has_enough_test_records_nobody_is_the_worst(tmp_path):
    few = {"n": 4, "config": {"min_test_records": 10}}
    workdir = fake_run(tmp_path / "run", NAMES, summary=False, **few)
    assert "(no hospital has 10 test records)" in report.headline(workdir)
    assert report.cautions(workdir)[1].endswith("so in no gap: tier 0, 1.")
    report.write(workdir)


@pytest.mark.parametrize("low", [0.0, 0.3, 0.97, 0.99])
@pytest.mark.parametrize("record", [0.0, 1 / 143, 1 / 18, 1 / 3])
def test_no_axis_makes_one_record_look_like_a_trend(low, record):
    """Wherever the values are, also at the ends of what is possible."""
    high = min(low + record, 1)
    bottom, top = canvas.axis_limits(low, high, canvas.ACCURACY, record)
    height = top - bottom
    assert height >= 100 * min(max(0.1, canvas.MIN_STEPS * record), 1)
    assert bottom <= 100 * low
    assert 100 * high <= top
    assert -0.04 * height <= bottom
    assert top <= 100 + 0.04 * height


def test_an_axis_shows_values_that_lie_far_apart():
    loss = canvas.ACCURACY._replace(scale=1, maximum=math.inf)
    bottom, top = canvas.axis_limits(0.1, 7.0, loss)
    assert bottom <= 0.1
    assert 7 <= top < 8
    assert bottom > -0.5


def test_what_one_record_moves(tmp_path):
    workdir = fake_run(tmp_path / "run", NAMES, summary=False, n=[40, 3, 20, 12])
    run = report.read_run(workdir)
    assert run.resolution == (1 / 75, 1 / 3, 1 / (2 * 3))
    config = {"min_test_records": 10}
    workdir = fake_run(
        tmp_path / "b", NAMES, summary=False, n=[40, 3, 20, 12], config=config
    )
    assert report.read_run(workdir).resolution.client == 1 / 12


def test_table_has_one_row_per_tier_and_fits_a_terminal(small):
    table = report.table(small)
    assert table.row_count == 2
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    row = next(line for line in text.split("\n") if "24,690" in line)
    assert row.split() == [*"112", "24,690", "1.5", "kB", "70.0%", "60.0%", MISSING]


def test_last_and_selected_round_are_named_apart(outline):
    """Values of the fixture: 0.75 at the last round, 0.8125 at the selected one."""

    def row(name, after, length):
        at = outline.cells.index(name, outline.cells.index(after))
        return outline.cells[at + 1 : at + length]

    assert row("figure", "figure", 3) == ["last round, 3", "selected round, 2"]
    assert row("AUROC", "figure", 3) == [
        interval("0.750", "0.625", "0.812"),
        interval("0.812", "0.688", "0.875"),
    ]
    assert row("balanced accuracy", "figure", 3) == [MISSING, MISSING]
    assert row("threshold", "figure", 3) == ["0.375", "0.375"]
    whose = f"{interval('0.750', '0.625', '0.812')}, {NAMES[1]}, 18 records"
    assert row("AUROC", "standard deviation", 4) == ["0.750", "0.750", whose]
    assert f"at least 10 test records, that is without {NAMES[0]} (3)" in outline.text
    assert outline.text.count('calibration are of the class "ill"') >= 5
    assert 'predicted probability of the class "ill"' in outline.text
    assert "Over hospitals, selected round, 2" in outline.text
    assert row("old", "group", 4) == ["40", "12", interval("0.750", "0.625", "0.812")]
    assert row("young", "group", 4) == ["4", "0", MISSING]
    gaps = [
        interval("0.250", "0.125", "0.312"),
        MISSING,
        interval("0.500", "0.375", "0.562"),
    ]
    assert row("age_group", "attribute", 4) == gaps
    assert row("1, full", "tier", 3) == ["20", "0.750"]
    assert row("1, own", "tier", 3) == ["20", "0.688"]
    assert row("one class only", "reason", 3) == ["3", "3"]


def test_last_and_selected_round_may_be_one(large):
    outline = Outline(large / "report.html")
    at = outline.cells.index("figure")
    assert outline.cells[at + 1 : at + 3] == ["last and selected round, 3", "AUROC"]


def test_final_figures_of_a_shorter_past_are_not_shown(tmp_path):
    final = fake_final(NAMES, (3, None))
    workdir = fake_run(tmp_path / "longer", NAMES, planned=6, final=final)
    assert "last round" not in report.write(workdir).read_text()


def test_together_or_alone(tmp_path):
    made = {
        "mean": {"full": {"accuracy": 0.75}, "alone": {"accuracy": 0.5}},
        "worse_off": {"full": {"accuracy": 0.25}},
    }
    workdir = fake_run(tmp_path / "run", NAMES, baselines=made)
    outline = Outline(report.write(workdir))
    at = outline.cells.index("model")
    assert outline.cells[at + 1 : at + 3] == ["accuracy", "accuracy: worse off"]
    assert outline.cells[at + 3 : at + 6] == [
        "the model at the server",
        "0.750",
        "25.0%",
    ]
    assert outline.cells[at + 7 : at + 9] == ["0.500", "–"]  # noqa: RUF001
    bare = fake_run(tmp_path / "bare", NAMES)
    assert "Together or alone" not in report.write(bare).read_text()


def test_what_every_hospital_holds(outline, large):
    head = ["tier", "train", "val", "test", "healthy", "ill"]
    head += ["age_group: old", "age_group: young"]
    at = outline.cells.index("healthy") - 4
    assert outline.cells[at : at + 8] == head
    assert outline.cells[at + 8 : at + 17] == [NAMES[0], *"08139350"]
    # Where there are many, the table is folded away and a figure shows their sizes.
    assert Outline(large / "report.html").count("details") == 2
    assert not (large / "figures" / "records.png").exists()
    assert (large / "figures" / "sizes.png").exists()


def test_many_hospitals_are_summarised(large):
    outline = Outline(large / "report.html")
    head, gap = 1, 1
    assert (
        outline.rows["hospitals"]
        == clients_section.WORST + clients_section.BEST + head + gap
    )
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
    with pytest.raises(require.InputError, match=r"config\.json"):
        report.headline(tmp_path)


def test_broken_file_is_named_with_its_line(tmp_path):
    workdir = fake_run(tmp_path / "run", NAMES)
    (workdir / "metrics.jsonl").write_text('{"round": 1}\n{"round"\n')
    with pytest.raises(require.InputError, match=r"metrics\.jsonl:2: expected JSON"):
        report.headline(workdir)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "[1]", "config.json: expected a JSON object; got 'list'"),
        ("config.json", '{"data": 3}', "expected the files of a run; got Attribute"),
        ("summary.json", "\xff", "summary.json: expected JSON"),
        ("summary.json", '{"metrics": []}', "expected the files of a run; got Attribu"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl:1: expected a whole number as"),
        ("clients.jsonl", '{"round": 1}\n', "expected the files of a run; got KeyErr"),
        ("attack.json", "{}", "attack.json: expected a JSON list"),
    ],
)
def test_files_of_another_kind_are_one_line_and_no_page(tmp_path, name, text, words):
    workdir = fake_run(tmp_path / "run", NAMES, rounds=1)
    (workdir / name).write_text(text, encoding="latin-1")
    with pytest.raises(require.InputError, match=re.escape(words)):
        report.write(workdir)
    assert not (workdir / "report.html").exists()


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_their_distance_and_order(seed):
    rng = np.random.default_rng(seed)
    heights = rng.beta(0.3, 0.3, size=rng.integers(1, 9)).tolist()
    moved = canvas.label_heights(heights, 0.1)
    order = np.argsort(heights, kind="stable")
    steps = np.diff(np.asarray(moved)[order])
    assert np.all(steps > 0.1 - 1e-9)
    assert min(moved) >= 0
    assert max(moved) <= 1 + 1e-9


def test_labels_with_room_stay():
    np.testing.assert_allclose(
        canvas.label_heights([0.9, 0.1, 0.5], 0.1), [0.9, 0.1, 0.5]
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.percent(0.8421), "84.2%"),
        (formats.points(-0.0213), "\N{MINUS SIGN}2.1 pp"),
        (formats.points(0.0), "+0.0 pp"),
        (formats.points(-0.0004), "+0.0 pp"),
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
