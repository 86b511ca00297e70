"""Being told to stop: by SIGTERM, as schedulers do, or SIGINT, as Ctrl-C does.

While rounds run the first signal only takes note, so that the round in hand is finished
and saved; a second one ends the process at once, which costs the rounds since the last
save: a run survives being killed. Everywhere else signals do what they always do.
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


class Stopped(KeyboardInterrupt):
    """A run was told to stop and did, after a round that it has saved."""


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the process has been told to stop.

    The main thread alone may say what a signal does: another one is told what came
    while the main one was in here.

    Raises:
        Stopped: at the end, of the main thread, if a signal came; not where the process
            is one of several, of which none may stop alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _told.is_set
        return
    _told.clear()
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
            name = signal.Signals(number).name
            line = f"{name}: stopping after this round; a second one stops at once"
            print(line, file=sys.stderr, flush=True)

    # By a thread that reads them from a pipe: a handler of Python would wait for the
    # main thread, which waits for a device.
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    pipe = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield _told.is_set
    finally:
        for number, handler in handlers.items():
            # None: of another language, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(pipe)
        os.close(writer)
        listener.join()
        os.close(reader)
    if _told.is_set() and jax.process_count() == 1:
        raise Stopped("stopped; every round is saved")
