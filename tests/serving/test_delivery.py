"""Answers of requests that shared a run: none of them costs another its own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.serving import aside, records
from gateway.serving.inference import Inference
from tests.serving.fronts import Door, door, post, read_answer

WIDTH = 50_000
WIDE = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, WIDTH)),))
Answers = list[tuple[int, dict[str, str], Any]]


def asked(value: float, *, headers: str = "", binary: bool = False) -> bytes:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    outputs = [{"name": "y", "parameters": {"binary_data": binary}}]
    return post({"id": str(value), "inputs": [tensor], "outputs": outputs}, headers=headers)


@contextlib.asynccontextmanager
async def wide_door(tmp_path: Path, **sections: Any) -> AsyncIterator[Door]:
    """A front before a fake engine that answers with 200 KB for each row."""
    async with door(tmp_path, engine_options={"signature": WIDE}, **sections) as d:
        d.engine.run = lambda inputs: [np.repeat(inputs[0], WIDTH, axis=1)]
        yield d


async def together(d: Door, *requests: bytes) -> Answers:
    """Their answers, when they were one batch."""
    d.engine.hold.clear()
    lane, before = d.front.versions["m", 1].lane, len(d.engine.batches)
    connections = [await d.connect() for _ in range(len(requests) + 2)]
    most = d.front.settings.engine.frames_in_flight
    for count, ((_, writer), request) in enumerate(zip(connections, [asked(0)] * most + list(requests), strict=True)):
        writer.write(request)
        async with asyncio.timeout(10):
            while len(lane._in_flight) + len(lane.line) <= count:
                await asyncio.sleep(0.002)
    d.engine.hold.set()
    answers = [await read_answer(reader) for reader, _ in connections][most:]
    for _, writer in connections:
        writer.close()
    assert d.engine.batches[before:] == [1] * most + [len(requests)]
    return answers


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were written aside together, each time."""
    counts: list[int] = []

    def noted(inferences: Sequence[Inference], **named: Any) -> None:
        counts.append(len(inferences))
        aside.prepare_answers(inferences, **named)

    monkeypatch.setattr("gateway.serving.delivery.prepare_answers", noted)
    return counts


@pytest.mark.parametrize("others", ["JSON", "gzip"])
async def test_whatever_the_first_wants_what_is_slow_to_write_for_others_is_written_aside(
    tmp_path: Path, prepared: list[int], others: str
) -> None:
    headers = "Accept-Encoding: gzip\r\n" if others == "gzip" else ""
    async with wide_door(tmp_path) as d:
        first, *rest = await together(d, asked(1, binary=True), *[asked(2 + n, headers=headers) for n in range(2)])
        assert first[2].endswith(np.full(WIDTH, 1, "<f4").tobytes())
        for number, (status, _, body) in enumerate(rest):
            answer = json.loads(gzip.decompress(body)) if headers else body
            assert status == 200 and answer["outputs"][0]["data"] == [2 + number] * WIDTH
        assert prepared == [3] and len(d.log()) == 5


async def test_a_batch_that_is_soon_written_is_written_at_once(tmp_path: Path, prepared: list[int]) -> None:
    async with wide_door(tmp_path) as d:
        answers = await together(d, *[asked(number, binary=True) for number in range(3)])
        assert [status for status, _, _ in answers] == [200] * 3 and prepared == []


async def test_an_answer_that_cannot_be_prepared_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = records.tensor_records

    def fails_for_two(heads: Any, arrays: Any, *given: Any, **named: Any) -> bytes:
        if arrays[0].size == WIDTH and arrays[0].flat[0] == 2:
            raise ZeroDivisionError
        return written(heads, arrays, *given, **named)

    monkeypatch.setattr("gateway.serving.aside.tensor_records", fails_for_two)
    async with wide_door(tmp_path) as d:
        answers = await together(d, *[asked(number) for number in (1, 2, 3)])
        assert [status for status, _, _ in answers] == [200, 500, 200]
        assert "ZeroDivisionError" in answers[1][2]["error"]
        assert [record["status"] for record in d.log()] == [200] * 3 + [500, 200]


async def test_an_answer_that_cannot_be_released_keeps_back_none_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = Inference.release

    def fails_for_two(inference: Inference, *given: Any, **named: Any) -> None:
        if inference.request_id == "2":
            raise ZeroDivisionError
        released(inference, *given, **named)

    monkeypatch.setattr(Inference, "release", fails_for_two)
    async with wide_door(tmp_path) as d:
        answers = await together(d, *[asked(number) for number in (1, 2, 3)])
        assert [status for status, _, _ in answers] == [200, 500, 200]
        assert "could not be written" in answers[1][2]["error"] and "ZeroDivisionError" in caplog.text
        assert d.front.versions["m", 1].requests("stable", 200).value == len(d.log()) == 5


async def test_a_front_holds_so_many_bytes_of_answers_and_refuses_what_goes_beyond(tmp_path: Path) -> None:
    async with wide_door(tmp_path, limits={"max_held_answer_bytes": 2**20}) as d:
        answers = await together(d, *[asked(number) for number in range(7)])
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        for status, headers, content in answers:
            if status == 503:
                assert "limits.max_held_answer_bytes" in content["error"] and headers["retry-after"] == "1"
        assert sorted(record["status"] for record in d.log()) == sorted([200, 200, *statuses])
        async with asyncio.timeout(10):
            while d.front.answers.held_bytes:
                await asyncio.sleep(0.01)
        (answer,) = await d.send(asked(1), read=1)
        assert answer[0] == 200
