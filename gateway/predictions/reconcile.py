"""Served = logged + sampled out + dropped: proven from the numbers of the records, and from what the fronts counted.

Each life of a front numbers its records from 1 without a gap. So what is missing between two records that are there
can be named, by anyone, without asking who wrote them. What the numbers cannot show is the end: records after the last
one that is there. That is what the fronts' own counts are held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.segments import LogRecord

__all__ = ("FrontBalance", "FrontCounts", "Gap", "Life", "balance", "lives_of")

_OK = 200
_PAGE_NUMBERS = 1 << 15


class Gap(NamedTuple):
    """Numbers `first` to `last` that are not in the log, between records of two times."""

    first: int
    last: int
    after: str
    before: str


class Life(msgspec.Struct):
    """What the log holds of one life of one front.

    `first` and `last` are the lowest and highest number seen. Numbers before `first` lie outside of the window or were
    removed by retention.
    """

    boot: str
    gateway: str = ""
    first: int = 0
    last: int = 0
    since: str = ""
    until: str = ""
    records: int = 0
    predictions: int = 0
    sampled_out: int = 0
    failed: int = 0
    labels: int = 0
    unreadable: int = 0
    repeated: int = 0
    gaps: list[Gap] = []

    @property
    def slot(self) -> int:
        """The number of the front."""
        return int(self.boot[12:], 16)

    @property
    def missing(self) -> int:
        """Numbers between the first and the last that are not there."""
        return sum(gap.last - gap.first + 1 for gap in self.gaps)


class FrontCounts(NamedTuple):
    """What a front has counted since its gateway was started, over all of its lives."""

    requests: int = 0
    refused: int = 0
    labels: int = 0
    spooled: int = 0
    sampled_out: int = 0
    dropped: int = 0


class FrontBalance(msgspec.Struct, frozen=True):
    """One front's counts against what the log holds of it.

    `served`: predictions that were answered. `logged`: whole. `lost`: events that were counted as written and are not
    in the log. `uncounted`: events in the log that a front had no time to count before it was killed. `removed`: at
    most so many events that retention has taken since.
    """

    front: int
    served: int
    logged: int
    sampled_out: int
    dropped: int
    labels: int
    lost: int
    uncounted: int
    removed: int
    holds: bool


class _Seen(msgspec.Struct):
    time: str = ""
    gateway: str = ""
    status: int = _OK
    sampled: bool = True


class _Numbers:
    """Which numbers of a life were seen: a bit for each, and the ends of the runs without a gap, with their times."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._by_first: dict[int, tuple[int, str]] = {}
        self._by_last: dict[int, tuple[int, str]] = {}

    def add(self, number: int, time: str) -> bool:
        """Note a number; False when it was there."""
        page = self._pages.get(number // _PAGE_NUMBERS)
        if page is None:
            page = self._pages[number // _PAGE_NUMBERS] = bytearray(_PAGE_NUMBERS // 8)
        place, bit = number % _PAGE_NUMBERS // 8, 1 << number % 8
        if page[place] & bit:
            return False
        page[place] |= bit
        first, began = self._by_last.pop(number - 1, (number, time))
        last, ended = self._by_first.pop(number + 1, (number, time))
        self._by_first[first] = (last, ended)
        self._by_last[last] = (first, began)
        return True

    def runs(self) -> list[tuple[int, int, str, str]]:
        """(first, last, time of first, time of last) of each run, in order."""
        return sorted((first, last, began, self._by_first[first][1]) for last, (first, began) in self._by_last.items())


_decoder = msgspec.json.Decoder(_Seen)


def lives_of(records: Iterable[LogRecord]) -> list[Life]:
    """Count the records of fronts, life by life; they may come in any order and more than once.

    >>> lives = lives_of(LogRecord(2, "0196f0c5d2a100", number, b"{}") for number in (1, 2, 5, 5))
    >>> [(life.records, life.repeated, life.gaps[0][:2]) for life in lives]
    [(3, 1, (3, 4))]
    """
    lives: dict[str, Life] = {}
    numbers: dict[str, _Numbers] = {}
    for kind, boot, sequence, payload in records:
        if kind not in (KIND_PREDICTION, KIND_FEEDBACK):
            continue
        life = lives.get(boot)
        if life is None:
            life = lives[boot] = Life(boot)
            numbers[boot] = _Numbers()
        try:
            seen = _decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            life.unreadable += 1
            seen = _Seen()
        if not numbers[boot].add(sequence, seen.time):
            life.repeated += 1
            continue
        life.records += 1
        life.gateway = life.gateway or seen.gateway
        if kind == KIND_FEEDBACK:
            life.labels += 1
        else:
            life.predictions += 1
            life.failed += seen.status != _OK
            life.sampled_out += not seen.sampled
    for boot, life in lives.items():
        runs = numbers[boot].runs()
        life.first, _, life.since, _ = runs[0]
        _, life.last, _, life.until = runs[-1]
        life.gaps = [
            Gap(left[1] + 1, right[0] - 1, left[3], right[2]) for left, right in zip(runs, runs[1:], strict=False)
        ]
    return sorted(lives.values(), key=lambda life: (life.slot, life.boot))


def balance(
    lives: Iterable[Life], before: Mapping[int, FrontCounts], after: Mapping[int, FrontCounts]
) -> list[FrontBalance]:
    """Hold what each front counted against its lives since its gateway was started.

    Parameters
    ----------
    lives : iterable of Life
        Read between the two looks at the counts, whole, of the running gateway only.
    before, after : mapping of front to FrontCounts
        The counts before and after the log was read; in between predictions may have been served.
    """
    by_front: dict[int, list[Life]] = {front: [] for front in after}
    for life in lives:
        by_front.setdefault(life.slot, []).append(life)
    found = []
    for front, own in sorted(by_front.items()):
        low, high = before.get(front, FrontCounts()), after.get(front, FrontCounts())
        records = sum(life.records for life in own)
        removed = sum(life.first - 1 for life in own)
        lost = max(0, low.spooled - records - removed)
        uncounted = max(0, records - high.spooled)
        missing = sum(life.missing for life in own)
        served = high.requests - high.refused
        # While it serves, a front may be looked at between two of its counts. One that is killed has written, and
        # counted as written, what it did not come to answer; the reverse is never so.
        balanced = high != low or served + high.labels <= high.spooled + high.dropped
        sampled_out = sum(life.sampled_out for life in own)
        told_apart = removed > 0 or sampled_out >= low.sampled_out
        holds = balanced and told_apart and not lost and missing <= high.dropped
        found.append(
            FrontBalance(
                front=front,
                served=served,
                logged=sum(life.predictions - life.sampled_out for life in own),
                sampled_out=sampled_out,
                dropped=high.dropped,
                labels=sum(life.labels for life in own),
                lost=lost,
                uncounted=uncounted,
                removed=removed,
                holds=holds,
            )
        )
    return found
