"""Fields of `robust`: defences, and the faults that a study injects."""

import dataclasses
from typing import Any

from fairjax.core import require
from fairjax.experiment.config.options.fields import interval, one_of, option, subgroup
from fairjax.robust import aggregators, faults


def check_fault(where: str, fault: Any) -> None:
    """Refuses an entry of `robust.faults` that is no fault."""
    if not isinstance(fault, tuple) or len(fault) != 3:
        require.fail(where, "(name, share of hospitals, rate) for each", fault)
    name, share, rate = fault
    if not isinstance(name, str):
        require.fail(where, "a name first", name)
    require.one_of(where, name, faults.FAULTS)
    require.in_range(f"{where} share of {name}", share, 0, 1, open_low=True)
    require.in_range(f"{where} rate of {name}", rate, 0, 1, open_low=True)
    if name in faults.PERMANENT and rate != 1:
        expected = f"1 for {name}, which is in every round"
        require.fail(f"{where} rate of {name}", expected, rate)


@dataclasses.dataclass(frozen=True)
class TrimmedMean:
    """`robust.trimmed_mean`: the trimmed mean."""

    beta: float = option(
        0.1,
        "share that is cut off at either end",
        check=interval(0, 0.5, open_high=True),
    )


@dataclasses.dataclass(frozen=True)
class Strength:
    """`robust.strength`: strength of each fault."""

    sign_flip: float = option(1.0, "times the update, reversed", check=interval(0))
    scaling: float = option(10.0, "times the update", check=interval(0))
    gaussian: float = option(
        1.0, "norm of the noise, in norms of the update", check=interval(0)
    )
    inflated_count: float = option(10.0, "times the records", check=interval(0))
    inflated_loss: float = option(10.0, "times the loss", check=interval(0))


@dataclasses.dataclass(frozen=True)
class Deadline:
    """`robust.deadline`: the deadline that stragglers may miss."""

    most: float = option(
        1.5, "usual times of a round; later uploads are dropped", check=require.positive
    )
    spread: float = option(
        0.5, "standard deviation of the logarithm of their time", check=interval(0)
    )


@dataclasses.dataclass(frozen=True)
class Robust:
    """`robust`: defences, and the faults that a study injects."""

    finite_guard: bool = option(
        True,
        "leave out a client whose update is not finite (client_dp and local_dp "
        "may not show that one failed: it counts as a client that learned "
        "nothing)",
    )
    aggregator: str = option(
        "mean",
        'how updates become one: "mean", the weighted mean of the fairness rule; '
        'by coordinate "median" or "trimmed_mean" over the clients that train it, '
        'without weights; by distance "krum", one client\'s update as it is, or '
        '"multi_krum", the weighted mean of the updates that lie close together',
        check=one_of(aggregators.AGGREGATORS),
    )
    num_byzantine: int = option(
        1,
        "Byzantine clients that a cohort may have, for krum and multi_krum",
        check=interval(0),
    )
    trimmed_mean: TrimmedMean = subgroup(TrimmedMean)
    norm_bound: float = option(
        0.0,
        "largest norm of an update, in running medians of its tier's norms; 0: none",
        check=interval(0),
    )
    weight_cap: float = option(
        3.0,
        "largest weight of a client, in equal shares 1 / K, under a norm bound of "
        "a mean or multi_krum: a false loss or count cannot raise it further; 0: "
        "none",
    )
    faults: tuple[tuple[str, float, float], ...] = option(
        (),
        "((name, share of clients, probability in a round), ..): what goes wrong, "
        "for research. Absences drop_before, drop_during, drop_after, straggler; "
        "uploads nan, inf, sign_flip, scaling, gaussian, free_rider; claims "
        "inflated_count, inflated_loss; records label_flip, corrupted; impostor: "
        "claims to be in the richest tier",
        check=check_fault,
    )
    strength: Strength = subgroup(Strength, "strength of each fault")
    deadline: Deadline = subgroup(Deadline, "deadline that stragglers may miss")
