"""The folder of a run: its lock, and that nothing in it is half-written."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from configs import default
from fairjax.core import require
from fairjax.experiment.config import conversion
from fairjax.experiment.io import workdir


def fails_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_is_one_process_s_at_a_time(tmp_path):
    path = tmp_path / "run"
    with workdir.lock(path):
        with pytest.raises(require.InputError) as refused, workdir.lock(path):
            pass
        text = (
            f"--workdir: expected a run that nobody trains; got {path}, which process"
        )
        assert str(refused.value).startswith(f"{text} {os.getpid()} on ")
        assert "\n" not in str(refused.value)
    with workdir.lock(path):
        pass


def test_the_folder_of_a_process_that_was_killed_is_free(tmp_path):
    code = (
        "import fcntl, os, signal; file = open('.lock', 'w'); file.write('123456789')\n"
        "file.flush(); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    with workdir.lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_where_there_are_no_locks_the_run_goes_on_and_says_so(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fcntl, "flock", fails_with(errno.ENOLCK))
    with workdir.lock(tmp_path):
        pass
    told = capsys.readouterr().err
    assert told.startswith(f"{tmp_path}: not locked, see that no other process trains")
    assert told.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(type(tmp_path), "open", fails_with(errno.EROFS))
    message = "--workdir: expected a folder that can be written; got Read-only file sys"
    with pytest.raises(require.InputError, match=message), workdir.lock(tmp_path):
        pass


@pytest.mark.parametrize("left", [".lock", "config.json.new"])
def test_what_a_run_left_that_was_killed_as_it_began_is_no_obstacle(tmp_path, left):
    (tmp_path / left).write_text("")
    config = conversion.to_typed(default.get_config())
    workdir.check(tmp_path, config)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(require.InputError, match="an empty folder or that of a run"):
        workdir.check(tmp_path, config)


@pytest.mark.parametrize("what", ["write_json", "write_lines"])
def test_a_full_disk_is_told_with_the_file_and_leaves_what_was_there(
    tmp_path, monkeypatch, what
):
    path = tmp_path / "rows"
    workdir.write_json(path, {"a": 1})
    before = path.read_text()
    with pytest.raises(OSError, match="No space left") as failed:  # noqa: PT012
        if what == "write_json":
            monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))
            workdir.write_json(path, {"a": 2})
        else:
            path = pathlib.Path("/dev/full")
            with workdir.open_append(path) as file:
                workdir.write_lines(file, [{"round": 1}])
    assert failed.value.filename == str(path)
    assert (tmp_path / "rows").read_text() == before
