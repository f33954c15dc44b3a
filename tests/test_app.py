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


def test_events_are_counted_on_from_where_an_earlier_life_of_the_process_ended(tmp_path: Path) -> None:
    count = SimpleNamespace(corrupt=0)
    for life in (1, 2):
        cells = CellFile(tmp_path / "shipper.cells")
        show = app._events(cells, corrupt=lambda: count.corrupt, missing=lambda: 0)
        for count.corrupt in (1, 3):
            show()
        assert cells.counter("gateway_log_events_total", {"state": "corrupt"}).value == 3 * life
        assert cells.counter("gateway_log_events_total", {"state": "missing"}).value == 0
        cells.close()
