"""Running what was logged again: through one version, held against the log or against another version."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from gateway.engine.errors import EngineError
from gateway.events.encoding import RecordError, decode
from gateway.events.records import PredictionRecord
from gateway.predictions.segments import LogRecord
from gateway.predictions.shift import Comparison, OutputShift
from gateway.predictions.tensors import Array, NotLogged, arrays_of, left_out
from gateway.protocol.datatypes import Signature, datatype_of

__all__ = ("Compared", "Latency", "ReplayReport", "ReplayVersion", "TimedRunner", "replay")

_MAX_BATCH_BYTES = 4 * 2**20
_SHOWN = 10


class TimedRunner(Protocol):
    """A loaded model that tells how long its last run took."""

    inference_ns: int

    @property
    def signature(self) -> Signature: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises `gateway.engine.errors.EngineError`."""
        ...


class ReplayVersion(NamedTuple):
    """A version that is ready to run, `rows` of several predictions at a time where that changes no bit."""

    version: int
    runner: TimedRunner
    rows: int


class Latency(msgspec.Struct, frozen=True):
    """Microseconds in the model: of a run, and of a row in it."""

    runs: int
    p50_us: float
    p99_us: float
    row_us: float | None


class Compared(msgspec.Struct, frozen=True):
    """What was replayed against one other side.

    `against`: "log of version 1", the answers that were given, or "version 2". `unlike`: those of `beyond` whose
    outputs have other names, datatypes or shapes, of which `first_unlike` tells. `first_different`: ids.
    """

    against: str
    predictions: int
    equal: int
    within: int
    beyond: int
    unlike: int
    first_unlike: str
    first_different: list[str]
    outputs: dict[str, OutputShift]


class ReplayReport(msgspec.Struct, frozen=True):
    """What a replay came to.

    `not_replayed` counts predictions by why they cannot be run again, `failed` those that a version fails on now,
    `errors` tells of these, each text once, with the id it came first with. `logged_latency` is that of the log, a
    row's share not known.
    """

    model: str
    version: int
    read: int
    replayed: int
    rows: int
    seconds: float
    not_replayed: dict[str, int]
    failed: int
    errors: list[str]
    compared: list[Compared]
    latency: dict[str, Latency]

    @property
    def is_bit_identical(self) -> bool:
        """Whether everything that was replayed gave the same bits as the other side."""
        return not self.failed and all(side.equal == side.predictions for side in self.compared)


class _Request(NamedTuple):
    record: PredictionRecord
    inputs: dict[str, Array]


class _Side(msgspec.Struct):
    comparison: Comparison
    unlike: int = 0
    first_unlike: str = ""
    different: list[str] = []


