"""The work through the step that `train` compiles from a config.

    python -m benchmarks.peers.ours <case> [field=value ...]

Fields are the config's, or the case's own as work.clients=100. Beyond what the peers
do, a round here draws its cohort, shuffles every client's records and keeps masks,
weights and counts.
"""

import ast
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.peers import work
from benchmarks.peers.work import Case
from configs import default
from fairjax.experiment import train
from fairjax.experiment.config import build


def config(case: Case, path: pathlib.Path) -> build.ConfigDict:
    """The work of a case as a config, its records in an npz."""
    c = default.get_config()
    c.cohort = case.cohort
    c.data.name, c.data.path, c.data.normalise = "npz", str(path), "none"
    c.data.partition.name, c.data.partition.val_fraction = "natural", 0.0
    c.model.name = "two_conv" if case.channels else "mlp"
    c.model.mlp.hidden = case.hidden
    c.submodel.name = "fedavg"
    c.tiers.budget = c.tiers.share = (1.0,)
    c.local.batch_size, c.local.learning_rate = work.BATCH, work.RATE
    return c


def save(case: Case, path: pathlib.Path) -> None:
    """The records of a case; their first ones are the test split too."""
    x, y = work.data(case)
    clients, records = y.shape
    who = np.array([f"hospital_{k:04d}" for k in range(clients)])
    np.savez(
        path,
        train_images=x.reshape(-1, *x.shape[2:]),
        train_labels=y.ravel(),
        train_client=np.repeat(who, records),
        test_images=x[:, 0],
        test_labels=y[:, 0],
        test_client=who,
    )


def build(name: str, fields: Sequence[str]) -> tuple[Case, build.Run]:
    """A case, and its run with some fields changed."""
    case, changed = work.CASES[name], {}
    for field, text in (each.split("=", 1) for each in fields):
        value = ast.literal_eval(text)
        if field.startswith("work."):
            case = case._replace(**{field.removeprefix("work."): value})
        else:
            changed[field] = value
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "records.npz"
        save(case, path)
        c = config(case, path)
        c.update_from_flattened_dict(changed)
        return case, build.build(c)


def main(name: str, *fields: str) -> None:
    """Times a case."""
    case, run = build(name, fields)
    began = time.perf_counter()
    state = train.initial(run)
    step, _ = train.compiled(run, state)
    more: dict[str, Any] = {
        "compile_s": time.perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops_train": [bill["flops_train"] for bill in train.bills(run, state)],
        "choices": run.choices,
    }

    def one_round(_: np.ndarray) -> None:
        nonlocal state
        state, _info = jax.block_until_ready(step(state))

    work.timed(one_round, case, **more)


if __name__ == "__main__":
    main(*sys.argv[1:])
