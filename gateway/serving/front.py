"""The front: from a parsed request to its logged answer.

`accept` routes, decodes and queues; the lane runs the batch; `delivery` writes the batch's records in one write and
then releases each answer. Nothing here awaits, and nothing waits for Kafka, the store or a detector.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec

from gateway.engine.arena import open_arena
from gateway.engine.job import NORMAL, rank_of
from gateway.engine.lane import Lane, QueueLimits
from gateway.predictions.commit import GroupCommit
from gateway.predictions.spool import SpoolWriter
from gateway.protocol.errors import (
    EngineUnavailable,
    GatewayError,
    LogUnavailable,
    Overloaded,
    UnknownModel,
)
from gateway.protocol.limits import Limits
from gateway.protocol.request import InferRequest
from gateway.routing.table import Choice, Route, choose, point_of
from gateway.serving.aside import (
    SideThread,
    Turns,
    is_slow_to_read,
    prepare_inputs,
    read_aside,
    reading_in_turns,
    result_of,
    too_late,
)
from gateway.serving.bundle import Bundle
from gateway.serving.delivery import Delivery
from gateway.serving.inference import Inference
from gateway.serving.reading import read_batch
from gateway.serving.records import Kept
from gateway.serving.room import Held, Room
from gateway.serving.version import ServedVersion
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile

__all__ = ("Front",)

ENGINE_GRACE_SECONDS = 2.0
"""An engine that is stuck in a run is killed within these and `engine.hang_seconds`."""


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
        (model, version) to the paths at which its engine is looked for, in this order.
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
        sockets: Callable[[str, int], Sequence[Path]],
        draw: Callable[[], float] = random.random,
        commit: GroupCommit | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self.spool = spool
        self.commit = commit
        self.cells = cells
        self.bodies = _room(settings.limits.max_held_body_bytes, "request bodies", "max_held_body_bytes")
        self.answers = _room(settings.limits.max_held_answer_bytes, "answers", "max_held_answer_bytes")
        self.arena = open_arena(settings.engine.shared_memory_bytes)
        self._kept = Kept(settings.log.max_tensor_bytes, digests=settings.log.tensor_digests)
        most_seconds = settings.limits.max_queue_wait_ms / 1000
        self._side = SideThread(max_wait_seconds=most_seconds)
        self._turns = Turns(max_wait_seconds=most_seconds)
        self.delivery = Delivery(
            spool,
            cells,
            side=self._side,
            answers=self.answers,
            commit=commit,
            blocks=settings.spool.full == "block",
            kept=self._kept,
        )
        self.draining = False
        self.revision = -1
        self._was_ready = False
        self._leaving: dict[ServedVersion, float] = {}
        self._alone: dict[str, tuple[Route, Choice]] = {}
        self._sole: dict[str, tuple[Route, Choice, ServedVersion]] = {}
        self.routes: dict[str, Route] = {}
        self.versions: dict[tuple[str, int], ServedVersion] = {}
        self._sockets = sockets
        self._draw = draw
        self._limits = msgspec.convert(settings.limits, Limits, from_attributes=True)
        self._queue_limits = QueueLimits(
            max_requests=settings.limits.max_queue_requests,
            max_bytes=settings.limits.max_queue_bytes,
            max_wait_seconds=most_seconds,
            batch_bytes=settings.engine.max_batch_bytes,
            batch_seconds=settings.engine.max_batch_ms / 1000,
        )
        self._refused: list[Inference] = []
        self._reading: set[Inference] = set()  # whose bodies are not read at once
        self._max_body_bytes = settings.limits.max_body_bytes
        self._timeout_seconds = settings.limits.request_timeout_ms / 1000
        self._blocks = settings.spool.full == "block"

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
        if self.spool.full and self._blocks:
            return "the prediction log takes no records: it is full, or its disk refuses"
        away = [(model, route.stable) for model, route in self.routes.items() if not self._is_up(model, route.stable)]
        # At first every model must be there, or known not to come. Later one that fails must not take the others out
        # of service with it: its own readiness says it.
        if away and (not self._was_ready or len(away) == len(self.routes)):
            # Of several, one that is waited for.
            model, version = min(away, key=lambda key: self._is_settled(*key))
            served = self.versions.get((model, version))
            why = "" if served is None or served.lane.refusing is None else f": {served.lane.refusing}"
            return f"model '{model}' version {version} is not ready{why}"
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
        self._sole = {
            model: (route, choose(route, 0.0, sticky=False), self.versions[model, route.stable])
            for model, route in routes.items()
            if route.canary is None and (model, route.stable) in self.versions
        }
        self._alone = {
            model: (msgspec.structs.replace(route, weight=0.0), Choice(route.stable, "stable", "canary_not_ready"))
            for model, route in routes.items()
        }
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
                raise UnknownModel(
                    f"Request for unknown model: '{model}' has no available versions: it has no route, and only "
                    "requests that name a version are answered"
                )
            raise UnknownModel(f"Request for unknown model: '{model}' version {number} is not found")
        return served

    def accept(self, inference: Inference) -> None:
        """Take a request whose body is complete; its connection is told when it is answered, perhaps at once."""
        inference.arrived = time.perf_counter()
        if inference.served is None:
            try:
                if isinstance(inference.refused, UnknownModel):
                    raise inference.refused
                routed = self._routed(inference.model, key=inference.key, pinned=inference.pinned)
            except GatewayError as error:
                inference.refuse(_without_frames(error))
                return
            inference.route, inference.choice, inference.served = routed
        self._let_in(inference)

    def take_along(self, like: Inference, read: bytes, start: int) -> Inference | None:
        """Take a request whose head its connection has sent before, with others that differ from it in numbers only.

        Parameters
        ----------
        like : Inference
            With that head, and `is_bare`; no request of its connection is due. It is answered in this one's place.
        read : bytes
            The body begins at `start` and goes to the end.

        Returns
        -------
        Inference or None
            The request, which has still to be accepted, where it cannot be taken so.
        """
        now = time.perf_counter()
        routed = self._sole.get(like.model)
        if routed is None:
            try:
                routed = self._routed(like.model)
            except GatewayError:
                return like.with_body(read[start:])
        route, choice, served = routed
        decoder, line = served.decoder, served.lane.line
        found = None
        if (
            decoder is not None
            and served.takes_bundles
            and line.rows < line.pace.few_rows
            and line.closed_for > NORMAL
            and not (self.commit is not None and self.commit.full)
            and not (self.spool.full and self._blocks)
        ):
            found = decoder.recognise(read, start)
        if found is not None:
            usual, text = found
            rows, size = usual.shape[0], len(read) - start
            bundle = line.newest
            if (
                type(bundle) is Bundle
                and bundle.usual is usual
                and bundle.choice is choice
                and bundle.route is route
                and now < bundle.open_until
                and line.grow(rows, size)
            ):
                bundle.add(like, text, size, now)
                return None
            if line.rows + rows <= line.pace.few_rows:
                bundle = Bundle(usual, route, choice, served, now=now, seconds=self._timeout_seconds)
                bundle.add(like, text, size, now)
                with contextlib.suppress(GatewayError):
                    served.lane.submit(bundle)
                    return None
        alone = like.with_body(read[start:])
        alone.route, alone.choice, alone.served = routed
        return alone

    def _let_in(self, inference: Inference) -> None:
        if self.commit is not None and self.commit.full:
            self.delivery.refuse([inference], "the disk of the prediction log does not keep up")
            return
        try:
            self._admit(inference)
        except GatewayError as error:
            self._fail(inference, error)

    def tick(self, now: float) -> None:
        """Expire what is late; call it several times a second with `time.perf_counter()`."""
        for served in list(self.versions.values()):
            served.lane.expire(now)
        for line in (self._side.unread, self._turns.unread):
            for inference in line.expire(now):
                inference.failure = too_late(inference)
                self._reading.discard(inference)
                self._shed(inference)
        if self._reading:
            self._reading = {inference for inference in self._reading if not inference.abandoned}
        if not self._was_ready and self.revision >= 0:
            self._was_ready = all(self._is_settled(model, route.stable) for model, route in self.routes.items())
        if self._close_gone(now):
            # What was theirs holds on to itself. Most of a front is frozen, so this takes a fraction of a millisecond.
            gc.collect()
        for served in self._leaving:
            served.lane.expire(now)

    def close(self) -> None:
        """Let go of all engines: what they have not answered fails, and its callers and the log are told."""
        for served in (*self.versions.values(), *self._leaving):
            served.lane.close()

    def _close_gone(self, now: float) -> int:
        reading = {inference.served for inference in self._reading} if self._leaving else ()
        gone = [
            served
            for served, until in self._leaving.items()
            if until < now or (served.lane.idle and served not in reading)
        ]
        for served in gone:
            del self._leaving[served]
            served.lane.close()
        return len(gone)

    def _open(self, model: str, version: int, *, digest: str) -> ServedVersion:
        served = ServedVersion(
            model,
            version,
            digest=digest,
            gateway=self.name,
            cells=self.cells,
            limits=self._limits,
            max_logged_bytes=self._kept.max_bytes,
        )
        served.lane = Lane(
            model,
            version,
            socket_paths=self._sockets(model, version),
            done=self.delivery.deliver,
            read=read_batch,
            greeted=served.greeted,
            limits=self._queue_limits,
            frames_in_flight=self.settings.engine.frames_in_flight,
            arena=self.arena,
            linger_seconds=self.settings.engine.hang_seconds + ENGINE_GRACE_SECONDS,
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

    def _routed(
        self, model: str, *, key: str | None = None, pinned: int | None = None
    ) -> tuple[Route, Choice, ServedVersion]:
        """Where one request goes.

        Raises
        ------
        UnknownModel
        """
        route = self.routes.get(model)
        if route is None:
            self.version(model, pinned)
            route = Route(model, stable=pinned or 0)
        point = self._draw() if key is None else point_of(key, route.salt)
        choice = choose(route, point, sticky=key is not None, pinned=pinned)
        served = self.versions.get((model, choice.version))
        if choice.arm == "canary" and (served is None or served.decoder is None):
            # Its engine has not been reached yet. The stable version answers, with no weight on the canary in the
            # record, so that a slow start is no evidence against it.
            route, choice = self._alone[model]
            served = self.versions.get((model, route.stable))
        return route, choice, served or self.version(model, choice.version)

    def _admit(self, inference: Inference) -> None:
        if inference.refused is not None:
            raise inference.refused
        served = inference.served
        if served.decoder is None:
            raise EngineUnavailable(served.unready)
        if self.spool.full and self._blocks:
            raise LogUnavailable("the prediction log takes no records, so no prediction can be answered")
        if inference.rank >= served.lane.line.closed_for:
            inference.body = []
            raise served.lane.line.refusal()
        large = len(inference.body) > 1 or inference.held_body is not None
        if (large or inference.encoding is not None) and is_slow_to_read(inference, max_bytes=self._max_body_bytes):
            self._read_slowly(inference)
            return
        if inference.recognise(served.decoder):
            self._limit_time(inference)
        else:
            request = inference.read(served.decoder)
            if inference.held_body is not None and not request.plain and served.sample >= 1:
                prepare_inputs(inference, request, kept=self._kept)
            self._take(inference, request)
        inference.queued_at = time.perf_counter()
        served.lane.submit(inference)

    def _read_slowly(self, inference: Inference) -> None:
        self._limit_time(inference)
        then = partial(self._go_on, inference, self._hold_compressed(inference))
        turns = reading_in_turns(inference, kept=self._kept, arena=self.arena)
        if turns is not None:
            self._turns.read(inference, turns, then)
        else:
            read = partial(read_aside, inference, max_bytes=self._max_body_bytes, kept=self._kept)
            self._side.read(inference, read, then)
        self._reading.add(inference)

    def _hold_compressed(self, inference: Inference) -> Held | None:
        # While it waits, what is small only because it is compressed counts as larger ones do since they came.
        if inference.encoding is None or inference.held_body is not None:
            return None
        held = self.bodies.open()
        if not held.grow(sum(map(len, inference.body))):
            raise Overloaded(self.bodies.full)
        return held

    def _go_on(self, inference: Inference, held: Held | None, read: Future[InferRequest | None]) -> None:
        # With a request that was not read at once.
        self._reading.discard(inference)
        if held is not None:
            held.close()
        if inference.abandoned:
            return
        try:
            self._take(inference, result_of(read))
            inference.queued_at = time.perf_counter()
            inference.served.lane.submit(inference)
        except GatewayError as error:
            self._fail(inference, error)
        except Exception as fault:
            inference.give_up(fault)
            self.delivery.deliver([inference])

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
        self._limit_time(inference)
        if request.timeout_us:
            inference.deadline = min(inference.deadline, inference.arrived + request.timeout_us / 1e6)

    def _limit_time(self, inference: Inference) -> None:
        seconds = self._timeout_seconds
        if inference.timeout_ms:
            seconds = min(seconds, inference.timeout_ms / 1000)
        inference.deadline = inference.arrived + seconds

    def _fail(self, inference: Inference, error: GatewayError) -> None:
        inference.failure = _without_frames(error)
        if isinstance(error, Overloaded):
            self._shed(inference)
        else:
            self.delivery.deliver([inference])

    def _shed(self, inference: Inference) -> None:
        # What one version refuses in one pass of the loop is one write to the log: refusals must cost little.
        if not self._refused:
            asyncio.get_running_loop().call_soon(self._deliver_refused)
        self._refused.append(inference)

    def _deliver_refused(self) -> None:
        refused, self._refused = self._refused, []
        by_version: dict[ServedVersion, list[Inference]] = {}
        for inference in refused:
            by_version.setdefault(inference.served, []).append(inference)
        for inferences in by_version.values():
            self.delivery.deliver(inferences)


def _without_frames(error: GatewayError) -> GatewayError:
    # What it came through would hold the request's body, which holds the error.
    error.__context__ = None
    return error.with_traceback(None)


def _room(max_bytes: int, what: str, setting: str) -> Room:
    return Room(max_bytes, full=f"the gateway holds {max_bytes} bytes of {what} already (limits.{setting})")
