from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engine import lane
from gateway.engine.errors import RunStopped
from gateway.engine.job import HIGH, Job
from gateway.engine.lane import GATHER_PASSES, Lane, QueueLimits
from gateway.engine.pace import SHORT_SECONDS
from gateway.engine.wire import LARGE_BYTES
from gateway.protocol.errors import DeadlineExceeded, EngineUnavailable, ModelFailed, Overloaded
from tests.engines import FakeEngine, fake_engine


def job(*values: float, seconds: float = 30.0) -> Job:
    made = Job()
    made.inputs = [np.array([[value] * 3 for value in values], "f4")]
    made.rows = len(values)
    made.queued_at = time.perf_counter()
    made.deadline = made.queued_at + seconds
    return made


class World:
    def __init__(self, lane: Lane, engine: FakeEngine, done: list[Job]) -> None:
        self.lane, self.engine, self.done = lane, engine, done

    async def until(self, count: int) -> list[Job]:
        for _ in range(500):
            if len(self.done) >= count:
                return self.done
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(self.done)} of {count} jobs came back; {self.lane!r}")


@asynccontextmanager
async def world(
    tmp_path: Path, *, max_queue: int = 100, max_delay_us: int = 0, **engine_options: Any
) -> AsyncIterator[World]:
    done: list[Job] = []
    async with fake_engine(tmp_path / "e.sock", **engine_options) as engine:
        engine.hello = msgspec.structs.replace(engine.hello, max_delay_us=max_delay_us)
        lane = Lane(
            "m",
            1,
            socket_paths=[engine.path],
            done=done.extend,
            greeted=lambda hello: True,
            limits=QueueLimits(max_requests=max_queue),
            frames_in_flight=2,
        )
        assert await lane.connect()
        while not lane.ready:
            await asyncio.sleep(0.001)
        yield World(lane, engine, done)
        lane.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_what_arrives_in_one_pass_of_the_loop_is_one_batch(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            for value in range(5):
                w.lane.submit(job(value))
            done = await w.until(5)
            assert w.engine.batches == [5]
            assert [d.outputs[0].tolist() for d in done] == [[[2 * v] * 3] for v in range(5)]
            assert {d.run.rows for d in done if d.run is not None} == {5}

    run(test)


def test_a_batch_never_goes_past_max_rows_and_a_larger_request_goes_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_rows=4) as w:
            for values in ((1, 2, 3), (4, 5), (6, 7), (1,) * 9):
                w.lane.submit(job(*values))
            await w.until(4)
            assert w.engine.batches == [3, 4, 9]

    run(test)


def test_rows_of_a_model_that_must_not_batch_run_one_request_at_a_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, batchable=False) as w:
            for value in range(4):
                w.lane.submit(job(value))
            await w.until(4)
            assert w.engine.batches == [1, 1, 1, 1]

    run(test)


