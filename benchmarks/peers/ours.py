"""The work with the step that `train` compiles from a config.

    python -m benchmarks.peers.ours <case> [field=value ...]

Fields are those of the config, or of the case, as in work.clients=100. In addition to
the peers' work, a round here draws its cohort, shuffles every client's records and
maintains masks, weights and counts.
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
from fairjax.experiment import compilation, costs, resume
from fairjax.experiment.config import build


def config(case: Case, path: pathlib.Path) -> build.ConfigDict:
    """The config of a case, whose records are in an npz file at `path`."""
    c = default.get_config()
    c.clients_per_round = case.cohort
    c.data.name, c.data.path, c.data.normalise = "npz", str(path), "none"
    c.data.partition.name, c.data.partition.val_fraction = "natural", 0.0
    c.model.name = "two_conv" if case.channels else "mlp"
    c.model.mlp.hidden = case.hidden
    c.submodel.name = "fedavg"
    c.tiers.budget = c.tiers.proportions = (1.0,)
    c.local.batch_size, c.local.learning_rate = work.BATCH, work.RATE
    return c


def save(case: Case, path: pathlib.Path) -> None:
    """Saves the records of a case; every client's first one is also a test record."""
    x, y = work.data(case)
    clients, records = y.shape
    client_names = np.array([f"hospital_{k:04d}" for k in range(clients)])
    np.savez(
        path,
        train_images=x.reshape(-1, *x.shape[2:]),
        train_labels=y.ravel(),
        train_client=np.repeat(client_names, records),
        test_images=x[:, 0],
        test_labels=y[:, 0],
        test_client=client_names,
    )


def build_case(name: str, fields: Sequence[str]) -> tuple[Case, build.Run]:
    """A case and its run, with the given fields changed."""
    case, overrides = work.CASES[name], {}
    for field, text in (argument.split("=", 1) for argument in fields):
        value = ast.literal_eval(text)
        if field.startswith("work."):
            case = case._replace(**{field.removeprefix("work."): value})
        else:
            overrides[field] = value
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "records.npz"
        save(case, path)
        c = config(case, path)
        c.update_from_flattened_dict(overrides)
        return case, build.run(c)


def main(name: str, *fields: str) -> None:
    """Times a case."""
    case, run = build_case(name, fields)
    began = time.perf_counter()
    state = resume.initial_state(run)
    step, _ = compilation.compile_round(run, state)
    details: dict[str, Any] = {
        "compile_s": time.perf_counter() - began,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops_train": [bill["flops_train"] for bill in costs.tier_costs(run, state)],
        "choices": run.choices,
    }

    def one_round(_: np.ndarray) -> None:
        nonlocal state
        state, _info = jax.block_until_ready(step(state))

    work.time_rounds(one_round, case, **details)


if __name__ == "__main__":
    main(*sys.argv[1:])
