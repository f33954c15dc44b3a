"""The spool against a list, on a disk that fails at any step and forgets what was not synced when the power goes.

The law: what was acknowledged under `fsync = "always"` is there, in the order of appending, with the bytes that were
appended; nothing else is there but what was attempted; and nothing is there twice.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.events.records import KIND_BLOCK
from gateway.predictions.disk import Crash, FakeDisk, Fault, SyncDebt
from gateway.predictions.reader import SpoolReader
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)
SETTINGS = SpoolSettings(fsync="always", segment_bytes=4096)


class Book:
    """What was attempted, by number, and what of it was acknowledged.

    A single record begins with its number, and one that comes in a block has it as `total_us`; of these all is kept
    that does not depend on the numbers in the log.
    """

    def __init__(self) -> None:
        self.attempted: list[bytes] = []
        self.acknowledged: set[int] = set()

    def batch(self, count: int, size: int, blocked: int = 0) -> list[tuple[int, bytes]]:
        """So many records, and a block of some more."""
        first = len(self.attempted)
        self.attempted += [b"%06d" % number + b"x" * size for number in range(first, first + count)]
        batch = [(1, payload) for payload in self.attempted[first:]]
        if blocked:
            block = singles(blocked, first=first + count, width=1 + size // 8)
            self.attempted += map(lasting, block.records(1))
            batch.append((KIND_BLOCK, block.payload()))
        return batch

    def check(self, root: Path, *, also: Collection[int] = ()) -> None:
        """Hold the spool against the law; `also` must be there as well."""
        with contextlib.closing(SpoolReader(root)) as reader:
            records = reader.read(1 << 30)
        payloads = [lasting(record.payload) for record in records]
        found = [number_in(payload) for payload in payloads]
        assert [self.attempted[number] for number in found] == payloads, "as appended"
        assert found == sorted(set(found)), "in order, and once"
        addresses = [(record.boot, record.sequence) for record in records]
        assert addresses == sorted(set(addresses)), "numbers never go back"
        lost = self.acknowledged.union(also).difference(found)
        assert not lost, f"lost: {sorted(lost)}"


def lasting(payload: bytes) -> bytes:
    """What does not depend on the numbers in the log."""
    return payload[payload.find(b'"status"') :] if payload.startswith(b"{") else payload


def number_in(payload: bytes) -> int:
    in_block = re.search(rb'"total_us":(\d+)', payload)
    return int(in_block[1] if in_block else payload[:6])


def let_go(writer: SpoolWriter | None) -> None:
    """End a writer as kill -9 does."""
    if writer is not None and writer._lock != -1:
        for file in (writer._lock, writer._file, *writer._retired):
            if file != -1:
                os.close(file)
        writer._lock = writer._file = -1
        writer._retired = []


class Spool(RuleBasedStateMachine):
    """A writer whose syncs run beside its appends, as a front's do."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.book = Book()
        self.disk = FakeDisk(self.root)
        self.writer: SpoolWriter | None = None
        self.debt: SyncDebt | None = None
        self.waiting: list[int] = []
        self.syncing: list[int] = []

    def teardown(self) -> None:
        self.power_loss(kept=0.0, garble=False)
        shutil.rmtree(self.root)

    @precondition(lambda self: self.writer is None)
    @rule()
    def start(self) -> None:
        with contextlib.suppress(SpoolError):
            self.run(
                lambda: setattr(
                    self,
                    "writer",
                    SpoolWriter(self.root / "front-0", slot=0, settings=SETTINGS, deferred=True, disk=self.disk),
                )
            )

    @precondition(lambda self: self.writer is not None)
    @rule(count=st.integers(1, 4), size=st.sampled_from([0, 50, 1500]), blocked=st.integers(0, 4))
    def append(self, count: int, size: int, blocked: int) -> None:
        first = len(self.book.attempted)
        batch = self.book.batch(count, size, blocked)
        written = count + blocked
        try:
            if not self.run(lambda: self.writer.append(batch)):
                return
        except SpoolError as error:
            written = error.written
        self.waiting += range(first, first + written)

    @precondition(lambda self: self.writer is not None and self.debt is None)
    @rule()
    def begin_sync(self) -> None:
        self.syncing, self.waiting = self.waiting, []
        try:
            self.run(lambda: setattr(self, "debt", self.writer.take_debt()))
        except OSError as error:
            self.settle(error)

    @precondition(lambda self: self.debt is not None)
    @rule()
    def end_sync(self) -> None:
        debt, self.debt = self.debt, None
        failure = None
        try:
            if not self.run(lambda: debt.pay(self.disk)):
                return
        except OSError as error:
            failure = error
        self.settle(failure)

    def settle(self, error: OSError | None) -> None:
        if self.writer.settle(error) is None:
            self.book.acknowledged.update(self.syncing)
        else:
            self.waiting = []
        self.syncing = []

    @precondition(lambda self: self.writer is not None)
    @rule()
    def tick(self) -> None:
        self.run(lambda: self.writer.tick())

    @precondition(lambda self: self.writer is not None and self.debt is None)
    @rule()
    def close(self) -> None:
        writer, waiting = self.writer, self.waiting
        with contextlib.suppress(SpoolError):
            if self.run(writer.close):
                self.book.acknowledged.update(waiting)
        self.forget()

    @rule(kept=st.floats(0, 1), garble=st.booleans())
    def power_loss(self, kept: float, garble: bool) -> None:
        self.forget()
        self.disk.lose_unsynced(kept=lambda unsynced: int(unsynced * kept), garble=garble)
        self.disk = FakeDisk(self.root)
        self.book.check(self.root)

    @rule()
    def kill(self) -> None:
        """What was written stays, acknowledged or not, as long as there is power."""
        self.book.check(self.root, also={*self.waiting, *self.syncing})
        self.forget()

    @rule(
        after=st.integers(1, 6),
        error=st.sampled_from(ERRORS),
        taken=st.sampled_from([0, 0, 5, 40]),
        steps=st.integers(1, 3),
    )
    def let_it_fail(self, after: int, error: int, taken: int, steps: int) -> None:
        self.disk.fault = Fault(self.disk.steps + after, error, taken=taken, steps=steps)

    @rule(after=st.integers(1, 6), taken=st.sampled_from([0, 5, 40]))
    def let_the_power_go(self, after: int, taken: int) -> None:
        self.disk.fault = Fault(self.disk.steps + after, taken=taken, power_loss=True)

    @invariant()
    def everything_acknowledged_can_be_read(self) -> None:
        if not self.disk.crashed:
            self.book.check(self.root)

    def run(self, operation: Callable[[], object]) -> bool:
        """Do it; False when the power went."""
        try:
            operation()
        except Crash:
            self.power_loss(kept=0.5, garble=False)
            return False
        return True

    def forget(self) -> None:
        let_go(self.writer)
        for file in self.debt.files if self.debt is not None else ():
            with contextlib.suppress(OSError):
                os.close(file)
        self.writer = self.debt = None
        self.waiting, self.syncing = [], []


