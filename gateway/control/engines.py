"""Versions whose engines are out of service, as the supervisor's notes in the run directory say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from gateway.engine.notes import EngineNote, EnginePaths, read_note

__all__ = ("EngineNotes", "Engines", "Fault", "SoundEngines")


class Fault(NamedTuple):
    """Why a version is out of service: the judge's name for it, and the supervisor's reason."""

    guard: Literal["crash_loop", "load_failure"]
    reason: str


class Engines(Protocol):
    """Tells which versions cannot serve while others can."""

    def fault(self, model: str, version: int, *, beside: int, lasting_seconds: float = 0.0) -> Fault | None:
        """What has kept a version out of service for at least `lasting_seconds` while another one served, or None."""


class SoundEngines:
    """Engines of which nothing is known to be amiss: where none run on this machine, and in tests."""

    def fault(self, model: str, version: int, *, beside: int, lasting_seconds: float = 0.0) -> Fault | None:
        return None


class EngineNotes:
    """Reads `engine-<model>-<version>.json`.

    Parameters
    ----------
    run_dir : Path
    monotonic : callable
        Seconds that never go back.
    """

    def __init__(self, run_dir: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._run_dir = run_dir
        self._monotonic = monotonic
        self._since: dict[tuple[str, int, int], float] = {}

    def __repr__(self) -> str:
        return f"<EngineNotes {self._run_dir} faults={sorted(self._since)}>"

    def fault(self, model: str, version: int, *, beside: int, lasting_seconds: float = 0.0) -> Fault | None:
        key = (model, version, beside)
        found = _fault_of(self._note(model, version))
        other = self._note(model, beside)
        if found is None or other is None or other.state != "ready":
            self._since.pop(key, None)
            return None
        now = self._monotonic()
        return found if now - self._since.setdefault(key, now) >= lasting_seconds else None

    def _note(self, model: str, version: int) -> EngineNote | None:
        return read_note(EnginePaths(self._run_dir, model, version).state)


def _fault_of(note: EngineNote | None) -> Fault | None:
    if note is None:
        return None
    if note.state == "circuit_open":
        return Fault("crash_loop", note.reason)
    return Fault("load_failure", note.reason) if note.state == "failed" else None
