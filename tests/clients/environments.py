"""Virtual environments for clients and tools that must not meet our own dependencies; made once, kept in `.cache`."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from tests.prometheus import missing

__all__ = ("client_python",)

CACHE = Path(__file__).parents[2] / ".cache" / "clients"
INSTALL_SECONDS = 240


def client_python(name: str, *requirements: str) -> Path:
    """The Python of an environment with these packages.

    Skips the test, with the reason, where it cannot be made; fails it where CI is set.
    """
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}-{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _make(folder, python, requirements)
    return python


def _make(folder: Path, python: Path, requirements: tuple[str, ...]) -> None:
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    try:
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        missing(f"cannot install {', '.join(requirements)}: {said.decode(errors='replace')[-300:] or error}")
    (folder / "complete").touch()
