"""From a count of batches or rows back to the time it speaks of."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

__all__ = ("Moments",)

_KEPT = 4096


class Moments(msgspec.Struct):
    """The times of numbered batches or rows, in bounded memory: the older, the coarser.

    >>> moments = Moments()
    >>> for number in range(1, 10_000):
    ...     moments.note(number, f"day {number}")
    >>> moments.time_of(9_990), len(moments.numbers) <= 4096
    ('day 9990', True)
    """

    numbers: list[int] = []
    times: list[str] = []
    totals: list[int] = []

    def note(self, number: int, time: str, total: int = 0) -> None:
        """Remember the time of `number`, and a running total as it stood before it; numbers rise."""
        self.numbers.append(number)
        self.times.append(time)
        self.totals.append(total)
        if len(self.numbers) > _KEPT:
            half = _KEPT // 2
            for column in (self.numbers, self.times, self.totals):
                del column[1:half:2]

    def time_of(self, number: int) -> str | None:
        """The time of `number`, or of the last one before it that is still known."""
        return self.times[self._place(number)] if self.numbers else None

    def total_of(self, number: int) -> int:
        """The total before `number`, or before the last one before it that is still known."""
        return self.totals[self._place(number)] if self.numbers else 0

    def _place(self, number: int) -> int:
        return max(bisect_right(self.numbers, number) - 1, 0)
