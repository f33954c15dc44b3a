"""The sign of life of an engine, which the supervisor reads from a file."""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

__all__ = ("BEAT_SECONDS", "Pulse", "lay_out_beats", "read_beats")

BEAT_SECONDS = 0.2

_BEAT = struct.Struct("<dQ")  # of one instance


def lay_out_beats(path: Path, instances: int) -> None:
    """Make room for the beats of so many instances; none of them has been seen yet."""
    path.write_bytes(bytes(_BEAT.size * instances))


def read_beats(path: Path) -> dict[int, float]:
    """When each instance was last seen between two runs: by its process id, in seconds of `time.monotonic`.

    Those that have not been seen are left out, and all of them where there is no such file yet.
    """
    try:
        beats = _BEAT.iter_unpack(path.read_bytes())
    except (OSError, struct.error):  # not there yet, or half written
        return {}
    return {pid: moment for moment, pid in beats if pid}


class Pulse:
    """Tells when the instance was last seen between two runs.

    Parameters
    ----------
    path : Path or None
        A file that was laid out; None where nobody reads it.
    number : int
        Of the instance.

    Attributes
    ----------
    due : float
        The moment of the next beat, in seconds of `time.monotonic`.
    """

    def __init__(self, path: Path | None, number: int = 0) -> None:
        self._pid = os.getpid()
        self._offset = _BEAT.size * number
        if path is None:
            self._map = mmap.mmap(-1, _BEAT.size)
        else:
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
        self.beat(time.monotonic())

    def __repr__(self) -> str:
        return f"<Pulse of {self._pid}, due {self.due:.3f}>"

    def beat(self, now: float) -> None:
        _BEAT.pack_into(self._map, self._offset, now, self._pid)
        self.due = now + BEAT_SECONDS
