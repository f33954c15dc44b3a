"""The composition root: builds and runs one process of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import setproctitle

from gateway.behind import BEHIND_SERVING, step_behind
from gateway.child import HURRY_SIGNAL
from gateway.engine.notes import EnginePaths, refusal
from gateway.lasting import lasting
from gateway.parent import PARENT_VARIABLE, follow
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile, MetricFileError
from gateway.telemetry.log import ProcessLog, take_loggers

if TYPE_CHECKING:
    from gateway.predictions.spool import SpoolWriter
    from gateway.serving.front import Front

__all__ = (
    "gateway_name",
    "metrics_dir",
    "run_admin",
    "run_archiver",
    "run_front",
    "run_monitor",
    "run_shipper",
    "write_json",
)

TICK_SECONDS = 0.05
SWEEP_SECONDS = 1.0
RECONNECT_SECONDS = 0.05
REACH_SECONDS = 2.0
ADMIN_CONNECTIONS = 256


def metrics_dir(settings: Settings) -> Path:
    """Where the processes keep their metric files."""
    return settings.run_dir / "metrics"


def gateway_name(settings: Settings) -> str:
    """The name of this gateway as it stands in records: drawn once for each state directory."""
    path = settings.state_dir / "name"
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        name = f"{settings.server.name}-{secrets.token_hex(3)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name + "\n", encoding="ascii")
        return name


def write_json(path: Path, content: Any) -> None:
    """Write a small note that others may read at any time: whole, or as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    # Settings hold secrets, so nobody else may read what is written here.
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    partial.replace(path)


def run_front(settings: Settings, *, slot: int, build: Callable[..., Front] | None = None) -> None:
    """Run a front until SIGTERM, then drain it; `build` makes it in place of `Front`."""
    import uvloop

    with _process(settings, f"front {slot}") as (log, cells):
        uvloop.run(_front(settings, slot=slot, log=log, cells=cells, build=build))


async def _front(
    settings: Settings, *, slot: int, log: ProcessLog, cells: CellFile, build: Callable[..., Front] | None
) -> None:
    from uvicorn import Config

    from gateway.control.store import Store
    from gateway.predictions.commit import GroupCommit
    from gateway.predictions.spool import SpoolWriter
    from gateway.serving.follower import Follower, RouteTable
    from gateway.serving.front import Front
    from gateway.serving.protocol import GatewayProtocol
    from gateway.serving.server import FrontServer
    from gateway.serving.web import create_web

    loop = asyncio.get_running_loop()
    stream = settings.spool_dir / f"front-{slot}"
    spool = SpoolWriter(stream, slot=slot, settings=settings.spool, deferred=settings.spool.fsync != "never")
    if spool.cut:
        log.warn(f"cut {spool.cut} bytes off the end of {stream}: a record that was never finished")
    commit = None
    if settings.spool.fsync != "never":
        seconds, waiting = settings.spool.fsync_interval_seconds, settings.spool.max_waiting_answers
        commit = GroupCommit(spool, loop=loop, max_waiting=waiting, every_seconds=seconds)
    front = (build or Front)(
        settings,
        name=gateway_name(settings),
        spool=spool,
        cells=cells,
        sockets=lambda model, version: EnginePaths(settings.run_dir, model, version).sockets(
            slot, settings.engine.instances
        ),
        commit=commit if settings.spool.fsync == "always" else None,
    )

    def apply(table: RouteTable) -> None:
        if table.revision > front.revision:
            approved = {(model, version): digest for model, version, digest in table.approved}
            front.follow(table.revision, table.routes, approved)

    store = Store(settings.store_url)
    follower = Follower(
        _StoreRoutes(store),
        apply=apply,
        poll_seconds=settings.store.poll_seconds,
        cache=settings.run_dir / f"routes-front-{slot}.json",
        note=log.note,
    )
    follower.start(loop)
    protocol = functools.partial(GatewayProtocol, front=front, targets={})
    config = Config(
        create_web(front, clock=time.time, store=store),
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(settings.limits.keep_alive_seconds),
        timeout_graceful_shutdown=max(1, int(settings.server.drain_timeout_seconds)),
        backlog=2048,
    )
    server = FrontServer(config)
    listener = _listen(settings.server.host, settings.server.http_port)
    grpc = await _start_grpc(front, store)
    tasks = [
        loop.create_task(lasting(name, work, note=log.warn))
        for name, work in (
            ("expiring what is late", lambda: _tick_front(front)),
            ("reaching the engines", lambda: _connect_lanes(front, settings)),
            ("closing slow connections", lambda: _sweep(server, front)),
        )
    ]
    stop, hurry = _stop_signal(), asyncio.Event()
    loop.add_signal_handler(HURRY_SIGNAL, hurry.set)
    await _reach_engines(front, settings)
    # What is there now stays: no collection shall walk over it again while requests wait.
    gc.collect()
    gc.freeze()
    serving = loop.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait([loop.create_task(stop.wait()), serving], return_when=asyncio.FIRST_COMPLETED)
        front.draining = True
        hurried = loop.create_task(hurry.wait())
        if settings.server.drain_delay_seconds and not serving.done():
            await asyncio.wait([hurried], timeout=settings.server.drain_delay_seconds)
        server.should_exit = True
        drained = loop.create_task(_drain(serving, grpc, settings.server.drain_timeout_seconds))
        await asyncio.wait([drained, hurried], return_when=asyncio.FIRST_COMPLETED)
        if drained.done():
            drained.result()
    finally:
        for task in tasks:
            task.cancel()
        follower.stop()
        front.close()
        if commit is not None:
            await commit.close()
        spool.close()
        log.note("drained")