def test_at_most_two_frames_are_in_flight_and_what_waits_forms_the_next_batch(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.hold.clear()
            for value in range(4):
                w.lane.submit(job(value))
                await asyncio.sleep(0.02)
            assert "frames 2" in repr(w.lane) and "waiting 2" in repr(w.lane)
            w.engine.hold.set()
            await w.until(4)
            assert w.engine.batches == [1, 1, 2]

    run(test)


def test_only_the_guilty_request_of_a_failed_batch_fails(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:

            def refuse_thirteen(inputs: list[Any]) -> list[Any]:
                if (inputs[0] == 13).any():
                    raise ValueError("unlucky")
                return [inputs[0] * 2]

            w.engine.run = refuse_thirteen
            jobs = [job(value) for value in (1, 13, 3)]
            for one in jobs:
                w.lane.submit(one)
            await w.until(3)
            assert [type(one.failure) for one in jobs] == [type(None), ModelFailed, type(None)]
            assert jobs[2].outputs[0].tolist() == [[6, 6, 6]]

    run(test)


def unlucky(*numbers: float) -> Callable[[list[Any]], list[Any]]:
    def refuse(inputs: list[Any]) -> list[Any]:
        if np.isin(inputs[0], numbers).any():
            raise ValueError("unlucky")
        return [inputs[0] * 2]

    return refuse


def test_a_failed_batch_is_halved_until_the_guilty_one_stands_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.run = unlucky(2)
            jobs = [job(value) for value in range(8)]
            for one in jobs:
                w.lane.submit(one)
            await w.until(8)
            assert [one.failure is None for one in jobs] == [value != 2 for value in range(8)]
            assert all(one.outputs[0][0, 0] == 2 * value for value, one in enumerate(jobs) if value != 2)
            assert sorted(w.engine.batches) == [1, 1, 2, 2, 4, 4, 8] and w.lane.idle

    run(test)


@given(guilty=st.sets(st.integers(0, 15)))
@settings(max_examples=20)
def test_whoever_is_guilty_the_others_are_answered_and_the_runs_are_bounded(guilty: set[int]) -> None:
    async def test() -> None:
        with TemporaryDirectory() as folder:
            async with world(Path(folder)) as w:
                w.engine.run = unlucky(*guilty)
                jobs = [job(value) for value in range(16)]
                for one in jobs:
                    w.lane.submit(one)
                await w.until(16)
                assert {value for value, one in enumerate(jobs) if one.failure is not None} == guilty
                assert len(w.engine.batches) <= 2 * 16 - 2

    run(test)


def test_while_runs_are_short_what_comes_meanwhile_is_one_batch(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.lane.submit(job(0))
            await w.until(1)
            assert w.lane.line.pace.run_seconds < SHORT_SECONDS
            w.engine.hold.clear()
            for value in range(1, 5):
                w.lane.submit(job(value))
                await asyncio.sleep(0.02)
            assert "frames 1" in repr(w.lane) and "waiting 3" in repr(w.lane)
            w.engine.hold.set()
            await w.until(5)
            assert w.engine.batches == [1, 1, 3]
            w.lane.line.pace.run_seconds = SHORT_SECONDS
            w.engine.hold.clear()
            for value in range(3):
                w.lane.submit(job(value))
                await asyncio.sleep(0.02)
            assert "frames 2" in repr(w.lane) and "waiting 1" in repr(w.lane)
            w.engine.hold.set()
            await w.until(8)

    run(test)


async def passes_until_sent(w: World, *jobs: Job) -> int:
    for one in jobs:
        w.lane.submit(one)
    for number in range(1, 100):
        await asyncio.sleep(0)
        if w.lane._in_flight:
            return number
    raise AssertionError("never sent")


@pytest.mark.parametrize(
    ("count", "size", "run_seconds", "passes"),
    [(1, 0, 0.0, 1), (2, 0, 0.0, 2), (5, 1000, 0.0, 2), (2, LARGE_BYTES, 0.0, 1), (2, 0, SHORT_SECONDS, 1)],
)
def test_only_where_small_requests_for_short_runs_came_together_others_are_looked_for(
    tmp_path: Path, count: int, size: int, run_seconds: float, passes: int
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.lane.submit(job(0))
            await w.until(1)
            w.lane.line.pace.run_seconds = run_seconds
            jobs = [job(value) for value in range(count)]
            for one in jobs:
                one.size = size
            assert await passes_until_sent(w, *jobs) == passes
            await w.until(1 + count)
            assert w.engine.batches == [1, count]

    run(test)


def test_a_batch_takes_what_the_next_passes_bring_but_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_rows=100) as w:
            for value in range(8):
                w.lane.submit(job(value))
            await w.until(8)
            w.lane.submit(job(8))
            for value in range(9, 40):  # one more in each pass
                w.lane.submit(job(value))
                await asyncio.sleep(0)
            done = await w.until(40)
            assert [one.outputs[0][0, 0] for one in done] == [2.0 * value for value in range(40)]
            assert w.engine.batches[:2] == [8, 2 + GATHER_PASSES]

    run(test)


def test_a_full_batch_is_not_waited_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_rows=4) as w:
            w.lane.submit(job(0))
            await w.until(1)
            assert await passes_until_sent(w, *[job(value) for value in range(4)]) == 1

    run(test)


def test_what_is_run_again_takes_no_more_frames_and_goes_before_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engine.lane.SHORT_SECONDS", 0.0)

    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.run = unlucky(0)
            for value in range(24):
                w.lane.submit(job(value))
            most = 0
            while not w.lane.idle:
                most = max(most, len(w.lane._in_flight))
                await asyncio.sleep(0)
            assert most == 2 and len(w.done) == 24
            assert w.engine.batches[:4] == [8, 8, 4, 4]

    run(test)


def test_a_late_or_abandoned_job_is_not_run_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.run = unlucky(0)
            w.engine.hold.clear()
            guilty, late, gone = job(0), job(1, seconds=0.05), job(2)
            for one in (guilty, late, gone):
                w.lane.submit(one)
            await asyncio.sleep(0.06)
            gone.abandoned = True
            w.lane.expire(time.perf_counter())
            w.engine.hold.set()
            await w.until(2)
            assert isinstance(late.failure, DeadlineExceeded) and isinstance(guilty.failure, ModelFailed)
            assert w.engine.batches == [3, 1] and w.lane.idle

    run(test)


def test_a_model_that_mixes_rows_is_run_one_by_one_from_then_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.run = lambda inputs: [inputs[0][:1]]
            for _ in range(2):
                for value in range(3):
                    w.lane.submit(job(value))
                await w.until(3)
                w.done.clear()
            assert w.engine.batches == [3, 1, 1, 1, 1, 1, 1]

    run(test)


def test_a_job_whose_time_is_over_when_the_engine_is_free_again_costs_no_run(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.hold.clear()
            running = [job(1), job(2)]
            for one in running:
                w.lane.submit(one)
                await asyncio.sleep(0.01)
            late, other = job(3, seconds=0.01), job(4)
            w.lane.submit(late)
            w.lane.submit(other)
            await asyncio.sleep(0.02)
            w.engine.hold.set()  # and nobody has called `expire`
            await w.until(4)
            assert isinstance(late.failure, DeadlineExceeded) and other.failure is None
            assert w.engine.batches == [1, 1, 1]

    run(test)


def test_who_makes_room_for_a_higher_rank_is_told_so_and_not_from_within_submit(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_queue=1) as w:
            w.engine.hold.clear()
            for value in (1, 2):
                w.lane.submit(job(value))
                await asyncio.sleep(0.01)
            waiting, high = job(3), job(4)
            high.rank = HIGH
            w.lane.submit(waiting)
            w.lane.submit(high)
            assert waiting.failure is None
            await w.until(1)
            assert isinstance(waiting.failure, Overloaded)
            w.engine.hold.set()
            await w.until(4)
            assert high.failure is None

    run(test)


def test_a_model_may_ask_that_requests_wait_for_each_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_delay_us=200_000) as w:
            for value in range(3):
                w.lane.submit(job(value))
                await asyncio.sleep(0.005)
            assert w.engine.batches == []
            await w.until(3)
            assert w.engine.batches == [3]

    run(test)


def test_a_full_batch_and_one_that_would_be_late_do_not_wait(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_delay_us=1_000_000, max_rows=2) as w:
            w.lane.submit(job(1))
            w.lane.submit(job(2))
            await w.until(2)
            w.lane.submit(job(3, seconds=0.1))
            done = await w.until(3)
            assert done[2].failure is None and w.engine.batches == [2, 1]

    run(test)


def test_one_that_has_less_time_than_those_before_it_shortens_their_wait(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_delay_us=5_000_000) as w:
            w.lane.submit(job(1))
            await asyncio.sleep(0.01)
            w.lane.submit(job(2, seconds=0.3))
            started = time.perf_counter()
            done = await w.until(2)
            assert [each.failure for each in done] == [None, None] and w.engine.batches == [2]
            assert time.perf_counter() - started < 0.3

    run(test)


def test_outputs_that_do_not_have_the_batchs_rows_are_run_singly_and_never_handed_to_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.run = lambda inputs: [inputs[0][:1]]
            for value in (1, 2):
                w.lane.submit(job(value))
            done = await w.until(2)
            assert [d.outputs[0].tolist() for d in done] == [[[1, 1, 1]], [[2, 2, 2]]]

    run(test)


def test_one_that_runs_too_long_is_found_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:

            def long_with_three(inputs: list[Any]) -> list[Any]:
                if (inputs[0] == 3).any():
                    raise RunStopped
                return [inputs[0] * 2]

            w.engine.run = long_with_three
            w.engine.hold.clear()
            jobs = [job(value, seconds=0.01 if value == 4 else 30.0) for value in range(6)]
            for each in jobs:
                w.lane.submit(each)
            await asyncio.sleep(0.05)
            w.engine.hold.set()
            await w.until(6)
            failed = [number for number, each in enumerate(jobs) if each.failure is not None]
            assert failed == [3, 4] and isinstance(jobs[3].failure, DeadlineExceeded)
            assert [each.outputs[0][0, 0] for each in jobs if each.failure is None] == [0, 2, 4, 10]
            assert w.lane.idle

    run(test)


def test_why_a_model_failed_is_in_the_log_but_not_for_every_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:

            def fail(inputs: list[Any]) -> list[Any]:
                raise ValueError(f"no {inputs[0][0, 0]:g}")

            w.engine.run = fail
            for value in range(3):
                w.lane.submit(job(value))
                await w.until(value + 1)
            monkeypatch.setattr(lane, "SILENT_SECONDS", 0.0)
            w.lane._silent_until = 0.0
            w.lane.submit(job(3))
            await w.until(4)
            assert {str(each.failure) for each in w.done} == {"model 'm' version 1 failed on this request"}

    run(test)
    assert caplog.messages == [
        "model 'm' version 1 failed on a request: no 0",
        "model 'm' version 1 failed on a request (2 other failures since the one that was told before): no 3",
    ]


def test_a_late_job_fails_and_its_neighbours_still_get_their_own_rows(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.hold.clear()
            late, other = job(1, seconds=0.0), job(2)
            w.lane.submit(late)
            w.lane.submit(other)
            await asyncio.sleep(0.05)
            w.lane.expire(time.perf_counter())
            assert isinstance(late.failure, DeadlineExceeded)
            w.engine.hold.set()
            await w.until(2)
            assert other.outputs[0].tolist() == [[4, 4, 4]] and not late.outputs

    run(test)


def test_when_the_engine_dies_only_what_it_was_running_fails_and_the_rest_waits_for_the_next(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.hold.clear()
            running, waiting = [job(1), job(2)], job(3)
            for one in running:
                w.lane.submit(one)
                await asyncio.sleep(0.02)
            w.engine.die()
            await w.until(2)
            assert all(isinstance(one.failure, ModelFailed) for one in running)
            assert not w.lane.ready
            w.lane.submit(waiting)
            w.engine.hold.set()
            assert await w.lane.connect()
            await w.until(3)
            assert waiting.outputs[0].tolist() == [[6, 6, 6]]

    run(test)


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path, max_queue=2) as w:
            w.engine.die()
            while w.lane.ready:
                await asyncio.sleep(0.001)
            w.lane.submit(job(1))
            w.lane.submit(job(2))
            with pytest.raises(Overloaded):
                w.lane.submit(job(3))

    run(test)


def test_jobs_of_callers_that_have_gone_cost_no_run(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            gone, here = job(1), job(2)
            gone.abandoned = True
            w.lane.submit(gone)
            w.lane.submit(here)
            await w.until(1)
            assert w.engine.batches == [1] and w.done == [here]

    run(test)


def test_an_open_circuit_refuses_what_waits_and_what_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.die()
            while w.lane.ready:
                await asyncio.sleep(0.001)
            waiting = job(1)
            w.lane.submit(waiting)
            w.lane.refuse_waiting("it crashed too often")
            assert isinstance(waiting.failure, EngineUnavailable)
            with pytest.raises(EngineUnavailable, match="crashed too often"):
                w.lane.submit(job(2))

    run(test)


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_a_lane_that_is_closed_while_it_connects_is_left_without_a_connection(tmp_path: Path, passes: int) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            lane = Lane(
                "m",
                1,
                socket_paths=[w.engine.path],
                done=w.done.extend,
                greeted=lambda hello: True,
                limits=QueueLimits(),
                frames_in_flight=2,
            )
            connecting = asyncio.create_task(lane.connect())
            for _ in range(passes):
                await asyncio.sleep(0)
            lane.close()
            await connecting
            await asyncio.sleep(0.05)
            assert not lane.ready and not await lane.connect()

    run(test)


def test_what_is_in_flight_when_a_lane_is_closed_fails_at_once_and_not_by_the_model(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            w.engine.hold.clear()
            jobs = [job(1), job(2)]
            w.lane.submit(jobs[0])
            await asyncio.sleep(0.02)
            w.lane.submit(jobs[1])
            w.lane.close()
            assert w.done == jobs and w.lane.idle and not w.lane.ready
            assert {str(each.failure) for each in jobs} == {
                "model 'm' version 1 is not available: it is being unloaded"
            }
            w.engine.hold.set()
            await asyncio.sleep(0.02)
            assert w.done == jobs

    run(test)


def test_an_engine_that_takes_its_time_to_greet_is_connected_to_once(tmp_path: Path) -> None:
    async def test() -> None:
        connections = 0

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(silent, path=str(tmp_path / "e.sock"))
        lane = Lane(
            "m",
            1,
            socket_paths=[tmp_path / "e.sock"],
            done=lambda jobs: None,
            greeted=lambda hello: True,
            limits=QueueLimits(),
            frames_in_flight=2,
        )
        for _ in range(20):
            await lane.connect()
            await asyncio.sleep(0.005)
        assert connections == 1 and not lane.ready
        lane.close()
        await asyncio.sleep(0.05)
        server.close()
        await server.wait_closed()

    run(test)


def test_a_batch_that_cannot_be_read_for_whatever_reason_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:

            def fails(jobs: list[Job]) -> tuple[None, list[Job]]:
                jobs[0].failure = ModelFailed("it was read as far as that")
                raise MemoryError

            w.lane._read = fails
            w.lane.submit(job(1))
            w.lane.submit(job(2))
            done = await w.until(2)
            assert [str(each.failure) for each in done] == [
                "it was read as far as that",
                "model 'm' version 1 cannot be asked",
            ]
            assert w.lane.idle

    run(test)


def test_a_lane_looks_for_its_engine_only_once_the_last_of_its_sockets_is_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with fake_engine(tmp_path / "own.sock") as own, fake_engine(tmp_path / "first.sock") as first:
            first.hello = msgspec.structs.replace(first.hello, pid=2)
            own.path.rename(tmp_path / "own")
            first.path.rename(tmp_path / "first")
            lane = Lane(
                "m",
                1,
                socket_paths=[own.path, first.path],
                done=lambda jobs: None,
                greeted=lambda hello: True,
                limits=QueueLimits(),
                frames_in_flight=2,
            )

            async def reached() -> int | None:
                for _ in range(20):
                    await lane.connect()
                    await asyncio.sleep(0.005)
                return lane.hello.pid if lane.ready and lane.hello else None

            assert await reached() is None
            (tmp_path / "own").rename(own.path)
            assert await reached() is None, "were it the other way round, the first would be taken for good"
            own.path.rename(tmp_path / "own")
            (tmp_path / "first").rename(first.path)
            assert await reached() == 2
            lane.close()

    run(test)
