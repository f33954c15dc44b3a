"""The supervisor: starts the gateway's processes, watches them, and ends them in order.

It loads nothing and answers nothing. Engines follow the store: one for each approved version whose folder is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setproctitle

from gateway.app import gateway_name, metrics_dir, write_json
from gateway.child import ENDED_AS_TOLD, HURRY_SIGNAL, STOP_SECONDS, Child
from gateway.control.store import Refused, Snapshot, Store, StoreError
from gateway.engine.cores import usable_cores
from gateway.engine.notes import EnginePaths, refusal
from gateway.engine.supervision import EngineSupervision
from gateway.lasting import lasting
from gateway.parent import ended_how
from gateway.predictions.checkpoint import CheckpointError, read_checkpoint
from gateway.predictions.index import index_closed
from gateway.predictions.reader import Position
from gateway.predictions.retention import Retention
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import ModelVersion, scan
from gateway.repository.policy import PolicyError, load_policy
from gateway.settings import Settings
from gateway.start import modelless, start_faults, unserved
from gateway.telemetry.cells import CellFile
from gateway.telemetry.log import ProcessLog, take_loggers

__all__ = ("StartFailed", "Supervisor", "hold_state_dir")

POLL_SECONDS = 0.2
SCAN_SECONDS = 1.0
SWEEP_SECONDS = 1.0
INDEX_SECONDS = 0.2
WORKERS = 4
"""Threads for what would hold up the loop: looking through models, indexing the log, removing files."""
ONE_WORD_SECONDS = 0.5
"""SIGTERM that comes again so soon is the same one: timeout(1), and runners at Ctrl-C, pass on what all have got."""


class StartFailed(Exception):
    """Raised when the gateway cannot start; the text says what to do."""


@contextlib.contextmanager
def hold_state_dir(state_dir: Path) -> Iterator[None]:
    """Hold the lock that keeps a second gateway off this state directory.

    Raises
    ------
    StartFailed
        Another gateway holds it, or the directory cannot be used.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartFailed(f"the state directory {state_dir} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StartFailed(
            f"another gateway uses {state_dir}; stop it, or give this one a --state-dir of its own"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


class Supervisor:
    """Runs one gateway on one machine.

    Parameters
    ----------
    settings : Settings
    log : ProcessLog
    """

    def __init__(self, settings: Settings, *, log: ProcessLog) -> None:
        self._given = settings
        self._log = log
        self._children: list[Child] = []
        self._faults: dict[Path, str] = {}
        self._said: dict[Path, str] = {}
        self._stop = asyncio.Event()
        self._told_at = 0.0
        self._is_hurried = False

    def __repr__(self) -> str:
        engines = repr(self._engines) if self._children else "not started"
        return f"<Supervisor {len(self._children)} processes, {engines}>"

    async def run(self) -> None:
        """Start everything, watch it until SIGTERM or SIGINT, then end it in order.

        Raises
        ------
        StartFailed
        """
        setproctitle.setproctitle("gateway: supervisor")
        take_loggers(self._log)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_begun_workers(WORKERS))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._be_stopped)
        with contextlib.ExitStack() as held:
            self._settings = self._prepare(held)
            self._cells = CellFile(metrics_dir(self._settings) / "supervisor.cells")
            self._cells.gauge("gateway_build_info", {"version": _version()}).set(1)
            self._engines = EngineSupervision(self._settings, log=self._log, cells=self._cells)
            self._store = Store(self._settings.store_url)
            self._open_store()
            await self._look()
            self._announce()
            self._start_children()
            watch = [
                loop.create_task(lasting(name, work, note=self._log.warn))
                for name, work in (
                    ("following the store", self._watch_store),
                    ("keeping the spool in bounds", self._watch_spool),
                    ("waiting until ready", self._report_ready),
                )
            ]
            engines = loop.create_task(lasting("watching the engines", self._engines.watch, note=self._log.warn))
            await self._stop.wait()
            for task in watch:
                task.cancel()
            await self._end_fronts()
            engines.cancel()
            await self._end_others()
            await self._engines.stop(seconds=0.0 if self._is_hurried else STOP_SECONDS)
            self._cells.close()
            self._store.close()
            (self._settings.run_dir / "gateway.json").unlink(missing_ok=True)
            self._log.note("stopped")

    def _prepare(self, held: contextlib.ExitStack) -> Settings:
        settings = self._given
        if faults := list(start_faults(settings)):
            raise StartFailed("; ".join(faults))
        resolved = settings.model_dump(mode="json")
        resolved["server"] |= _ports(settings, held)
        resolved["engine"]["instances"] = min(settings.engine.instances or usable_cores(), settings.server.fronts)
        resolved["models"] = str(settings.models.absolute())
        resolved["state_dir"] = str(settings.state_dir.absolute())
        run_dir = settings.run_dir
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(mode=0o700)
        metrics_dir(settings).mkdir(mode=0o700)
        settings.spool_dir.mkdir(exist_ok=True, mode=0o700)
        self._settings_file = (run_dir / "settings.json").absolute()
        write_json(self._settings_file, resolved)
        settings = Settings.model_validate(resolved)
        gateway_name(settings)
        return settings

    def _open_store(self) -> None:
        try:
            self._store.create()
        except StoreError as error:
            raise StartFailed(f"the store cannot be used: {error}") from None

    def _announce(self) -> None:
        server, admin = self._settings.server, self._settings.admin
        write_json(
            self._settings.run_dir / "gateway.json",
            {
                "pid": os.getpid(),
                "host": server.host,
                "http_port": server.http_port,
                "grpc_port": server.grpc_port if server.grpc else None,
                "admin_host": admin.host,
                "admin_port": server.admin_port,
                "metrics_port": server.metrics_port,
            },
        )
        self._log.note(f"inference on http://{server.host}:{server.http_port}/v2")
        if server.grpc:
            self._log.note(f"inference over gRPC on {server.host}:{server.grpc_port}")
        self._log.note(f"metrics on http://{admin.host}:{server.metrics_port}/metrics")
        self._log.note(f"console and admin API on http://{admin.host}:{server.admin_port}/")
        kafka = self._settings.kafka.bootstrap_servers
        self._log.note(f"log in {self._settings.spool_dir}" + (f", shipped to Kafka at {kafka}" if kafka else ""))

    def _start_children(self) -> None:
        names = [(f"front {slot}", ["front", "--slot", str(slot)]) for slot in range(self._settings.server.fronts)]
        names += [("admin", ["admin-process"]), ("monitor", ["monitor"])]
        if self._settings.kafka.bootstrap_servers:
            names.append(("shipper", ["ship"]))
        if self._settings.spool.archive_url:
            names.append(("archiver", ["archive"]))
        for name, arguments in names:
            child = Child(
                name, ["gateway", *arguments, "--resolved", str(self._settings_file)], ended=self._child_ended
            )
            self._children.append(child)
            child.start()

    def _child_ended(self, child: Child, status: int) -> None:
        if self._stop.is_set() and status in ENDED_AS_TOLD:
            child.stopping = True
            return
        self._log.warn(f"{child.name} ended {ended_how(status)}, starting it again", {"times": child.ends})

    async def _watch_store(self) -> None:
        revision, scanned = -1, 0.0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                current = await asyncio.to_thread(self._store.revision)
                if current != revision or time.monotonic() - scanned > SCAN_SECONDS:
                    scanned = time.monotonic()
                    revision = current if await self._look() else -1
            except StoreError as error:
                self._log.warn("the store is away; engines stay as they are", {"error": str(error)})
                await asyncio.sleep(1.0)

    async def _look(self) -> bool:
        """Bring the store up to the folders, and the engines up to the store; False when that is not done yet."""
        folders, snapshot = await asyncio.to_thread(self._register)
        approved = {key: state.digest for key, state in snapshot.versions.items() if state.status == "approved"}
        wanted = {key: digest for key, digest in approved.items() if key in folders and folders[key].digest == digest}
        return self._engines.follow(wanted, approved)

    def _register(self) -> tuple[dict[tuple[str, int], ModelVersion], Snapshot]:
        try:
            versions, refused = scan(self._settings.models)
        except RepositoryError as error:
            versions, refused = [], [(self._settings.models, str(error))]
        faults = {path: f"{path} is not served: {reason}" for path, reason in refused}
        folders = {(version.model, version.version): version for version in versions}
        snapshot = self._store.snapshot()
        new = [key for key in folders if key not in snapshot.versions]
        changed = [
            key for key in folders if key in snapshot.versions and snapshot.versions[key].digest != folders[key].digest
        ]
        for key in new + changed:
            try:
                self._store.register(*key, folders[key].digest)
            except Refused as error:
                faults[folders[key].folder] = str(error)
        approved = {key for key, state in snapshot.versions.items() if state.status == "approved"}
        for model, version in sorted(approved - folders.keys()):
            path = self._settings.models / model / str(version)
            if faults.keys().isdisjoint((path, path.parent, self._settings.models)):
                faults[path] = f"{model} version {version} is approved, but {path} is not there"
        self._tell(faults)
        for model in {model for model, _ in new}:
            self._seed(model, folders)
        return folders, self._store.snapshot() if new or changed else snapshot

    def _seed(self, model: str, folders: dict[tuple[str, int], ModelVersion]) -> None:
        """Approve what model.toml approves by digest, and set its route where the model never had one."""
        try:
            policy = load_policy(self._settings.models / model)
        except PolicyError as error:
            self._say_once(self._settings.models / model, str(error))
            return
        snapshot = self._store.snapshot()
        for text, digest in policy.approvals.items():
            state = snapshot.versions.get((model, int(text)))
            if state is None or state.status != "registered":
                continue
            if state.digest != digest:
                self._log.warn(
                    f"{model} version {text} is not the one that model.toml approves", {"digest": state.digest}
                )
                continue
            self._store.approve(model, int(text), actor="model.toml", reason="approved by digest in model.toml")
        if self._store.route_decisions(model, limit=1):
            return
        snapshot = self._store.snapshot()
        approved = {v for (m, v), state in snapshot.versions.items() if m == model and state.status == "approved"}
        route = policy.route
        if route.stable in approved:
            canary = route.canary if route.canary in approved else None
            self._store.set_route(
                model,
                stable=route.stable,
                canary=canary,
                weight=route.weight if canary is not None else 0.0,
                actor="model.toml",
                reason="the model's first route, as model.toml sets it",
            )

    def _tell(self, faults: dict[Path, str]) -> None:
        """Warn of what has become amiss since the last time, and of what has again."""
        for path, text in faults.items():
            if self._faults.get(path) != text:
                self._log.warn(text)
        self._faults = faults

    def _say_once(self, path: Path, text: str) -> None:
        if self._said.get(path) != text:
            self._log.warn(text)
            self._said[path] = text

    async def _watch_spool(self) -> None:
        settings = self._settings
        retention = Retention(settings.spool_dir, note=self._log.warn)
        while True:
            await asyncio.to_thread(index_closed, settings.spool_dir, seconds=INDEX_SECONDS)
            await asyncio.sleep(SWEEP_SECONDS)
            if settings.spool.archive_url:
                # The archiver removes what it has moved, and nothing else may.
                continue
            shipped: Position | None = None
            if settings.kafka.bootstrap_servers:
                try:
                    shipped = read_checkpoint(settings.spool_dir)
                except CheckpointError as error:
                    shipped = {}
                    self._say_once(settings.spool_dir, f"nothing is removed from the spool: {error}")
            await asyncio.to_thread(
                retention.sweep,
                max_bytes=settings.spool.max_bytes,
                max_age_seconds=settings.spool.max_age_hours * 3600,
                shipped=shipped,
                now=time.time(),
            )

    async def _report_ready(self) -> None:
        server, admin = self._settings.server, self._settings.admin
        for host, port, path in (
            (server.host, server.http_port, "/v2/health/ready"),
            (admin.host, server.admin_port, "/api/v1/health"),
            (admin.host, server.metrics_port, "/metrics"),
        ):
            while not await asyncio.to_thread(_answers, host, port, path):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
        snapshot = await asyncio.to_thread(self._store.snapshot)
        for model, route in sorted(snapshot.routes.items()):
            canary = f", canary version {route.canary} at {route.weight:g} %" if route.canary else ""
            self._log.note(f"{model}: stable version {route.stable}{canary}")
        missing = await asyncio.to_thread(list, modelless(self._settings.models))
        for fault in (*missing, *unserved(snapshot, self._refusal)):
            self._log.warn(fault)
        self._log.note("ready")

    def _refusal(self, model: str, version: int) -> str | None:
        return refusal(EnginePaths(self._settings.run_dir, model, version).state)

    def _be_stopped(self) -> None:
        now = time.monotonic()
        if not self._stop.is_set():
            self._stop.set()
            self._told_at = now
            self._engines.expect_ends()
            return
        if now - self._told_at < ONE_WORD_SECONDS:
            return
        self._is_hurried = True
        self._log.note("told to stop again: what is still asked is not waited for")
        for child in self._children:
            if child.name.startswith("front"):
                child.signal(HURRY_SIGNAL)

    async def _end_fronts(self) -> None:
        """Before all others, so that nothing accepted is lost."""
        self._log.note("stopping")
        budget = self._settings.server.drain_timeout_seconds + self._settings.server.drain_delay_seconds
        fronts = [child for child in self._children if child.name.startswith("front")]
        await asyncio.gather(*[child.stop(seconds=budget + STOP_SECONDS) for child in fronts])

    async def _end_others(self) -> None:
        """What reads the log; engines are to be the last."""
        others = [child for child in self._children if not child.name.startswith("front")]
        await asyncio.gather(*[child.stop(seconds=2 * STOP_SECONDS) for child in others])


