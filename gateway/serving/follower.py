"""Follows the route table: asks for the revision, and hands a new table to the front.

A thread does the asking, so that a store that is slow or away never holds up an answer; the front goes on with the
last table it has, and a copy on disk serves a start without the store.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.routing.table import Route

__all__ = ("Follower", "RouteSource", "RouteTable", "read_table")


class RouteTable(msgspec.Struct, frozen=True):
    """Routes by model, and digests of approved versions as (model, version, digest)."""

    revision: int
    routes: dict[str, Route]
    approved: tuple[tuple[str, int, str], ...]


class RouteSource(Protocol):
    """Where route tables come from. Both may raise anything when the source is away."""

    def revision(self) -> int:
        """The number that every change raises."""

    def table(self) -> RouteTable:
        """The table as it is now."""


class Follower:
    """Brings route tables from a source to the loop.

    Parameters
    ----------
    source : RouteSource
        Asked from a thread of its own only.
    apply : callable
        Called on the loop with each new table.
    poll_seconds : float
    cache : Path
        Where the last table is kept.
    note : callable
        Told when the source goes away and when it is back.
    """

    def __init__(
        self,
        source: RouteSource,
        *,
        apply: Callable[[RouteTable], None],
        poll_seconds: float,
        cache: Path,
        note: Callable[[str], None],
    ) -> None:
        self._source = source
        self._apply = apply
        self._poll_seconds = poll_seconds
        self._cache = cache
        self._note = note
        self._revision = -1
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def __repr__(self) -> str:
        return f"<Follower revision {self._revision}{' away' if self._away else ''}>"

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to follow; the last known table is applied at once when there is one."""
        self._loop = loop
        cached = read_table(self._cache)
        if cached is not None:
            loop.call_soon(self._apply, cached)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception as error:  # whatever the source raises, the front goes on
                if not self._away:
                    self._away = True
                    self._note(f"the store is away, going on with revision {self._revision}: {error}")
            self._stop.wait(self._poll_seconds)

    def _follow(self) -> None:
        revision = self._source.revision()
        if self._away:
            self._away = False
            self._note("the store is back")
        if revision == self._revision:
            return
        table = self._source.table()
        self._revision = table.revision
        self._loop.call_soon_threadsafe(self._apply, table)
        _write_table(self._cache, table)


def read_table(path: Path) -> RouteTable | None:
    """The table kept at `path`, or None when there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RouteTable)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_table(path: Path, table: RouteTable) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(msgspec.json.encode(table))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
