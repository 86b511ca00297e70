"""Federated learning that fits every hospital: pure JAX functions, one room each.

    round       one federated round: `init`, `step`, `evaluate`
    client      local training: `update`, objectives, static lengths
    submodels   masks from kept units, and the methods that keep them
    models      architectures as `Model` values (the only room with flax)
    fairness    rules that weigh a cohort
    aggregate   masked mean, server optimisers
    layout      how a cohort is laid on the hardware
    metrics     quality, calibration, group gaps, intervals
    selection   which round's model is handed out
    principles  the five principles, as numbers of a run
    types       shape letters and the seams: `Model`, `Method`, `Rule`, `Layout`
    data        data sets, partitions, federations
    specs       from a config to a checked `Run`
    measure     a run's models on its splits
    final       the figures that a run reports in the end
    train       the loop: `train(config, workdir)`

Importing fairjax imports none of them: a room comes when it is first asked for, so that
a command can listen to signals (`preemption`) before JAX is there. Those of `__all__`
need no import of their own; the edges (data, specs, measure, final, train) do, by name.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairjax import aggregate, client, layout, metrics, round, types

__all__ = ["aggregate", "client", "layout", "metrics", "round", "types"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
