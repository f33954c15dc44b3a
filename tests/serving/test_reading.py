from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import CallerError
from gateway.serving.inference import Inference
from gateway.serving.reading import read_batch
from tests.serving.fronts import door, post, read_answer

NUMBERS = [name for name, dtype in NUMPY_OF.items() if dtype.kind in "fiu" and name not in ("FP16", "BF16")]
TEXTS = st.one_of(
    st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-300, 300), min_size=2, max_size=2).map(
        lambda numbers: json.dumps(numbers).encode()
    ),
    st.lists(st.integers(0, 3), max_size=5).map(lambda numbers: json.dumps(numbers).encode()),
    st.text("019.,-eE[]{}\"'\\ nulltrueNaNInfinity:\n", max_size=12).map(lambda text: b"[%b]" % text.encode()),
    st.sampled_from(
        [b'["]', b'["]"]', b"[1,,2]", b"[1 2,3]", b"[1,2", b"[true,1]", b"[null,1]", b"[1e400,1]", b"[1e39,1]"]
    ),
)


SIGNATURES = {
    datatype: Signature((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))
    for datatype in NUMBERS
}


def decoder_of(datatype: str, *, primed: bool, data_first: bool = False) -> RequestDecoder:
    decoder = RequestDecoder("m", SIGNATURES[datatype], secret=8_675_309_012_345)
    if primed:
        decoder.decode(body_of(datatype, b"[1, 2]", data_first=data_first))
    return decoder


def body_of(datatype: str, text: bytes, *, data_first: bool = False) -> bytes:
    rest = b'"name": "x", "shape": [1, 2], "datatype": "%b"' % datatype.encode()
    members = (b'"data": %b' % text, rest) if data_first else (rest, b'"data": %b' % text)
    return b'{"inputs": [{%b, %b}]}' % members


def recognised(body: bytes, decoder: RequestDecoder) -> Inference | None:
    connection: Any = SimpleNamespace(answered=None)
    inference = Inference(connection, "m")
    inference.body = [body]
    inference.served = SimpleNamespace(decoder=decoder)  # type: ignore[assignment]
    return inference if inference.recognise(decoder) else None


def outcome_of(body: bytes, datatype: str) -> list[Any] | str:
    try:
        [array] = decoder_of(datatype, primed=False).decode(body).inputs
    except CallerError as error:
        return str(error)
    return [array.dtype, array.tolist()]


@given(st.sampled_from(NUMBERS), st.lists(TEXTS, max_size=6), st.booleans())
@example("FP32", [b'["]', b'["]'], False)
@example("FP32", [b"[1,2]", b"[1e39,1]", b"[3,4]"], False)
@example("INT8", [b"[1,2]", b"[1,300]", b"[3,-4]"], False)
@example("FP32", [b"[1,2,3]", b"[4]"], False)
@example("FP32", [b"[1]", b"[2,3,4]", b"[5,6]"], False)
@example("FP32", [b"[]", b"[1,2,3,4]"], False)
@example("FP32", [b"[1,[2]]", b"[[3],4]"], False)
@example("FP32", [b"[1]],[[2]", b"[3,4]"], False)
@example("FP32", [b'[1]}],"q":[{"r":[]', b'[1,2,3,4]}],"q":[{"r":[]'], False)
@example("FP32", [b'[1,2,3,4],"name":"x","shape":[2,2],"datatype":"FP32"}],"q":[{"r":[]', b"[1,2]"], True)
def test_a_batch_is_read_as_each_of_its_requests_would_be(datatype: str, texts: list[bytes], data_first: bool) -> None:
    decoder = decoder_of(datatype, primed=True, data_first=data_first)
    bodies = [body_of(datatype, text, data_first=data_first) for text in texts]
    batch = [found for body in bodies if (found := recognised(body, decoder)) is not None]
    asked = [body for body in bodies if recognised(body, decoder) is not None]

    _, whole, refused = read_batch(batch)

    for inference, body in zip(batch, asked, strict=True):
        if inference.failure is not None:
            assert any(inference is each for each in refused)
            assert outcome_of(body, datatype) == str(inference.failure)
        elif whole is None:
            [array] = inference.inputs
            assert outcome_of(body, datatype) == [array.dtype, array.tolist()]
    if whole is not None:
        [array] = whole
        assert [[array.dtype, array[place : place + 1].tolist()] for place in range(len(batch))] == [
            outcome_of(body, datatype) for body in asked
        ]


@pytest.mark.parametrize("text", [b"[1,2]", b"[ 1.5 , -2e3 ]"])
def test_a_request_like_the_last_is_recognised(text: bytes) -> None:
    assert recognised(body_of("FP32", text), decoder_of("FP32", primed=True)) is not None


@pytest.mark.parametrize("text", [b"[1," + b" " * 200 + b"2]", b"[[1,2]]", b"[1,2]]", b'[1,2],"x":[]', b""])
def test_what_may_be_another_request_is_not_recognised(text: bytes) -> None:
    assert recognised(body_of("FP32", text), decoder_of("FP32", primed=True)) is None


def test_without_a_secret_nothing_is_recognised() -> None:
    decoder = RequestDecoder("m", SIGNATURES["FP32"])
    decoder.decode(body_of("FP32", b"[1, 2]"))
    assert recognised(body_of("FP32", b"[1, 2]"), decoder) is None


