"""No one caller makes the evidence: what one routing key, or one request, may add beside all the others."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

__all__ = ("CallerShare", "ShareState")


class ShareState(msgspec.Struct):
    """Rows each caller offered and rows of it that were admitted, and the rows of all."""

    callers: dict[str, tuple[int, int]] = {}
    offered: int = 0


class CallerShare:
    """Admits rows as evidence so that one caller has at most a small share of what all others sent.

    A caller is a routing key, or a single request where there is none. It may always add `free` rows; beyond them, at
    most `share` times the rows that everybody else offered. A share of 2 % lies below the drift and risk that the
    detectors tolerate, so a caller alone neither raises an alarm nor drowns one. Whether a row is admitted does not
    depend on what it holds, so what is left is a fair sample.

    Counts are halved each time `window` rows have been offered: old traffic buys no later flood.

    >>> share = CallerShare()
    >>> [share.admit("one", 1000), share.admit("two", 4), share.admit("one", 1)]
    [8, 4, 0]
    """

    def __init__(self, *, free: int = 8, share: float = 0.02, window: int = 20_000) -> None:
        self._free = free
        self._share = share
        self._window = window
        self.state = ShareState()

    def __repr__(self) -> str:
        return f"<CallerShare callers={len(self.state.callers)} offered={self.state.offered}>"

    def admit(self, caller: str | None, rows: int) -> int:
        """How many of `rows` rows count; `caller` None is a caller that is seen only once."""
        state = self.state
        if caller is None and rows <= self._free and state.offered < self._window:
            state.offered += rows
            return rows
        offered, admitted = state.callers.get(caller, (0, 0)) if caller is not None else (0, 0)
        allowed = max(self._free, int(self._share * (state.offered - offered))) - admitted
        counted = max(0, min(rows, allowed))
        state.offered += rows
        if caller is not None:
            state.callers[caller] = (offered + rows, admitted + counted)
        if state.offered > self._window:
            self._halve()
        return counted

    def admit_each(self, callers: Sequence[str | None] | None, rows: Sequence[int]) -> Sequence[int]:
        """How many rows count of each request of many, as `admit` says one by one.

        Parameters
        ----------
        callers : sequence of str or None
            None for requests that are all of callers seen only once.
        """
        if callers is not None:
            return [self.admit(caller, each) for caller, each in zip(callers, rows, strict=True)]
        state, sent = self.state, sum(rows)
        if max(rows, default=0) <= self._free and state.offered + sent < self._window:
            state.offered += sent
            return rows
        return [self.admit(None, each) for each in rows]

    def _halve(self) -> None:
        halved = {caller: (offered // 2, admitted // 2) for caller, (offered, admitted) in self.state.callers.items()}
        callers = {caller: counts for caller, counts in halved.items() if counts[0]}
        self.state = ShareState(callers, self.state.offered // 2)
