"""Errors of a user: exit code 2, one line that helps, and nothing left behind.

Other ends of a script give one line too, and a code that says whose turn it is.
"""

import errno
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax.core import require
from fairjax.experiment import cli
from fairjax.experiment.io import workdir
from fairjax.experiment.io.preemption import Stopped

ROOT = pathlib.Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a script that must refuse, and returns its one line."""
    monkeypatch.chdir(ROOT)

    def run(*flags, name="train", config="configs/breast_cancer.py", workdir=None):
        workdir = tmp_path / "run" if workdir is None else workdir
        before = sorted(workdir.rglob("*")) if workdir.exists() else None
        argv = [f"scripts/{name}.py", f"--workdir={workdir}"]
        argv += [f"--config={config}"] if config else []
        module = script(name)
        with pytest.raises(SystemExit) as stop:
            cli.run(module.main, module.define, [*argv, *flags])
        assert stop.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"{name}.py: ")
        after = sorted(workdir.rglob("*")) if workdir.exists() else None
        assert after == before
        return err

    return run


def over(**fields):
    return [f"--config.{name.replace('__', '.')}={v}" for name, v in fields.items()]


# --------------------------------------------------------------------- the command line

LINES = {
    "--config.rouns=3": ["--config.rouns: expected a field", 'mean "rounds"'],
    "--config.data.partition.nme=iid": ['mean "data.partition.name"'],
    "--config.tiers=3": ["--config.tiers: expected a field", "tiers."],
    "--config.rounds=many": ["--config.rounds: expected int; got 'many'"],
    "--config.rounds=2.5": ["--config.rounds: expected int; got '2.5'"],
    "--config.local.fedprox_mu=a": [
        "--config.local.fedprox_mu: expected float; got 'a'"
    ],
    "--config.local.steps=a": ["--config.local.steps: expected int; got 'a'"],
    "--config.robust.finite_guard=perhaps": ["finite_guard: expected bool"],
    "--processes=2": ["--distributed: expected True for one of many processes"],
    "--distributed": ["--distributed: expected SLURM, a TPU pod or --coordinator"],
    "--profile=perhaps": ["--profile: expected bool; got 'perhaps'"],
    "--confg=x": ["--confg: expected a flag", 'mean "config"'],
    "stray": ["command line: expected flags only; got 'stray'"],
}


@pytest.mark.parametrize("flag", LINES)
def test_a_flag_that_does_not_fit(refused, flag):
    line = refused(flag)
    assert all(part in line for part in LINES[flag]), line


@pytest.mark.parametrize(
    "value", ["__import__('os').mkdir('{0}')", "(__import__('os').mkdir('{0}'),)"]
)
@pytest.mark.parametrize("field", ["tiers.budget", "rounds", "data.name"])
def test_a_value_is_no_code(refused, tmp_path, field, value):
    refused(f"--config.{field}={value.format(tmp_path / 'made')}")
    assert not (tmp_path / "made").exists()


def test_a_value_that_is_almost_python_warns_of_nothing(refused):
    assert "tiers.budget: expected a number" in refused("--config.tiers.budget=1or 2")


def test_a_refusal_is_short_and_moves_no_cursor(refused, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(f"\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}é,{'b' * 9000}\n1,2\n")
    line = refused(*over(data__name="csv", data__path=path))
    assert len(line) < 2100
    assert "\\x1b[2J\\u202eé" in line


def test_a_preset_that_does_not_exist(refused):
    line = refused(config="configs/breast_cancer.py:smke")
    assert "preset of --config: expected one of smoke; got 'smke'" in line
    assert 'mean "smoke"' in line


def test_a_config_file_that_does_not_exist(refused):
    line = refused(config="configs/breast_cance.py")
    assert "--config: expected a config" in line
    assert "configs/breast_cance.py" in line


def test_a_config_file_that_fails(refused, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import nonesuch\n")
    assert "No module named 'nonesuch'" in refused(config=path)


def test_a_missing_flag(refused):
    assert "--config: expected a value; got none" in refused(config=None)


# --------------------------------------------------------------------------- the config

FIELDS = {
    "seed=-1": "seed: expected a finite number in [0, 2.14748e+09]; got -1",
    "rounds=-1": "rounds: expected a finite number > 0; got -1",
    "rounds=0": "rounds: expected",
    "rounds=2147483648": "rounds: expected a finite number in [-2.14748e+09, 2.147",
    "tiers.changes=((1,0,2147483648),)": "tiers.changes: expected a finite number",
    "fairness.term.t=1e39": "fairness.term.t: expected a finite number in [-3.40282e",
    "local.epochs=99999999": "local.epochs: expected a number with which a round takes",
    "model.mlp.hidden=(999999,999999)": "parameters of model mlp: expected a finite",
    "data.augment=(1,)": "data.augment: expected one of crop, flip; got 1",
    "tiers.budget=(2j,)": "tiers.budget: expected a number; got 2j",
    "clients_per_round=-1": "clients_per_round: expected",
    "clients_per_round=9": "clients_per_round: expected at most the 8 hospitals; got 9",
    "eval_every=0": "eval_every: expected",
    "data.name=nonesuch": "data.name: expected one of breast_cancer, ",
    "data.name=breast_cancr": 'Did you mean "breast_cancer"?',
    "data.group=('sex',0)": "data.group: expected names of csv columns; got 0",
    "data.normalise=global": "data.normalise: expected one of pooled, client, none",
    "data.partition.name=dirichle": 'Did you mean "dirichlet"?',
    "data.partition.name=natural": "data.partition.name: expected iid or dirichlet",
    "data.partition.num_clients=0": "data.partition.num_clients: expected",
    "data.partition.num_clients=570": "data.partition.num_clients: expected at most",
    "data.partition.alpha=nan": "data.partition.alpha: expected a finite number",
    "data.partition.min_size=0": "data.partition.min_size: expected",
    "data.partition.test_fraction=1.0": "expected a finite number in (0, 1); got 1.0",
    "data.partition.val_fraction=0.9": "expected a finite number in [0, 0.75); got 0.9",
    "model.name=mpl": "resmlp, resnet, vit; got 'mpl'. Did you mean",
    "model.name=cnn": "model.name: expected one of mlp, resmlp for a table; got 'cnn'",
    "model.mlp.hidden=(0,)": "model.mlp.hidden: expected a whole number above 0; got 0",
    "model.mlp.hidden=(2.5,)": "model.mlp.hidden: expected a whole number above 0",
    "submodel.name=heterfl": 'Did you mean "heterofl"?',
    "submodel.fedavg.mode=smalest": 'Did you mean "smallest"?',
    "submodel.fedavg.tier=4": "submodel.fedavg.tier: expected a finite number in",
    "submodel.fedrolex.overlap=1.5": "submodel.fedrolex.overlap: expected a finite",
    "tiers.budget=(1.0,0.25)": "tiers.budget: expected values that do not decrease",
    "tiers.budget=(0.0,1.0)": "tiers.budget: expected a finite number in (0, 1]; got 0",
    "tiers.budget=(0.5,'a')": "tiers.budget: expected a number; got 'a'",
    "tiers.budget=()": "tiers.budget: expected at least one tier",
    "tiers.proportions=(1.0,1.0)": "tiers.proportions: expected 4 values, as",
    "tiers.proportions=(0.0,0.0,0.0,0.0)": "sum of tiers.proportions: expected",
    "tiers.assignment=by_sise": 'Did you mean "by_size"?',
    "local.epochs=0": "local.epochs: expected",
    "local.steps=0": "local.steps: expected",
    "local.batch_size=0": "local.batch_size: expected",
    "local.optimizer=agd": "local.optimizer: expected one of sgd, adam",
    "local.learning_rate=nan": "local.learning_rate: expected a finite number >= 0",
    "local.schedule=cosin": 'Did you mean "cosine"?',
    "local.momentum=1.0": "local.momentum: expected a finite number in [0, 1)",
    "local.max_grad_norm=-1.0": "local.max_grad_norm: expected",
    "local.class_weights=balanced": "local.class_weights: expected none while",
    "server.optimizer=adagrad": "expected one of sgd, momentum, adam, yogi",
    "fairness.rule=sise": 'Did you mean "size"?',
    "fairness.q_ffl.q=2.0": "fairness.q_ffl.q: expected fairness.rule='q_ffl'",
    "model.cnn.group_size=2": "model.cnn.group_size: expected model.name='cnn'",
    "execution.batching=vmp": 'Did you mean "vmap"?',
    "execution.devices=-1": "execution.devices: expected a finite number >= 0",
    "execution.devices=999": "execution.devices: expected at most the 4 that there are",
    "checkpoint.keep=1": "checkpoint.keep: expected a finite number >= 2; got 1",
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_cannot_be(refused, field):
    line = refused(f"--config.{field}")
    assert FIELDS[field] in line, line


def test_an_option_of_a_method_that_is_not_in_use(refused):
    line = refused(*over(submodel__name="fedavg", submodel__heterofl__scaler="False"))
    assert "submodel.heterofl.scaler: expected submodel.name='heterofl'" in line


def test_momentum_needs_sgd(refused):
    line = refused(*over(local__optimizer="adam", local__momentum=0.9))
    assert "local.momentum: expected 0 with optimizer adam; got 0.9" in line


def test_more_clients_than_examples_under_skew(refused):
    fields = {"data.partition.name": "dirichlet", "data.partition.num_clients": 400}
    line = refused(*[f"--config.{name}={value}" for name, value in fields.items()])
    assert "data.partition.num_clients: expected at most what 569" in line


# ----------------------------------------------------------------------------- the data


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("age,site\n1,a\n2,b\n", "sick", "data.label: expected one of age, site"),
        ("age,sick\nold,0\n2,1\n", "sick", "expected a number; got 'old'"),
        ("age,sick\n1,0\n2\n", "sick", "line 3: expected 2 cells; got 1"),
        ("age,sick\n", "sick", "a header and at least one record"),
    ],
)
def test_a_csv_that_does_not_fit(refused, tmp_path, text, label, expected):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    fields = {"data__name": "csv", "data__path": path, "data__label": label}
    line = refused(*over(**fields))
    assert expected in line, line


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"train_images": np.array([{}] * 4)}, "an npz of plain arrays"),
        ({"train_labels": np.zeros(3, int)}, "train_labels: expected 4 labels"),
        ({"train_labels": np.zeros(4)}, "train_labels: expected integers [n]"),
        ({"test_images": None}, "expected an array 'test_images'"),
    ],
)
def test_an_npz_that_does_not_fit(refused, tmp_path, arrays, expected):
    good = {
        "train_images": np.zeros((4, 3), np.float32),
        "train_labels": np.zeros(4, int),
        "test_images": np.zeros((2, 3), np.float32),
        "test_labels": np.zeros(2, int),
    }
    arrays = {k: v for k, v in (good | arrays).items() if v is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    line = refused(*over(data__name="npz", data__path=tmp_path / "mine.npz"))
    assert expected in line, line


def test_a_file_that_is_not_there(refused, tmp_path):
    line = refused(*over(data__name="npz", data__path=tmp_path / "none.npz"))
    assert "data.path: expected a file that exists" in line


def test_a_data_folder_that_cannot_be_read(refused, tmp_path):
    folder = tmp_path / "nowhere"
    line = refused(*over(data__data_dir=folder), config="configs/heart_disease.py")
    assert "data.data_dir: expected a folder that can be read" in line
    folder = "a" * 5000
    line = refused(*over(data__data_dir=folder), config="configs/heart_disease.py")
    assert "data.data_dir: expected a folder that can be read" in line


# -------------------------------------------------------------------------- the workdir


def test_a_workdir_that_is_no_run(refused, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    line = refused(workdir=tmp_path)
    assert "--workdir: expected an empty folder or that of a run" in line


CONFIGS = {
    b"{": "expected JSON; got ",
    b"[" * 9000: "expected JSON; got maximum recursion",
    b"\xff\xfe\0": "expected JSON; got ",
    b"[]": "expected a JSON object; got 'list'",
    b"{}": "of an unknown version, whose config has not the same fields: baselines, ",
    b'{"rounds": "x", "data": 3}': "has not the same fields: baselines, ",
}


@pytest.mark.parametrize("content", CONFIGS, ids=range(len(CONFIGS)))
def test_a_workdir_whose_config_is_broken(refused, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert CONFIGS[content] in refused(workdir=tmp_path)


def test_a_run_whose_config_is_another_program_s(refused, tmp_path):
    (tmp_path / "config.json").write_text('{"execution": {}, "rounds": 3}')
    line = refused(name="evaluate", config=None, workdir=tmp_path)
    assert "config.json: expected the config of a run of this version; got one" in line


def test_a_log_loses_what_was_not_whole_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"round": 1}\n{"round": 2}\n{"round": 3}\n'
    path.write_text(whole + '{"round": 4')
    workdir.truncate(path, 2)
    assert path.read_text() == '{"round": 1}\n{"round": 2}\n'
    path.write_text(broken := whole.replace("2}", "2"))
    with pytest.raises(require.InputError, match=r"metrics\.jsonl:2: expected JSON"):
        workdir.truncate(path, 2)
    assert path.read_text() == broken


def test_a_workdir_that_is_a_file(refused, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    assert "--workdir: expected a folder" in refused(workdir=path)


def test_a_workdir_that_cannot_be_made(refused):
    line = refused(workdir=pathlib.Path("/proc/fairjax/run"))
    assert "--workdir: expected a folder that can be written" in line


def test_evaluating_what_is_no_run(refused, tmp_path):
    line = refused(name="evaluate", config=None, workdir=tmp_path / "none")
    assert "expected a run" in line


def test_starting_from_what_is_no_run(refused, tmp_path):
    assert "expected a run" in refused(*over(model__init_from=tmp_path / "none"))


# ------------------------------------------------------------ what is nobody's mistake


def raised(error):
    def main(_):
        raise error

    return main


GONE = "UNKNOWN: Gloo AllGather failed: Connection closed by peer"
ENDS = {
    "a full disk": (
        raised(
            OSError(errno.ENOSPC, "No space left on device", "runs/a/clients.jsonl")
        ),
        1,
        "runs/a/clients.jsonl: No space left on device",
    ),
    "more than there is of memory": (
        lambda _: jnp.zeros(2**45),
        1,
        "the device has not enough memory: execution.batching=chunk with a smaller "
        "execution.chunk, execution.dtype=bfloat16 and execution.form=sliced take less "
        "(RESOURCE_EXHAUSTED: ",
    ),
    "more than the host has": (
        raised(MemoryError("Unable to allocate 64.0 GiB")),
        1,
        "this machine has not enough memory: Unable to allocate 64.0 GiB",
    ),
    "a stop after a round": (
        raised(Stopped("stopped after round 3")),
        75,
        "stopped after round 3; the same command goes on",
    ),
    "an interrupt": (raised(KeyboardInterrupt()), 75, "stopped; the same command"),
}


def ended(main):
    """The exit code of a script without flags."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main, lambda values, argv: None, ["scripts/a.py"])
    return stop.value.code


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_script_is_one_line_and_a_code(name, capsys):
    main, code, line = ENDS[name]
    assert ended(main) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"a.py: {line}")
    assert err.count("\n") == 1


