"""The hours that are replayed: what a caller asks for each, and what turned out to be true."""

from __future__ import annotations

import csv
import gzip
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

from gateway.demo.errors import DemoError

__all__ = ("FEATURES", "Hour", "days_between", "read_hours", "week_of_day")

FEATURES = ("hour", "weekday", "month", "tmin", "tmax", "pn")
"""Columns of the hours file, in the order in which the model takes them."""


class Hour(NamedTuple):
    """One hour: its local time such as `2012-03-04T05:00`, the six features, the bikes that were rented."""

    time: str
    features: tuple[float, ...]
    rented: float

    @property
    def day(self) -> str:
        return self.time[:10]


def read_hours(path: Path) -> list[Hour]:
    """Read the hours file.

    Raises
    ------
    DemoError
        The file is not there, or is not what `training/bike-demand/README.md` describes.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii", newline="") as file:
            return [
                Hour(row["time"], tuple(float(row[name]) for name in FEATURES), float(row["count"]))
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise DemoError(f"the demo replays {path}, which is not there; run it in a checkout, or name --hours") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DemoError(f"cannot read {path} as hours of bike sharing: {error!r}") from None


def days_between(hours: list[Hour], first: str, last: str) -> list[list[Hour]]:
    """The hours of these days and those between them, a list a day.

    >>> hours = [Hour(f"2012-01-0{day}T0{hour}:00", (), 0.0) for day in (1, 2, 3) for hour in (0, 1)]
    >>> [[hour.time for hour in day] for day in days_between(hours, "2012-01-02", "2012-01-02")]
    [['2012-01-02T00:00', '2012-01-02T01:00']]
    """
    days: dict[str, list[Hour]] = {}
    for hour in hours:
        if first <= hour.day <= last:
            days.setdefault(hour.day, []).append(hour)
    return list(days.values())


def week_of_day(day: str) -> str:
    """The Monday of a day's week.

    >>> week_of_day("2012-01-08")
    '2012-01-02'
    """
    found = date.fromisoformat(day)
    return (found - timedelta(days=found.weekday())).isoformat()
