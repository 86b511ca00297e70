"""Every door refuses old names of fields, groups and values, and says the new one."""

import importlib.util
import json
import pathlib

import pytest

from configs import default
from configs.paper import setting
from fairjax.core import require
from fairjax.experiment import cli, resume, sweep
from fairjax.experiment.config import conversion, renames
from scripts import train

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = "configs/breast_cancer.py:smoke"
FIELDS = {old: new for old, new in renames.RENAMED.items() if "=" not in old}
VALUES = {
    tuple(old.split("=")): new
    for old, new in renames.RENAMED.items()
    if "=" in old and not old.startswith("preset=")
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def exit_line(name, capsys, *flags):
    """The one line with which a script refuses; its exit code is 2."""
    path = ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as stop:
        cli.run(module.main, module.define, [f"scripts/{name}.py", *flags])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def paths_of(config):
    """Fields and groups of a config, as dotted paths."""
    fields = cli.fields_of(config)
    groups = {path.rsplit(".", n)[0] for path in fields for n in (1, 2)}
    return {*fields, *groups}


def test_the_table_leads_from_names_that_are_gone_to_names_that_are_there():
    paths = paths_of(default.get_config())
    assert paths.isdisjoint(FIELDS)
    assert paths >= {*FIELDS.values()}
    for path, old in VALUES:
        assert path in paths
        assert old != renames.RENAMED[f"{path}={old}"]
    assert "ladder" not in setting.presets("bloodmnist/224")
    assert renames.RENAMED["preset=ladder"] in setting.presets("bloodmnist/224")


@pytest.mark.parametrize("old", FIELDS)
def test_a_field_on_the_command_line(capsys, tmp_path, old):
    path = f"{old}.kinds" if old == "submodel.ladder" else old
    new = path.replace(old, FIELDS[old])
    workdir = tmp_path / "run"
    flags = [f"--config={CONFIG}", f"--workdir={workdir}", f"--config.{path}=3"]
    line = exit_line("train", capsys, *flags)
    assert f"--config.{path}: expected {new}, its new name; got {path!r}" in line
    assert not workdir.exists()


@pytest.mark.parametrize(("path", "old"), VALUES)
def test_a_value_on_the_command_line(capsys, tmp_path, path, old):
    flags = [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}"]
    line = exit_line("train", capsys, *flags, f"--config.{path}={old}")
    new = VALUES[path, old]
    assert f"{path}: expected {new}, its new name; got {old!r}" in line


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"robust.fold": "median"}, "expected robust.aggregator, its new name"),
        ({"submodel.name": "ladder"}, "submodel.name: expected mixed, its new name"),
    ],
)
def test_a_sweep_refuses_them_in_its_grid_and_in_its_list(
    capsys, tmp_path, fields, expected
):
    base, workdir = [f"--config={CONFIG}"], tmp_path / "runs"
    with pytest.raises(require.InputError, match=expected):
        sweep.points(train.define, base, [fields], workdir)
    ((field, value),) = fields.items()
    settings = tmp_path / "list.jsonl"
    settings.write_text(json.dumps(fields))
    for flag in (f"--grid={field}={value}", f"--list={settings}"):
        line = exit_line("sweep", capsys, *base, f"--workdir={workdir}", flag)
        assert expected in line
    assert not workdir.exists()


def old_config():
    """The config of a run of an older version, as its config.json holds it."""
    plain = conversion.to_plain(default.get_config())
    plain["cohort"] = plain.pop("clients_per_round")
    plain["submodel"]["ladder"] = plain["submodel"].pop("mixed")
    return plain


def test_the_config_of_an_older_run(capsys, tmp_path):
    """It is refused when the run is loaded, continued, reported and compared."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old_config()))
    with pytest.raises(require.InputError, match=r"^submodel\.ladder\.blocks: "):
        conversion.from_plain(old_config())
    with pytest.raises(require.InputError) as refused:
        resume.load(tmp_path)
    assert str(refused.value).startswith(f"{path}: submodel.ladder.blocks: expected")
    before = sorted(tmp_path.rglob("*"))
    flags = ["--config=configs/default.py", f"--workdir={tmp_path}"]
    line = exit_line("train", capsys, *flags)
    assert (
        f"{path}: submodel.ladder.blocks: expected submodel.mixed.blocks, its" in line
    )
    for script in ("report", "tabulate"):
        for folder in (tmp_path, tmp_path.parent):
            line = exit_line(script, capsys, f"--workdir={folder}")
            assert f"{path}: submodel.ladder.blocks: expected" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "new"),
    [("c.submodel.ladder.kinds = ()", "submodel.mixed"), ("c.cohort // 2", "clients")],
)
def test_a_config_file_that_reads_an_old_name(line, new, capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import default\n\n\ndef get_config():\n"
        f"    c = default.get_config()\n    {line}\n    return c\n"
    )
    flags = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    assert f"--config: expected {new}" in exit_line("train", capsys, *flags)
    assert not (tmp_path / "run").exists()


def test_a_value_in_the_config_of_an_older_run():
    plain = conversion.to_plain(default.get_config())
    plain["submodel"]["name"] = "ladder"
    with pytest.raises(require.InputError, match=r"^run: submodel\.name: expected"):
        conversion.from_plain(plain, "run: ")


def test_a_field_that_a_config_file_sets(capsys, tmp_path):
    """ConfigDict takes any field until it is locked; an old one would do nothing."""
    path = tmp_path / "mine.py"
    lines = ["c = default.get_config()", "c.cohort = 3", "return c"]
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(f"from configs import default\n\n\ndef get_config():\n{body}")
    flags = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    line = exit_line("train", capsys, *flags)
    assert "train.py: cohort: expected clients_per_round, its new name" in line


def test_a_preset_with_an_old_field_value_or_name():
    def refusal(name, **presets):
        with pytest.raises(require.InputError) as refused:
            default.preset(default.get_config(), name, **presets)
        return str(refused.value)

    assert refusal("mine", mine={"tiers.share": (1.0,)}) == (
        "preset mine: tiers.share: expected tiers.proportions, its new name; got "
        "'tiers.share'"
    )
    assert refusal("mine", mine={"submodel.name": "ladder"}) == (
        "preset mine: submodel.name: expected mixed, its new name; got 'ladder'"
    )
    assert refusal("ladder", **setting.presets("bloodmnist/224")) == (
        "preset of --config: expected mixed, its new name; got 'ladder'"
    )
    # No config but the paper's has a preset of the new name.
    assert "expected one of smoke; got 'ladder'" in refusal("ladder")
    own = {"ladder": {"rounds": 7}}
    assert default.preset(default.get_config(), "ladder", **own).rounds == 7


def test_names_that_only_begin_alike_pass():
    fields = {"cohorts": 1, "robust.folds": 2, "submodel.name": "mixed"}
    renames.refuse(fields)
