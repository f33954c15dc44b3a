from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.events.blocks import (
    MAX_BLOCK,
    MAX_BLOCK_BYTES,
    MAX_HEAD_BYTES,
    BlockError,
    count_of,
    encode_block,
    predictions_of,
)
from gateway.events.encoding import decode
from gateway.events.records import KIND_PREDICTION, PredictionRecord
from gateway.protocol.datatypes import NUMPY_OF
from gateway.routing.table import hash_key
from tests.blocks import BOOT, Batch, singles

DATATYPES = [name for name, dtype in NUMPY_OF.items() if dtype.kind in "fiub" and name not in ("FP16", "BF16")]
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12) | st.sampled_from(
    ["%b", "%%", "%d", '"', "],[", '],"data":[', ']}],"outputs":[']
)
AXES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
MICROSECONDS = st.integers(0, 2**32 - 1)


def of_any_bits(dtype: np.dtype[Any], shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return hnp.arrays(dtype, shape)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    datatypes = draw(st.tuples(st.sampled_from(DATATYPES), st.sampled_from(DATATYPES)))
    rows = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6) | st.sampled_from([[1], [1] * 5, [2] * 4]))
    axes = draw(st.tuples(AXES, AXES))
    tensors = [
        [draw(of_any_bits(NUMPY_OF[datatype], (row, *own))) for row in rows]
        for datatype, own in zip(datatypes, axes, strict=True)
    ]
    return Batch(
        *tensors,
        names=draw(st.tuples(NAMES, NAMES, NAMES)),
        datatypes=datatypes,
        timings=[draw(st.tuples(MICROSECONDS, MICROSECONDS)) for _ in rows],
        keys=[draw(st.none() | st.text(max_size=3).map(hash_key)) for _ in rows],
        inference_us=draw(st.integers(0, 2**63)),
    )


@given(batches(), st.integers(1, 2**40 - 10))
def test_what_a_block_gives_is_what_is_written_one_by_one(batch: Batch, sequence: int) -> None:
    payload = batch.payload()
    assert count_of(payload) == len(batch.inputs)
    assert predictions_of(payload, boot=BOOT, sequence=sequence) == batch.records(sequence)


def test_numbers_stand_in_their_shortest_form() -> None:
    batch = Batch([np.array([[8, 0.1, float("nan")]], "f4")], [np.array([[412.25]], "f8")], datatypes=("FP32", "FP64"))
    (record,) = predictions_of(batch.payload(), boot=BOOT, sequence=1)
    assert b'"shape":[1,3],"data":[8.0,0.1,null]}' in record
    found = decode(KIND_PREDICTION, record)
    assert isinstance(found, PredictionRecord)
    assert (found.id, found.status, found.rows, found.outputs[0].data) == (f"{BOOT}-0000000001", 200, 1, [412.25])


def test_columns_may_be_views_of_arrays() -> None:
    batch = singles()
    inputs, outputs, columns = np.array(batch.inputs), np.array(batch.outputs), np.array(batch.timings, "<u4").T.copy()
    payload = batch.payload(
        inputs=inputs.data, outputs=bytearray(outputs.tobytes()), queue_us=columns[0].data, total_us=columns[1].data
    )
    assert payload == batch.payload()


