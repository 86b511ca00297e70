"""Being told to stop: by SIGTERM, as schedulers do, or SIGINT, as Ctrl-C does.

While rounds run the first signal only takes note, so that the round in hand is finished
and saved. Before and after, where nothing waits to be saved, it interrupts Python, for
which a compilation lets it wait. A second one ends the process at once, whatever it
does, which costs the rounds since the last save: a run survives being killed.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)

EXIT = 75
"""What scripts exit with when told to stop: EX_TEMPFAIL of sysexits.h, "try again". A
process that is killed, or ends at the second signal, exits with 128 + its number."""


_told = threading.Event()
_rounds = threading.Event()
"""Set while rounds run, which the first signal does not interrupt."""
_listening = threading.Event()


class Stopped(KeyboardInterrupt):
    """A run was told to stop and did, after a round that it has saved."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """The first signal raises KeyboardInterrupt here, a second one ends the process.

    But for `deferred` rounds. The main thread alone may say what a signal does; in
    another one, and inside itself, this does nothing.
    """
    here = threading.current_thread()
    if here is not threading.main_thread() or _listening.is_set():
        yield
        return
    _told.clear()
    _listening.set()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while sent := os.read(reader, 1):
            number = sent[0]
            if number not in SIGNALS:
                continue
            if _told.is_set():
                os._exit(128 + number)
            _told.set()
            if _rounds.is_set():
                name = signal.Signals(number).name
                line = f"{name}: stopping after this round; a second one stops at once"
                print(line, file=sys.stderr, flush=True)

    def interrupt(*_: object) -> None:
        if not _rounds.is_set():
            raise KeyboardInterrupt

    # By a thread that reads them from a pipe: a handler of Python would wait for the
    # main thread, which waits for a device or a compiler.
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    pipe = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None: of another language, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(pipe)
        os.close(writer)
        listener.join()
        os.close(reader)
        _listening.clear()


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the process has been told to stop.

    In another thread than the main one it is told what came while that was in here.

    Raises:
        Stopped: at the end, of the main thread, if a signal came; not where the process
            is one of several, of which none may stop alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _told.is_set
        return
    with listening():
        _told.clear()
        _rounds.set()
        try:
            yield _told.is_set
        finally:
            _rounds.clear()
    if _told.is_set() and jax.process_count() == 1:
        raise Stopped("stopped; every round is saved")
