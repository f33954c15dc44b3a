"""How far the monitor has read and what it knows, in one file that is replaced as a whole."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

__all__ = ("CheckpointFile", "replace_file")

State = TypeVar("State")

_MAGIC = b"GWMON001"


class CheckpointFile(Generic[State]):
    """A msgpack document with its CRC-32, written to a neighbour and renamed.

    Parameters
    ----------
    path : Path
    kind : type
        A msgspec Struct; a file that is not one of this kind is foreign.
    """

    def __init__(self, path: Path, kind: type[State]) -> None:
        self._path = path
        self._decoder = msgspec.msgpack.Decoder(kind)

    def read(self) -> tuple[State | None, str]:
        """The state, or None with a note when there is none that can be used.

        A damaged or foreign file is set aside as `<name>.bad`, so that it is neither used nor lost.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"cannot read {self._path}: {error.strerror}"
        body = raw[12:]
        try:
            if raw[:8] != _MAGIC:
                raise ValueError("it is not of this version")
            if len(raw) < 12 or zlib.crc32(body) != int.from_bytes(raw[8:12], "little"):
                raise ValueError("its checksum is wrong")
            return self._decoder.decode(body), ""
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            aside = self._path.with_suffix(self._path.suffix + ".bad")
            self._path.replace(aside)
            return None, f"the checkpoint {self._path.name} was set aside as {aside.name}: {error}"

    def write(self, state: State) -> int:
        """Replace the file; returns its size in bytes.

        Raises
        ------
        OSError
            The disk is full or cannot be written; the old file is left as it was.
        """
        body = msgspec.msgpack.encode(state)
        raw = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
        replace_file(self._path, raw)
        return len(raw)


def replace_file(path: Path, raw: bytes) -> None:
    """Write `raw` to a neighbour of `path` and rename it there, so that readers see the old or the new file.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(neighbour, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
    neighbour.replace(path)
