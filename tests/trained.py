"""Runs that take seconds, and comparisons of their files and states."""

import json

import jax
import numpy as np

from configs import default
from fairjax.core import trees
from fairjax.experiment.best_round import checkpoint_meta
from fairjax.experiment.io.checkpoint import restore_latest
from fairjax.experiment.resume import load


def small(**fields):
    """A config of three rounds with 3 of 4 clients; every other round is evaluated."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "rounds": 3,
            "eval_every": 2,
            "clients_per_round": 3,
            "data.partition.num_clients": 4,
            "model.mlp.hidden": (8,),
        }
        | {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path):
    """The rows of metrics.jsonl as text, without the keys of times."""
    kept = [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in rows(path)
    ]
    return "\n".join(json.dumps(row) for row in kept)


def untimed_summary(summary):
    """summary.json without times and figures of the compiler."""
    last = {k: v for k, v in summary["metrics"].items() if not k.startswith("time/")}
    return summary | {"metrics": last, "time": None, "simulation": None}


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def selected_state(folder):
    """The state in workdir/selected and its round."""
    run, last = load(folder)
    state, number, _ = restore_latest(folder / "selected", last, checkpoint_meta(run))
    return state, number


def final_params(workdir):
    return load(workdir)[1].params


def same_states(workdir, uninterrupted):
    """Asserts that last and selected states of two runs are equal byte for byte."""
    both = (workdir, uninterrupted)
    ends = [load(folder)[1] for folder in both]
    kept, numbers = zip(*map(selected_state, both), strict=True)
    assert numbers[0] == numbers[1]
    for pair in (ends, kept):
        ours, theirs = (jax.tree.leaves(trees.unwrap_keys(state)) for state in pair)
        assert [np.asarray(leaf).tobytes() for leaf in ours] == [
            np.asarray(leaf).tobytes() for leaf in theirs
        ]
