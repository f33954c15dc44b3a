"""Would the previous version have done better? Runs it on rows that were logged and labelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from gateway.control.decisions import Comparison
from gateway.control.join import LabelledRow
from gateway.control.quality import loss_of
from gateway.engine.errors import EngineError, RunFailed
from gateway.engine.oneshot import BlockingEngine, connect_engine
from gateway.events.records import PredictionRecord, TensorRecord
from gateway.protocol.datatypes import NUMPY_OF, bfloat16_of, numbers_of
from gateway.repository.policy import QualityPolicy
from gateway.rollout.paired import PairedTest

__all__ = ("EngineRerun", "FixedRerun", "Rerun", "RerunError", "Run", "compare")

Array = np.ndarray[Any, Any]

_decoder = msgspec.json.Decoder(PredictionRecord)


class RerunError(Exception):
    """The version could not be run; the text says why."""


Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Runs a version once on inputs that were logged; raises RerunError when it does not answer."""


class Rerun(Protocol):
    """Runs versions on inputs that were logged. It may take a while and is called off the loop."""

    def session(self, model: str, version: int) -> AbstractContextManager[Run]:
        """One version, ready to be run many times."""


class EngineRerun:
    """Runs on the engines of this gateway, over one connection a session.

    Parameters
    ----------
    run_dir : Path
        Where the engines' sockets are.
    """

    def __init__(self, run_dir: Path, *, timeout_seconds: float = 10.0) -> None:
        self._run_dir = run_dir
        self._timeout_seconds = timeout_seconds

    @contextmanager
    def session(self, model: str, version: int) -> Iterator[Run]:
        connection = _Connection(self._run_dir / f"engine-{model}-{version}.sock", self._timeout_seconds)
        try:
            yield connection.run
        finally:
            connection.close()


class _Connection:
    """Connects at the first run, and again after the engine was gone."""

    def __init__(self, socket_path: Path, timeout_seconds: float) -> None:
        self._socket_path = socket_path
        self._timeout_seconds = timeout_seconds
        self._engine: BlockingEngine | None = None

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        try:
            if self._engine is None:
                self._engine = connect_engine(self._socket_path, timeout_seconds=self._timeout_seconds)
            return self._engine.run(inputs)
        except RunFailed as error:
            raise RerunError(str(error)) from None
        except EngineError as error:
            self.close()
            raise RerunError(str(error)) from None
        except KeyError as error:
            raise RerunError(f"input {error} was not logged") from None

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


class FixedRerun:
    """Runs Python functions instead of engines, for tests."""

    def __init__(self, versions: dict[tuple[str, int], Run]) -> None:
        self._versions = versions

    @contextmanager
    def session(self, model: str, version: int) -> Iterator[Run]:
        yield self._versions.get((model, version), _missing(model, version))


def compare(
    rows: Iterable[LabelledRow],
    rerun: Rerun,
    *,
    model: str,
    version: int,
    earlier: Mapping[str, int] | None = None,
    policy: QualityPolicy,
    miss_above: float,
    false_rollback: float,
    lookup: Callable[[str], PredictionRecord | None],
    in_time: Callable[[], bool],
) -> Comparison:
    """Pair what was answered with what `version` answers to the same inputs.

    Each row runs alone, so that a version whose rows depend on one another answers as it would have.

    Parameters
    ----------
    rows : iterable of LabelledRow
        Of the version that is blamed.
    earlier : mapping, optional
        `pairs` of the comparison that these rows go on with.
    miss_above : float
        The loss above which both versions' rows are misses.
    false_rollback : float
        The chance to call a version better that is not.
    lookup : callable
        Finds a prediction whose payload is no longer in memory.
    in_time : callable
        False when no more time may be spent; what has been paired until then decides.
    """
    pairs = PairedTest()
    if earlier:
        pairs.restore(earlier)
    already = pairs.pairs
    unusable = 0
    note = ""
    with rerun.session(model, version) as run:
        for row in rows:
            if not in_time():
                note = "the time for it was over"
                break
            try:
                outputs = _again(row, run, version=version, output=policy.output, lookup=lookup)
            except RerunError as error:
                unusable += 1
                note = str(error)
                if unusable > 3 and pairs.pairs == already:
                    break
                continue
            pairs.update(
                previous_right=loss_of(policy, outputs, row.label) <= miss_above,
                current_right=loss_of(policy, row.outputs, row.label) <= miss_above,
            )
    if not pairs.pairs:
        return Comparison(version, None, 0, note or "no labelled row was logged with its inputs")
    needed = -math.log(false_rollback)
    numbers = {
        "log_evidence": pairs.log_evidence,
        "log_threshold": needed,
        "miss_above": miss_above,
        "unusable_rows": unusable,
    }
    return Comparison(version, pairs.log_evidence >= needed, pairs.pairs, note, pairs.state(), numbers)


def _missing(model: str, version: int) -> Run:
    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        raise RerunError(f"{model} version {version} does not run")

    return run


def _again(
    row: LabelledRow,
    run: Run,
    *,
    version: int,
    output: str,
    lookup: Callable[[str], PredictionRecord | None],
) -> tuple[float, ...]:
    record = _decoder.decode(row.payload) if row.payload is not None else lookup(row.prediction_id)
    if record is None:
        raise RerunError(f"prediction {row.prediction_id} is no longer in the log")
    inputs = {tensor.name: _row_of(tensor, row.row, record.rows) for tensor in record.inputs}
    answered = run(inputs)
    name = output or next(iter(answered), "")
    if name not in answered:
        raise RerunError(f"version {version} has no output {name!r}")
    values = numbers_of(np.asarray(answered[name])).reshape(-1)
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise RerunError(f"output {name!r} of version {version} is not a number") from None
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise RerunError(f"output {name!r} of version {version} is not finite")
    return numbers


def _row_of(tensor: TensorRecord, row: int, rows: int) -> Array:
    dtype = NUMPY_OF.get(tensor.datatype)
    if tensor.data is None or dtype is None:
        raise RerunError(f"input {tensor.name} was not logged whole")
    try:
        flat = bfloat16_of(tensor.data) if tensor.datatype == "BF16" else np.array(tensor.data, dtype=dtype)
        whole = flat.reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise RerunError(f"input {tensor.name} cannot be read back: {error}") from None
    if whole.ndim and whole.shape[0] == rows:
        return whole[row : row + 1]
    return whole
