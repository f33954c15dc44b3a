"""An environment of its own for each peer, from its committed requirements, kept below `.cache/benchmarks/peers`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import ServerFailed

__all__ = ("environment",)

_REQUIREMENTS = Path(__file__).parent / "peers"
_INSTALL_SECONDS = 900


def environment(name: str, cache: Path) -> Path:
    """Return the Python of a peer's environment, made when it is missing or its requirements have changed.

    Raises
    ------
    ServerFailed
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    folder = cache / "peers" / name
    python = folder / "bin" / "python"
    note = folder / "installed"
    wanted = hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()
    if note.exists() and note.read_text() == wanted:
        return python
    print(f"installing {name} into an environment of its own (once)", file=sys.stderr)
    if folder.exists():
        shutil.rmtree(folder)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    try:
        for command in ([sys.executable, "-m", "venv", str(folder)], install):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise ServerFailed(f"{name} cannot be installed: {(error.stderr or error.stdout)[-300:].strip()}") from None
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"{name} was not installed within {_INSTALL_SECONDS} s") from None
    note.write_text(wanted)
    return python
