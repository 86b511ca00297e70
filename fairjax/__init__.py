"""Federated learning for clients whose computers differ: pure JAX functions by room.

    core        what a round is: types, masks, client updates, aggregation, `round.step`
    models      architectures as `Model` values (the only room with flax)
    submodels   masks from units, and the published methods that choose them
    fairness    rules that weight a cohort
    privacy     protections: clipping, noise, accounting, secure sums
    robust      Byzantine aggregators, and faults
    metrics     quality, calibration, group gaps, intervals, the five principles
    evaluation  deployed sub-models, personalised models, local baselines
    attacks     inversion, membership, the canary audit
    data        data sets, partitions, federations
    experiment  from a config to a run: `train(config, workdir)`, its figures and files
    report      tables, figures and the page of a run

Importing fairjax imports none of them. A name of `__all__` is imported when it is first
used, so that a command can listen to signals (`experiment.io.preemption`) before JAX is
loaded. Other modules are imported by their own names.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairjax import metrics
    from fairjax.core import aggregate, client, layout, round, types
    from fairjax.core.method import Method
    from fairjax.core.protocols import Layout
    from fairjax.core.rule import Rule
    from fairjax.core.types import Axes, Cohort, FederatedData, Model, Submodel, Units

_HOMES = {
    "Axes": "core.types",
    "Cohort": "core.types",
    "FederatedData": "core.types",
    "Layout": "core.protocols",
    "Method": "core.method",
    "Model": "core.types",
    "Rule": "core.rule",
    "Submodel": "core.types",
    "Units": "core.types",
}
"""Public type -> its module; the other names of `__all__` are modules themselves."""

__all__ = [
    "Axes",
    "Cohort",
    "FederatedData",
    "Layout",
    "Method",
    "Model",
    "Rule",
    "Submodel",
    "Units",
    "aggregate",
    "client",
    "layout",
    "metrics",
    "round",
    "types",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    room = "" if name == "metrics" else "core."
    return importlib.import_module(f"{__name__}.{room}{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