def replay(
    records: Iterable[LogRecord],
    version: ReplayVersion,
    *,
    model: str,
    against: ReplayVersion | None = None,
    tolerance: float = 1e-6,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> ReplayReport:
    """Run the logged predictions of a model through a version.

    A request that failed when it was logged is run only where there is another version to compare with.

    Parameters
    ----------
    records : iterable of LogRecord
        Predictions; those of other models are passed over.
    against : ReplayVersion, optional
        Compare with this version's answers in place of the logged ones.
    limit : int, optional
        Replay at most so many predictions.
    progress : callable
        Gets how many predictions were replayed since its last call.
    """
    return _Replay(version, model=model, against=against, tolerance=tolerance, progress=progress).run(records, limit)


class _Replay:
    def __init__(
        self,
        version: ReplayVersion,
        *,
        model: str,
        against: ReplayVersion | None,
        tolerance: float,
        progress: Callable[[int], None],
    ) -> None:
        self._version = version
        self._model = model
        self._against = against
        self._tolerance = tolerance
        self._progress = progress
        self._sides: dict[str, _Side] = {}
        self._left_out: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._first_failed: dict[str, str] = {}
        self._read = self._replayed = self._rows = self._failed = 0
        self._times: dict[str, tuple[array[int], array[int]]] = {}
        self._logged_us = array("Q")

    def run(self, records: Iterable[LogRecord], limit: int | None) -> ReplayReport:
        began = time.perf_counter()
        rows = self._version.rows if self._against is None else min(self._version.rows, self._against.rows)
        for batch in _batches(self._requests(records, limit), max_rows=rows):
            self._run_batch(batch)
            self._progress(len(batch))
        return ReplayReport(
            model=self._model,
            version=self._version.version,
            read=self._read,
            replayed=self._replayed,
            rows=self._rows,
            seconds=time.perf_counter() - began,
            not_replayed=dict(self._left_out),
            failed=self._failed,
            errors=[
                f"{self._first_failed[text]}: {text}" + (f" ({count} times)" if count > 1 else "")
                for text, count in self._errors.items()
            ],
            compared=[
                Compared(
                    name,
                    side.comparison.predictions,
                    side.comparison.equal,
                    side.comparison.within,
                    side.comparison.beyond,
                    side.unlike,
                    side.first_unlike,
                    side.different,
                    side.comparison.outputs(),
                )
                for name, side in sorted(self._sides.items())
            ],
            latency=self._latencies(),
        )

    def _requests(self, records: Iterable[LogRecord], limit: int | None) -> Iterator[_Request]:
        taken = 0
        for record in records:
            if limit is not None and taken >= limit:
                return
            try:
                found = decode(record.kind, record.payload)
            except RecordError:
                self._left_out["unreadable"] += 1
                continue
            if not isinstance(found, PredictionRecord) or found.model != self._model:
                continue
            self._read += 1
            reason = left_out(found)
            if reason is None and found.status != 200 and self._against is None:
                reason = "failed"
            if reason is not None:
                self._left_out[reason] += 1
                continue
            try:
                inputs = arrays_of(found.inputs)
            except NotLogged:
                self._left_out["unreadable"] += 1
                continue
            taken += 1
            yield _Request(found, inputs)

    def _run_batch(self, batch: list[_Request]) -> None:
        try:
            answers = self._answers(self._version, batch)
            others = None if self._against is None else self._answers(self._against, batch)
        except (EngineError, KeyError) as error:
            if len(batch) > 1:
                for request in batch:
                    self._run_batch([request])
                return
            self._failed += 1
            text = f"needs the input {error}" if isinstance(error, KeyError) else str(error)
            if text in self._errors or len(self._errors) < _SHOWN:
                self._errors[text] += 1
                self._first_failed.setdefault(text, batch[0].record.id)
            return
        self._replayed += len(batch)
        self._rows += sum(request.record.rows for request in batch)
        if others is not None:
            self._compare(f"version {self._against.version}" if self._against else "", batch, others, answers)
            return
        for name, places in _by_version(batch).items():
            chosen = [batch[place] for place in places]
            self._logged_us.extend(request.record.timings.inference_us for request in chosen)
            logged = []
            for request in chosen:
                try:
                    logged.append(arrays_of(request.record.outputs))
                except NotLogged:
                    logged.append({})
            self._compare(name, chosen, logged, [answers[place] for place in places])

    def _answers(self, version: ReplayVersion, batch: list[_Request]) -> list[dict[str, Array]]:
        """The outputs of each prediction of a batch, from one run."""
        runner = version.runner
        if len(batch) == 1:
            outputs = runner.run(batch[0].inputs)
            self._note_time(version, batch)
            return [outputs]
        joined = {name: np.concatenate([request.inputs[name] for request in batch]) for name in batch[0].inputs}
        outputs = runner.run(joined)
        self._note_time(version, batch)
        ends = np.cumsum([request.record.rows for request in batch])
        return [
            {name: output[end - request.record.rows : end] for name, output in outputs.items()}
            for request, end in zip(batch, ends, strict=True)
        ]

    def _note_time(self, version: ReplayVersion, batch: list[_Request]) -> None:
        times, rows = self._times.setdefault(f"version {version.version}", (array("Q"), array("Q")))
        times.append(version.runner.inference_ns)
        rows.append(sum(request.record.rows for request in batch))

    def _compare(
        self, name: str, batch: list[_Request], left: list[dict[str, Array]], right: list[dict[str, Array]]
    ) -> None:
        side = self._sides.setdefault(name, _Side(Comparison(tolerance=self._tolerance)))
        alike: dict[Any, list[int]] = {}
        for place, (one, other) in enumerate(zip(left, right, strict=True)):
            if not one or _form(one) != _form(other):
                side.comparison.add_unlike()
                side.unlike += 1
                side.first_unlike = side.first_unlike or _unlike(batch[place], one, other)
                self._note_different(side, batch[place])
            else:
                rows = batch[place].record.rows
                together = len(batch) > 1 and all(output.ndim and len(output) == rows for output in other.values())
                form = tuple((key, output.shape[1:]) for key, output in other.items())
                alike.setdefault(form if together and rows else place, []).append(place)
        for places in alike.values():
            if len(places) == 1:
                one, other = left[places[0]], right[places[0]]
            else:
                one, other = _joined(left, places), _joined(right, places)
            starts = np.cumsum([0] + [batch[place].record.rows for place in places[:-1]])
            for place, differs in zip(places, side.comparison.add(one, other, starts), strict=True):
                if differs:
                    self._note_different(side, batch[place])

    def _note_different(self, side: _Side, request: _Request) -> None:
        if len(side.different) < _SHOWN:
            side.different.append(request.record.id)

    def _latencies(self) -> dict[str, Latency]:
        found = {}
        for name, (times, counts) in self._times.items():
            nanoseconds, rows = np.array(times, dtype="f8"), np.array(counts, dtype="f8")
            found[name] = _latency(nanoseconds / 1000, row_us=float(nanoseconds.sum() / 1000 / max(1, rows.sum())))
        if self._logged_us:
            found["log"] = _latency(np.array(self._logged_us, dtype="f8"), row_us=None)
        return found


def _latency(microseconds: Array, *, row_us: float | None) -> Latency:
    p50, p99 = np.quantile(microseconds, (0.5, 0.99))
    return Latency(len(microseconds), float(p50), float(p99), row_us)


def _joined(sides: list[dict[str, Array]], places: list[int]) -> dict[str, Array]:
    return {name: np.concatenate([sides[place][name] for place in places]) for name in sides[places[0]]}


def _form(arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: (tensor.dtype.str, tensor.shape) for name, tensor in arrays.items()}


def _unlike(request: _Request, left: dict[str, Array], right: dict[str, Array]) -> str:
    there, here = (
        ", ".join(f"{name} {datatype_of(tensor.dtype)} {list(tensor.shape)}" for name, tensor in side.items())
        for side in (left, right)
    )
    return f"{request.record.id}: {there or 'nothing'} there, {here} here"


def _by_version(batch: list[_Request]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, request in enumerate(batch):
        places.setdefault(f"log of version {request.record.version}", []).append(place)
    return places


def _batches(requests: Iterable[_Request], *, max_rows: int) -> Iterator[list[_Request]]:
    """Group requests that follow one another and whose rows fit into one run."""
    batch: list[_Request] = []
    form: Any = None
    rows = size = 0
    for request in requests:
        mine = _row_form(request) if max_rows > 1 else None
        own_rows = request.record.rows
        own_size = sum(tensor.nbytes for tensor in request.inputs.values())
        if batch and (mine is None or mine != form or rows + own_rows > max_rows or size + own_size > _MAX_BATCH_BYTES):
            yield batch
            batch, rows, size = [], 0, 0
        batch.append(request)
        form = mine
        rows += own_rows
        size += own_size
    if batch:
        yield batch


def _row_form(request: _Request) -> Any:
    """What must be alike for rows to share a run; None where an input has not these rows."""
    rows = request.record.rows
    if not rows or any(not tensor.ndim or len(tensor) != rows for tensor in request.inputs.values()):
        return None
    return tuple((name, tensor.dtype.str, tensor.shape[1:]) for name, tensor in request.inputs.items())