async def _drain(serving: asyncio.Task[None], grpc: Any, seconds: float) -> None:
    await asyncio.gather(serving, grpc.drain(seconds) if grpc else asyncio.sleep(0))


async def _reach_engines(front: Any, settings: Settings) -> None:
    """Wait for the engines that run: a front that is started again shall not take requests it cannot serve yet."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REACH_SECONDS
    while loop.time() < deadline:
        away = [served.lane for served in front.versions.values() if not served.lane.ready]
        running = [lane for lane in away if EnginePaths(settings.run_dir, lane.model, lane.version).socket.exists()]
        if front.revision >= 0 and not running:
            return
        await asyncio.sleep(RECONNECT_SECONDS / 5)


async def _start_grpc(front: Any, store: Any) -> Any:
    if not front.settings.server.grpc:
        return None
    from gateway.serving.grpc.server import GrpcServer

    grpc = GrpcServer(front, store)
    await grpc.start(front.settings.server.grpc_port)
    return grpc


async def _tick_front(front: Any) -> None:
    beats = 0
    while True:
        await asyncio.sleep(TICK_SECONDS)
        front.tick(time.perf_counter())
        beats += 1
        if beats % 20 == 0:
            front.spool.tick()


async def _connect_lanes(front: Any, settings: Settings) -> None:
    while True:
        for served in list(front.versions.values()):
            lane = served.lane
            if not lane.ready and not await lane.connect():
                reason = refusal(EnginePaths(settings.run_dir, lane.model, lane.version).state)
                if reason is not None and lane.refusing != reason:
                    lane.refuse_waiting(reason)
        await asyncio.sleep(RECONNECT_SECONDS)


async def _sweep(server: Any, front: Any) -> None:
    from gateway.predictions.segments import SpoolSize

    loop = asyncio.get_running_loop()
    size = SpoolSize(front.settings.spool_dir)
    spool_bytes = front.cells.gauge("gateway_spool_bytes", {})
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now = loop.time()
        for connection in list(server.server_state.connections):
            connection.sweep(now)
        spool_bytes.set(await asyncio.to_thread(size.count))


def run_archiver(settings: Settings) -> None:
    """Move what is due from the spool into the archive, until SIGTERM."""
    with _process(settings, "archiver") as (log, cells):
        step_behind(BEHIND_SERVING)
        asyncio.run(_archiver(settings, log=log, cells=cells))


async def _archiver(settings: Settings, *, log: ProcessLog, cells: CellFile) -> None:
    from gateway.predictions.archive import Archive
    from gateway.predictions.archiver import Archiver, ArchiverBusy

    stop = _stop_signal()
    archive = Archive(settings.spool.archive_url)
    archiver = Archiver(settings, archive, note=log.note, is_ending=stop.is_set)
    show = _events(cells, archived=lambda: archiver.archived, corrupt=lambda: archiver.corrupt)
    while not stop.is_set():
        with contextlib.suppress(ArchiverBusy):
            await asyncio.to_thread(archiver.move_due)
        show()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), SWEEP_SECONDS)


def run_shipper(settings: Settings) -> None:
    """Run the shipper until SIGTERM."""
    with _process(settings, "shipper") as (log, cells):
        step_behind(BEHIND_SERVING)
        asyncio.run(_shipper(settings, log=log, cells=cells))


async def _shipper(settings: Settings, *, log: ProcessLog, cells: CellFile) -> None:
    from gateway.predictions.dead_letters import share_of
    from gateway.predictions.shipper import Shipper

    room = share_of(settings.spool.max_bytes)
    shipper = Shipper(settings.spool_dir, settings.kafka, note=log.note, dead_letter_bytes=room)
    lag = cells.gauge("gateway_log_lag_events", {"reader": "shipper"})
    show_events = _events(
        cells,
        shipped=lambda: shipper.shipped,
        dead_letter=lambda: shipper.dead_letters,
        discarded=lambda: shipper.discarded,
        corrupt=lambda: shipper.corrupt,
        missing=lambda: shipper.missing,
    )

    def show() -> None:
        show_events()
        lag.set(shipper.lag_events)

    stop = _stop_signal()
    showing = asyncio.create_task(_repeat(show, seconds=SWEEP_SECONDS))
    await shipper.run(stop)
    showing.cancel()
    show()


def _events(cells: CellFile, **counts: Callable[[], int]) -> Callable[[], None]:
    """Return what brings the log's events up to these counts, which begin at 0 in each life of a process."""
    counters = {state: cells.counter("gateway_log_events_total", {"state": state}) for state in counts}
    before = {state: counter.value for state, counter in counters.items()}

    def show() -> None:
        for state, count in counts.items():
            counters[state].inc(before[state] + count() - counters[state].value)

    return show


