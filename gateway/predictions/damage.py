"""Damage in a spool: the note, the count and the copy that it leaves behind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from gateway.predictions.reader import Damage, SpoolReader
from gateway.predictions.segments import DAMAGED_SUFFIX

__all__ = ("DamageBook", "damaged_path")


class DamageBook:
    """Counts what readers of a spool could not give, each place once, and says so.

    Parameters
    ----------
    note : callable
        Gets a line for each damaged segment, and one for the first numbers that are missing.
    set_aside : bool
        Give a damaged segment a second name, which retention leaves alone.

    Attributes
    ----------
    corrupt : int
        Places that do not check, or where a closed segment ends within a record.
    missing : int
        Numbers of records that were not there.
    """

    def __init__(self, *, note: Callable[[str], None], set_aside: bool = False) -> None:
        self.corrupt = 0
        self.missing = 0
        self._note = note
        self._sets_aside = set_aside
        self._known: set[Damage] = set()
        self._segments: set[Path] = set()

    def __repr__(self) -> str:
        return f"<DamageBook corrupt={self.corrupt} missing={self.missing}>"

    def look(self, reader: SpoolReader) -> None:
        """Take note of what a reader has passed over so far."""
        for damage in reader.damage:
            if damage in self._known:
                continue
            self._known.add(damage)
            self.corrupt += 1
            if damage.segment not in self._segments:
                self._segments.add(damage.segment)
                self._note(f"{_told(damage)}: what does not check is passed over{self._set_aside(damage.segment)}")

    def miss(self, count: int) -> None:
        """Take note of so many numbers more that are not there."""
        if count and not self.missing:
            self._note(f"{count} records are missing in the spool; `gateway predictions reconcile` names them")
        self.missing += count

    def _set_aside(self, segment: Path) -> str:
        if not self._sets_aside:
            return ""
        try:
            with contextlib.suppress(FileExistsError):
                os.link(segment, damaged_path(segment))
        except OSError as error:
            return f"; the segment cannot be set aside ({error.strerror}) and goes when it is due"
        return f"; the segment is kept as {damaged_path(segment).name}"


def damaged_path(segment: Path) -> Path:
    """The name under which a damaged segment is set aside: no reader takes it for one."""
    return segment.with_name(segment.name + DAMAGED_SUFFIX)


def _told(damage: Damage) -> str:
    return f"{damage.segment.parent.name}/{damage.segment.name} is damaged at byte {damage.offset}"
