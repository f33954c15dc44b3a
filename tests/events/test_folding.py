from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events.blocks import MAX_BLOCK, predictions_of
from gateway.events.folding import FEWEST, fold
from gateway.routing.table import hash_key
from tests.blocks import BOOT, Batch, singles
from tests.events.test_blocks import batches


def folded(payloads: list[bytes], sequence: int) -> list[tuple[int, bytes | None]]:
    """What `fold` gives, held against its law: all of them, in order, and blocks only of the very same bytes."""
    pieces = list(fold(payloads, boot=BOOT, sequence=sequence))
    place = 0
    for count, block in pieces:
        assert 0 < count <= MAX_BLOCK
        if block is not None:
            assert predictions_of(block, boot=BOOT, sequence=sequence + place) == payloads[place : place + count]
        place += count
    assert place == len(payloads)
    return pieces


@given(st.lists(batches(), min_size=1, max_size=3), st.integers(1, 2**40 - 100))
def test_whatever_blocks_give_is_folded_into_blocks_that_give_the_same(parts: list[Batch], sequence: int) -> None:
    payloads: list[bytes] = []
    for batch in parts:
        payloads += predictions_of(batch.payload(), boot=BOOT, sequence=sequence + len(payloads))
    folded(payloads, sequence)


@given(st.data())
def test_of_other_bytes_nothing_is_made_that_they_do_not_say(data: st.DataObject) -> None:
    batch = singles(6)
    batch.keys = [hash_key("one"), None] * 3
    payloads = predictions_of(batch.payload(), boot=BOOT, sequence=7)
    for _ in range(data.draw(st.integers(1, 4))):
        which = data.draw(st.integers(0, 5))
        text = payloads[which]
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 3))
        payloads[which] = (
            text[:at] + data.draw(st.binary(max_size=4) | st.sampled_from([b"0", b"]", b" "])) + text[at + cut :]
        )
    folded(payloads, 7)


def test_predictions_of_one_batch_come_back_as_the_block_that_they_were() -> None:
    first, second = singles(50), singles(MAX_BLOCK)
    first.keys = [None, hash_key("some key")] * 25
    payloads = predictions_of(first.payload(), boot=BOOT, sequence=3)
    payloads += predictions_of(second.payload(inference_us=99), boot=BOOT, sequence=53)
    assert folded(payloads, 3) == [(50, first.payload()), (MAX_BLOCK, second.payload(inference_us=99))]


def test_requests_of_several_rows_come_back_too() -> None:
    rows = [np.arange(3 * count, dtype="f4").reshape(count, 3) / 7 for count in (1, 4, 2, 2)]
    batch = Batch(rows, [row[:, 0].astype("i8") for row in rows], datatypes=("FP32", "INT64"))
    assert folded(predictions_of(batch.payload(), boot=BOOT, sequence=1), 1) == [(4, batch.payload())]


@pytest.mark.parametrize(
    "change",
    [
        (b'"status":200', b'"status":500'),
        (b'"parameters":{}', b'"parameters":{"a":1}'),
        (b'"data":[', b'"data":[null,'),
        (b'"data":[', b'"data":["1",'),
        (b'"seq":8,', b'"seq":9,'),
        (BOOT.encode(), b"0" * 14),
        (b"{", b"{ "),
    ],
)
def test_what_says_something_else_stays_single_and_the_others_are_folded(change: tuple[bytes, bytes]) -> None:
    payloads = predictions_of(singles(12).payload(), boot=BOOT, sequence=3)
    payloads[5] = payloads[5].replace(*change, 1)
    pieces = folded(payloads, 3)
    assert all(
        block is None
        for (count, block), place in zip(pieces, _places(pieces), strict=True)
        if place <= 5 < place + count
    )


def test_what_pretends_to_have_more_axes_than_a_tensor_can_costs_nothing() -> None:
    text = b",".join([b"1", *[b"999999999"] * 90_000])
    payloads = [
        payload.replace(b'"shape":[1,', b'"shape":[%b,' % text)
        for payload in predictions_of(singles(8).payload(), boot=BOOT, sequence=1)
    ]
    assert folded(payloads, 1) == [(1, None)] * 8
    few = [payload.replace(text, b",".join([b"1", *[b"999999999"] * 60])) for payload in payloads]
    assert folded(few, 1) == [(8, None)]


def test_missing_numbers_keep_only_their_own_predictions_single() -> None:
    batch = singles(20)
    batch.inputs[7][0, 1] = np.nan
    pieces = folded(predictions_of(batch.payload(), boot=BOOT, sequence=1), 1)
    assert [(count, block is not None) for count, block in pieces] == [(7, True), (1, False), (12, True)]


def test_too_few_stay_single() -> None:
    payloads = predictions_of(singles(FEWEST - 1).payload(), boot=BOOT, sequence=1)
    assert folded(payloads, 1) == [(FEWEST - 1, None)]
    assert folded([], 1) == []


def _places(pieces: list[tuple[int, bytes | None]]) -> list[int]:
    places = [0]
    for count, _ in pieces:
        places.append(places[-1] + count)
    return places[:-1]
