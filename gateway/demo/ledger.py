"""What was answered, and what the log holds: two books that must agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from gateway.demo.hours import week_of_day
from gateway.demo.traffic import Answer
from gateway.events.encoding import RecordError, decode
from gateway.events.records import FeedbackRecord, PredictionRecord
from gateway.predictions.reader import SpoolReader

__all__ = ("Answers", "Book", "Proof", "prove")

_READ_AT_ONCE = 4_096


class Weeks(msgspec.Struct):
    """Answers and misses by week and version."""

    counts: dict[tuple[str, int], list[int]] = {}

    def add(self, answer: Answer, miss_above: float) -> None:
        if answer.value is None:
            return
        count = self.counts.setdefault((week_of_day(answer.hour.day), answer.version), [0, 0])
        count[0] += 1
        count[1] += abs(answer.value - answer.hour.rented) > miss_above

    def rate(self, week: str, version: int) -> float | None:
        """Share of misses; None where the version answered less than half a day of that week."""
        answered, missed = self.counts.get((week, version), (0, 0))
        return missed / answered if answered >= 12 else None


class Answers:
    """The callers' book: every answer that came back.

    Parameters
    ----------
    miss_above : float
        Bikes off, above which an answer is a miss.
    """

    def __init__(self, miss_above: float) -> None:
        self._miss_above = miss_above
        self.by_id: dict[str, Answer] = {}
        self.weeks = Weeks()
        self.refused = 0
        self.labels = 0
        self.repeated_ids = 0

    def __repr__(self) -> str:
        return f"<Answers {len(self.by_id)} refused={self.refused} labels={self.labels}>"

    def add(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.repeated_ids += answer.prediction_id in self.by_id
            self.by_id[answer.prediction_id] = answer
            self.refused += answer.status != 200
            self.weeks.add(answer, self._miss_above)

    @property
    def answered(self) -> int:
        """Answers with a prediction."""
        return len(self.by_id) - self.refused

    def last_of(self, version: int) -> float:
        """When the last answer of a version came, seconds since 1970; 0 when none did."""
        return max((answer.at for answer in self.by_id.values() if answer.version == version), default=0.0)


class Book:
    """The gateway's book: every prediction and label in its log, read from the spool as it grows.

    Parameters
    ----------
    spool_dir : Path
    """

    def __init__(self, spool_dir: Path) -> None:
        self._reader = SpoolReader(spool_dir, start="earliest")
        self.predictions: dict[str, PredictionRecord] = {}
        self.labels = 0
        self.unreadable = 0
        self.repeated_ids = 0

    def __repr__(self) -> str:
        return f"<Book predictions={len(self.predictions)} labels={self.labels} {self._reader!r}>"

    def read(self) -> int:
        """Read what is new; returns how many records came."""
        block = self._reader.read(_READ_AT_ONCE)
        for record in block:
            try:
                event = decode(record.kind, record.payload)
            except RecordError:
                self.unreadable += 1
                continue
            if isinstance(event, PredictionRecord):
                self.repeated_ids += event.id in self.predictions
                self.predictions[event.id] = event
            elif isinstance(event, FeedbackRecord):
                self.labels += 1
        return len(block)

    @property
    def damaged(self) -> int:
        """Records that are missing, torn, corrupt or unreadable."""
        return self.unreadable + self._reader.corrupt + self._reader.torn + self._reader.missing

    def close(self) -> None:
        self._reader.close()


class Proof(msgspec.Struct, frozen=True):
    """Whether predictions answered equal predictions logged.

    Parameters
    ----------
    answered, logged : int
        Predictions that callers got, and those in the log with status 200.
    refused, refused_logged : int
        Requests that were refused, and records of requests that failed.
    missing, unknown : int
        Ids that were answered and are not in the log, and the other way round.
    differing : int
        Records whose status, version, arm or predicted value is not what the caller got.
    labels, labels_logged : int
    damaged, repeated : int
        Records that cannot be read or are missing in between; ids that came twice in either book.
    """

    answered: int
    logged: int
    refused: int
    refused_logged: int
    missing: int
    unknown: int
    differing: int
    labels: int
    labels_logged: int
    damaged: int
    repeated: int

    @property
    def holds(self) -> bool:
        faults = self.missing + self.unknown + self.differing + self.damaged + self.repeated
        pairs = ((self.answered, self.logged), (self.refused, self.refused_logged), (self.labels, self.labels_logged))
        return self.answered > 0 and not faults and all(one == other for one, other in pairs)


def prove(answers: Answers, book: Book) -> Proof:
    """Compare the two books, id by id and value by value."""
    logged = sum(record.status == 200 for record in book.predictions.values())
    both = answers.by_id.keys() & book.predictions.keys()
    return Proof(
        answered=answers.answered,
        logged=logged,
        refused=answers.refused,
        refused_logged=len(book.predictions) - logged,
        missing=len(answers.by_id) - len(both),
        unknown=len(book.predictions) - len(both),
        differing=sum(_differ(answers.by_id[each], book.predictions[each]) for each in both),
        labels=answers.labels,
        labels_logged=book.labels,
        damaged=book.damaged,
        repeated=answers.repeated_ids + book.repeated_ids,
    )


def _differ(answer: Answer, record: PredictionRecord) -> bool:
    if (answer.status, answer.version, answer.arm) != (record.status, record.version, record.arm):
        return True
    return not _same(answer.value, _value_of(record))


def _value_of(record: PredictionRecord) -> Any:
    data = record.outputs[0].data if record.outputs else None
    return data[0] if data else None


def _same(one: float | None, other: Any) -> bool:
    if one is None or other is None:
        return one is None and other is None
    return math.isclose(one, other, rel_tol=0.0, abs_tol=0.0)
