"""Signals: the first one waits for rounds only, the second for nothing.

Commands run here in processes of their own, which import no JAX.
"""

import ast
import contextlib
import os
import pathlib
import pty
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from fairjax.experiment.io import preemption
from fairjax.experiment.io.preemption import Stopped, deferred, listening

ROOT = pathlib.Path(__file__).resolve().parents[3]
AT_ONCE = "-c: stopped; the same command goes on\n"


def send(number):
    os.kill(os.getpid(), number)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# ------------------------------------------------------------------------ of a command

COMMAND = """
import sys, types
from fairjax.experiment.io import preemption
preemption.listen()
assert "jax" not in sys.modules
sys.modules["jax"] = types.SimpleNamespace(process_count=lambda: 1)
import gc, os, signal, threading, time
def send(number=signal.SIGINT, wait=True):
    os.kill(os.getpid(), number)
    while wait and not preemption._stop_requested.is_set():
        time.sleep(0.001)
"""
GOES_ON = """
time.sleep(60)
print("goes on")
"""


def begin(body, **how):
    program = COMMAND + body + GOES_ON
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        **{"stderr": subprocess.PIPE} | how,
    )


def ended(body):
    """(exit code, stdout, stderr) of a command."""
    with begin(body) as process:
        try:
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, out, err


@pytest.fixture(autouse=True)
def _nobody_ignores_them():
    """Restores SIGINT, which a shell ignores for tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


PLACES = {
    "a collection of garbage": "gc.callbacks.append(lambda *_: send()); gc.collect()",
    "a destructor": """
class Once:
    def __del__(self):
        send()
Once()
""",
    "a callback of C": """
import ctypes
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
array = (ctypes.c_int * 2)(1, 0)
ctypes.CDLL(None).qsort(array, 2, 4, kind(lambda *_: send() or 0))
""",
    "what catches everything": """
while True:
    try:
        send()
    except BaseException:
        pass
""",
    "C that does not come back": """
import hashlib
threading.Timer(0.1, send).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
""",
    "a thread beside it": """
thread = threading.Thread(target=send)
thread.start()
thread.join()
""",
    "an error of the program": "send(); 1 / 0",
    "an import": """
class Finder:
    find_spec = lambda *_: send()
sys.meta_path.insert(0, Finder)
import colorsys
""",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_command_ends_wherever_the_signal_falls(place):
    code, out, err = ended(PLACES[place])
    assert (code, out) == (preemption.EXIT, "")
    assert AT_ONCE in err
    assert err == AT_ONCE or place == "an error of the program"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_that_stop_a_command(name):
    assert ended(f"send(signal.{name})") == (preemption.EXIT, "", AT_ONCE)


def test_a_command_in_the_background_hears_ctrl_c():
    """A shell without a terminal starts it with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert ended("send()") == (preemption.EXIT, "", AT_ONCE)


def test_under_nohup_a_terminal_may_close():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        body = "send(signal.SIGHUP, wait=False); time.sleep(0.1); print(1); send()"
        assert ended(body) == (preemption.EXIT, "1\n", AT_ONCE)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_that_is_older_passes_a_signal_on():
    """A debugger's threads, for example, do not block it."""
    body = """
numbers = {signal.SIGINT}
thread = threading.Thread(
    target=lambda: [signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers), time.sleep(9)]
)
thread.start()
time.sleep(0.1)
signal.pthread_kill(thread.ident, signal.SIGINT)
for _ in range(900):  # this thread must return to Python
    time.sleep(0.01)
"""
    assert ended(body) == (preemption.EXIT, "", AT_ONCE)


ROUNDS = """
with preemption.deferred() as told:
    send()
    assert told()
    print("saved")
    {more}
"""


def test_while_rounds_run_the_first_signal_is_only_noted():
    caught = """
try:
    exec(rounds)
except preemption.Stopped as error:
    print(isinstance(error, KeyboardInterrupt), error)
    sys.exit(3)
"""
    body = f"rounds = {ROUNDS.format(more='')!r}{caught}"
    said = "saved\nTrue stopped; every round is saved\n"
    assert ended(body) == (3, said, "")


