"""The port through which a model is run while it is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gateway.protocol.datatypes import Signature

__all__ = ("Array", "OpenRunner", "Runner")

Array = np.ndarray[Any, np.dtype[Any]]


class Runner(Protocol):
    """A loaded model; `gateway.engine.oneshot.BlockingEngine` is one."""

    @property
    def signature(self) -> Signature: ...

    @property
    def omitted(self) -> Mapping[str, str]:
        """Outputs that are no tensors, with their types."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises `gateway.engine.errors.EngineError`, of which `RunFailed` says that the model failed."""
        ...


OpenRunner = Callable[[Path], AbstractContextManager[Runner]]
"""Loads a model file for as long as the context lasts; raises `EngineError` when the file cannot be loaded."""
