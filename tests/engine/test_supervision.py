from __future__ import annotations

import asyncio
import ctypes
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.child import STOP_SECONDS
from gateway.engine import supervision
from gateway.engine.notes import EngineNote, EnginePaths, read_note, write_note
from gateway.engine.oneshot import connect_engine
from gateway.engine.pulse import read_beats
from gateway.engine.supervision import EngineSupervision
from gateway.repository.manifest import load_version
from gateway.settings import load_settings
from gateway.telemetry.cells import CellFile
from gateway.telemetry.log import ProcessLog

BIKE_DEMAND = Path(__file__).parents[2] / "models" / "bike-demand"
KEY = ("m", 1)


class World:
    def __init__(self, tmp_path: Path, **engine: float) -> None:
        engine = {"crash_limit": 2, "instances": 1, **engine}
        self.settings = load_settings(
            overrides={"models": tmp_path / "models", "state_dir": tmp_path / "state", "engine": engine}
        )
        self.settings.run_dir.mkdir(parents=True)
        shutil.copytree(BIKE_DEMAND / "1", self.settings.models / "m" / "1")
        self.digest = load_version(self.settings.models / "m" / "1").digest
        self.said = io.StringIO()
        self.cells = CellFile(tmp_path / "cells")
        self.engines = EngineSupervision(
            self.settings, log=ProcessLog("supervisor", json=False, stream=self.said), cells=self.cells
        )
        self.paths = EnginePaths(self.settings.run_dir, *KEY)
        self._before = _children()  # a broker, say, of tests before

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        with connect_engine(self.paths.socket) as engine:
            os.kill(engine.hello.pid, signal.SIGKILL)

    def children(self) -> list[int]:
        """What was started in this world and is still there."""
        return [pid for pid in _children() if pid not in self._before]


def _children() -> list[int]:
    pid = os.getpid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def world(tmp_path: Path, **engine: float) -> AsyncIterator[World]:
    made = World(tmp_path, **engine)
    watching = asyncio.create_task(made.engines.watch())
    try:
        yield made
    finally:
        watching.cancel()
        await made.engines.stop()
        made.cells.close()


def test_an_engine_that_crashes_again_and_again_opens_its_circuit_and_every_place_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            assert w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            for crashes in (1, 2):
                await w.until(lambda: "m/1 ready" in repr(w.engines) and w.paths.socket.exists())
                w.kill()
                await w.until(lambda crashes=crashes: f"crashes {crashes}" in repr(w.engines))
            reason = "its engine ended 2 times within 60 s, last by SIGKILL; it is tried again every 60 s"
            assert repr(w.engines) == f"<EngineSupervision m/1 circuit_open ({reason}), crashes 2 | leaving 0>"
            note = read_note(w.paths.state)
            assert note is not None and (note.state, note.reason) == ("circuit_open", reason)
            assert f"m version 1 is out of service: {reason}" in w.said.getvalue()
            assert "engine m/1 ended by SIGKILL, starting it again" in w.said.getvalue()
            assert not w.paths.socket.exists()

    asyncio.run(test())


def test_an_engine_that_takes_too_long_to_start_is_told_of_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "LOOK_SECONDS", 0.01)

    async def test() -> None:
        async with world(tmp_path, start_timeout_seconds=0.05) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 circuit_open" in repr(w.engines))
            note = read_note(w.paths.state)
            assert note is not None and note.reason == (
                "its engine ended 2 times within 60 s, last because it was not ready within 0.05 s "
                "(engine.start_timeout_seconds); it is tried again every 60 s"
            )

    asyncio.run(test())


def test_a_version_is_loaded_again_only_once_its_engine_before_has_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            assert w.engines.follow({}, {})
            assert not w.engines.follow({KEY: w.digest}, {KEY: w.digest}), "it is leaving still: ask again"
            await w.until(lambda: w.engines.follow({KEY: w.digest}, {KEY: w.digest}))
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            w.engines.follow({}, {})
            await w.until(lambda: repr(w.engines) == "<EngineSupervision none | leaving 0>")
            assert not w.paths.state.exists() and not (w.settings.state_dir / "loaded" / "m-1").exists()

    asyncio.run(test())


def test_a_version_whose_folder_is_gone_serves_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            shutil.rmtree(w.settings.models / "m" / "1")
            w.engines.follow({}, {KEY: w.digest})
            assert repr(w.engines) == "<EngineSupervision m/1 ready, crashes 0 | leaving 0>"

    asyncio.run(test())


def test_a_version_whose_folder_is_gone_before_it_is_loaded_is_told_of_until_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engines.follow({}, {KEY: w.digest})
            assert read_note(w.paths.state) is None, "it may have come since the folders were looked at"
            for _ in range(2):
                assert w.engines.follow({}, {KEY: w.digest})
            reason = f"its folder {w.settings.models / 'm' / '1'} is gone, or is not as it was approved"
            assert read_note(w.paths.state) == EngineNote("failed", reason)
            assert w.said.getvalue().count(f"m version 1 is out of service: {reason}") == 1
            w.engines.follow({}, {})
            assert not w.paths.state.exists()
            for _ in range(2):
                w.engines.follow({}, {KEY: w.digest})
            assert w.paths.state.exists()
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: read_note(w.paths.state) == EngineNote("ready"))

    asyncio.run(test())


