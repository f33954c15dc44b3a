"""Whether a version's engine is ready, as the run directory tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

__all__ = ("EngineState", "engine_state", "note_time")

State = Literal["starting", "ready", "failed", "circuit_open", "stopped"]


class EngineState(msgspec.Struct, frozen=True):
    """What the supervisor last said of one engine; `stopped` where it said nothing."""

    state: State = "stopped"
    reason: str = ""

    @property
    def text(self) -> str:
        return f"{self.state.replace('_', ' ')}{': ' if self.reason else ''}{self.reason}"


def engine_state(run_dir: Path, model: str, version: int) -> EngineState:
    """The state of one engine: ready while its socket is there, else what the supervisor noted."""
    if (run_dir / f"engine-{model}-{version}.sock").exists():
        return EngineState("ready")
    try:
        state = msgspec.json.decode(_note(run_dir, model, version).read_bytes(), type=EngineState)
    except (OSError, msgspec.DecodeError):
        return EngineState()
    # The note is written before the socket is bound and after it is gone, so "ready" alone is not enough.
    return EngineState("starting") if state.state == "ready" else state


def note_time(run_dir: Path, model: str, version: int) -> int:
    """When the supervisor last noted something of this engine, in nanoseconds; 0 where it did not."""
    try:
        return _note(run_dir, model, version).stat().st_mtime_ns
    except OSError:
        return 0


def _note(run_dir: Path, model: str, version: int) -> Path:
    return run_dir / f"engine-{model}-{version}.json"