def _begun_workers(count: int) -> ThreadPoolExecutor:
    # All at once: else one more would begin whenever as many tasks as there are happened to meet, months later.
    executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
    meeting = threading.Barrier(count)
    try:
        for _ in range(count):
            executor.submit(meeting.wait)
    except RuntimeError:  # there may be no more threads: fewer will do
        meeting.abort()
    return executor


def _version() -> str:
    from gateway import __version__

    return __version__


def _ports(settings: Settings, held: contextlib.ExitStack) -> dict[str, int]:
    """The ports to listen on, by their settings; those that fronts share are held for them."""
    server = settings.server
    inference = ("http_port", "grpc_port") if server.grpc else ("http_port",)
    ports, faults = {}, []
    for name in (*inference, "metrics_port", "admin_port"):
        section, host = ("server", server.host) if name in inference else ("admin", settings.admin.host)
        port = getattr(server, name)
        try:
            ports[name] = _free_port(host, port)
            if name in inference:
                _hold(held, host, ports[name])
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                faults.append(f"{section}.host = {host!r} is no address of this machine")
            else:
                option = f"--{name.replace('_', '-')}"
                faults.append(
                    f"server.{name} = {port}: cannot listen on {host}: {error.strerror}; {option} takes another"
                )
    if faults:
        raise StartFailed("; ".join(dict.fromkeys(faults)))
    return ports


def _hold(held: contextlib.ExitStack, host: str, port: int) -> None:
    keeper = held.enter_context(socket.socket(_family(host), socket.SOCK_STREAM))
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    keeper.bind((host, port))


def _free_port(host: str, port: int) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _answers(host: str, port: int, path: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=1)  # noqa: S104
    try:
        connection.request("GET", path, headers={"connection": "close"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