def test_a_version_that_cannot_be_loaded_is_given_up_with_the_engines_own_words(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            (w.settings.models / "m" / "1" / "model.onnx").write_bytes(b"another")
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 failed" in repr(w.engines))
            assert "model.onnx has 7 bytes: the manifest says" in repr(w.engines)

    asyncio.run(test())


def test_each_instance_is_held_to_the_memory_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with world(tmp_path, instances=2) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines) and len(read_beats(w.paths.beat)) == 2)
            with connect_engine(w.paths.socket) as engine:
                [other] = read_beats(w.paths.beat).keys() - {engine.hello.pid}
            monkeypatch.setattr(supervision, "resident_bytes", lambda pid: 2**40 if pid == other else 1)
            await w.until(lambda: "crashes 1" in repr(w.engines))
            assert f"engine m/1 held {2**40} bytes (engine.max_resident_bytes); it is replaced" in w.said.getvalue()

    asyncio.run(test())


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
def test_instances_whose_engine_has_ended_are_waited_for_by_a_supervisor_that_is_process_1(tmp_path: Path) -> None:
    set_child_subreaper = 36
    libc = ctypes.CDLL(None)

    async def test() -> None:
        async with world(tmp_path, instances=3) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines) and len(read_beats(w.paths.beat)) == 3)
            pids = list(read_beats(w.paths.beat))
            w.kill()
            await w.until(lambda: "m/1 ready, crashes 1" in repr(w.engines) and len(read_beats(w.paths.beat)) == 3)
            pids += read_beats(w.paths.beat)
            w.engines.follow({}, {})
            await w.until(lambda: repr(w.engines) == "<EngineSupervision none | leaving 0>")
            await w.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

    libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    try:
        asyncio.run(test())
    finally:
        libc.prctl(set_child_subreaper, 0, 0, 0, 0)


def test_an_end_on_the_way_back_is_a_crash_and_not_what_was_amiss_before(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, crash_window_seconds=1.0) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            for _ in range(2):
                await w.until(lambda: "m/1 ready" in repr(w.engines) and w.paths.socket.exists())
                w.kill()
                await w.until(lambda: "m/1 ready" not in repr(w.engines))
            before = set(w.children())
            await w.until(lambda: "m/1 starting" in repr(w.engines) and set(w.children()) > before)
            (comes_back,) = set(w.children()) - before
            os.kill(comes_back, signal.SIGKILL)
            await w.until(lambda: "crashes 1" in repr(w.engines))
            note = read_note(w.paths.state)
            assert note is not None and note.state == "starting"
            await w.until(lambda: "m/1 ready" in repr(w.engines))

    asyncio.run(test())


def test_an_engine_that_hangs_is_replaced_by_a_supervisor_that_stands_still_again_and_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, hang_seconds=0.1) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            (pid,) = read_beats(w.paths.beat)
            os.kill(pid, signal.SIGSTOP)
            for _ in range(6):
                await asyncio.sleep(2 * supervision.LOOK_SECONDS)
                time.sleep(supervision.PAUSE_SECONDS)  # noqa: ASYNC251
            assert "did not move for 1.1 s; it is replaced" in w.said.getvalue()

    asyncio.run(test())


def test_what_an_engine_before_it_failed_on_is_not_told_of_one_that_crashes(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            write_note(w.paths.failure, EngineNote("failed", "as it was being ended"))
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            w.kill()
            await w.until(lambda: "m/1 ready" not in repr(w.engines))
            assert "m/1 starting, crashes 1" in repr(w.engines)

    asyncio.run(test())


def test_engines_that_stood_still_with_the_supervisor_are_given_time_to_move(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, hang_seconds=0.5) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            (pid,) = read_beats(w.paths.beat)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(2.0)  # noqa: ASYNC251  (as a container that is paused, with all that is in it)
            await asyncio.sleep(3 * supervision.LOOK_SECONDS)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(3 * supervision.LOOK_SECONDS)
            assert list(read_beats(w.paths.beat)) == [pid] and "replaced" not in w.said.getvalue()
            os.kill(pid, signal.SIGSTOP)
            await w.until(lambda: "did not move for 1.5 s; it is replaced" in w.said.getvalue())

    asyncio.run(test())


@pytest.mark.parametrize("leaving", [False, True])
def test_engines_that_nobody_waits_for_are_ended_at_once_whatever_they_do(tmp_path: Path, leaving: bool) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            (pid,) = read_beats(w.paths.beat)
            os.kill(pid, signal.SIGSTOP)  # as one in a long run, it does not hear of its end
            if leaving:
                w.engines.follow({}, {})
                await asyncio.sleep(0.1)
            begun = time.monotonic()
            await w.engines.stop(seconds=0.0)
            assert time.monotonic() - begun < STOP_SECONDS / 2 and not w.children()

    asyncio.run(test())


def test_an_engine_told_to_end_with_the_whole_gateway_comes_back_only_for_fronts_that_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            w.engines.expect_ends()
            w.kill()
            await w.until(lambda: "starting it again" in w.said.getvalue())
            await w.until(lambda: "m/1 ready" in repr(w.engines))
            (pid,) = read_beats(w.paths.beat)
            os.kill(pid, signal.SIGTERM)
            await w.until(lambda: not w.paths.socket.exists() and pid not in w.children())
            await asyncio.sleep(supervision.LEFT_SECONDS / 2)
            assert w.said.getvalue().count("starting it again") == 1
            assert not w.paths.socket.exists() and not w.children()
            await w.until(w.paths.socket.exists)  # fronts that go on for longer still need it
            (again,) = read_beats(w.paths.beat)
            assert again != pid
            assert w.said.getvalue().count("starting it again") == 1

    asyncio.run(test())
