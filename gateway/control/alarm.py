"""An alarm, and the rule that the same one is reported once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from gateway.repository.policy import Action

__all__ = ("Alarm", "Detector", "Latch", "LatchState")

Detector = str
"""`inputs`, `outputs`, `quality`, or the name of a river detector."""


class Alarm(msgspec.Struct, frozen=True):
    """A detector's evidence has reached its line.

    Parameters
    ----------
    tier : "page" or "warn"
        `page`: the promised rate of false alarms holds. `warn`: a river detector, without such a promise.
    evidence, threshold : float
        Natural logarithms; for a `warn` both are 0.
    features : dict
        Evidence of the features that drifted, largest first.
    since : str
        When the change began, in the traffic's own time, ISO 8601.
    until : str
        The newest traffic that was counted.
    rows, callers : int
        Rows counted since the evidence left its floor, and the callers they came from (counted up to 20).
    numbers : dict
        What else belongs to the certificate, such as misses and the reference's miss rate.
    """

    model: str
    version: int
    detector: Detector
    tier: Literal["page", "warn"]
    action: Action
    evidence: float
    threshold: float
    features: dict[str, float]
    since: str
    until: str
    rows: int
    callers: int
    numbers: dict[str, float] = {}


class LatchState(msgspec.Struct):
    """What a checkpoint keeps of a latch."""

    fired: bool = False
    callers: set[str] = set()
    anonymous: int = 0
    rows: int = 0


class Latch:
    """Fires once when evidence has reached its line on the word of enough callers; armed again at the floor.

    Parameters
    ----------
    line : float
        Natural logarithm of the evidence that is needed.
    callers : int
        Different callers needed since the evidence left its floor, so that no single one raises an alarm.
    floor : float
        Natural logarithm of the evidence at or below which there is nothing to report.
    """

    def __init__(self, line: float, *, callers: int = 20, floor: float = 1.0) -> None:
        self._line = line
        self._needed = callers
        self._floor = floor
        self.state = LatchState()

    def __repr__(self) -> str:
        return f"<Latch {'fired' if self.state.fired else 'armed'} callers={self.callers} rows={self.state.rows}>"

    @property
    def callers(self) -> int:
        return min(len(self.state.callers) + self.state.anonymous, self._needed)

    def count(self, rows: int, callers: Iterable[str | None]) -> None:
        """Note how many rows are about to be counted, and the caller of each request; None for one seen only once.

        No more callers are taken than are needed.
        """
        state = self.state
        state.rows += rows
        if self.callers >= self._needed:
            return
        for caller in callers:
            if caller is None:
                state.anonymous += 1
            else:
                state.callers.add(caller)
            if self.callers >= self._needed:
                return

    def settle(self, evidence: float) -> bool:
        """Whether to report now, given the evidence after the rows were counted."""
        state = self.state
        if evidence <= self._floor:
            self.state = LatchState()
            return False
        if state.fired or evidence < self._line or self.callers < self._needed:
            return False
        state.fired = True
        return True
