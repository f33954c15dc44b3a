"""What the demo knows at this moment; the acts write it, the screen shows it."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from datetime import date, timedelta
from typing import Any, NamedTuple

from gateway.demo.hours import week_of_day
from gateway.demo.ledger import Answers
from gateway.events.encoding import RecordError, seconds_of

__all__ = ("ACTS", "MARKS", "Act", "Scene")


MARKS = {"harm": "!", "rollout_started": "▷", "rollout_promoted": "▲", "rollback": "▼"}
"""Letters under the chart."""


class Act(NamedTuple):
    """A part of the story and its days, both included."""

    number: int
    title: str
    first: str
    last: str


ACTS = (
    Act(1, "version 1 serves alone", "2011-10-01", "2012-12-31"),
    Act(2, "version 2, trained on 2012, is tried", "2013-01-01", "2013-06-30"),
    Act(3, "version 3, trained on the newest year, is tried", "2013-07-01", "2013-12-31"),
)
"""Act 1 begins in the last quarter of version 1's own year, so that one sees it well before one sees it decay."""


@dataclasses.dataclass
class Scene:
    """The state of the play.

    Parameters
    ----------
    answers : Answers
    began : float
        Seconds since 1970.
    now : str
        The hour that was asked for last, local time.
    days_done, days_total : int
    route, seen : dict
        The route and the monitor's view of the model, as the admin API shows them.
    decisions : list of dict
        All since the demo began, oldest first.
    logged, labels_logged, read : int
        Records in the log; records of it that the monitor has read.
    pace : float
        Hours a second, lately.
    """

    answers: Answers
    began: float
    act: Act | None = None
    note: str = ""
    now: str = ""
    days_done: int = 0
    days_total: int = 0
    route: dict[str, Any] = dataclasses.field(default_factory=dict)
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)
    decisions: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    logged: int = 0
    labels_logged: int = 0
    read: int = 0
    pace: float = 0.0
    _walls: list[float] = dataclasses.field(default_factory=list)
    _times: list[str] = dataclasses.field(default_factory=list)

    def reach(self, time: str, at: float) -> None:
        """Note that the replay has come to an hour, at seconds since 1970."""
        self.now = time
        self._walls.append(at)
        self._times.append(time)

    def data_time(self, wall: str) -> str:
        """The hour that the replay had come to at a wall time in ISO 8601; empty before the first."""
        try:
            place = bisect_right(self._walls, seconds_of(wall))
        except RecordError:
            return ""
        return self._times[place - 1] if place else ""

    @property
    def weeks(self) -> list[str]:
        """The Monday of every week of the story."""
        first, last = date.fromisoformat(week_of_day(ACTS[0].first)), date.fromisoformat(ACTS[-1].last)
        return [(first + timedelta(weeks=week)).isoformat() for week in range((last - first).days // 7 + 1)]

    def marks(self) -> dict[str, str]:
        """A letter for the weeks in which something was decided that moves traffic or asks for training."""
        found = {}
        for decision in self.decisions:
            time = self.data_time(decision["time"])
            if decision["kind"] in MARKS and time:
                found[week_of_day(time[:10])] = MARKS[decision["kind"]]
        return found

    def seconds_into(self, wall: str) -> float:
        """Seconds from the demo's beginning to a wall time in ISO 8601."""
        try:
            return max(0.0, seconds_of(wall) - self.began)
        except RecordError:
            return 0.0