def run_monitor(settings: Settings) -> None:
    """Run the monitor until SIGTERM."""
    log = _begin(settings, "monitor")
    step_behind(BEHIND_SERVING)
    asyncio.run(_only_monitor(settings, log=log))


async def _only_monitor(settings: Settings, *, log: ProcessLog) -> None:
    from gateway.control.outbox import open_decisions

    stop = _stop_signal()
    writer = await _only_writer(lambda: open_decisions(settings), stop, log=log)
    if writer is not None:
        with contextlib.closing(writer), _metrics(settings, log) as cells:
            await _monitor(settings, log=log, cells=cells, writer=writer, stop=stop)


async def _monitor(
    settings: Settings, *, log: ProcessLog, cells: CellFile, writer: SpoolWriter, stop: asyncio.Event
) -> None:
    from gateway.control.compare import EngineRerun
    from gateway.control.engines import EngineNotes
    from gateway.control.gauges import CellMetrics
    from gateway.control.monitor import Monitor
    from gateway.control.outbox import Outbox
    from gateway.control.store import Store
    from gateway.control.versions import FolderVersions
    from gateway.events.encoding import decode
    from gateway.events.records import PredictionRecord
    from gateway.predictions.damage import DamageBook
    from gateway.predictions.kafka_source import KafkaSource
    from gateway.predictions.lookup import find
    from gateway.predictions.source import LogSource, SpoolSource

    from_kafka = settings.monitor.source == "kafka" or (
        settings.monitor.source == "auto" and bool(settings.kafka.bootstrap_servers)
    )

    damage = DamageBook(note=log.warn)
    show = _events(cells, corrupt=lambda: damage.corrupt, missing=lambda: damage.missing)

    async def open_source(position: dict[str, Any] | None, start: Literal["earliest", "latest"]) -> LogSource:
        if from_kafka:
            return KafkaSource(
                settings.kafka,
                settings.monitor.group,
                position=position,
                start=start,
                whole_blocks=True,
                note=log.note,
            )
        places = {stream: (segment, offset) for stream, (segment, offset) in (position or {}).items()}
        return SpoolSource(
            settings.spool_dir,
            position=places if position else None,
            start=start,
            whole_blocks=True,
            damage=damage,
        )

    def lookup(prediction_id: str) -> PredictionRecord | None:
        record = find(settings.spool_dir, prediction_id)
        found = decode(record.kind, record.payload) if record is not None else None
        return found if isinstance(found, PredictionRecord) else None

    store = Store(settings.store_url)
    monitor = Monitor(
        open_source,
        store,
        source="kafka" if from_kafka else "spool",
        versions=FolderVersions(settings.models),
        state_dir=settings.state_dir,
        settings=settings.monitor,
        rerun=EngineRerun(settings.run_dir),
        engines=EngineNotes(settings.run_dir),
        lookup=lookup,
        outbox=Outbox(store, writer, note=log.note),
        metrics=CellMetrics(cells),
        note=log.note,
    )
    showing = asyncio.create_task(_repeat(show, seconds=SWEEP_SECONDS))
    try:
        await monitor.run(stop)
    finally:
        showing.cancel()
        show()
        store.close()


