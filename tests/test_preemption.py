"""Being told to stop: the first signal waits for the round, the second for nothing."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from fairjax import preemption
from fairjax.preemption import Stopped, deferred

ROOT = pathlib.Path(__file__).resolve().parents[1]


def send(number):
    os.kill(os.getpid(), number)


def until(condition):
    """A signal is heard in a thread of its own."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def exits(monkeypatch):
    """What the process would have exited with, in place of exiting."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_the_first_signal_is_only_noted(number, exits, capsys):
    before = [signal.getsignal(each) for each in preemption.SIGNALS]
    with pytest.raises(Stopped, match="round 3"), deferred() as told:  # noqa: PT012
        assert not told()
        send(number)
        until(told)
        raise Stopped("stopped after round 3")
    assert [signal.getsignal(each) for each in preemption.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert exits == []
    assert capsys.readouterr().err == (
        f"{number.name}: stopping after this round; a second one stops at once\n"
    )
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_a_signal_that_nobody_asked_for_stops_in_the_end():
    with pytest.raises(Stopped), deferred():
        send(signal.SIGTERM)


def test_one_of_several_processes_does_not_stop_alone(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with deferred() as told:
        send(signal.SIGTERM)
        until(told)
    assert signal.set_wakeup_fd(-1) == -1


def test_no_signal_changes_nothing():
    with deferred() as told:
        pass
    assert not told()


def test_a_second_signal_does_not_wait_for_the_main_thread(exits):
    """Which does not come back to Python for about a second."""
    heard = []

    def twice():
        for number in (signal.SIGTERM, signal.SIGINT):
            time.sleep(0.05)
            send(number)
        until(lambda: exits)
        heard.append(time.monotonic())

    with pytest.raises(Stopped), deferred():  # noqa: PT012
        sender = threading.Thread(target=twice)
        sender.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
        returned = time.monotonic()
        sender.join()
    assert exits == [128 + signal.SIGINT]
    assert heard[0] < returned


LONG = """
import hashlib, sys
sys.path.insert(0, {root!r})
from fairjax import command

def main(_):
    print("begun", flush=True)
    {what}

command.run(main, lambda *_: None, ["a.py"])
"""


@pytest.mark.parametrize(
    ("what", "signals", "code"),
    [
        ("hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)", 2, 128 + signal.SIGTERM),
        ("[0 for _ in iter(int, 1)]", 1, preemption.EXIT),
    ],
)
def test_a_script_outside_of_rounds_ends(what, signals, code):
    """At the first signal if it is in Python, at the second whatever it does."""
    program = LONG.format(root=str(ROOT), what=what)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as script:
        try:
            assert script.stdout.readline() == "begun\n"
            for _ in range(signals):
                time.sleep(0.2)
                script.send_signal(signal.SIGTERM)
            assert script.wait(30) == code
        finally:
            script.kill()


def test_other_signals_are_not_meant(exits):
    alarmed = []
    handler = signal.signal(signal.SIGALRM, lambda *_: alarmed.append(True))
    with deferred() as told:
        send(signal.SIGALRM)
        until(lambda: alarmed)
    signal.signal(signal.SIGALRM, handler)
    assert not told()
    assert exits == []


def test_a_thread_is_told_what_the_main_one_hears():
    """And changes nothing by itself: also not where the main one does not listen."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run(wait):
        with deferred() as told:
            if wait:
                until(told)
            seen.append((told(), signal.getsignal(signal.SIGTERM) == before))

    alone = threading.Thread(target=run, args=(False,))
    alone.start()
    alone.join()
    assert seen == [(False, True)]
    with pytest.raises(Stopped), deferred():  # noqa: PT012
        beside = threading.Thread(target=run, args=(True,))
        beside.start()
        send(signal.SIGTERM)
        beside.join()
    assert seen[1:] == [(True, False)]
