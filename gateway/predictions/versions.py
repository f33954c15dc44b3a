"""Versions of the model folder, ready to run what was logged."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gateway.engine.errors import EngineGone, EngineStartFailed, RunFailed
from gateway.engine.oneshot import BlockingEngine, open_engine
from gateway.predictions.replay import ReplayVersion
from gateway.predictions.tensors import Array
from gateway.protocol.datatypes import Signature
from gateway.repository.manifest import load_version
from gateway.repository.policy import load_policy
from gateway.repository.staging import stage

__all__ = ("OpenVersion", "open_version")

_MAX_CRASHES = 10
_RUN_SECONDS = 60.0


class OpenVersion(NamedTuple):
    """A version in an engine of its own, with its digest and what its manifest says of rows that share a run."""

    replayed: ReplayVersion
    digest: str
    verdict: str


@contextlib.contextmanager
def open_version(models: Path, model: str, version: int, *, threads: int) -> Iterator[OpenVersion]:
    """Start an engine for exactly the bytes the manifest names; approved or not, as nobody is served by it.

    Predictions share a run only where the manifest says that it changes no bit.

    Raises
    ------
    RepositoryError, PolicyError
        There is no such version, or it is not what its manifest says.
    EngineStartFailed
        It cannot be loaded.
    """
    found = load_version(models / model / str(version))
    policy = load_policy(models / model)
    batching = found.manifest.batching
    with tempfile.TemporaryDirectory(prefix="gateway-replay-") as folder:
        file = stage(found, Path(folder) / "staged", expected_digest=found.digest)
        with _LastingEngine(file, threads=threads) as engine:
            rows = batching.shared_rows(policy.batching.max_rows, exact=True)
            yield OpenVersion(ReplayVersion(version, engine, rows), found.digest, batching.verdict)


class _LastingEngine:
    """An engine that is started again when what it was given has ended it."""

    def __init__(self, file: Path, *, threads: int) -> None:
        self.inference_ns = 0
        self._file = file
        self._threads = threads
        self._crashes = 0
        self._open = contextlib.ExitStack()
        self._engine: BlockingEngine | None = self._start()
        self._signature = self._engine.signature

    def __enter__(self) -> _LastingEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __repr__(self) -> str:
        return f"<_LastingEngine {self._file.name} crashes={self._crashes}>"

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once.

        Raises
        ------
        EngineError
            `RunFailed` also when these inputs ended the engine.
        """
        if self._engine is None:
            if self._crashes >= _MAX_CRASHES:
                raise EngineStartFailed(f"the engine ended {self._crashes} times and is not started again")
            self._engine = self._start()
        try:
            outputs = self._engine.run(inputs)
        except EngineGone as error:
            self._engine = None
            self._crashes += 1
            self._open.close()
            raise RunFailed(str(error)) from None
        self.inference_ns = self._engine.inference_ns
        return outputs

    def _start(self) -> BlockingEngine:
        return self._open.enter_context(open_engine(self._file, threads=self._threads, timeout_seconds=_RUN_SECONDS))
