"""Stopping at SIGINT (as by Ctrl-C), SIGTERM (as by schedulers) or SIGHUP.

A command (`listen`) receives signals in a thread of its own, and no line of Python is
interrupted: a signal's exception would be lost in a destructor or a callback of C, and
would have to wait for a compiler. The first signal ends the process with one line, and
without the interpreter's teardown, which crashes while threads still compile. While
rounds run (`deferred`) the first signal is only noted, so the round in hand is finished
and saved. A second signal ends the process at once, which costs the rounds since the
last save: a run survives being killed.

Elsewhere, as in a notebook, signals belong to the caller. While rounds run the first
SIGINT or SIGTERM is only noted, and `Stopped` is raised after the round; a second one
does what it would have done without this module.
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
"""Signals that stop a run anywhere. A command also stops at SIGHUP, which a closing
terminal sends, unless SIGHUP is ignored, as under nohup."""

EXIT = 75
"""Exit code of a stopped command: EX_TEMPFAIL of sysexits.h, "try again". A process
that is killed, or ends at the second signal, exits with 128 + the signal's number."""

_PATIENCE = 1.0
"""Seconds after which a user at a terminal is told that a round is being finished."""
_TIDYING = 2.0
"""Seconds for an ending command to restore its terminal, children and files."""
_ATOMIC_WRITERS = ("write_text", "write_bytes", "_replace")
"""Functions of pathlib and of this package that write a file in one call. The process
does not end within them: JAX would not write a truncated program in its cache again."""


_stop_requested = threading.Event()
_command = threading.Event()
"""Set in a process that signals end."""
_guard = threading.Lock()
"""Locked, and never released, by the thread that ends the process."""
_rounds: list[object] = []
"""A token for every open `deferred`."""
_exit_calls: list[Callable[[], object]] = []
"""Called before a signal ends the process, the newest first."""
_codes: list[int] = []
"""The exit code of a command that has finished its work, or nothing."""


class Stopped(KeyboardInterrupt):
    """A run was told to stop and has stopped after a round that it has saved."""


def listen() -> None:
    """Makes this process a command, which signals end; must come before importing JAX.

    Threads that start later block the signals, as this one does, and so do child
    processes: `leaving` ends those.
    """
    if _command.is_set():
        return
    _command.set()
    numbers: list[int] = [*SIGNALS]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    listener = threading.Thread(
        target=_hear, args=(numbers,), name="signals", daemon=True
    )
    listener.start()

    def forward(number: int, _: object) -> None:
        assert listener.ident is not None
        signal.pthread_kill(listener.ident, number)

    # Older threads, such as a debugger's, do not block the signals.
    for number in numbers:
        signal.signal(number, forward)

    def wait() -> None:
        with _guard:
            pass

    # A thread that is ending the process does so, even after an error of the command.
    atexit.register(wait)


def finish(code: int) -> None:
    """Declares the work of a command done: later signals only hasten its end.

    If a signal is ending the process already, this does not return.

    Args:
        code: the exit code that such a signal gives.
    """
    if _command.is_set():
        with _guard:
            _codes.append(code)


@contextlib.contextmanager
def leaving(call: Callable[[], object]) -> Iterator[None]:
    """Registers a call for a signal that ends the process here, without unwinding.

    Args:
        call: restores a terminal, kills a child or removes a temporary folder. It runs
            in another thread, while this one goes on, and has two seconds.
    """
    _exit_calls.append(call)
    try:
        yield
    finally:
        _exit_calls.remove(call)


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the process has been told to stop.

    In a process that is no command, only the main thread can install signal handlers;
    in other threads the function reports what the main thread's handlers noted.

    Raises:
        Stopped: at the end, if a signal came.
        KeyboardInterrupt: instead, in one of several processes: the others may go on.
    """
    is_signal_owner = threading.current_thread() is threading.main_thread()
    is_signal_owner = is_signal_owner and not _command.is_set()
    with _signal_handlers() if is_signal_owner else contextlib.nullcontext():
        yield _stop_requested.is_set
    if _stop_requested.is_set():
        if is_signal_owner:
            _stop_requested.clear()
        import jax  # here: a command imports it after it has begun to listen

        if jax.process_count() > 1:
            raise KeyboardInterrupt
        raise Stopped("stopped; every round is saved")


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """As `listening`; in addition the first signal ends no command, in any thread."""
    with listening() as stop_requested:
        token = object()
        with _guard:
            _rounds.append(token)
        try:
            yield stop_requested
        finally:
            with _guard:
                _rounds.remove(token)


@contextlib.contextmanager
def _signal_handlers() -> Iterator[None]:
    """Notes the first signal; a second one has its effect from before."""
    _stop_requested.clear()
    old_handlers: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        if not _stop_requested.is_set():
            _stop_requested.set()
            return
        restore()
        signal.raise_signal(number)

    def restore() -> None:
        for number, handler in old_handlers.items():
            # None: a handler of another language, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    for number in SIGNALS:
        old_handlers[number] = signal.signal(number, note)
    try:
        yield
    except BaseException:
        _stop_requested.clear()
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
            if _stop_requested.is_set():
                _end("stopped at once; the same command goes on", 128 + number)
            _stop_requested.set()
            if not _rounds:
                _end("stopped; the same command goes on", EXIT)
        timer = threading.Timer(_PATIENCE, _ask_for_patience, [number])
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # the system refuses another thread
            timer.start()


def _ask_for_patience(number: int) -> None:
    if os.isatty(2) and not _codes:
        name = signal.Signals(number).name
        line = f"{name}: stopping after the round in hand; a second one stops at once"
        print(line, file=sys.stderr, flush=True)


def _end(line: str, code: int) -> None:
    """Ends the process, whatever its other threads do; never returns."""
    text = f"{os.path.basename(sys.argv[0])}: {line}\n" if line else ""
    try:
        _call_with_timeout(_TIDYING, _tidy)
        _call_with_timeout(_TIDYING, lambda: os.write(2, text.encode()))
    finally:
        os._exit(code)


def _tidy() -> None:
    for call in reversed(_exit_calls):
        with contextlib.suppress(Exception):
            call()
    while _is_writing():
        time.sleep(0.001)
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stdout__)):
        with contextlib.suppress(Exception):
            stream.flush()


def _is_writing() -> bool:
    """Whether a thread is in one of `_ATOMIC_WRITERS`."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name in _ATOMIC_WRITERS:
                return True
            frame = frame.f_back
    return False


def _call_with_timeout(seconds: float, call: Callable[[], object]) -> None:
    """Calls in a thread and waits so long at most: a pipe may be full."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
