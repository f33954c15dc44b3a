"""Group commit: what a writer has written reaches the disk in a thread, one sync for all that came during the last."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from gateway.predictions.disk import Disk, LocalDisk, SyncDebt
from gateway.predictions.spool import SpoolError, SpoolWriter

__all__ = ("GroupCommit", "Told")

Told = Callable[[SpoolError | None], object]
"""Takes None once everything is on the disk, or why none of it can be relied on."""
_CLOSE_SECONDS = 10.0


class _Waiter(NamedTuple):
    told: Told
    records: int


class GroupCommit:
    """Syncs a writer made with `deferred=True`; the event loop never waits for the disk.

    Who has appended asks with `after` to be told when that is on the disk: after one sync at best, and after two when
    one is under way. A failed sync is told to everybody who waits by then, as nothing they have written can be relied
    on (`SpoolWriter.settle`).

    Parameters
    ----------
    writer : SpoolWriter
    loop : AbstractEventLoop
        Where the writer is used and waiters are told.
    max_waiting : int
        Records that may wait; beyond that `full` is set and no more should be taken.
    every_seconds : float
        What is written without waiting is synced so often, and a disk that refused is tried again.
    disk : Disk, optional
        The writer's.
    """

    def __init__(
        self,
        writer: SpoolWriter,
        *,
        loop: asyncio.AbstractEventLoop,
        max_waiting: int,
        every_seconds: float = 1.0,
        disk: Disk | None = None,
    ) -> None:
        self.waiting = 0
        self.syncs = 0
        self._writer = writer
        self._loop = loop
        self._max_waiting = max_waiting
        self._every_seconds = every_seconds
        self._disk = disk or LocalDisk()
        self._waiters: list[_Waiter] = []
        self._syncing: list[_Waiter] = []
        self._due = False
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._debts: SimpleQueue[SyncDebt | None] = SimpleQueue()
        self._timer = loop.call_later(every_seconds, self._beat)
        # A daemon: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._pay, name="spool sync", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<GroupCommit waiting={self.waiting} syncs={self.syncs}{' syncing' if self._busy else ''}>"

    @property
    def full(self) -> bool:
        """Whether as much waits for the disk as may."""
        return self.waiting >= self._max_waiting

    def after(self, told: Told, *, records: int = 1) -> None:
        """Have `told` called, later and from the loop, when all that is appended by now is on the disk.

        Calls come in the order of asking.

        Parameters
        ----------
        records : int
            How many records wait with it.
        """
        self._waiters.append(_Waiter(told, records))
        self.waiting += records
        self._start_soon()

    async def durable(self) -> None:
        """Return when all that is appended by now is on the disk.

        Raises
        ------
        SpoolError
            The disk refused.
        """
        done: asyncio.Future[None] = self._loop.create_future()

        def told(error: SpoolError | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.after(told)
        await done

    async def close(self, *, seconds: float = _CLOSE_SECONDS) -> None:
        """Wait for what is under way, at most so long, and sync no more."""
        self._timer.cancel()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return
        self._debts.put(None)

    def _start_soon(self) -> None:
        if not self._due and not self._busy:
            # What else this pass of the loop appends goes with the same sync.
            self._due = True
            self._idle.clear()
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._due = False
        self._busy = True
        self._syncing, self._waiters = self._waiters, []
        try:
            debt = self._writer.take_debt()
        except OSError as error:
            self._settle(error)
        else:
            self._debts.put(debt)

    def _settle(self, error: OSError | None) -> None:
        failure = self._writer.settle(error)
        told, self._syncing = self._syncing, []
        if failure is not None:
            told, self._waiters = told + self._waiters, []
        self.syncs += 1
        self._busy = False
        for waiter in told:
            self.waiting -= waiter.records
            self._loop.call_soon(waiter.told, failure)
        if self._waiters:
            self._start_soon()
        else:
            self._idle.set()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(self._every_seconds, self._beat)
        if self._writer.owes or self._writer.unsure:
            self._start_soon()

    def _pay(self) -> None:
        while (debt := self._debts.get()) is not None:
            error = None
            try:
                debt.pay(self._disk)
            except OSError as fault:
                error = fault
            try:
                self._loop.call_soon_threadsafe(self._settle, error)
            except RuntimeError:
                return  # The loop has closed: nobody waits any more.
