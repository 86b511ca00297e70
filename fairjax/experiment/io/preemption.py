"""Being told to stop: by SIGINT, as Ctrl-C does, SIGTERM, as schedulers do, or SIGHUP.

A command (`listen`) hears signals in a thread of its own, and no line of Python is
interrupted: an exception out of nowhere is lost in a destructor or a callback of C, and
has to wait for a compiler. The first signal ends the process with one line, and without
the interpreter's teardown, which crashes under threads that still compile. While rounds
run (`deferred`) it only takes note, so that the round in hand is finished and saved. A
second one ends the process at once, whatever it does, which costs the rounds since the
last save: a run survives being killed.

Elsewhere, as in a notebook, signals are the caller's. While rounds run the first SIGINT
or SIGTERM only takes note, and after the round `Stopped` is raised; a second one does
what it would have done without us.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What stops a run anywhere. A command also hears SIGHUP, which a terminal sends that
is closed, but where it is ignored, as under nohup."""

EXIT = 75
"""What commands exit with when told to stop: EX_TEMPFAIL of sysexits.h, "try again". A
process that is killed, or ends at the second signal, exits with 128 + its number."""

_PATIENCE = 1.0
"""Seconds until somebody at a terminal who waits for a round is told so."""
_TIDYING = 2.0
"""Seconds that a command which ends has for its terminal, children and files."""
_WHOLE = ("write_text", "write_bytes", "_replace")
"""Functions that write a file in one call, of pathlib and our own. JAX never writes a
compiled program again that it finds cut short in its cache."""


_told = threading.Event()
_command = threading.Event()
"""Set where signals end the process."""
_guard = threading.Lock()
"""Held by who ends the process, for good."""
_rounds: list[object] = []
"""One for every `deferred` that is entered."""
_last: list[Callable[[], object]] = []
"""What is called before a signal ends the process, the newest first."""
_codes: list[int] = []
"""The exit code of a command whose work is over."""


class Stopped(KeyboardInterrupt):
    """A run was told to stop and did, after a round that it has saved."""


def listen() -> None:
    """Makes this process a command, which signals end: the first thing that it does.

    That is before it imports JAX. Threads that begin later block the signals, as this
    one does, and so do the processes that it starts: they are ended by `leaving`.
    """
    if _command.is_set():
        return
    _command.set()
    numbers: list[int] = [*SIGNALS]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    ear = threading.Thread(target=_hear, args=(numbers,), name="signals", daemon=True)
    ear.start()

    def forward(number: int, _: object) -> None:
        assert ear.ident is not None
        signal.pthread_kill(ear.ident, number)

    # Threads that are older, as a debugger's, do not block them.
    for number in numbers:
        signal.signal(number, forward)

    def wait() -> None:
        with _guard:
            pass

    # Whoever is ending the process ends it, also where an error has ended its work.
    atexit.register(wait)


def over(code: int) -> None:
    """The work of a command is done: a signal only hastens its end, with this code.

    If one is ending the process already this does not return.
    """
    if _command.is_set():
        with _guard:
            _codes.append(code)


@contextlib.contextmanager
def leaving(call: Callable[[], object]) -> Iterator[None]:
    """What a signal calls that ends the process in here, where nothing is unwound.

    Args:
        call: restores a terminal, kills a child, removes a temporary folder. It runs
            in another thread, while this one goes on, and has two seconds.
    """
    _last.append(call)
    try:
        yield
    finally:
        _last.remove(call)


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the process has been told to stop.

    Where it is not a command, the main thread alone may say what a signal does; in
    another one this hears what that one does.

    Raises:
        Stopped: at the end, if a signal came.
        KeyboardInterrupt: in its place, in a process that is one of several: it stops,
            but the others may not.
    """
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and not _command.is_set()
    with _noting() if ours else contextlib.nullcontext():
        yield _told.is_set
    if _told.is_set():
        if ours:
            _told.clear()
        import jax  # which a command imports after it has begun to listen

        if jax.process_count() > 1:
            raise KeyboardInterrupt
        raise Stopped("stopped; every round is saved")


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """As `listening`; and in here, in any thread, the first signal ends no command."""
    with listening() as told:
        mine = object()
        with _guard:
            _rounds.append(mine)
        try:
            yield told
        finally:
            with _guard:
                _rounds.remove(mine)


@contextlib.contextmanager
def _noting() -> Iterator[None]:
    """The first signal is only noted, a second one is as it was before."""
    _told.clear()
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        if not _told.is_set():
            _told.set()
            return
        restore()
        signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            # None: of another language, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    for number in SIGNALS:
        before[number] = signal.signal(number, note)
    try:
        yield
    except BaseException:
        _told.clear()
        raise
    finally:
        restore()


# ------------------------------------------------------------- the thread of a command


def _hear(numbers: list[int]) -> None:
    while True:
        number = signal.sigwait(numbers)
        with _guard:
            if _codes:
                _end("", _codes[0])
            if _told.is_set():
                _end("stopped at once; the same command goes on", 128 + number)
            _told.set()
            if not _rounds:
                _end("stopped; the same command goes on", EXIT)
        patience = threading.Timer(_PATIENCE, _ask_for_patience, [number])
        patience.daemon = True
        with contextlib.suppress(RuntimeError):  # no room for another thread
            patience.start()


def _ask_for_patience(number: int) -> None:
    if os.isatty(2) and not _codes:
        name = signal.Signals(number).name
        line = f"{name}: stopping after the round in hand; a second one stops at once"
        print(line, file=sys.stderr, flush=True)


def _end(line: str, code: int) -> None:
    """Ends the process, whatever its other threads do; does not return."""
    said = f"{os.path.basename(sys.argv[0])}: {line}\n" if line else ""
    try:
        _within(_TIDYING, _tidy)
        _within(_TIDYING, lambda: os.write(2, said.encode()))
    finally:
        os._exit(code)


def _tidy() -> None:
    for call in reversed(_last):
        with contextlib.suppress(Exception):
            call()
    while _writes():
        time.sleep(0.001)
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stdout__)):
        with contextlib.suppress(Exception):
            stream.flush()


def _writes() -> bool:
    """Whether a thread is in the middle of a file."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name in _WHOLE:
                return True
            frame = frame.f_back
    return False


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Calls in a thread, which nobody waits for any longer: a pipe may be full."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
