"""The front: from a parsed request to its logged answer.

`accept` decodes, routes and queues; the lane runs the batch; `deliver` writes the batch's records in one write and
then releases each answer. Nothing here awaits, and nothing waits for Kafka, the store or a detector.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from gateway.engine.job import rank_of
from gateway.engine.lane import Lane, QueueLimits
from gateway.events.records import KIND_PREDICTION, Arm
from gateway.predictions.commit import GroupCommit
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.protocol.encode import encode_flat, encode_rows, encode_string
from gateway.protocol.errors import (
    EngineUnavailable,
    GatewayError,
    LogUnavailable,
    ModelFailed,
    Overloaded,
    UnknownModel,
)
from gateway.protocol.limits import Limits
from gateway.protocol.request import InferRequest
from gateway.routing.table import Choice, Route, choose, hash_key, point_of
from gateway.serving.answers import status_of
from gateway.serving.aside import (
    SideThread,
    is_slow_to_answer,
    is_slow_to_read,
    prepare_answers,
    read_aside,
    result_of,
)
from gateway.serving.bodies import BodyRoom
from gateway.serving.inference import Inference
from gateway.serving.reading import read_alone, read_batch
from gateway.serving.records import is_sampled_out, prediction_record, record_time, sampling_of, tensor_records
from gateway.serving.stencil import Stencil
from gateway.serving.version import ServedVersion
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile

__all__ = ("Front",)

Answer = tuple[bytes, bytes, int, bool]
"""Event id, body, HTTP status, and whether the body is the whole answer, head and all."""


class Front:
    """Serves the versions it has lanes for, by the routes it was last given.

    Parameters
    ----------
    name : str
        Of the gateway, as it stands in records.
    spool : SpoolWriter
        This front's stream.
    cells : CellFile
        This front's metrics.
    sockets : callable
        (model, version) to the path of the engine's socket.
    commit : GroupCommit, optional
        Of the spool, where an answer leaves only when its record would survive a power loss.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        spool: SpoolWriter,
        cells: CellFile,
        sockets: Callable[[str, int], Path],
        draw: Callable[[], float] = random.random,
        commit: GroupCommit | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self.spool = spool
        self.commit = commit
        self.cells = cells
        self.bodies = BodyRoom(settings.limits.max_held_body_bytes)
        self._side = SideThread()
        self.draining = False
        self.revision = -1
        self._was_ready = False
        self._leaving: dict[ServedVersion, float] = {}
        self._alone: dict[str, Route] = {}
        self._sole: dict[str, Choice] = {}
        self.routes: dict[str, Route] = {}
        self.versions: dict[tuple[str, int], ServedVersion] = {}
        self._sockets = sockets
        self._draw = draw
        self._spooled = cells.counter("gateway_log_events_total", {"state": "spooled"})
        self._dropped = cells.counter("gateway_log_events_total", {"state": "dropped"})
        self._refused = cells.counter("gateway_log_events_total", {"state": "refused"})
        self._sampled_out = cells.counter("gateway_log_events_total", {"state": "sampled_out"})
        self._unsynced = cells.counter("gateway_log_events_total", {"state": "unsynced"})
        self._limits = msgspec.convert(settings.limits, Limits, from_attributes=True)
        self._queue_limits = QueueLimits(
            max_requests=settings.limits.max_queue_requests,
            max_bytes=settings.limits.max_queue_bytes,
            max_wait_seconds=settings.limits.max_queue_wait_ms / 1000,
            batch_bytes=settings.engine.max_batch_bytes,
            batch_seconds=settings.engine.max_batch_ms / 1000,
        )
        self._overloaded: list[Inference] = []
        self._max_body_bytes = settings.limits.max_body_bytes
        self._max_tensor_bytes = settings.log.max_tensor_bytes
        self._timeout_seconds = settings.limits.request_timeout_ms / 1000

    def __repr__(self) -> str:
        lanes = ", ".join(repr(served.lane) for served in self.versions.values())
        return f"<Front revision {self.revision} {'draining' if self.draining else 'serving'} | {lanes}>"

    @property
    def not_ready(self) -> str | None:
        """Why the front is not ready, or None when it is."""
        if self.draining:
            return "the gateway is shutting down"
        if self.revision < 0:
            return "the route table has not been read yet"
        if self.spool.full and self.settings.spool.full == "block":
            return "the prediction log is full"
        away = [(model, route.stable) for model, route in self.routes.items() if not self._is_up(model, route.stable)]
        # At first every model must be there, or known not to come. Later one that fails must not take the others out
        # of service with it: its own readiness says it.
        if away and (not self._was_ready or len(away) == len(self.routes)):
            return f"model '{away[0][0]}' version {away[0][1]} is not ready"
        return None

    def _is_settled(self, model: str, version: int) -> bool:
        served = self.versions.get((model, version))
        return served is not None and (served.lane.ready or served.lane.refusing is not None)

    def _is_up(self, model: str, version: int) -> bool:
        served = self.versions.get((model, version))
        return served is not None and served.lane.ready

    def follow(self, revision: int, routes: dict[str, Route], approved: dict[tuple[str, int], str]) -> None:
        """Take over a route table.

        Parameters
        ----------
        approved : dict
            (model, version) to digest of every version that may be served.
        """
        for key in [key for key in self.versions if approved.get(key) != self.versions[key].digest]:
            # What it has taken it still answers; `tick` closes it then.
            self._leaving[self.versions.pop(key)] = time.perf_counter() + self._timeout_seconds
        for key, digest in approved.items():
            if key not in self.versions:
                self.versions[key] = self._open(*key, digest=digest)
        for model in self.routes.keys() | routes.keys():
            self._show_weights(model, routes.get(model))
        self.routes = routes
        self._sole = {model: choose(route, 0.0, sticky=False) for model, route in routes.items()}
        self._alone = {model: msgspec.structs.replace(route, weight=0.0) for model, route in routes.items()}
        self.revision = revision

    def version(self, model: str, pinned: int | None) -> ServedVersion:
        """The version a request for `model` is about, without drawing an arm.

        Raises
        ------
        UnknownModel
        """
        route = self.routes.get(model)
        if route is None and not any(name == model for name, _ in self.versions):
            raise UnknownModel(f"Request for unknown model: '{model}' is not found")
        number = pinned if pinned is not None else route.stable if route else None
        served = self.versions.get((model, number)) if number is not None else None
        if served is None:
            if number is None:
                raise UnknownModel(f"Request for unknown model: '{model}' has no available versions")
            raise UnknownModel(f"Request for unknown model: '{model}' version {number} is not found")
        return served

    def accept(self, inference: Inference) -> None:
        """Take a request whose body is complete; its connection is told when it is answered, perhaps at once."""
        inference.arrived = time.perf_counter()
        try:
            self._route(inference)
        except GatewayError as error:
            inference.refuse(error)
            return
        if self.commit is not None and self.commit.full:
            self._refuse([inference], "the disk of the prediction log does not keep up")
            return
        try:
            self._admit(inference)
        except Overloaded as error:
            inference.failure = error
            self._shed(inference)
        except GatewayError as error:
            inference.failure = error
            self.deliver([inference])

    def deliver(self, inferences: Sequence[Inference]) -> None:
        """Log finished requests of one version in one write, then release their answers."""
        if inferences and inferences[0].failure is None and is_slow_to_answer(inferences[0]):
            prepare = partial(prepare_answers, inferences, max_tensor_bytes=self._max_tensor_bytes)
            self._side.run(prepare, partial(self._prepared, inferences))
            return
        now = time.perf_counter()
        stamp = record_time(time.time())
        spool = self.spool
        boot = spool.boot.encode()
        sequence = spool.next_sequence
        records: list[tuple[int, bytes]] = []
        answers: list[Answer] = []
        results: object = None
        rows: Sequence[bytes] | None = None
        stencil: Stencil | None = None
        choice = route = shape = None
        for inference in inferences:
            event_id = b"%b-%010x" % (boot, sequence)
            if inference.plain and inference.failure is None and inference.keep_alive:
                if inference.results is not results:
                    results, choice = inference.results, None
                    rows = _rows_of(inference)
                if rows is not None and (
                    inference.choice is not choice or inference.route is not route or inference.inputs[0].shape != shape
                ):
                    choice, route, shape = inference.choice, inference.route, inference.inputs[0].shape
                    stencil = _stencil_of(inference)
                if rows is not None and stencil is not None:
                    record, answer = _fill(stencil, inference, rows, event_id, now, stamp, sequence)
                    records.append((KIND_PREDICTION, record))
                    answers.append((event_id, answer, 200, True))
                    sequence += 1
                    continue
            try:
                record, body, status = self._finish(inference, event_id, now=now, stamp=stamp, sequence=sequence)
            except Exception as fault:
                # Whatever slips through every check fails its own request, and nobody else's.
                inference.give_up(fault)
                record, body, status = self._finish(inference, event_id, now=now, stamp=stamp, sequence=sequence)
            records.append((KIND_PREDICTION, record))
            answers.append((event_id, body, status, False))
            sequence += 1
        dropped = spool.dropped
        try:
            spool.append(records)
        except SpoolError as error:
            # Nothing that is not in the log is answered as a prediction; what was written of the batch is.
            written = error.written
            self._refuse(inferences[written:])
            inferences, records, answers = inferences[:written], records[:written], answers[:written]
            if not written:
                return
        dropped = spool.dropped - dropped
        self._count_spooled(inferences[0].served, records[: len(records) - dropped])
        self._dropped.inc(dropped)
        if self.commit is None:
            self._release(inferences, answers, now)
        else:
            self.commit.after(partial(self._committed, inferences, answers), records=len(inferences))

    def _prepared(self, inferences: Sequence[Inference], written: Future[None]) -> None:
        fault = written.exception()
        if isinstance(fault, Exception):
            for inference in inferences:
                inference.give_up(fault)
        self.deliver(inferences)

    def _count_spooled(self, served: ServedVersion, records: Sequence[tuple[int, bytes]]) -> None:
        self._spooled.inc(len(records))
        if served.sample < 1:
            self._sampled_out.inc(sum(is_sampled_out(record) for _, record in records))

    def count_feedback(self, model: str, labels: int) -> None:
        """Count labels that are in the log."""
        self._spooled.inc(labels)
        self.cells.counter("gateway_feedback_total", {"model": model, "state": "received"}).inc(labels)

    def count_dropped_feedback(self, model: str, labels: int) -> None:
        """Count labels that a full log has dropped."""
        self._dropped.inc(labels)
        self.cells.counter("gateway_feedback_total", {"model": model, "state": "dropped"}).inc(labels)

    def count_unsynced(self, events: int) -> bool:
        """Count events in the log that a power loss may take, as the disk refused; whether to refuse their senders."""
        self._unsynced.inc(events)
        return self.settings.spool.full == "block"

    def tick(self, now: float) -> None:
        """Expire what is late; call it several times a second with `time.perf_counter()`."""
        for served in list(self.versions.values()):
            served.lane.expire(now)
        if not self._was_ready and self.revision >= 0:
            self._was_ready = all(self._is_settled(model, route.stable) for model, route in self.routes.items())
        for served in [served for served, until in self._leaving.items() if served.lane.idle or until < now]:
            del self._leaving[served]
            served.lane.close()
        for served in self._leaving:
            served.lane.expire(now)

    def _open(self, model: str, version: int, *, digest: str) -> ServedVersion:
        served = ServedVersion(
            model,
            version,
            digest=digest,
            gateway=self.name,
            cells=self.cells,
            limits=self._limits,
            max_logged_bytes=self._max_tensor_bytes,
        )
        served.lane = Lane(
            model,
            version,
            socket_path=self._sockets(model, version),
            done=self.deliver,
            read=read_batch,
            greeted=served.greeted,
            limits=self._queue_limits,
            frames_in_flight=self.settings.engine.frames_in_flight,
        )
        return served

    def _show_weights(self, model: str, route: Route | None) -> None:
        before = self.routes.get(model)
        for old in (before,) if before else ():
            for version, arm in ((old.stable, "stable"), (old.canary, "canary")):
                if version is not None:
                    self.cells.remove("gateway_route_weight", {"model": model, "version": str(version), "arm": arm})
        if route is None:
            return
        for version, arm, weight in (
            (route.stable, "stable", 100 - route.weight),
            (route.canary, "canary", route.weight),
        ):
            if version is not None:
                labels = {"model": model, "version": str(version), "arm": arm}
                self.cells.gauge("gateway_route_weight", labels).set(weight)

    def _route(self, inference: Inference) -> None:
        if isinstance(inference.refused, UnknownModel):
            raise inference.refused
        route = self.routes.get(inference.model)
        if route is not None and route.canary is None and inference.pinned is None:
            inference.route, inference.choice = route, self._sole[inference.model]
            inference.served = self.versions.get((route.model, route.stable)) or self.version(route.model, route.stable)
            return
        if route is None:
            self.version(inference.model, inference.pinned)
            route = Route(inference.model, stable=inference.pinned or 0)
        key = inference.key
        point = self._draw() if key is None else point_of(key, route.salt)
        inference.route = route
        inference.choice = choose(route, point, sticky=key is not None, pinned=inference.pinned)
        served = self.versions.get((inference.model, inference.choice.version))
        if inference.choice.arm == "canary" and (served is None or served.decoder is None):
            # Its engine has not been reached yet. The stable version answers, with no weight on the canary in the
            # record, so that a slow start is no evidence against it.
            inference.route = self._alone[inference.model]
            inference.choice = Choice(route.stable, "stable", "canary_not_ready")
            served = self.versions.get((inference.model, route.stable))
        inference.served = served or self.version(inference.model, inference.choice.version)

    def _admit(self, inference: Inference) -> None:
        if inference.refused is not None:
            raise inference.refused
        served = inference.served
        if served.decoder is None:
            raise EngineUnavailable(
                f"Request for unknown model: '{served.model}' version {served.version} is not at ready state"
            )
        if self.spool.full and self.settings.spool.full == "block":
            raise LogUnavailable("the prediction log is full, so no prediction can be answered")
        if inference.rank >= served.lane.line.closed_for:
            inference.body = []
            raise served.lane.line.refusal()
        if (inference.encoding is not None or len(inference.body) > 1) and is_slow_to_read(
            inference, max_bytes=self._max_body_bytes
        ):
            read = partial(
                read_aside, inference, max_bytes=self._max_body_bytes, max_tensor_bytes=self._max_tensor_bytes
            )
            self._side.run(read, partial(self._go_on, inference))
            return
        if inference.recognise(served.decoder):
            seconds = self._timeout_seconds
            if inference.timeout_ms:
                seconds = min(seconds, inference.timeout_ms / 1000)
            inference.deadline = inference.arrived + seconds
        else:
            self._take(inference, inference.read(served.decoder))
        served.lane.submit(inference)

    def _go_on(self, inference: Inference, read: Future[InferRequest]) -> None:
        # With a request that was read aside.
        if inference.abandoned:
            return
        try:
            self._take(inference, result_of(read))
            inference.served.lane.submit(inference)
        except Overloaded as error:
            inference.failure = error
            self._shed(inference)
        except GatewayError as error:
            inference.failure = error
            self.deliver([inference])
        except Exception as fault:
            inference.give_up(fault)
            self.deliver([inference])

    def _take(self, inference: Inference, request: InferRequest) -> None:
        inference.inputs = request.inputs
        inference.rows = request.rows
        inference.fragments = request.fragments
        inference.plain = request.plain and inference.accepts is None
        inference.request_id = request.id
        inference.parameters = request.parameters
        inference.requested = request.outputs
        if request.priority:
            inference.rank = rank_of(request.priority)
        seconds = self._timeout_seconds
        if inference.timeout_ms:
            seconds = min(seconds, inference.timeout_ms / 1000)
        if request.timeout_us:
            seconds = min(seconds, request.timeout_us / 1e6)
        inference.deadline = inference.arrived + seconds

    def _shed(self, inference: Inference) -> None:
        # What is refused in one pass of the loop is one write to the log: refusals must cost little.
        if not self._overloaded:
            asyncio.get_running_loop().call_soon(self._deliver_overloaded)
        self._overloaded.append(inference)

    def _deliver_overloaded(self) -> None:
        overloaded, self._overloaded = self._overloaded, []
        self.deliver(overloaded)

    def _finish(
        self, inference: Inference, event_id: bytes, *, now: float, stamp: bytes, sequence: int
    ) -> tuple[bytes, bytes, int]:
        served, choice = inference.served, inference.choice
        failure, prepared = inference.failure, inference.prepared
        if inference.usual is not None:
            # It has not come as far as a batch; the log shall have what it asked all the same.
            read_alone(inference)
        inputs = outputs = b"[]"
        error = None
        key = None if inference.key is None else hash_key(inference.key)
        signature = served.signature
        sampled, sampling = True, b""
        if failure is None and signature is not None:
            status = 200
            if served.sample < 1:
                sampled, sampling = sampling_of(served.sample, key or hash_key(event_id.decode()))
            if prepared is not None and prepared.answer is not None and prepared.logged_outputs is not None:
                body = inference.body_of(event_id, prepared.answer)
                outputs = prepared.logged_outputs if sampled else outputs
            else:
                said = inference.said()
                flats = [
                    encode_flat(output) if said is None or position in said else None
                    for position, output in enumerate(inference.outputs)
                ]
                body = inference.body_of(event_id, inference.outputs_of(flats))
                if sampled:
                    outputs = tensor_records(
                        served.output_heads, inference.outputs, flats, max_bytes=self._max_tensor_bytes
                    )
        else:
            error = str(failure)
            status = status_of(failure) if failure else 500
            body = b'{"error":%b}' % encode_string(error)
        if prepared is not None and prepared.logged_inputs is not None and sampled:
            inputs = prepared.logged_inputs
        elif inference.inputs and signature is not None and sampled:
            inputs = tensor_records(
                served.input_heads,
                inference.inputs,
                inference.fragments,
                max_bytes=self._max_tensor_bytes,
                redacted=served.redacted,
                redacted_columns=served.redacted_columns,
            )
        queue = inference.sent_at - inference.queued_at if inference.sent_at else 0.0
        record = prediction_record(
            served.record_head(choice.arm, inference.route.weight, choice.reason),
            event_id=event_id,
            time=stamp,
            sequence=sequence,
            status=status,
            rows=inference.rows,
            timings=(
                int(queue * 1e6),
                inference.inference_ns // 1000,
                int((now - inference.arrived) * 1e6),
            ),
            inputs=inputs,
            outputs=outputs,
            parameters=inference.parameters,
            request_id=inference.request_id,
            key=key,
            error=error,
            sampling=sampling,
        )
        return record, body, status

    def _count(self, inferences: Sequence[Inference], answers: Sequence[Answer], *, now: float) -> None:
        groups: dict[tuple[Arm, int], list[float]] = {}
        ran: list[Inference] = []
        choice = ended = None
        for inference, (_, _, status, _) in zip(inferences, answers, strict=True):
            if inference.choice is not choice or status != ended:
                choice, ended = inference.choice, status
                seconds = groups.setdefault((choice.arm, status), [])
            seconds.append(now - inference.arrived)
            if inference.inference_ns:
                ran.append(inference)
        if not inferences:
            return
        served = inferences[0].served
        for (arm, status), seconds in groups.items():
            served.requests(arm, status).inc(len(seconds))
            served.durations(arm).observe_many(seconds)
        served.queue_seconds.observe_many([each.sent_at - each.queued_at for each in inferences if each.sent_at])
        if ran:
            served.inference_seconds.observe(ran[-1].inference_ns / 1e9)
            served.batch_rows.observe(ran[-1].batch_rows)
            served.tally.add(ran, now=now, time=time.time())

    def _committed(self, inferences: Sequence[Inference], answers: Sequence[Answer], error: SpoolError | None) -> None:
        if error is not None and self.count_unsynced(len(inferences)):
            for inference in inferences:
                inference.served.requests(inference.choice.arm, 503).inc()
                inference.refuse(LogUnavailable("the prediction may not survive in the log, so it is not answered"))
        else:
            self._release(inferences, answers, time.perf_counter())

    def _refuse(
        self,
        inferences: Sequence[Inference],
        why: str = "the prediction could not be logged, so it is not answered",
    ) -> None:
        self._refused.inc(len(inferences))
        for inference in inferences:
            inference.served.requests(inference.choice.arm, 503).inc()
            inference.refuse(LogUnavailable(why))

    def _release(self, inferences: Sequence[Inference], answers: Sequence[Answer], now: float) -> None:
        self._count(inferences, answers, now=now)
        for inference, (event_id, body, status, whole) in zip(inferences, answers, strict=True):
            if whole:
                inference.answer = body
                inference.connection.answered(inference)
            elif inference.accepts is not None and inference.prepared is not None and status == 200:
                write = partial(inference.write, body, event_id=event_id, status=status)
                self._side.run(write, partial(_written, inference))
            else:
                inference.release(body, event_id=event_id, status=status)