def test_in_a_thread_too():
    body = f"""
def run():
    try:
        exec({ROUNDS.format(more="")!r})
    except preemption.Stopped:
        print("stopped")
thread = threading.Thread(target=run)
thread.start()
thread.join()
sys.exit(3)
"""
    assert ended(body) == (3, "saved\nstopped\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_it_at_once(name):
    more = f"os.kill(os.getpid(), signal.{name}); time.sleep(60)"
    line = AT_ONCE.replace("stopped", "stopped at once")
    code = 128 + getattr(signal, name)
    assert ended(ROUNDS.format(more=more)) == (code, "saved\n", line)


def test_who_waits_at_a_terminal_is_told_what_for():
    ours, theirs = pty.openpty()
    more = "time.sleep(0.5); send(); time.sleep(60)"
    body = "preemption._PATIENCE = 0.01\n" + ROUNDS.format(more=more)
    with begin(body, stderr=theirs), open(ours, "rb", 0) as terminal:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the terminal has ended
            while block := terminal.read(1000):
                said += block
    line = "SIGINT: stopping after the round in hand; a second one stops at once\n"
    line += AT_ONCE.replace("stopped", "stopped at once")
    assert said.decode().replace("\r", "") == line


def test_a_file_that_is_being_written_is_written():
    """The signal comes within `write_text` of pathlib."""
    body = """
def write_text():
    print("half a", end="")
    send()
    time.sleep(0.2)
    print(" file")
write_text()
"""
    code, out, err = ended(body)
    assert (code, err) == (preemption.EXIT, AT_ONCE)
    assert out.startswith("half a file\n")


def test_what_is_left_behind_is_put_in_order():
    """Calls run newest first, and one that fails stops no other."""
    body = """
print("printed")
with preemption.leaving(lambda: print("children")):
    with preemption.leaving(lambda: 1 / 0), preemption.leaving(lambda: print("cursor")):
        with preemption.leaving(lambda: print("not this")):
            pass
        send()
        time.sleep(60)
"""
    code, out, err = ended(body)
    assert (code, out, err) == (preemption.EXIT, "printed\ncursor\nchildren\n", AT_ONCE)


def test_nobody_who_reads_is_waited_for():
    """The pipe is full."""
    body = f"""
preemption._TIDYING = 0.1
threading.Timer(0.1, send).start()
print({2**20} * ".")
"""
    with begin(body) as process:
        assert process.wait(30) == preemption.EXIT
        assert process.stderr.read() == AT_ONCE


def test_a_signal_hastens_the_end_of_a_command_whose_work_is_done():
    body = "print('done'); preemption.finish(3); send(wait=False); time.sleep(60)"
    assert ended(body) == (3, "done\n", "")


def test_nothing_is_said_once_it_is_stopping():
    """A command that finishes meanwhile waits for the end of its process."""
    body = """
def late():
    preemption.finish(0)
    print("done", file=sys.stderr)
with preemption.leaving(lambda: time.sleep(0.1)):
    send()
    late()
"""
    assert ended(body) == (preemption.EXIT, "", AT_ONCE)


def test_every_script_listens_before_it_imports_what_takes_long():
    begins = 'if __name__ == "__main__":  # before what takes seconds to import\n'
    begins += "    from fairjax.experiment.io import preemption\n\n"
    begins += "    preemption.listen()\n"
    commands = 0
    folders = ROOT / "scripts", ROOT / "studies"
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        text = path.read_text()
        _, first, *_, last = ast.parse(text).body
        if "__main__" not in text:
            continue
        commands += 1
        lines = text.splitlines(keepends=True)
        assert "".join(lines[first.lineno - 1 : first.end_lineno]) == begins, path
        assert ast.unparse(last).startswith(
            "if __name__ == '__main__':\n    cli.run(main, "
        ), path
        assert "tempfile" not in text, f"{path}: experiment.temporary is gone in time"
    assert commands > 15


# ------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_elsewhere_the_first_signal_is_only_noted_too(number, capsys):
    before = [signal.getsignal(each) for each in preemption.SIGNALS]
    with pytest.raises(Stopped, match="round 3"), deferred() as told:  # noqa: PT012
        assert not told()
        send(number)
        until(told)
        raise Stopped("stopped after round 3")
    assert [signal.getsignal(each) for each in preemption.SIGNALS] == before
    assert capsys.readouterr().err == ""
    with deferred() as told:
        assert not told()


def test_a_signal_that_nobody_asked_for_stops_in_the_end():
    with pytest.raises(Stopped), deferred():
        send(signal.SIGTERM)
    with deferred() as told:
        assert not told()


def test_one_of_many_processes_says_that_the_others_may_not_stop(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt) as stopped, deferred():
        send(signal.SIGTERM)
    assert not isinstance(stopped.value, Stopped)


def test_a_second_one_is_as_if_nobody_listened():
    with pytest.raises(KeyboardInterrupt) as stopped, deferred():  # noqa: PT012
        for _ in range(2):
            send(signal.SIGINT)
            time.sleep(0.01)
        time.sleep(60)
    assert not isinstance(stopped.value, Stopped)
    alarmed = []
    before = signal.signal(signal.SIGTERM, lambda *_: alarmed.append(True))
    with pytest.raises(Stopped), deferred():  # noqa: PT012
        for _ in range(2):
            send(signal.SIGTERM)
            time.sleep(0.01)
    signal.signal(signal.SIGTERM, before)
    assert alarmed == [True]


def test_other_signals_are_not_meant():
    alarmed = []
    handler = signal.signal(signal.SIGALRM, lambda *_: alarmed.append(True))
    with deferred() as told:
        send(signal.SIGALRM)
        until(lambda: alarmed)
        assert not told()
    signal.signal(signal.SIGALRM, handler)


def test_a_thread_is_told_what_the_main_one_hears():
    """It changes no handler, even if the main thread does not listen."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run(wait):
        with contextlib.suppress(Stopped), deferred() as told:
            if wait:
                until(told)
            seen.append((told(), signal.getsignal(signal.SIGTERM) == before))

    alone = threading.Thread(target=run, args=(False,))
    alone.start()
    alone.join()
    assert seen == [(False, True)]
    with pytest.raises(Stopped), listening():  # noqa: PT012
        beside = threading.Thread(target=run, args=(True,))
        beside.start()
        send(signal.SIGTERM)
        beside.join()
    assert seen[1:] == [(True, False)]
