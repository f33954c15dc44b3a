from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.job import Run
from gateway.protocol.errors import ModelFailed
from gateway.routing.table import choose
from gateway.serving.inference import Inference
from gateway.serving.statistics import read_statistics
from gateway.serving.tally import RunTally
from gateway.telemetry.catalog import BATCH_ROWS
from gateway.telemetry.cells import CellFile
from tests.serving.fronts import ROW, door, post, run

LABELS = {"model": "m", "version": "1"}


def tally(counted: RunTally, *rows: int, batch_rows: int, time: float = 5.0) -> None:
    """Count one run, of a second, and the requests of so many rows that it answered."""
    finished, count = Run([], batch_rows, sent_at=10.75), len(rows)
    finished.inference_ns = 1_000_000_000
    counted.add(finished, count, sum(rows), arrived=10.0 * count, queued=10.25 * count, now=12.0)
    counted.count_run(finished, time=time)


def answered(cells: CellFile, count: int) -> None:
    cells.counter("gateway_requests_total", {**LABELS, "arm": "stable", "outcome": "ok"}).inc(count)
    durations = cells.histogram("gateway_request_duration_seconds", {**LABELS, "arm": "stable"})
    durations.observe_many([2.0] * count)


def test_what_several_fronts_counted_is_one_sum(tmp_path: Path) -> None:
    with closing(CellFile(tmp_path / "front-0.cells")) as one, closing(CellFile(tmp_path / "front-1.cells")) as other:
        tally(RunTally(LABELS, one), 1, 2, batch_rows=3)
        answered(one, 2)
        tally(RunTally(LABELS, other), 3, batch_rows=3, time=7.5)
        answered(other, 1)
        [entry] = read_statistics(tmp_path, [("m", 1)])["model_stats"]
    assert (entry["inference_count"], entry["execution_count"], entry["last_inference"]) == (6, 2, 7500)
    seconds = {name: duration["ns"] / 1e9 for name, duration in entry["inference_stats"].items()}
    assert (seconds["compute_input"], seconds["queue"], seconds["compute_infer"]) == (0.75, 1.5, 3.0)
    assert (seconds["compute_output"], seconds["success"], seconds["fail"]) == (0.75, 6.0, 0.0)
    [batch] = entry["batch_stats"]
    assert (batch["batch_size"], batch["compute_infer"]) == (3, {"count": 2, "ns": 2_000_000_000})


def test_a_failed_request_is_counted_apart_with_its_own_time(tmp_path: Path) -> None:
    with closing(CellFile(tmp_path / "front-0.cells")) as cells:
        tally(RunTally(LABELS, cells), 1, batch_rows=1)
        answered(cells, 1)
        cells.counter("gateway_requests_total", {**LABELS, "arm": "canary", "outcome": "timeout"}).inc()
        cells.histogram("gateway_request_duration_seconds", {**LABELS, "arm": "canary"}).observe(0.5)
        [entry] = read_statistics(tmp_path, [("m", 1)])["model_stats"]
    assert entry["inference_stats"]["fail"] == {"count": 1, "ns": 500_000_000}
    assert entry["inference_stats"]["success"] == {"count": 1, "ns": 2_000_000_000}


def test_a_version_that_was_never_asked_has_nothing_but_zeros(tmp_path: Path) -> None:
    stats = read_statistics(tmp_path, [("m", 2), ("m", 1)])["model_stats"]
    assert [(entry["version"], entry["inference_count"]) for entry in stats] == [("1", 0), ("2", 0)]
    assert stats[0]["batch_stats"] == [] and stats[0]["memory_usage"] == []


def test_callers_cannot_mint_series_by_odd_numbers_of_rows(tmp_path: Path) -> None:
    with closing(CellFile(tmp_path / "front-0.cells")) as cells:
        counted, sizes = RunTally(LABELS, cells), range(1, 5000)
        for rows in sizes:
            tally(counted, rows, batch_rows=rows)
        [entry] = read_statistics(tmp_path, [("m", 1)])["model_stats"]
    assert entry["execution_count"] == len(sizes) and entry["inference_count"] == sum(sizes)
    assert {str(batch["batch_size"]) for batch in entry["batch_stats"]} <= set(BATCH_ROWS)


@pytest.mark.parametrize("plain", [True, False])
def test_requests_that_shared_a_run_are_counted_by_arm_and_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    written = Inference.outputs_of

    def unless_bad(inference: Inference, flats: Any) -> bytes:
        if inference.request_id == "bad":
            raise ValueError("cannot be written")
        return written(inference, flats)

    monkeypatch.setattr(Inference, "outputs_of", unless_bad)

    async def test() -> None:
        async with door(tmp_path) as d:
            body = {"inputs": [ROW]} if plain else {"id": "good", "inputs": [ROW]}
            asked = [
                *[post(body)] * 2,
                *[post(body, path="/v2/models/m/versions/1/infer")] * 3,
                *[post({"id": "bad", "inputs": [ROW]})] * 4,
                post(body),
            ]
            await d.send(b"".join(asked), read=len(asked))
            served = d.front.versions["m", 1]
            counted = [served.requests(*key).value for key in (("stable", 200), ("pinned", 200), ("stable", 500))]
            assert counted == [3, 3, 4]
            assert served.durations("stable").count == 7 and served.durations("pinned").count == 3
            assert max(d.engine.batches) > 5, "they did not share a run"

    run(test)


def test_what_several_runs_lost_is_counted_with_the_time_of_each(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            served = d.front.versions["m", 1]
            inferences = []
            for waited in (1.0, 2.0, 4.0):
                inference = Inference(SimpleNamespace(answered=lambda inference: None), "m")
                inference.served, inference.route = served, d.front.routes["m"]
                inference.choice = choose(inference.route, 0.0, sticky=False)
                inference.arrived = inference.queued_at = 10.0
                inference.run = Run([inference], 1, sent_at=10.0 + waited)
                inference.failure = ModelFailed("the engine ended")
                inferences.append(inference)
            d.front.delivery.deliver(inferences)
            assert served.requests("stable", 500).value == 3
            assert (served.queue_seconds.count, served.queue_seconds.sum) == (3, 7.0)

    run(test)
