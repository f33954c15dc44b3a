"""The few operations through which a writer reaches the disk, and a disk that fails as a test wishes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = ("Crash", "Disk", "FakeDisk", "Fault", "LocalDisk", "SyncDebt")

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC


class Disk(Protocol):
    """What a writer asks of a disk; every call may raise OSError. Files are descriptors, closed with `os.close`."""

    def begin(self, path: Path) -> int:
        """Open an empty file for appending; what was under this name is gone."""

    def write(self, file: int, content: bytes, /) -> int:
        """Append; returns how many bytes were taken, as `write(2)`."""

    def cut(self, file: int, size: int, /) -> None:
        """Drop what lies behind `size` bytes."""

    def sync(self, file: int, /) -> None:
        """Return when the file's content would survive a power loss, as `fdatasync(2)`."""

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in a folder would survive a power loss."""


class LocalDisk:
    """The disk of this machine."""

    write = staticmethod(os.write)
    cut = staticmethod(os.ftruncate)
    sync = staticmethod(os.fdatasync)

    def begin(self, path: Path) -> int:
        return os.open(path, _FLAGS, 0o600)

    def sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class SyncDebt(NamedTuple):
    """What has been written and may not be on the disk yet: files, which it owns, and folders with new names."""

    files: tuple[int, ...]
    folders: tuple[Path, ...]

    def pay(self, disk: Disk) -> None:
        """Bring all of it to the disk and close the files; called once, from any thread.

        Raises
        ------
        OSError
            None of it can be relied on: after a failed sync the kernel calls the pages clean, so that another sync of
            the same file would prove nothing.
        """
        try:
            for file in self.files:
                disk.sync(file)
            for folder in self.folders:
                disk.sync_folder(folder)
        finally:
            for file in self.files:
                os.close(file)


class Crash(BaseException):
    """The power went, as a FakeDisk was told: nothing that runs on it may go on."""


class Fault(NamedTuple):
    """What goes wrong at step `at` of a FakeDisk, counted from 1 over all of its operations.

    `steps` operations from there on fail with `error`, the number of an OSError (0: they do not). With `power_loss`
    that step is the end instead. A write at step `at` takes `taken` bytes first, and fails at the next step only.
    """

    at: int
    error: int = errno.EIO
    taken: int = 0
    steps: int = 1
    power_loss: bool = False


class FakeDisk:
    """A folder whose operations fail at a chosen step, and that forgets what was not synced when the power goes.

    Writers and readers use the real files below `root` meanwhile; after a `Crash`, or at any other moment,
    `lose_unsynced` leaves of them what a disk owes to who had called `sync` and `sync_folder`.

    Parameters
    ----------
    root : Path
        What lies in it now is on the disk.
    fault : Fault, optional
    delay_seconds : float
        How long each sync takes.
    sleep : callable
    """

    def __init__(
        self,
        root: Path,
        *,
        fault: Fault | None = None,
        delay_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.root = root.resolve()
        self.fault = fault
        self.delay_seconds = delay_seconds
        self.steps = 0
        self.crashed = False
        self._sleep = sleep
        self._disk = LocalDisk()
        self._forsaken: set[Path] = set()
        self._named = set(self.root.rglob("*"))
        self._synced = {path: path.stat().st_size for path in self._named if path.is_file()}

    def __repr__(self) -> str:
        return f"<FakeDisk steps={self.steps} {'crashed' if self.crashed else self.fault}>"

    def begin(self, path: Path) -> int:
        self._step()
        file = self._disk.begin(path)
        self._synced[_path_of(file)] = 0
        return file

    def write(self, file: int, content: bytes, /) -> int:
        taken = self._step(file, content)
        return self._disk.write(file, content) if taken is None else taken

    def cut(self, file: int, size: int, /) -> None:
        self._step()
        path = _path_of(file)
        self._disk.cut(file, size)
        self._synced[path] = min(self._synced.get(path, 0), size)

    def sync(self, file: int, /) -> None:
        size = os.fstat(file).st_size
        if self.delay_seconds:
            self._sleep(self.delay_seconds)
        path = _path_of(file)
        try:
            self._step()
        except OSError:
            # As Linux does: what could not be written back is called clean, and no later sync brings it to the disk.
            self._forsaken.add(path)
            raise
        if path not in self._forsaken:
            self._synced[path] = size

    def sync_folder(self, folder: Path) -> None:
        self._step()
        self._named |= set(folder.resolve().iterdir())

    def lose_unsynced(self, *, kept: Callable[[int], int] = lambda unsynced: 0, garble: bool = False) -> None:
        """Leave what a power loss leaves: what was synced, and of each file's other bytes the first `kept`.

        Parameters
        ----------
        kept : callable
            How many of so many unsynced bytes reach the disk all the same.
        garble : bool
            Those bytes are zeros: the file has grown, and its blocks were not written.
        """
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_dir():
                if not self._is_named(path):
                    path.rmdir()
            elif not self._is_named(path):
                path.unlink()
            elif path in self._synced:
                synced, size = self._synced[path], path.stat().st_size
                end = synced + kept(max(0, size - synced))
                os.truncate(path, synced if garble else end)
                os.truncate(path, end)

    def _is_named(self, path: Path) -> bool:
        return all(step in self._named for step in (path, *path.parents) if self.root in step.parents)

    def _step(self, file: int = -1, content: bytes = b"") -> int | None:
        """Count an operation and raise what is due; a number is what a short write took."""
        if self.crashed:
            raise Crash
        self.steps += 1
        fault = self.fault
        if fault is None or not fault.at <= self.steps < fault.at + fault.steps:
            return None
        part = content[: fault.taken] if self.steps == fault.at else b""
        taken = self._disk.write(file, part) if part else 0
        if fault.power_loss:
            self.crashed = True
            raise Crash
        if taken:
            self.fault = fault._replace(at=self.steps + 1, taken=0)
            return taken
        if fault.error:
            raise OSError(fault.error, os.strerror(fault.error))
        return None


def _path_of(file: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{file}"))
