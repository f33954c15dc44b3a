"""A disk that fails on demand, in real processes: what Python calls at start when this folder's copy is on its path.

`FaultyDisk.environment` puts it there. While the switch file holds `CALL ERROR` (such as `write ENOSPC`), that call
fails for files below a folder named `spool`; `fdatasync 0.5` makes it take so many seconds instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

SITECUSTOMIZE = """
import errno, os, time

def faulty(name, real):
    def call(first, *rest, **options):
        try:
            with open(os.environ["FAULTY_DISK"]) as switch:
                which, _, what = switch.read().partition(" ")
        except OSError:
            which = ""
        if which == name:
            path = first if not isinstance(first, int) else os.readlink(f"/proc/self/fd/{first}")
            if "/spool/" in str(path) and not str(path).endswith(".lock"):
                if what[0].isdigit():
                    time.sleep(float(what))
                else:
                    number = getattr(errno, what)
                    raise OSError(number, os.strerror(number))
        return real(first, *rest, **options)
    return call

for name in ("write", "fdatasync", "open"):
    setattr(os, name, faulty(name, getattr(os, name)))
"""


class FaultyDisk:
    """The switch of a disk that fails in every process started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._switch = folder / "switch"
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.environment = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "FAULTY_DISK": str(self._switch)}

    @contextlib.contextmanager
    def fails(self, call: str, how: str) -> Iterator[None]:
        """While inside, `call` (write, fdatasync or open) fails with the error `how`, or takes so many seconds."""
        partial = self._switch.with_suffix(".new")
        partial.write_text(f"{call} {how}")
        partial.replace(self._switch)
        try:
            yield
        finally:
            self._switch.unlink()