async def _only_writer(
    open_writer: Callable[[], SpoolWriter], stop: asyncio.Event, *, log: ProcessLog
) -> SpoolWriter | None:
    """Open the stream once no other process writes it; None when told to stop before that."""
    from gateway.predictions.spool import SpoolError

    noted = False
    while not stop.is_set():
        try:
            return open_writer()
        except SpoolError as error:
            if not noted:
                noted = True
                log.note(f"waiting: {error}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), SWEEP_SECONDS)
    return None


def run_admin(settings: Settings) -> None:
    """Run the admin API and the metrics page until SIGTERM."""
    with _process(settings, "admin"):
        asyncio.run(_admin(settings))


async def _admin(settings: Settings) -> None:
    from uvicorn import Config

    from gateway.admin.api import create_admin
    from gateway.control.store import Store
    from gateway.serving.server import FrontServer
    from gateway.telemetry.page import create_metrics_app

    store = Store(settings.store_url)
    host, server = settings.admin.host, settings.server
    pages = (
        (create_admin(store=store, settings=settings), server.admin_port),
        (create_metrics_app(metrics_dir(settings)), server.metrics_port),
    )
    servers = [
        FrontServer(
            Config(
                page,
                host=host,
                port=port,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=ADMIN_CONNECTIONS,
                timeout_graceful_shutdown=1,
            )
        )
        for page, port in pages
    ]
    serving = [asyncio.create_task(each.serve()) for each in servers]
    await asyncio.wait([asyncio.create_task(_stop_signal().wait()), *serving], return_when=asyncio.FIRST_COMPLETED)
    for each in servers:
        each.should_exit = True
    await asyncio.gather(*serving)
    store.close()


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _repeat(task: Callable[[], None], *, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        task()


class _StoreRoutes:
    """The store as a source of route tables."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def revision(self) -> int:
        return int(self._store.revision())

    def table(self) -> Any:
        from gateway.serving.follower import RouteTable

        snapshot = self._store.snapshot()
        approved = tuple(
            (state.model, state.version, state.digest)
            for state in snapshot.versions.values()
            if state.status == "approved"
        )
        return RouteTable(snapshot.revision, snapshot.routes, approved)


@contextlib.contextmanager
def _process(settings: Settings, name: str) -> Iterator[tuple[ProcessLog, CellFile]]:
    log = _begin(settings, name)
    with _metrics(settings, log) as cells:
        yield log, cells


def _begin(settings: Settings, name: str) -> ProcessLog:
    setproctitle.setproctitle(f"gateway: {name}")
    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        follow(int(parent))
    log = ProcessLog(name, json=settings.log.json_lines, stream=sys.stderr)
    take_loggers(log)
    return log


@contextlib.contextmanager
def _metrics(settings: Settings, log: ProcessLog) -> Iterator[CellFile]:
    try:
        cells = CellFile(metrics_dir(settings) / f"{log.process.replace(' ', '-')}.cells")
    except MetricFileError as error:
        log.warn(f"cannot run: {error}")
        raise SystemExit(1) from None
    try:
        yield cells
    finally:
        cells.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.setblocking(False)
    return listener
