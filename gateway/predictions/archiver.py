"""Retention with an archive: what is due to leave the spool is brought there first."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.predictions.archive import Archive, ArchiveError
from gateway.predictions.checkpoint import CheckpointError, read_checkpoint
from gateway.predictions.damage import damaged_path
from gateway.predictions.locks import held
from gateway.predictions.reader import Position
from gateway.predictions.retention import Retention
from gateway.settings import Settings

__all__ = ("Archiver", "ArchiverBusy")

LOCK_NAME = "archiver.lock"
_DAY_SECONDS = 86_400
_CLEAN_SECONDS = 3600.0


class ArchiverBusy(Exception):
    """Raised when another process archives this spool."""


class Archiver:
    """Moves what is due from the spool into the archive; a segment goes when all of it is there.

    One that is damaged is not removed but set aside, when all that is whole in it is there.

    Parameters
    ----------
    settings : Settings
        `spool.archive_url` and the spool's limits; with Kafka only what is acknowledged is moved.
    archive : Archive
    note : callable
        Gets one line when the archive goes away or comes back, and one for each damaged segment.
    is_ending : callable
        Whether no further segment is to be begun.

    Attributes
    ----------
    archived : int
        Records that were moved.
    corrupt : int
        Places in segments that do not check.
    """

    def __init__(
        self,
        settings: Settings,
        archive: Archive,
        *,
        note: Callable[[str], None],
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self.archived = 0
        self.corrupt = 0
        self._is_ending = is_ending
        self._cleaned_at = float("-inf")
        self._settings = settings
        self._archive = archive
        self._retention = Retention(settings.spool_dir, note=note)
        self._note = note
        self._fault = ""

    def __repr__(self) -> str:
        return f"<Archiver {self._archive!r} archived={self.archived} {self._fault or 'well'}>"

    def move_due(self, *, max_age_seconds: float | None = None) -> int:
        """Move what is due, the oldest first, and remove archives that are too old; return how many segments moved.

        Parameters
        ----------
        max_age_seconds : float, optional
            In place of `spool.max_age_hours`.

        Raises
        ------
        ArchiverBusy
            Another process does.
        """
        spool = self._settings.spool
        age = spool.max_age_hours * 3600 if max_age_seconds is None else max_age_seconds
        with _alone(self._settings.spool_dir):
            moved = self._retention.sweep(
                max_bytes=spool.max_bytes,
                max_age_seconds=age,
                shipped=self._shipped(),
                now=time.time(),
                keep=self._keep,
            )
            self._clean()
        return len(moved)

    @property
    def fault(self) -> str:
        """Why the last segment could not be moved; empty when it was."""
        return self._fault

    def _clean(self) -> None:
        days = self._settings.spool.archive_max_age_days
        if not days or self._is_ending() or time.monotonic() - self._cleaned_at < _CLEAN_SECONDS:
            return
        self._cleaned_at = time.monotonic()
        try:
            self._archive.remove_older(time.time() - days * _DAY_SECONDS)
        except ArchiveError as error:
            self._tell(str(error))

    def _keep(self, segment: Path) -> bool:
        if self._is_ending():
            return False
        try:
            stored = self._archive.store(segment)
            if stored.damaged:
                segment.rename(damaged_path(segment))
        except ArchiveError as error:
            self._tell(str(error))
            return False
        except OSError as error:
            self._tell(f"cannot set {segment} aside: {error.strerror}")
            return False
        self.archived += stored.records
        if stored.damaged:
            self.corrupt += len(stored.damaged)
            self._note(
                f"{segment.parent.name}/{segment.name} is damaged at byte {stored.damaged[0]}: what is whole, "
                f"{stored.records} records, is archived, and the segment is kept as {damaged_path(segment).name}"
            )
        self._tell("")
        return True

    def _shipped(self) -> Position | None:
        if not self._settings.kafka.bootstrap_servers:
            return None
        try:
            return read_checkpoint(self._settings.spool_dir)
        except CheckpointError as error:
            self._tell(str(error))
            return {}

    def _tell(self, fault: str) -> None:
        if fault and not self._fault:
            self._note(f"the archive takes nothing: {fault}; what is due stays in the spool")
        elif self._fault and not fault:
            self._note("the archive takes records again")
        self._fault = fault


@contextlib.contextmanager
def _alone(spool_dir: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(spool_dir / LOCK_NAME))
        except BlockingIOError:
            raise ArchiverBusy(f"another process archives {spool_dir}") from None
        yield
