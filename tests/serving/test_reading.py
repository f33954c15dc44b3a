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
from tests.serving.fronts import door, post

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


def decoder_of(datatype: str, *, primed: bool) -> RequestDecoder:
    decoder = RequestDecoder("m", Signature((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),)))
    if primed:
        decoder.decode(body_of(datatype, b"[1, 2]"))
    return decoder


def body_of(datatype: str, text: bytes) -> bytes:
    return b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "%b", "data": %b}]}' % (datatype.encode(), text)


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


@given(st.sampled_from(NUMBERS), st.lists(TEXTS, min_size=1, max_size=6))
@example("FP32", [b'["]', b'["]'])
@example("FP32", [b"[1,2]", b"[1e39,1]", b"[3,4]"])
@example("INT8", [b"[1,2]", b"[1,300]", b"[3,-4]"])
@example("FP32", [b"[1,2,3]", b"[4]"])
@example("FP32", [b"[1]", b"[2,3,4]", b"[5,6]"])
@example("FP32", [b"[]", b"[1,2,3,4]"])
@example("FP32", [b"[1,[2]]", b"[[3],4]"])
@example("FP32", [b"[1]],[[2]", b"[3,4]"])
def test_a_batch_is_read_as_each_of_its_requests_would_be(datatype: str, texts: list[bytes]) -> None:
    decoder = decoder_of(datatype, primed=True)
    bodies = [body_of(datatype, text) for text in texts]
    batch = [found for body in bodies if (found := recognised(body, decoder)) is not None]
    asked = [body for body in bodies if recognised(body, decoder) is not None]

    whole, refused = read_batch(batch)

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


def test_a_text_with_idle_blanks_is_not_recognised() -> None:
    assert recognised(body_of("FP32", b"[1," + b" " * 200 + b"2]"), decoder_of("FP32", primed=True)) is None


@pytest.mark.parametrize(("counts", "are_read"), [((1000, 1000), True), ((999, 1001), False), ((1001, 999), False)])
def test_each_of_many_has_as_many_numbers_as_it_says(counts: tuple[int, ...], are_read: bool) -> None:
    decoder = RequestDecoder("m", Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),)))
    body = b'{"inputs": [{"name": "x", "shape": [500, 2], "datatype": "FP32", "data": [%b]}]}'
    decoder.decode(body % b",".join([b"0.123456"] * 1000))
    batch = [recognised(body % b",".join([b"0.12345"] * count), decoder) for count in counts]

    whole, refused = read_batch([each for each in batch if each is not None])

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

    whole, refused = read_batch(batch)

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
