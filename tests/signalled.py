"""Runs a script that sends itself a signal at a named point.

    python tests/signalled.py POINT SCRIPT --its=flags

A point that is not in `POINTS` sends no signal. With "drawn times" the process prints
"begun" once it listens, and another process sends the signal.
"""

import gc
import os
import runpy
import signal
import sys


def kill():
    """Sends the signal and waits until the handler has run."""
    from fairjax.experiment.io import preemption

    os.kill(os.getpid(), signal.SIGINT)
    preemption._stop_requested.wait(20)


def first(function, meant=lambda *_: True):
    """The function with a signal within its first call for which `meant` is true."""
    calls = []

    def run(*args, **kwargs):
        result = function(*args, **kwargs)
        if meant(*args) and not calls:
            calls.append(args)
            kill()
        return result

    return run


def starting():
    """The signal comes when JAX is imported, after the script itself listens."""
    sent = []

    def hook(event, args):
        if event == "import" and args[0] == "jax" and not sent:
            sent.append(event)
            kill()

    sys.addaudithook(hook)


def loading_data():
    from fairjax.data import datasets

    datasets.load = first(datasets.load)


def compiling():
    """The signal comes in a garbage collection, where exceptions are lost."""
    from jax.stages import Lowered

    real, callback = Lowered.compile, first(lambda *_: None)

    def compile(*args, **kwargs):
        gc.callbacks.append(callback)
        gc.collect()
        gc.callbacks.remove(callback)
        return real(*args, **kwargs)

    Lowered.compile = compile


def in_a_round():
    from fairjax.experiment import compilation

    real = compilation.compile_round

    def compiled(*args):
        step, program = real(*args)
        return first(step), program

    compilation.compile_round = compiled


def saving():
    """The signal comes while a background thread writes the checkpoint."""
    from fairjax.experiment.io.checkpoint import Checkpoints

    def meant(self, *_):
        return self._directory.name == "checkpoints"

    Checkpoints.save = first(Checkpoints.save, meant)


def drawing_figures():
    from matplotlib.figure import Figure

    Figure.savefig = first(Figure.savefig)


POINTS = {
    "starting": starting,
    "loading data": loading_data,
    "compiling": compiling,
    "in a round": in_a_round,
    "saving": saving,
    "drawing figures": drawing_figures,
}

if __name__ == "__main__":
    point, *sys.argv = sys.argv[1:]
    if point != "starting":
        from fairjax.experiment.io import preemption

        preemption.listen()
    if point == "drawn times":
        print("begun", flush=True)
    elif point != "starting":
        from fairjax.experiment import summary

        summary.RESAMPLES = 50  # as conftest.py sets it in the process of the tests
    POINTS.get(point, lambda: None)()
    runpy.run_path(sys.argv[0], run_name="__main__")