def test_an_error_of_the_program_keeps_its_traceback():
    for error in (ValueError("no"), jax.errors.JaxRuntimeError("INTERNAL: no")):
        with pytest.raises(type(error), match="no"):
            cli.run(raised(error), lambda values, argv: None, ["a.py"])


def test_one_of_many_processes_does_not_wait_for_the_others(monkeypatch, capsys):
    """It does wait after a stop, while the first process saves the last round."""
    left = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", left.append)
    assert ended(raised(jax.errors.JaxRuntimeError(GONE))) == 1
    told = capsys.readouterr().err
    assert told == f"a.py: another process is gone, see what it said ({GONE})\n"
    assert ended(raised(KeyboardInterrupt())) == 75
    assert left == [1, 75]
    assert ended(raised(Stopped("stopped after round 3"))) == 75
    assert left == [1, 75]


# ---------------------------------------------------------------- as a user sees it all


def test_the_script_itself_exits_with_2_and_one_line(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "scripts/train.py",
            "--config=configs/smoke.py",
            f"--workdir={tmp_path / 'run'}",
            "--config.rouns=3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_names_the_flags(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = script("train")
    with pytest.raises(SystemExit) as stop:
        cli.run(module.main, module.define, ["scripts/train.py", "--help"])
    assert stop.value.code == 0
    assert "--workdir" in capsys.readouterr().out


def test_overridden_fields_are_those_of_the_command_line(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    argv = ["train.py", "--config=configs/smoke.py", f"--workdir={tmp_path}"]
    options = cli.parse(
        script("train").define, [*argv, *over(rounds=3, local__steps=4)]
    )
    assert sorted(cli.override_paths(options)) == ["local.steps", "rounds"]
    assert (options.config.rounds, options.config.local.steps) == (3, 4)


@pytest.fixture
def cache(monkeypatch):
    """JAX's setting of the folder of compiled programs, restored afterwards."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_users_cache_by_processor(
    cache, monkeypatch, tmp_path
):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.keep_programs()
    here = pathlib.Path(cache())
    assert here.parent == tmp_path / "fairjax"
    monkeypatch.setattr(cli.platform, "machine", lambda: "another")
    cli.keep_programs()
    assert pathlib.Path(cache()).parent == here.parent
    assert pathlib.Path(cache()) != here


def test_a_folder_of_programs_that_the_user_names_is_left_alone(cache):
    before = cache()
    cli.keep_programs()
    assert cache() == before
