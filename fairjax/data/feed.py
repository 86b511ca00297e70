"""Records that stay on the host: every round is given those of its cohort alone.

While one round computes, the records of the next are gathered and sent. A cohort
follows from the run's key and the round, so nothing waits for a result.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

from fairjax.core.types import Cohort, Federation

T = TypeVar("T")


def rows(counts: Int[np.ndarray, "N"], slots: int) -> int:
    """Records that a cohort of `slots` clients has at most."""
    return int(np.sort(counts)[::-1][:slots].sum())


def block(data: Federation, cohort: Cohort, length: int) -> Federation:
    """The federation with the records of a cohort's valid clients, and no others.

    Args:
        data: the whole, with NumPy leaves.
        cohort: whose records; concrete.
        length: of the block, see `rows`; beyond the cohort's records it repeats
            the first.

    Returns:
        A federation of the same N clients, of whom only the cohort's may be read.
    """
    who = np.unique(np.asarray(cohort.client)[np.asarray(cohort.valid)])
    offset, count = np.asarray(data.offset), np.asarray(data.count)
    start = np.zeros_like(offset)
    start[who] = np.cumsum(count[who]) - count[who]
    index = np.zeros(length, np.int64)
    used = count[who].sum()
    index[:used] = np.repeat(offset[who] - start[who], count[who]) + np.arange(used)
    return Federation(
        np.asarray(data.x)[index],
        np.asarray(data.y)[index],
        np.asarray(data.group)[index],
        start,
        count,
        np.asarray(data.labels),
        None if data.patient is None else np.asarray(data.patient)[index],
    )


class Feed(Generic[T]):
    """`make(round)`, with the next round's made while this one's is in use.

    Args:
        make: rounds finished -> the records of the coming one, on the device.
        last: rounds of the run; none is made for later ones.
    """

    def __init__(self, make: Callable[[int], T], last: int):
        self._make, self._last = make, last
        self._worker = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, finished: int) -> T:
        """The records of the round after `finished` ones."""
        if self._next is None or self._next[0] != finished:
            self._next = finished, self._worker.submit(self._make, finished)
        now = self._next[1].result()
        self._next = None
        if finished + 1 < self._last:
            after = self._worker.submit(self._make, finished + 1)
            self._next = finished + 1, after
        return now
