"""The supervisor's care for engines: one for each version that is wanted, replaced when it crashes, hangs or grows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Mapping, Set
from pathlib import Path

import msgspec

from gateway.child import ENDED_AS_TOLD, STOP_SECONDS, Child
from gateway.engine.memory import resident_bytes
from gateway.engine.notes import EngineNote, EnginePaths, EngineState, read_note, write_note
from gateway.engine.order import EngineOrder
from gateway.engine.pulse import read_beats
from gateway.parent import ended_how
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile
from gateway.telemetry.log import ProcessLog

__all__ = ("EngineSupervision",)

LOOK_SECONDS = 0.2
STOP_RUN_SECONDS = 1.0
"""How much longer than the longest run an engine may stand still before it is killed."""
PAUSE_SECONDS = 1.0
"""A look that comes so late says more of this process than of the engines."""
LEFT_SECONDS = 1.0
"""Fronts that still ask an engine so long after it has ended with the whole gateway get another."""

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""numpy brings a pool of as many threads as the host has cores, of which an engine uses none."""

Key = tuple[str, int]


class EngineSupervision:
    """The engines of one gateway.

    Parameters
    ----------
    settings : Settings
        Resolved.
    log : ProcessLog
    cells : CellFile
        Takes the restarts of each engine and the memory it holds.
    """

    def __init__(self, settings: Settings, *, log: ProcessLog, cells: CellFile) -> None:
        self._settings = settings
        self._log = log
        self._cells = cells
        self._engines: dict[Key, _Engine] = {}
        self._leaving: dict[Key, tuple[Child, asyncio.Task[None]]] = {}
        self._absent: dict[Key, bool] = {}  # approved, without a folder to load, and whether that has been told
        self._orphans: set[int] = set()
        self._awake = 0.0  # seconds that this process has not stood still
        self._ending = False

    def __repr__(self) -> str:
        engines = ", ".join(
            f"{model}/{version} {engine!r}" for (model, version), engine in sorted(self._engines.items())
        )
        return f"<EngineSupervision {engines or 'none'} | leaving {len(self._leaving)}>"

    def follow(self, wanted: Mapping[Key, str], approved: Mapping[Key, str]) -> bool:
        """Start what is wanted and not there; end what is no longer approved.

        Parameters
        ----------
        wanted : mapping of (model, version) to digest
            Approved, with a folder that can be loaded.
        approved : mapping of (model, version) to digest
            A version whose folder is gone or half changed serves on as it was loaded, and is out of service where it
            was not.

        Returns
        -------
        Whether everything is as wanted; when False, an engine must end before another takes its place: ask again.
        """
        for key in [key for key, engine in self._engines.items() if approved.get(key) != engine.digest]:
            engine = self._engines.pop(key)
            self._leaving[key] = engine.child, asyncio.get_running_loop().create_task(self._unload(key, engine))
        settled = True
        for key, digest in wanted.items():
            if key in self._leaving:
                settled = False
            elif key not in self._engines:
                self._start(key, digest)
        self._look_for(approved.keys() - wanted.keys() - self._engines.keys() - self._leaving.keys())
        return settled

    async def watch(self) -> None:
        """Look after the engines, for ever."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            # Whatever held this process has held the engines too: a pause of the container, or of the machine.
            self._awake += now - looked if now - looked < PAUSE_SECONDS else LOOK_SECONDS
            looked = now
            for key, engine in self._engines.items():
                self._look_at(key, engine, now)
            self._orphans = {pid for pid in self._orphans if _is_left(pid)}

    def expect_ends(self) -> None:
        """Take an engine that ends in order as told to by whoever tells the whole gateway.

        It is started again only where `watch` goes on for longer, for the fronts that have not ended yet.
        """
        self._ending = True

    async def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """End all engines, and kill those that run for longer; who asked something of them has ended before."""
        leaving = list(self._leaving.values())
        children = [engine.child for engine in self._engines.values()] + [child for child, _ in leaving]
        await asyncio.gather(*[child.stop(seconds=seconds) for child in children], *[task for _, task in leaving])

    def _look_for(self, absent: Set[Key]) -> None:
        """Tell of versions that cannot be loaded as they are not there, so that nobody waits for them."""
        for key in self._absent.keys() - absent - self._engines.keys():
            self._paths(key).state.unlink(missing_ok=True)
        # Told at the second look: one that is approved just now may have come since the folders were looked at.
        for model, version in sorted(key for key in absent if self._absent.get(key) is False):
            folder = self._settings.models / model / str(version)
            reason = f"its folder {folder} is gone, or is not as it was approved"
            self._log.warn(f"{model} version {version} is out of service: {reason}")
            _leave_note(self._paths((model, version)), EngineNote("failed", reason))
        self._absent = {key: key in self._absent for key in absent}

    def _paths(self, key: Key) -> EnginePaths:
        return EnginePaths(self._settings.run_dir, *key)

    def _start(self, key: Key, digest: str) -> None:
        model, version = key
        settings = self._settings
        paths = self._paths(key)
        paths.unlink_sockets()
        paths.failure.unlink(missing_ok=True)  # of one that failed while it was being ended
        order = EngineOrder(
            model=model,
            version=version,
            digest=digest,
            folder=str(settings.models / model / str(version)),
            staged=str(self._staged(key)),
            socket=str(paths.socket),
            beat=str(paths.beat),
            failure=str(paths.failure),
            threads=settings.engine.threads,
            instances=settings.engine.instances,
            hang_seconds=settings.engine.hang_seconds,
            max_resident_bytes=settings.engine.max_resident_bytes,
            max_output_bytes=settings.engine.max_output_bytes,
            drain_seconds=self._drain_seconds,
            start_timeout_seconds=settings.engine.start_timeout_seconds,
            json_lines=settings.log.json_lines,
        )
        arguments = ["gateway.engine", msgspec.json.encode(order).decode()]
        child = Child(
            f"engine {model}/{version}",
            arguments,
            ended=lambda _, status: self._ended(key, status),
            environment=ENVIRONMENT,
        )
        engine = self._engines[key] = _Engine(child, paths, digest, crash_limit=settings.engine.crash_limit)
        self._cells.counter("gateway_engine_restarts_total", _labels(key)).inc(0)
        engine.note("starting")
        child.start()

    @property
    def _drain_seconds(self) -> float:
        """How long what a front has taken may wait for its answer."""
        return self._settings.limits.request_timeout_ms / 1000

    def _staged(self, key: Key) -> Path:
        return self._settings.state_dir / "loaded" / f"{key[0]}-{key[1]}"

    async def _unload(self, key: Key, engine: _Engine) -> None:
        # The engine goes on until the fronts have let go of it, so that nothing they took for it is lost.
        engine.paths.state.unlink(missing_ok=True)
        try:
            await engine.child.stop(seconds=self._drain_seconds + STOP_SECONDS)
            self._clear_up(key, engine)
            engine.paths.state.unlink(missing_ok=True)
            await asyncio.to_thread(shutil.rmtree, self._staged(key), ignore_errors=True)
            self._log.note(f"{key[0]} version {key[1]} unloaded")
        finally:
            del self._leaving[key]

    def _clear_up(self, key: Key, engine: _Engine) -> None:
        """Take away what an engine that has ended left behind, but for the note; its other instances end with it."""
        self._orphans |= read_beats(engine.paths.beat).keys()
        engine.paths.beat.unlink(missing_ok=True)
        engine.paths.unlink_sockets()
        self._cells.remove("gateway_engine_resident_bytes", _labels(key))

    def _ended(self, key: Key, status: int) -> None:
        engine = self._engines.get(key)
        if engine is None:
            return
        self._clear_up(key, engine)
        how, engine.replaced_for = engine.replaced_for or ended_how(status), ""
        if self._ending and status in ENDED_AS_TOLD:
            engine.child.stopping = True
            engine.given_up_at = time.monotonic()
            return
        failure = read_note(engine.paths.failure)
        if failure is not None:
            engine.paths.failure.unlink(missing_ok=True)
            self._give_up(key, engine, "failed", failure.reason)
            return
        limits = self._settings.engine
        now = time.monotonic()
        engine.crashes.append(now)
        recent = sum(1 for moment in engine.crashes if now - moment < limits.crash_window_seconds)
        self._cells.counter("gateway_engine_restarts_total", _labels(key)).inc()
        if recent >= limits.crash_limit:
            reason = f"its engine ended {recent} times within {limits.crash_window_seconds:g} s, last {how}"
            self._give_up(key, engine, "circuit_open", reason)
        else:
            engine.note("starting", f"its engine ended {how} and is being started again")
            self._log.warn(f"engine {key[0]}/{key[1]} ended {how}, starting it again")

    def _give_up(self, key: Key, engine: _Engine, state: EngineState, reason: str) -> None:
        """Leave the version out of service, until the crashes are a window ago: what was amiss may have passed."""
        engine.child.stopping = True
        engine.given_up_at = time.monotonic()
        reason += f"; it is tried again every {self._settings.engine.crash_window_seconds:g} s"
        if reason != engine.given_up_for:
            self._log.warn(f"{key[0]} version {key[1]} is out of service: {reason}")
        engine.given_up_for = reason
        engine.note(state, reason)

    def _look_at(self, key: Key, engine: _Engine, now: float) -> None:
        limits = self._settings.engine
        if engine.state in ("failed", "circuit_open"):
            if now - engine.given_up_at > limits.crash_window_seconds:
                engine.try_again()
            return
        process = engine.child.process
        if process is None:
            if engine.child.stopping and now - engine.given_up_at > LEFT_SECONDS:
                engine.try_again()
            return
        if engine.state == "starting":
            if engine.paths.socket.exists():
                engine.given_up_for = ""
                engine.note("ready")
                self._log.note(f"{key[0]} version {key[1]} is ready", {"digest": engine.digest[:19]})
            elif engine.since_sign(engine.child.started, self._awake) > limits.start_timeout_seconds:
                late = f"was not ready within {limits.start_timeout_seconds:g} s (engine.start_timeout_seconds)"
                self._replace(key, engine, late)
            return
        beats = read_beats(engine.paths.beat)
        # What instances share is in the memory of each.
        resident = max(map(resident_bytes, {process.pid, *beats}))
        self._cells.gauge("gateway_engine_resident_bytes", _labels(key)).set(resident)
        still = limits.hang_seconds + STOP_RUN_SECONDS
        if resident > limits.max_resident_bytes:
            self._replace(key, engine, f"held {resident} bytes (engine.max_resident_bytes)")
        elif engine.since_sign(min(beats.values(), default=now), self._awake) > still:
            self._replace(key, engine, f"did not move for {still:g} s")

    def _replace(self, key: Key, engine: _Engine, why: str) -> None:
        self._log.warn(f"engine {key[0]}/{key[1]} {why}; it is replaced")
        engine.replaced_for = f"because it {why}"
        engine.child.signal(signal.SIGKILL)


class _Engine:
    """What the supervisor knows of one engine."""

    def __init__(self, child: Child, paths: EnginePaths, digest: str, *, crash_limit: int) -> None:
        self.child = child
        self.paths = paths
        self.digest = digest
        self.crashes: deque[float] = deque(maxlen=crash_limit)
        self.state: EngineState = "starting"
        self.given_up_for = ""
        self.replaced_for = ""
        self.given_up_at = 0.0
        self._sign = self._sign_at = 0.0

    def __repr__(self) -> str:
        why = f" ({self.given_up_for})" if self.state in ("failed", "circuit_open") else ""
        return f"{self.state}{why}, crashes {len(self.crashes)}"

    def note(self, state: EngineState, reason: str = "") -> None:
        self.state = state
        _leave_note(self.paths, EngineNote(state, reason))

    def since_sign(self, sign: float, clock: float) -> float:
        """How long it has given this sign of life and no other, by a clock that is told each time."""
        if sign != self._sign:
            self._sign, self._sign_at = sign, clock
        return clock - self._sign_at

    def try_again(self) -> None:
        # The note goes on saying why it is out of service, and callers are refused, until it is ready.
        self.state = "starting"
        self.crashes.clear()
        self.child.start()


def _leave_note(paths: EnginePaths, note: EngineNote) -> None:
    # Only for others: an engine is kept running on a full disk too.
    with contextlib.suppress(OSError):
        write_note(paths.state, note)


def _is_left(pid: int) -> bool:
    """Whether an instance whose engine has ended is still to be waited for, as whoever is process 1 has to."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _labels(key: Key) -> dict[str, str]:
    return {"model": key[0], "version": str(key[1])}
