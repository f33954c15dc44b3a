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

    def note(self, number: int, time: str) -> None:
        """Remember the time of `number`; numbers rise."""
        self.numbers.append(number)
        self.times.append(time)
        if len(self.numbers) > _KEPT:
            half = _KEPT // 2
            self.numbers[:half] = self.numbers[:half:2]
            self.times[:half] = self.times[:half:2]

    def time_of(self, number: int) -> str | None:
        """The time of `number`, or of the last one before it that is still known."""
        place = bisect_right(self.numbers, number)
        if place:
            return self.times[place - 1]
        return self.times[0] if self.times else None
