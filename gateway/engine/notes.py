"""Where an engine is found in the run directory, and the notes it and the supervisor leave there for others."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ("EngineNote", "EnginePaths", "EngineState", "read_note", "refusal", "socket_of", "write_note")

EngineState = Literal["starting", "ready", "failed", "circuit_open"]


class EnginePaths:
    """Where one engine of this gateway is found.

    Parameters
    ----------
    run_dir : Path
    """

    def __init__(self, run_dir: Path, model: str, version: int) -> None:
        stem = f"engine-{model}-{version}"
        self.socket = run_dir / f"{stem}.sock"
        self.state = run_dir / f"{stem}.json"
        self.failure = run_dir / f"{stem}.failure"
        self.beat = run_dir / f"{stem}.beat"

    def __repr__(self) -> str:
        return f"<EnginePaths {self.socket}>"

    def sockets(self, slot: int, instances: int) -> tuple[Path, ...]:
        """Where the front in a slot looks for the engine: at its instance among so many, then at the first."""
        number = slot % max(1, instances)
        return (socket_of(self.socket, number), self.socket) if number else (self.socket,)

    def unlink_sockets(self) -> None:
        """Remove what an engine that has ended may have left."""
        # Another model's name may begin with this one's and a dot: `m-1.5` is not an instance of `m`, version 1.
        own = re.compile(re.escape(self.socket.stem) + r"(\.[0-9]+)?\.sock")
        for path in self.socket.parent.glob("engine-*.sock"):
            if own.fullmatch(path.name):
                path.unlink(missing_ok=True)


def socket_of(socket: Path, instance: int) -> Path:
    """Where one instance is found; the first has the engine's own socket, which is the last to appear."""
    return socket.with_name(f"{socket.stem}.{instance}{socket.suffix}") if instance else socket


class EngineNote(msgspec.Struct, frozen=True):
    """How an engine is, and why."""

    state: EngineState
    reason: str = ""


_decoder = msgspec.json.Decoder(EngineNote)


def write_note(path: Path, note: EngineNote) -> None:
    """Leave a note that others may read at any time: whole, or as it was.

    Raises
    ------
    OSError
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(msgspec.json.encode(note))
    partial.replace(path)


def read_note(path: Path) -> EngineNote | None:
    """The note that lies there, or None."""
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def refusal(path: Path) -> str | None:
    """Why an engine will not come back by itself, or None while it may; from its note."""
    note = read_note(path)
    return note.reason if note is not None and note.state in ("failed", "circuit_open") else None
