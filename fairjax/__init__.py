"""Federated learning that fits every hospital: pure JAX functions, one room each.

    core        what a round is: types, masks, client updates, aggregation, `round.step`
    models      architectures as `Model` values (the only room with flax)
    submodels   masks from kept units, and the methods that keep them
    fairness    rules that weigh a cohort
    privacy     protections: clipping, noise, accounting, secure sums
    robust      folds that bear liars, and faults
    metrics     quality, calibration, group gaps, intervals, the five principles
    evaluation  models as they are handed out
    attacks     inversion, membership, the canary audit
    data        data sets, partitions, federations
    experiment  from a config to a run: `train(config, workdir)`, its figures and files
    report      tables, figures and the page of a run

Importing fairjax imports none of them: a room comes when it is first asked for, so that
a command can listen to signals (`experiment.io.preemption`) before JAX is there. Those
of `__all__` need no import of their own; the others do, by name.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairjax import metrics
    from fairjax.core import aggregate, client, layout, round, types

__all__ = ["aggregate", "client", "layout", "metrics", "round", "types"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "" if name == "metrics" else "core."
    return importlib.import_module(f"{__name__}.{room}{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
