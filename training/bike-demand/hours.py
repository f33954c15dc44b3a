"""The hours of bike sharing in Washington, D.C., as the model takes them; see README.md for where they come from."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ("FEATURES", "HOURS_FILE", "Hours", "read_hours", "sha256_of_file")

HOURS_FILE = Path(__file__).with_name("hours.csv.gz")
FEATURES = ("hour", "weekday", "month", "tmin", "tmax", "pn")
"""Local hour, weekday (Monday is 0), month, the day's lowest and highest temperature in Celsius, its rain in mm."""


@dataclasses.dataclass(frozen=True)
class Hours:
    """Rows in order of time.

    Parameters
    ----------
    times : list of str, "2011-01-01T00:00"
    features : float32 array, shape [rows, 6], columns as in `FEATURES`
    counts : float64 array, shape [rows], bikes rented in the hour
    """

    times: list[str]
    features: NDArray[np.float32]
    counts: NDArray[np.float64]

    def between(self, first_day: str, last_day: str) -> NDArray[np.bool_]:
        """Which rows lie on these days or between them, shape [rows]; days as "2011-01-31"."""
        return np.array([first_day <= time[:10] <= last_day for time in self.times])

    def weeks(self) -> NDArray[np.int64]:
        """The number of each row's week, Monday to Sunday, counted through, shape [rows]."""
        days = np.array([np.datetime64(time[:10], "D").astype(np.int64) for time in self.times])
        return (days + 3) // 7  # day 0, 1970-01-01, was a Thursday


def read_hours(path: Path = HOURS_FILE) -> Hours:
    """Read the hours file."""
    with gzip.open(path, "rt", encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file))
    return Hours(
        times=[row["time"] for row in rows],
        features=np.array([[row[name] for name in FEATURES] for row in rows], dtype=np.float32),
        counts=np.array([row["count"] for row in rows], dtype=np.float64),
    )


def sha256_of_file(path: Path = HOURS_FILE) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
