"""Runs of seconds, and what is compared of them."""

import json

import jax
import numpy as np

from configs import default
from fairjax.core import trees
from fairjax.experiment.io.checkpoint import newest
from fairjax.experiment.train import about, load


def small(**fields):
    """A run of seconds: three rounds, every other one evaluated, three of four ask."""
    config = default.get_config()
    config.update_from_flattened_dict(
        {
            "rounds": 3,
            "eval_every": 2,
            "cohort": 3,
            "data.partition.num_clients": 4,
            "model.mlp.hidden": (8,),
        }
        | {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path):
    """The rows of metrics.jsonl as text, without the clock's keys."""
    kept = [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in rows(path)
    ]
    return "\n".join(json.dumps(row) for row in kept)


def untimed_summary(summary):
    """summary.json without what the clock and the compiler say."""
    last = {k: v for k, v in summary["metrics"].items() if not k.startswith("time/")}
    return summary | {"metrics": last, "time": None, "simulation": None}


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def selected_state(folder):
    """The state in workdir/selected, and its round."""
    run, last = load(folder)
    state, number, _ = newest(folder / "selected", last, about(run))
    return state, number


def final_params(workdir):
    return load(workdir)[1].params


def same_states(workdir, uninterrupted):
    """Byte for byte: the last one and the selected one."""
    both = (workdir, uninterrupted)
    ends = [load(folder)[1] for folder in both]
    kept, numbers = zip(*map(selected_state, both), strict=True)
    assert numbers[0] == numbers[1]
    for pair in (ends, kept):
        ours, theirs = (jax.tree.leaves(trees.raw(state)) for state in pair)
        assert [np.asarray(leaf).tobytes() for leaf in ours] == [
            np.asarray(leaf).tobytes() for leaf in theirs
        ]
