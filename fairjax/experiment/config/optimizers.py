"""Optimisers of clients and of the server, and schedules of their learning rates.

A new optimiser or schedule is a line in one of these tables.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

from fairjax.experiment.config.schema import Config, Rate


def _sgd(c: Config) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(c.local.weight_decay)
    sgd = optax.sgd(c.local.learning_rate, momentum=c.local.momentum or None)
    return optax.chain(decay, sgd) if c.local.weight_decay else sgd


OPTIMIZERS: dict[str, Callable[[Config], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": lambda c: optax.adamw(
        c.local.learning_rate, weight_decay=c.local.weight_decay
    ),
}

SERVERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    # beta2 and epsilon (tau) as in Reddi et al., "Adaptive federated optimization",
    # ICLR 2021, arXiv:2003.00295, section 5.
    "adam": lambda learning_rate: optax.adam(learning_rate, b2=0.99, eps=1e-3),
    "yogi": lambda learning_rate: optax.yogi(learning_rate, b2=0.99, eps=1e-3),
}


class Schedule(NamedTuple):
    """How a learning rate changes over rounds."""

    make_schedule: Callable[[Rate, int], optax.Schedule]
    """(config group, rounds from the schedule's first to the run's last) -> factor over
    the rounds since the schedule's first one."""
    options: tuple[str, ...] = ()
    """Fields of the group that the schedule reads."""
    depends_on_rounds: bool = False
    """Whether it depends on the number of rounds: a run with it cannot be extended."""


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(lambda c, rounds: optax.constant_schedule(1.0)),
    "linear": Schedule(
        lambda c, rounds: optax.linear_schedule(1.0, 0.0, rounds),
        depends_on_rounds=True,
    ),
    "cosine": Schedule(
        lambda c, rounds: optax.cosine_decay_schedule(1.0, rounds),
        depends_on_rounds=True,
    ),
    "steps": Schedule(
        lambda c, rounds: optax.piecewise_constant_schedule(
            1.0, {number - c.warmup: c.decay_rate for number in c.milestones}
        ),
        ("milestones", "decay_rate"),
    ),
    "exponential": Schedule(
        lambda c, rounds: optax.exponential_decay(1.0, 1, c.decay_rate), ("decay_rate",)
    ),
}


def schedule(c: Rate, rounds: int) -> Callable[[Array], Any]:
    """Rounds finished -> factor on the learning rate of a group, local or server.

    Over the first `warmup` = W rounds the factor is (r + 1) / (W + 1) > 0, so that
    every round trains. The schedule begins with the round after them.

    Args:
        c: the group.
        rounds: number of rounds of the whole run.
    """
    if c.schedule == "constant" and not c.warmup:
        return lambda round: 1.0
    lr_schedule = SCHEDULES[c.schedule].make_schedule(c, max(rounds - c.warmup, 1))
    if c.warmup:
        warmup_schedule = optax.linear_schedule(1 / (c.warmup + 1), 1.0, c.warmup)
        lr_schedule = optax.join_schedules([warmup_schedule, lr_schedule], [c.warmup])
    return lambda round: lr_schedule(round.astype(jnp.float32))
