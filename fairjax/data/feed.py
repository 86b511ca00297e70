"""Records that stay on the host; a round gets the records of its cohort alone.

While a round computes, a thread gathers and sends the records of the next. This needs
no result of the round, because a cohort follows from the run's key and the round.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

from fairjax.core.types import Cohort, FederatedData

T = TypeVar("T")


def max_records(counts: Int[np.ndarray, "N"], slots: int) -> int:
    """The most records that a cohort of `slots` clients can have."""
    return int(np.sort(counts)[::-1][:slots].sum())


def cohort_records(data: FederatedData, cohort: Cohort, length: int) -> FederatedData:
    """The federation with only the records of a cohort's valid clients.

    Args:
        data: the whole federation, with NumPy leaves.
        cohort: the cohort, with concrete arrays.
        length: the records of the result, see `max_records`. Beyond the cohort's
            records, the first record of the federation repeats.

    Returns:
        A federation of the same N clients; only those of the cohort may be read.
    """
    clients = np.unique(np.asarray(cohort.client)[np.asarray(cohort.valid)])
    offset, count = np.asarray(data.offset), np.asarray(data.count)
    start = np.zeros_like(offset)
    start[clients] = np.cumsum(count[clients]) - count[clients]
    index = np.zeros(length, np.int64)
    num_records = count[clients].sum()
    index[:num_records] = np.repeat(
        offset[clients] - start[clients], count[clients]
    ) + np.arange(num_records)
    return FederatedData(
        np.asarray(data.x)[index],
        np.asarray(data.y)[index],
        np.asarray(data.group)[index],
        start,
        count,
        np.asarray(data.labels),
        None if data.patient is None else np.asarray(data.patient)[index],
    )


class Prefetcher(Generic[T]):
    """Calls `make` for the next round while the records of this round are in use.

    Args:
        make: rounds finished -> the records of the next round, on the device.
        num_rounds: rounds of the run; no records are made beyond them.
    """

    def __init__(self, make: Callable[[int], T], num_rounds: int):
        self._make, self._num_rounds = make, num_rounds
        self._worker = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, round_index: int) -> T:
        """The records of the round after `round_index` rounds."""
        if self._next is None or self._next[0] != round_index:
            self._next = round_index, self._worker.submit(self._make, round_index)
        records = self._next[1].result()
        self._next = None
        if round_index + 1 < self._num_rounds:
            future = self._worker.submit(self._make, round_index + 1)
            self._next = round_index + 1, future
        return records
