"""How far Kafka has acknowledged: `shipper.json` in the spool, replaced by rename."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from gateway.predictions.reader import Position
from gateway.predictions.segments import split_name

__all__ = ("CHECKPOINT_NAME", "CheckpointError", "read_checkpoint", "write_checkpoint")

CHECKPOINT_NAME = "shipper.json"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class CheckpointError(Exception):
    """Raised when the checkpoint is there and cannot be read."""


class _Checkpoint(msgspec.Struct, frozen=True):
    streams: dict[str, tuple[str, int]]


def read_checkpoint(spool_dir: Path) -> dict[str, tuple[str, int]]:
    """Return, per stream, the segment and the offset up to which everything is acknowledged; empty at first.

    Raises
    ------
    CheckpointError
        When the file is there and holds no checkpoint.
    """
    path = spool_dir / CHECKPOINT_NAME
    try:
        streams = msgspec.json.decode(path.read_bytes(), type=_Checkpoint).streams
        for segment, _ in streams.values():
            split_name(segment)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    return streams


def write_checkpoint(spool_dir: Path, position: Position) -> None:
    """Replace the checkpoint; a reader sees the old one or the new one, whole.

    On a full disk it is written over in place: what has been shipped can only be removed, and make room, once the
    checkpoint says so.

    Raises
    ------
    OSError
        When the disk refuses; the old checkpoint stays.
    """
    path = spool_dir / CHECKPOINT_NAME
    content = msgspec.json.encode(_Checkpoint(dict(position)))
    fresh = path.with_suffix(".json.new")
    try:
        fresh.write_bytes(content)
    except OSError as error:
        if error.errno not in _NO_SPACE or not path.exists():
            raise
        with open(path, "r+b", buffering=0) as file:
            file.write(content.ljust(os.fstat(file.fileno()).st_size))
        return
    os.replace(fresh, path)
