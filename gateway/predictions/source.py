"""The port through which the monitor reads the log, the spool behind it, and a list for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from gateway.predictions.backlog import Backlog
from gateway.predictions.damage import DamageBook
from gateway.predictions.reader import Position, SpoolReader
from gateway.predictions.segments import LogRecord

__all__ = ("Deduplicator", "ListSource", "LogSource", "SpoolSource")

_POLL_SECONDS = 0.05


class LogSource(Protocol):
    """The log as the monitor reads it: in order per front and model, each record once while the process lives."""

    async def read(self, max_records: int, timeout_seconds: float) -> list[LogRecord]:
        """Return the next records; empty when none came within `timeout_seconds` or the log is out of reach.

        A log that holds blocks may give up to `MAX_BLOCK` - 1 records more than `max_records`, and may give blocks
        whole; one counts as its predictions.
        """

    def position(self) -> dict[str, Any]:
        """Return where reading would go on, as plain JSON values; given back at the next start."""

    def lag_events(self) -> int:
        """Return how many records of the log were not returned yet."""

    async def commit(self) -> None:
        """Tell the log that everything returned so far need not be delivered again."""

    async def close(self) -> None:
        """Let go of files and connections. A second call does nothing."""


class Deduplicator:
    """Tells records that came before, by the highest sequence seen per boot and lane.

    A lane is a part of the log in which order per boot holds: a partition of a topic. Memory is bounded: of more than
    `capacity` lanes the one that was quiet for longest is forgotten.
    """

    def __init__(self, *, capacity: int = 4096) -> None:
        self.duplicates = 0
        self._capacity = capacity
        self._highest: OrderedDict[tuple[Hashable, str], int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Deduplicator {len(self._highest)} lanes duplicates={self.duplicates}>"

    def is_new(self, lane: Hashable, boot: str, sequence: int, *, numbers: int = 1) -> bool:
        """Return whether this record is the first of its address, and remember it.

        Parameters
        ----------
        numbers : int
            How many numbers from `sequence` on it takes; a block is in a log whole or not at all.

        >>> seen = Deduplicator()
        >>> [seen.is_new("predictions/0", "0196f0c5d2a100", sequence) for sequence in (1, 2, 2, 1, 3)]
        [True, True, False, False, True]
        """
        key = (lane, boot)
        if sequence <= self._highest.get(key, 0):
            self.duplicates += numbers
            return False
        self.remember(lane, boot, sequence + numbers - 1)
        return True

    def remember(self, lane: Hashable, boot: str, sequence: int) -> None:
        """Count everything up to this address as seen."""
        self._highest[lane, boot] = sequence
        self._highest.move_to_end((lane, boot))
        if len(self._highest) > self._capacity:
            self._highest.popitem(last=False)

    def lanes(self) -> dict[Hashable, dict[str, int]]:
        """Return the highest sequence per boot of each lane, to be remembered again after a restart."""
        lanes: dict[Hashable, dict[str, int]] = {}
        for (lane, boot), sequence in self._highest.items():
            lanes.setdefault(lane, {})[boot] = sequence
        return lanes


class SpoolSource:
    """The spool of this machine as the log.

    Parameters
    ----------
    position, start, whole_blocks
        As `SpoolReader` takes them.
    damage : DamageBook, optional
        Is told of what cannot be read.
    """

    def __init__(
        self,
        spool_dir: Path,
        *,
        position: Position | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        whole_blocks: bool = False,
        damage: DamageBook | None = None,
    ) -> None:
        self.reader = SpoolReader(spool_dir, position=position, start=start, whole_blocks=whole_blocks)
        self._damage = damage
        self._missing_seen = 0
        self._backlog = Backlog(spool_dir)
        self._lag = 0
        self._seen = Deduplicator()

    def __repr__(self) -> str:
        return f"<SpoolSource {self.reader!r}>"

    async def read(self, max_records: int, timeout_seconds: float) -> list[LogRecord]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while True:
            records = [
                record
                for record in self.reader.read(max_records)
                if self._seen.is_new(0, record.boot, record.sequence, numbers=record.numbers)
            ]
            self._note_damage()
            left = deadline - loop.time()
            if records or left <= 0:
                return records
            await asyncio.sleep(min(_POLL_SECONDS, left))

    def _note_damage(self) -> None:
        if self._damage is not None:
            self._damage.look(self.reader)
            self._damage.miss(self.reader.missing - self._missing_seen)
            self._missing_seen = self.reader.missing

    def position(self) -> dict[str, Any]:
        return {stream: list(place) for stream, place in self.reader.position().items()}

    def lag_events(self) -> int:
        with contextlib.suppress(OSError):
            self._lag = self._backlog.count(self.reader.position())
        return self._lag

    async def commit(self) -> None:
        """Nothing to do: the spool keeps its segments by size and age, and the position is the reader's own."""

    async def close(self) -> None:
        self.reader.close()


class ListSource:
    """A log that is a list; ships for tests."""

    def __init__(self, records: Iterable[LogRecord] = (), *, position: dict[str, Any] | None = None) -> None:
        self.records = list(records)
        self.committed: dict[str, Any] = {}
        self.closed = False
        self._next = int((position or {}).get("next", 0))
        self._seen = Deduplicator()

    def __repr__(self) -> str:
        return f"<ListSource {self._next} of {len(self.records)}>"

    async def read(self, max_records: int, timeout_seconds: float) -> list[LogRecord]:
        block = self.records[self._next : self._next + max_records]
        self._next += len(block)
        records = [
            record for record in block if self._seen.is_new(0, record.boot, record.sequence, numbers=record.numbers)
        ]
        if not records:
            await asyncio.sleep(min(timeout_seconds, _POLL_SECONDS))
        return records

    def position(self) -> dict[str, Any]:
        return {"next": self._next}

    def lag_events(self) -> int:
        return len(self.records) - self._next

    async def commit(self) -> None:
        self.committed = self.position()

    async def close(self) -> None:
        self.closed = True
