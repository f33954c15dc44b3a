from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway import app
from gateway.predictions import segments
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile


async def test_a_front_tells_the_size_of_the_spool_without_counting_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counts_all(_: Path) -> int:
        raise AssertionError("every file was looked at")

    monkeypatch.setattr(segments, "spool_size", counts_all)
    monkeypatch.setattr(app, "SWEEP_SECONDS", 0.01)
    settings = Settings.model_validate({"state_dir": tmp_path})
    (settings.spool_dir / "front-0").mkdir(parents=True)
    (settings.spool_dir / "front-0" / segments.segment_name("0" * 14, 1)).write_bytes(bytes(700))
    cells = CellFile(tmp_path / "front-0.cells")
    front = SimpleNamespace(settings=settings, cells=cells)
    server = SimpleNamespace(server_state=SimpleNamespace(connections=set()))
    size = cells.gauge("gateway_spool_bytes", {})
    sweeping = asyncio.create_task(app._sweep(server, front))
    while size.value != 700 and not sweeping.done():
        await asyncio.sleep(0.01)
    assert not sweeping.done()
    sweeping.cancel()
    cells.close()
