"""river's detectors behind the port."""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ("BINARY_DETECTORS", "DETECTORS", "RiverDetector", "check_detector")


class _Range(NamedTuple):
    low: float
    high: float
    whole: bool = False


_SHARE = _Range(1e-300, 1.0)
_POSITIVE = _Range(1e-12, 1e12)
_FROM_ZERO = _Range(0.0, 1e12)
_COUNT = _Range(1, 1_000_000, whole=True)
_WINDOW = _Range(2, 10_000, whole=True)
_SWITCH = _Range(0, 1, whole=True)

# river checks few of its parameters; ADWIN panics on a clock of 0, which no `except Exception` would stop.
_PARAMETERS: dict[str, dict[str, _Range]] = {
    "ADWIN": {
        "delta": _SHARE,
        "clock": _COUNT,
        "max_buckets": _Range(2, 1_000, whole=True),
        "min_window_length": _COUNT,
        "grace_period": _COUNT,
    },
    "PageHinkley": {"min_instances": _COUNT, "delta": _FROM_ZERO, "threshold": _POSITIVE, "alpha": _SHARE},
    "KSWIN": {"alpha": _SHARE, "window_size": _WINDOW, "stat_size": _WINDOW, "seed": _COUNT},
    "DummyDriftDetector": {"t_0": _COUNT},
    "NoDrift": {},
    "DDM": {"warm_start": _COUNT, "warning_threshold": _POSITIVE, "drift_threshold": _POSITIVE},
    "EDDM": {"warm_start": _COUNT, "alpha": _SHARE, "beta": _SHARE},
    "FHDDM": {"sliding_window_size": _WINDOW, "confidence_level": _SHARE, "short_window_size": _WINDOW},
    "HDDMA": {"drift_confidence": _SHARE, "warning_confidence": _SHARE, "two_sided_test": _SWITCH},
    "HDDMW": {
        "drift_confidence": _SHARE,
        "warning_confidence": _SHARE,
        "lambda_val": _SHARE,
        "two_sided_test": _SWITCH,
    },
}
DETECTORS = tuple(_PARAMETERS)
"""Those that may be named. NoDrift and DummyDriftDetector are baselines for comparisons."""
BINARY_DETECTORS = ("DDM", "EDDM", "FHDDM", "HDDMA", "HDDMW")
"""Of `river.drift.binary`: they take misses, 1 for a miss and 0 for a hit, and nothing else."""

MAX_MAGNITUDE = 1e100
"""Larger values are refused: their squares overflow within a detector (ADWIN goes blind at 1e160)."""
MEMORY_ROWS = 4_000
"""Values since the last change that a state keeps."""
_SEED = 1
# river's FHDDM looks for a fall of the mean, so it would report fewer misses, not more. It is fed hits.
_FED_HITS = ("FHDDM",)
_STATE_SCHEMA = 1


def check_detector(name: str, parameters: Mapping[str, float]) -> dict[str, float]:
    """The parameters a detector is built with, checked without importing river.

    Raises
    ------
    ValueError
        With the name or parameter that came and what is allowed.

    >>> check_detector("ADWIN", {"clock": 16.0})
    {'clock': 16}
    >>> check_detector("ADWIN", {"clock": 0})
    Traceback (most recent call last):
        ...
    ValueError: ADWIN cannot take clock = 0; expected a whole number from 1 to 1e+06
    """
    ranges = _PARAMETERS.get(name)
    if ranges is None:
        raise ValueError(f"{name!r} is no drift detector here; expected one of {', '.join(DETECTORS)}")
    taken: dict[str, float] = {"seed": _SEED} if "seed" in ranges else {}
    for key, value in parameters.items():
        if key not in ranges:
            raise ValueError(f"{name} has no parameter {key!r}; expected one of: {', '.join(ranges) or 'none'}")
        low, high, whole = ranges[key]
        if not isinstance(value, int | float) or not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"{name} cannot take {key} = {value!r}; expected {kind} from {low:g} to {high:g}")
        taken[key] = int(value) if whole else float(value)
    _check_together(name, taken)
    return taken


