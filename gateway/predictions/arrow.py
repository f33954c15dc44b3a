"""pyarrow and fsspec, where they are installed: the extra `archive`."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ("HOW_TO_INSTALL", "NeedsArchiveExtra", "filesystems", "parquet", "pyarrow")

HOW_TO_INSTALL = "install the extra with `pip install 'inference-gateway[archive]'`"


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


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NeedsArchiveExtra(f"the package {name.split('.')[0]} is not installed; {HOW_TO_INSTALL}") from None
