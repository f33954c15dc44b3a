"""The port behind which detectors of single streams stand, and the fake of it for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ("RunDetector", "StreamDetector")


class StreamDetector(Protocol):
    """Watches one stream of numbers, such as the losses of a version, for a change.

    `rows` counts the values taken and `refused` those that were not: NaN, infinities, and what the detector has no
    use for. `detected` tells of the last update alone. `since` is the first row (from 1) of the new regime that was
    found last, where the detector can tell.
    """

    rows: int
    refused: int

    @property
    def detected(self) -> bool: ...

    @property
    def since(self) -> int | None: ...

    def update(self, x: float) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class RunDetector:
    """Detect a run of values above a limit; the fake of the port, simple enough to know by heart what it finds.

    >>> detector = RunDetector(above=0.5, run=3)
    >>> for x in [0, 1, 1, float("nan"), 1]:
    ...     detector.update(x)
    >>> detector.detected, detector.since, detector.rows, detector.refused
    (True, 2, 4, 1)
    """

    def __init__(self, *, above: float, run: int) -> None:
        self.above = above
        self.run = run
        self.rows = 0
        self.refused = 0
        self._seen = 0
        self._detected = False
        self._since: int | None = None

    @property
    def detected(self) -> bool:
        return self._detected

    @property
    def since(self) -> int | None:
        return self._since

    def update(self, x: float) -> None:
        self._detected = False
        if not math.isfinite(x):
            self.refused += 1
            return
        self.rows += 1
        self._seen = self._seen + 1 if x > self.above else 0
        if self._seen == self.run:
            self._detected = True
            self._since = self.rows - self.run + 1
            self._seen = 0

    def state(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "refused": self.refused,
            "seen": self._seen,
            "detected": self._detected,
            "since": self._since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rows, self.refused, self._seen = state["rows"], state["refused"], state["seen"]
        self._detected, self._since = state["detected"], state["since"]