def _written(inference: Inference, done: Future[None]) -> None:
    if done.exception() is not None:
        inference.refuse(ModelFailed("the answer could not be written"))
    else:
        inference.connection.answered(inference)


def _rows_of(inference: Inference) -> Sequence[bytes] | None:
    """The elements of each row of the run's output, as JSON; None where no such rows are, or are no plain numbers."""
    results = inference.results
    if len(results) != 1 or not results[0].ndim or len(results[0]) != inference.batch_rows:
        return None
    return encode_rows(results[0])


def _stencil_of(inference: Inference) -> Stencil | None:
    choice, result = inference.choice, inference.results[0]
    shape = inference.inputs[0].shape
    return inference.served.stencil(choice, inference.route.weight, shape, (inference.rows, *result.shape[1:]))


def _fill(
    stencil: Stencil,
    inference: Inference,
    rows: Sequence[bytes],
    event_id: bytes,
    now: float,
    stamp: bytes,
    sequence: int,
) -> tuple[bytes, bytes]:
    """Record and answer of a plain request; `rows` are the elements of each row of its run's output."""
    first, count = inference.row, inference.rows
    flat = rows[first] if count == 1 else b",".join(rows[first : first + count])
    key = inference.key
    record = stencil.record % (
        event_id,
        stamp,
        sequence,
        (inference.sent_at - inference.queued_at) * 1e6,
        inference.inference_ns // 1000,
        (now - inference.arrived) * 1e6,
        inference.fragments[0],
        flat,
        b"" if key is None else b',"key":"%b"' % hash_key(key).encode(),
    )
    return record, stencil.answer % (event_id, stencil.answer_bytes + len(flat), event_id, flat)