class RiverDetector:
    """A drift detector of river by name, kept seeing whatever comes.

    One NaN blinds several of river's detectors for ever, so only finite numbers are fed. A detector whose estimate is
    not finite all the same is built anew, as is every detector after it found a change. A state is the last 4,000
    values since then, which are replayed: it goes on exactly where no more than these have come since the last
    change, and nearly so otherwise. It holds no pickles.

    Parameters
    ----------
    name : str
        One of `DETECTORS`.
    parameters : mapping of str to number
        Of river's constructor; whole numbers may come as floats. KSWIN, which draws, is seeded by 1 unless told.

    Raises
    ------
    ValueError
        The name or a parameter is not one that is allowed.

    >>> import numpy as np
    >>> rng = np.random.default_rng(5)
    >>> detector = RiverDetector("ADWIN", {"delta": 0.002})
    >>> for row in range(2_000):
    ...     detector.update(float(rng.random() < (0.1 if row < 1_000 else 0.3)))
    ...     if detector.detected:
    ...         print(detector.rows, detector.since)
    1088 865

    Source: https://riverml.xyz/latest/api/drift/ADWIN/ and its neighbours.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        self._parameters = check_detector(name, parameters)
        self.name = name
        self.rows = 0
        self.refused = 0
        self.rebuilt = 0
        self._class = _river_class(name)
        self._memory: deque[float] = deque(maxlen=MEMORY_ROWS)
        self._detected = False
        self._since: int | None = None
        self._detector = self._class(**self._parameters)

    @property
    def binary(self) -> bool:
        """Whether it takes misses (0 or 1) only, and refuses other numbers."""
        return self.name in BINARY_DETECTORS

    @property
    def detected(self) -> bool:
        """Whether the last update found a change."""
        return self._detected

    @property
    def since(self) -> int | None:
        """The first row of the regime found last; only ADWIN can tell, by the width of its window."""
        return self._since

    def update(self, x: float) -> None:
        """Take one value; one that is not finite, too large, or no miss for a binary detector, is refused."""
        self._detected = False
        if not abs(x) <= MAX_MAGNITUDE or (self.binary and x not in (0, 1)):
            self.refused += 1
            return
        self.rows += 1
        self._memory.append(float(x))
        self._feed(float(x))
        if self._detector.drift_detected:
            self._detected = True
            self._since = self.rows - int(self._detector.width) + 1 if self.name == "ADWIN" else None
            self._start_anew()
        elif not self._sees():
            self.rebuilt += 1
            self._start_anew()

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs: numbers, strings and bytes."""
        return {
            "schema": _STATE_SCHEMA,
            "name": self.name,
            "parameters": dict(self._parameters),
            "rows": self.rows,
            "refused": self.refused,
            "rebuilt": self.rebuilt,
            "detected": self._detected,
            "since": self._since,
            "memory": struct.pack(f"<{len(self._memory)}d", *self._memory),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of a detector of this name and parameters.

        Raises
        ------
        ValueError
            The state is of another detector, or damaged. The detector is as it was.
        """
        expected = {"schema": _STATE_SCHEMA, "name": self.name, "parameters": self._parameters}
        for key, value in expected.items():
            if state.get(key) != value:
                raise ValueError(f"the state is of another detector: {key} is {state.get(key)!r}, expected {value!r}")
        memory = _values(state.get("memory"))
        try:
            counts = int(state["rows"]), int(state["refused"]), int(state["rebuilt"])
            detected = bool(state["detected"])
            since = None if state["since"] is None else int(state["since"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the state is damaged: {error}") from None
        self.rows, self.refused, self.rebuilt = counts
        self._detected, self._since = detected, since
        self._start_anew()
        for x in memory:
            self._memory.append(x)
            self._feed(x)

    def __repr__(self) -> str:
        return (
            f"<RiverDetector {self.name} rows={self.rows} refused={self.refused} rebuilt={self.rebuilt} "
            f"detected={self._detected} since={self._since}>"
        )

    def _start_anew(self) -> None:
        self._detector = self._class(**self._parameters)
        self._memory.clear()

    def _feed(self, x: float) -> None:
        self._detector.update(1.0 - x if self.name in _FED_HITS else x)

    def _sees(self) -> bool:
        """Whether the estimates that river shows are finite; NaN in them stays for ever."""
        if self.name == "ADWIN":
            return math.isfinite(self._detector.estimation) and math.isfinite(self._detector.variance)
        return True


def _river_class(name: str) -> Any:
    # Imported here: it costs 1.4 s and 108 MB, which only the process that detects shall pay.
    from river import drift

    return getattr(drift.binary if name in BINARY_DETECTORS else drift, name)


def _check_together(name: str, parameters: Mapping[str, float]) -> None:
    if name == "KSWIN" and parameters.get("window_size", 100) < 2 * parameters.get("stat_size", 30):
        raise ValueError(
            "KSWIN draws stat_size values from the rest of its window; expected 2 * stat_size <= window_size"
        )
    if name == "EDDM" and parameters.get("alpha", 0.95) < parameters.get("beta", 0.9):
        raise ValueError("EDDM warns at alpha and detects at beta; expected beta <= alpha")
    if name == "FHDDM" and parameters.get("short_window_size", 2) > parameters.get("sliding_window_size", 100):
        raise ValueError(
            "FHDDM has a short window within its window; expected short_window_size <= sliding_window_size"
        )


def _values(raw: Any) -> tuple[float, ...]:
    if not isinstance(raw, bytes) or len(raw) % 8 or len(raw) > 8 * MEMORY_ROWS:
        raise ValueError(f"the state is damaged: memory has not the bytes of at most {MEMORY_ROWS} values")
    values = struct.unpack(f"<{len(raw) // 8}d", raw)
    if not all(map(math.isfinite, values)):
        raise ValueError("the state is damaged: memory has a value that is not finite")
    return values
