"""The store's decisions into the log, so that they reach every reader of it, Kafka among them, at least once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gateway.control.errors import StoreError
from gateway.events.encoding import RecordError, decode, encode
from gateway.events.records import KIND_DECISION, DecisionRecord
from gateway.predictions.segments import list_segments, scan, split_name
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.settings import Settings

__all__ = ("DECISIONS_STREAM", "Decisions", "Outbox", "last_published", "open_decisions")

DECISIONS_STREAM = "decisions"
_SLOT = 255  # fronts have 0 and up
_AT_ONCE = 100
_TICK_SECONDS = 1.0


class Decisions(Protocol):
    """Where decisions come from; `gateway.control.store.Store` is one."""

    def decisions(self, *, after_seq: int = 0, model: str | None = None, limit: int = 100) -> list[DecisionRecord]: ...


def open_decisions(settings: Settings) -> SpoolWriter:
    """Open the stream of decisions for writing. Whatever `spool.full` says, none is dropped: they wait in the store.

    Raises
    ------
    SpoolError
        The folder cannot be used or has a writer already.
    """
    spool = settings.spool.model_copy(update={"full": "block"})
    return SpoolWriter(settings.spool_dir / DECISIONS_STREAM, slot=_SLOT, settings=spool, reserve_bytes=0)


class Outbox:
    """Appends each decision to the stream `decisions`, in order, from the one after the last that is there.

    The stream itself tells how far it has come, so nothing is left out after a crash, and what was written last may
    at most be written twice, with the same id. Where its last decision is none of the store's, which then is another
    one or an older copy, all that the store has is appended.

    Parameters
    ----------
    store : Decisions
    writer : SpoolWriter
        Of the stream; one that refuses what it has no room for (`open_decisions`).
    note : callable
        Takes one sentence on what could not be done.
    monotonic : callable
        Seconds that never go back.
    """

    def __init__(
        self,
        store: Decisions,
        writer: SpoolWriter,
        *,
        note: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._writer = writer
        self._note = note
        self._monotonic = monotonic
        self._ticked_at = -math.inf
        self._failing = False
        self._unchecked = last_published(writer.directory)
        self.seq = self._unchecked.seq if self._unchecked is not None else 0

    def __repr__(self) -> str:
        return f"<Outbox seq={self.seq}{' failing' if self._failing else ''}>"

    def publish(self) -> list[DecisionRecord]:
        """Append what is new, at most 100 decisions; returns them. What fails is tried again at the next call.

        Call it often: it also lets the stream find room again once it was full.
        """
        now = self._monotonic()
        if now - self._ticked_at >= _TICK_SECONDS:
            self._ticked_at = now
            self._writer.tick()
        try:
            self._check_last()
            found = self._store.decisions(after_seq=self.seq, limit=_AT_ONCE)
            if found:
                self._writer.append([(KIND_DECISION, encode(decision)) for decision in found])
        except (StoreError, SpoolError, RecordError) as error:
            if not self._failing:
                self._note(f"decisions after {self.seq} wait to be logged: {error}")
            self._failing = True
            return []
        self._failing = False
        if found:
            self.seq = found[-1].seq
        return found

    def _check_last(self) -> None:
        last = self._unchecked
        if last is None:
            return
        if [each.hash for each in self._store.decisions(after_seq=last.seq - 1, limit=1)] != [last.hash]:
            self._note(f"decision {last.seq} of the log is none of the store's, whose decisions are all logged now")
            self.seq = 0
        self._unchecked = None


def last_published(directory: Path) -> DecisionRecord | None:
    """The last decision in a stream; None in an empty one."""
    for name in reversed(list_segments(directory)):
        try:
            block = (directory / name).read_bytes()
        except OSError:
            continue
        for record in reversed(scan(block, split_name(name)[0]).records):
            try:
                decision = decode(record.kind, record.payload)
            except RecordError:
                continue
            if isinstance(decision, DecisionRecord):
                return decision
    return None
