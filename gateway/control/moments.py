"""From a count of batches or rows back to the time it speaks of."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

__all__ = ("Moments",)

_KEPT = 4096
_PARTS = 200
"""Into so many parts of its age the past is told apart: a thousand million numbers leave 3,300 of them."""


class Moments(msgspec.Struct):
    """The times of numbered batches or rows, in bounded memory: the older, the coarser, to about 1 % of their age.

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
            self._thin_out()

    def known(self, number: int) -> int:
        """The number whose time and total are told for `number`: itself, or the last one before it that is known."""
        return self.numbers[self._place(number)] if self.numbers else number

    def time_of(self, number: int) -> str | None:
        """The time of `number`, or of the last one before it that is still known."""
        return self.times[self._place(number)] if self.numbers else None

    def total_of(self, number: int) -> int:
        """The total before `number`, or before the last one before it that is still known."""
        return self.totals[self._place(number)] if self.numbers else 0

    def _thin_out(self) -> None:
        newest = kept = self.numbers[-1] + 1
        places = []
        for place in range(len(self.numbers) - 1, -1, -1):
            number = self.numbers[place]
            if place == 0 or kept - number >= (newest - number) // _PARTS:
                places.append(place)
                kept = number
        places.reverse()
        self.numbers = [self.numbers[place] for place in places]
        self.times = [self.times[place] for place in places]
        self.totals = [self.totals[place] for place in places]

    def _place(self, number: int) -> int:
        return max(bisect_right(self.numbers, number) - 1, 0)