Spool.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSpool = Spool.TestCase


def script(root: Path, disk: FakeDisk, book: Book, *, lives: int = 2) -> None:
    """One or two lives that append and roll segments over; the second closes."""
    for life in range(lives):
        writer = None
        try:
            for _ in range(2):
                with contextlib.suppress(SpoolError):
                    writer = SpoolWriter(root / "front-0", slot=0, settings=SETTINGS, disk=disk)
                    break
            assert writer is not None, "one fault fails one start"
            for count, size, blocked in ((1, 10, 0), (2, 1500, 2), (1, 700, 3), (1, 0, 0)):
                first = len(book.attempted)
                batch = book.batch(count, size, blocked)
                written = count + blocked
                try:
                    writer.append(batch)
                except SpoolError as error:
                    written = error.written
                book.acknowledged.update(range(first, first + written))
                writer.tick()
            if life:
                with contextlib.suppress(SpoolError):
                    writer.close()
        finally:
            let_go(writer)


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("taken", "garble"), [(0, False), (5, False), (1600, False), (1600, True), (3600, False)])
def test_the_power_may_go_at_every_step(tmp_path: Path, taken: int, garble: bool) -> None:
    for step in itertools.count(1):
        root, book = tmp_path / str(step), Book()
        root.mkdir()
        disk = FakeDisk(root, fault=Fault(step, taken=taken, power_loss=True))
        with contextlib.suppress(Crash):
            script(root, disk, book)
        disk.lose_unsynced(kept=lambda unsynced: unsynced // 2, garble=garble)
        book.check(root)
        if not disk.crashed:
            break
    assert step > 20
    assert len(book.acknowledged) == len(book.attempted) == 20


@pytest.mark.promise("P4")
@pytest.mark.parametrize("error", ERRORS, ids=os.strerror)
@pytest.mark.parametrize(("taken", "lives"), [(0, 1), (0, 2), (1600, 2)])
def test_every_step_may_fail_and_what_follows_is_taken_again(
    tmp_path: Path, taken: int, lives: int, error: int
) -> None:
    for step in itertools.count(1):
        root, book = tmp_path / str(step), Book()
        root.mkdir()
        disk = FakeDisk(root, fault=Fault(step, error, taken=taken))
        script(root, disk, book, lives=lives)
        disk.lose_unsynced()
        book.check(root)
        assert len(book.acknowledged) >= 10 * lives - 4, "one fault costs one batch"
        if disk.steps < step:
            break
    assert step > 10 * lives
    assert len(book.acknowledged) == 10 * lives
