"""How far Kafka has acknowledged: `shipper.json` in the spool, replaced by rename."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec

from gateway.predictions.reader import Position
from gateway.predictions.segments import split_name

__all__ = ("CHECKPOINT_NAME", "CheckpointError", "clear_unfinished", "read_checkpoint", "write_checkpoint")

CHECKPOINT_NAME = "shipper.json"
_FRESH_PREFIX = ".shipper.json."
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
    """Replace the checkpoint; a reader sees the old one or the new one, whole, also after a power loss.

    On a full disk it is written over in place: what has been shipped can only be removed, and make room, once the
    checkpoint says so.

    Raises
    ------
    OSError
        When the disk refuses; the old checkpoint stays.
    """
    path = spool_dir / CHECKPOINT_NAME
    content = msgspec.json.encode(_Checkpoint(dict(position)))
    fresh = spool_dir / f"{_FRESH_PREFIX}{os.getpid()}"
    try:
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fresh.unlink(missing_ok=True)
        if error.errno not in _NO_SPACE or not path.exists():
            raise
        _write_over(path, content)
        return
    os.replace(fresh, path)


def clear_unfinished(spool_dir: Path) -> None:
    """Remove what killed shippers left of checkpoints they were writing; only for who holds the shipper's lock."""
    for path in spool_dir.glob(f"{_FRESH_PREFIX}*"):
        path.unlink(missing_ok=True)


def _write_over(path: Path, content: bytes) -> None:
    with open(path, "r+b", buffering=0) as file:
        before = file.read()
        try:
            wanted = content.ljust(len(before))
            if os.pwrite(file.fileno(), wanted, 0) < len(wanted):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            # What was there fits where it was.
            os.pwrite(file.fileno(), before, 0)
            os.ftruncate(file.fileno(), len(before))
            raise
