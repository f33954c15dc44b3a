"""pyarrow and fsspec, where they are installed: the extra `archive`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__all__ = ("HOW_TO_INSTALL", "NeedsArchiveExtra", "filesystems", "parquet", "pyarrow", "require_installed")

HOW_TO_INSTALL = "install the extra with `.venv/bin/pip install -e '.[archive]'` in the checkout"


class NeedsArchiveExtra(Exception):
    """Raised when the extra `archive` is not installed."""


def pyarrow() -> Any:
    """The module `pyarrow`.

    Raises
    ------
    NeedsArchiveExtra
    """
    return _module("pyarrow")


def parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises
    ------
    NeedsArchiveExtra
    """
    return _module("pyarrow.parquet")


def filesystems() -> Any:
    """The module `fsspec`.

    Raises
    ------
    NeedsArchiveExtra
    """
    return _module("fsspec")


def require_installed() -> None:
    """Refuse where a package of the extra is missing, without importing it.

    Raises
    ------
    NeedsArchiveExtra
    """
    for name in ("pyarrow", "fsspec"):
        if importlib.util.find_spec(name) is None:
            raise NeedsArchiveExtra(f"the package {name} is not installed; {HOW_TO_INSTALL}")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NeedsArchiveExtra(f"the package {name.split('.')[0]} is not installed; {HOW_TO_INSTALL}") from None