def test_a_block_as_large_as_one_may_be_is_read_and_a_larger_one_is_not_written() -> None:
    batch = singles(MAX_BLOCK)
    assert len(predictions_of(batch.payload(), boot=BOOT, sequence=1)) == MAX_BLOCK
    room = MAX_BLOCK_BYTES - len(batch.payload(inputs=b""))
    large = singles(1)
    large.inputs = [np.zeros((1, room // 4), "f4")]
    assert len(predictions_of(large.payload(), boot=BOOT, sequence=1)) == 1
    with pytest.raises(BlockError, match=f"expected at most {MAX_BLOCK_BYTES}"):
        batch.payload(inputs=bytes(MAX_BLOCK_BYTES))
    for count in (0, MAX_BLOCK + 1):
        with pytest.raises(BlockError, match=f"expected 1 to {MAX_BLOCK}"):
            encode_block(batch.block(), count)
    rest = len(batch.heads[0] + batch.heads[1])
    heads = b"h" * (MAX_HEAD_BYTES - rest)
    assert predictions_of(batch.payload(head=heads), boot=BOOT, sequence=1)[0].startswith(heads)
    with pytest.raises(BlockError, match=f"more than {MAX_HEAD_BYTES} bytes"):
        batch.payload(head=heads + b"h")


def written_by_somebody(batch: Batch, count: int | None = None, **changes: Any) -> bytes:
    """A payload that `encode_block` need not have written."""
    number = len(batch.inputs) if count is None else count
    return number.to_bytes(2, "little") + msgspec.msgpack.encode(batch.block(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"count": 0}, "counts no predictions"),
        ({"count": MAX_BLOCK + 1}, "counts no predictions"),
        ({"count": 65535}, "counts no predictions"),
        ({"count": 2}, "queue_us"),
        ({"rows": b"\1\0\0\0" * 2}, "rows"),
        ({"rows": b"\2\0\0\0" * 3}, "rows and axes"),
        ({"rows": b"\xff" * 12}, "rows and axes"),
        ({"queue_us": b""}, "queue_us"),
        ({"total_us": bytes(13)}, "total_us"),
        ({"keys": b"0" * 47}, "keys"),
        ({"keys": b'"' * 48}, "keys"),
        ({"inputs": bytes(47)}, "inputs"),
        ({"inputs": b""}, "inputs"),
        ({"outputs": bytes(16)}, "outputs"),
        ({"input_axes": (5,)}, "inputs"),
        ({"input_axes": (2**63, 2**63, 2**63)}, "inputs"),
        ({"input_axes": (2**63,) * 63}, "inputs"),
        ({"input_axes": (1,) * 64}, "no block"),
        ({"input_axes": (-4, -1)}, "no block"),
        ({"input_axes": (4.0,)}, "no block"),
        ({"inference_us": -1}, "no block"),
        ({"input_dtype": "|O"}, "'|O'; expected one of <f4"),
        ({"input_dtype": "<f2"}, "<f2"),
        ({"input_dtype": ">f4"}, ">f4"),
        ({"input_dtype": "float32"}, "float32"),
        ({"input_dtype": "f" * 1000}, "f" * 16 + "'"),
        ({"output_dtype": "<M8[s]"}, "<M8"),
        ({"output_dtype": "|b1", "outputs": b"\1\0\2"}, "no booleans"),
        ({"head": "text"}, "no block"),
        ({"head": bytes(MAX_HEAD_BYTES)}, "heads"),
        ({"output_head": bytes(MAX_HEAD_BYTES + 1)}, "no block"),
        ({"time": bytes(41)}, "no block"),
        ({"inputs": None}, "no block"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_no_block(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BlockError, match=reason.replace("|", r"\|")):
        predictions_of(written_by_somebody(singles(), **changes), boot=BOOT, sequence=1)


@pytest.mark.parametrize(
    "rest",
    [b"", b"\0", b"\x01", b"\1\0", b"\1\0\xc0", b"\1\0\x90", b"\1\0\xdf\xff\xff\xff\xff", b"\1\0" + b"\x91" * 100_000],
)
def test_what_is_no_msgpack_or_another_is_no_block(rest: bytes) -> None:
    with pytest.raises(BlockError):
        predictions_of(rest, boot=BOOT, sequence=1)


@pytest.mark.parametrize("payload", [b"", b"\1", b"\0\0", b"\1\1", b"\xff\xff"])
def test_what_counts_no_predictions_takes_no_numbers(payload: bytes) -> None:
    with pytest.raises(BlockError, match="counts no predictions"):
        count_of(payload)


def test_a_later_form_of_the_block_is_refused_and_not_guessed_at() -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(singles().block()))
    for deep in (7, [[[]]] * 3):
        with pytest.raises(BlockError):
            predictions_of(b"\3\0" + msgspec.msgpack.encode([*fields, deep]), boot=BOOT, sequence=1)
    with pytest.raises(BlockError):
        predictions_of(b"\3\0" + msgspec.msgpack.encode(fields) + b"\xc0", boot=BOOT, sequence=1)


def test_lengths_that_the_payload_does_not_have_take_no_memory() -> None:
    payload = singles().payload()
    axes = payload.index(b"\x91\x04")
    for absurd in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        for place in (3, axes, axes - 4):
            with pytest.raises(BlockError):
                predictions_of(payload[:place] + absurd + payload[place:], boot=BOOT, sequence=1)


def test_a_payload_cut_at_any_byte_is_no_block() -> None:
    payload = singles().payload()
    for end in range(len(payload)):
        with pytest.raises(BlockError):
            predictions_of(payload[:end], boot=BOOT, sequence=1)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_flipped_bytes_give_as_many_records_as_counted_or_no_block(flips: list[tuple[int, int]], mixed: bool) -> None:
    batch = singles()
    if mixed:
        batch.inputs = [np.ones((row, 2), "f4") for row in (1, 3, 2)]
        batch.outputs = [np.ones((row, 2), "?") for row in (1, 3, 2)]
        batch.keys = [None, "0123456789abcdef", None]
    payload = bytearray(batch.payload())
    for place, value in flips:
        payload[place % len(payload)] ^= value
    flipped = bytes(payload)
    try:
        records = predictions_of(flipped, boot=BOOT, sequence=1)
    except BlockError:
        return
    assert len(records) == count_of(flipped)
    assert all(record.endswith(b"}") for record in records)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_block_or_none(payload: bytes) -> None:
    with pytest.raises(BlockError):
        predictions_of(payload, boot=BOOT, sequence=1)


def test_the_memory_a_block_takes_is_bounded_by_its_bytes() -> None:
    batch = singles(MAX_BLOCK)
    payload = written_by_somebody(batch, rows=b"\xff\xff\xff\xff" * MAX_BLOCK, input_axes=(2**40,))
    widest = written_by_somebody(singles(1), inputs=b"\x80" * 2**20, input_dtype="|i1", input_axes=(2**20,))
    large = written_by_somebody(singles(1), inputs=bytes(8 * MAX_BLOCK_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(BlockError):
            predictions_of(payload, boot=BOOT, sequence=1)
        with pytest.raises(BlockError, match="expected at most"):
            predictions_of(large, boot=BOOT, sequence=1)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        assert len(predictions_of(widest, boot=BOOT, sequence=1)[0]) > 5 * 2**20
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()
