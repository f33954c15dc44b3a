from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.engine.notes import EnginePaths, read_note
from gateway.engine.oneshot import connect_engine
from gateway.engine.supervision import EngineSupervision
from gateway.repository.manifest import load_version
from gateway.settings import load_settings
from gateway.telemetry.cells import CellFile
from gateway.telemetry.log import ProcessLog

BIKE_DEMAND = Path(__file__).parents[2] / "models" / "bike-demand"
KEY = ("m", 1)


class World:
    def __init__(self, tmp_path: Path) -> None:
        self.settings = load_settings(
            overrides={"models": tmp_path / "models", "state_dir": tmp_path / "state", "engine": {"crash_limit": 2}}
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

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        with connect_engine(self.paths.socket) as engine:
            os.kill(engine.hello.pid, signal.SIGKILL)


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
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
            reason = "its engine ended 2 times within 60 s, last with status -9"
            assert repr(w.engines) == f"<EngineSupervision m/1 circuit_open ({reason}), crashes 2 | leaving 0>"
            note = read_note(w.paths.state)
            assert note is not None and (note.state, note.reason) == ("circuit_open", reason)
            assert f"m version 1 is out of service: {reason}" in w.said.getvalue()
            assert not w.paths.socket.exists()

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


def test_a_version_that_cannot_be_loaded_is_given_up_with_the_engines_own_words(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            (w.settings.models / "m" / "1" / "model.onnx").write_bytes(b"another")
            w.engines.follow({KEY: w.digest}, {KEY: w.digest})
            await w.until(lambda: "m/1 failed" in repr(w.engines))
            assert "model.onnx has 7 bytes: the manifest says" in repr(w.engines)

    asyncio.run(test())