@pytest.mark.parametrize(("counts", "are_read"), [((1000, 1000), True), ((999, 1001), False), ((1001, 999), False)])
def test_each_of_many_has_as_many_numbers_as_it_says(counts: tuple[int, ...], are_read: bool) -> None:
    decoder = decoder_of("FP32", primed=False)
    body = b'{"inputs": [{"name": "x", "shape": [500, 2], "datatype": "FP32", "data": [%b]}]}'
    decoder.decode(body % b",".join([b"0.123456"] * 1000))
    batch = [recognised(body % b",".join([b"0.12345"] * count), decoder) for count in counts]

    _, whole, refused = read_batch([each for each in batch if each is not None])

    assert (whole is not None) == are_read
    assert refused == ([] if are_read else batch)


def test_requests_of_other_rows_are_read_each_with_its_like() -> None:
    decoder, bodies = decoder_of("FP32", primed=False), []
    batch = []
    for rows in (1, 1, 2, 2, 1):
        text = json.dumps(list(range(2 * rows)))
        body = f'{{"inputs": [{{"name": "x", "shape": [{rows}, 2], "datatype": "FP32", "data": {text}}}]}}'.encode()
        decoder.decode(body)
        found = recognised(body, decoder)
        assert found is not None
        batch.append(found)
        bodies.append(body)

    _, whole, refused = read_batch(batch)

    assert whole is None and not refused
    assert [inference.inputs[0].tolist() for inference in batch] == [
        decoder.decode(body).inputs[0].tolist() for body in bodies
    ]


@pytest.mark.parametrize("text", [b"[]", b"[ ]", b"[\t]", b"[\n]", b"[\r\n]"])
async def test_a_request_without_its_one_number_is_refused_and_gets_nobody_elses_answer(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))
    tensor = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":%b}]}'
    async with door(tmp_path, engine_options={"signature": signature}) as d:
        await d.send(post(tensor % b"[1.5]"), read=1)
        asked = [post(tensor % each) for each in (text, b"[7.5]", text, b"[8.5]")]
        answers = await d.send(b"".join(asked), read=4)
        assert [status for status, _, _ in answers] == [400, 200, 400, 200]
        assert [body["outputs"][0]["data"] for status, _, body in answers if status == 200] == [[15.0], [17.0]]
        assert "mixes" not in caplog.text, "what a caller sends is not the model's fault"


async def test_requests_of_other_lengths_are_never_read_or_run_as_one(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),))

    def ask_for(*numbers: float) -> bytes:
        tensor = {"name": "x", "shape": [1, len(numbers)], "datatype": "FP32", "data": numbers}
        return post({"inputs": [tensor]})

    asked = [(1.5, 2.5), (3.5, 4.5)] * 2 + [(1.5, 2.5, 3.5, 4.5), (5.5, 6.5, 7.5, 8.5)] * 2
    async with door(tmp_path, engine_options={"signature": signature}) as d:
        answers = await d.send(b"".join(ask_for(*numbers) for numbers in asked), read=len(asked))
        assert [body["outputs"][0]["data"] for _, _, body in answers] == [[2 * n for n in numbers] for numbers in asked]


def lead_out_of_array(rows: int, number: int) -> bytes:
    """A request of so many rows that ends as one of two rows does."""
    numbers = ",".join([str(number)] * 3 * rows)
    tensor = f'{{"data":[{numbers}],"name":"x","shape":[{rows},3],"datatype":"FP32"}}'
    return f'{{"inputs":[{tensor}],"q":[{{"r":[],"name":"x","shape":[2,3],"datatype":"FP32"}}]}}'.encode()


async def test_a_request_that_ends_as_the_last_one_but_has_other_rows_gets_no_row_of_others(tmp_path: Path) -> None:
    def ask(*numbers: int) -> bytes:
        return b'{"inputs":[{"data":[%b],"name":"x","shape":[2,3],"datatype":"FP32"}]}' % b",".join(
            b"%d" % number for number in numbers
        )

    asked = [lead_out_of_array(3, 100), ask(*range(6)), lead_out_of_array(1, 200), ask(*range(6))]
    async with door(tmp_path) as d:
        await d.send(post(ask(*range(6))), read=1)
        answers = await d.send(b"".join(post(body) for body in asked), read=len(asked))
    doubled = [2 * number for number in range(6)]
    assert [body["outputs"][0]["data"] for _, _, body in answers] == [[200] * 9, doubled, [400] * 3, doubled]


@pytest.mark.promise("P7")
async def test_a_request_with_too_few_numbers_is_its_callers_fault_though_no_engine_is_there(tmp_path: Path) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[%b]}]}'
    async with door(tmp_path, limits={"request_timeout_ms": 400}) as d:
        await d.send(post(body % b"1,2,3"), read=1)
        d.engine.hold.clear()
        held, waiting = await d.connect(), await d.connect()
        for (_, writer), numbers in zip((held, waiting), (b"1,2,3", b"1,2"), strict=True):
            writer.write(post(body % numbers))
        statuses = [(await read_answer(reader))[0] for reader, _ in (held, waiting)]
        d.engine.hold.set()
        for _, writer in (held, waiting):
            writer.close()
    assert statuses == [504, 400]
