"""Versions whose engines are out of service, as the supervisor's notes in the run directory say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from gateway.engine.notes import EnginePaths, read_note

__all__ = ("EngineNotes", "Engines", "Fault", "SoundEngines")


class Fault(NamedTuple):
    """Why a version is out of service: the judge's name for it, and the supervisor's reason."""

    guard: Literal["crash_loop", "load_failure"]
    reason: str


class Engines(Protocol):
    """Tells which versions cannot serve."""

    def fault(self, model: str, version: int, *, lasting_seconds: float = 0.0) -> Fault | None:
        """What has been amiss for at least `lasting_seconds`, or None."""


class SoundEngines:
    """Engines of which nothing is known to be amiss: where none run on this machine, and in tests."""

    def fault(self, model: str, version: int, *, lasting_seconds: float = 0.0) -> Fault | None:
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
        self._since: dict[tuple[str, int], float] = {}

    def __repr__(self) -> str:
        return f"<EngineNotes {self._run_dir} faults={sorted(self._since)}>"

    def fault(self, model: str, version: int, *, lasting_seconds: float = 0.0) -> Fault | None:
        found = self._read(model, version)
        if found is None:
            self._since.pop((model, version), None)
            return None
        now = self._monotonic()
        return found if now - self._since.setdefault((model, version), now) >= lasting_seconds else None

    def _read(self, model: str, version: int) -> Fault | None:
        note = read_note(EnginePaths(self._run_dir, model, version).state)
        if note is None:
            return None
        if note.state == "circuit_open":
            return Fault("crash_loop", note.reason)
        return Fault("load_failure", note.reason) if note.state == "failed" else None
