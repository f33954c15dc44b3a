"""Answers and records of requests that differ in little: what they have in common is rendered once.

Most traffic is one input of numbers in, one output of numbers back, again and again. For such requests on one arm, with
tensors of the same shapes, an answer is joined from parts, and the records of a batch are one block of the log. The
bytes are those that `answers.py` and `records.py` make; a test holds them against each other.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

from gateway.engine.job import Run
from gateway.events.addresses import ID_BYTES
from gateway.events.blocks import MAX_BLOCK, PredictionBlock, encode_block
from gateway.serving.answers import infer_answer

__all__ = ("Stencil", "make_stencil")

# Stands for what differs while the constant part is rendered; no name can hold it.
_ID = b"\x00id"

_U32 = Struct("<I")
BLOCK_BYTES = 2**20
"""Of the tensors in one block of the log."""

_LOWEST = tuple(b"%02x" % number for number in range(256))

Array = np.ndarray[Any, np.dtype[Any]]


class Stencil(NamedTuple):
    """What requests of the same rows have in common.

    `answer` is what stands around what is an answer's own: the number of the record, the content's length, the number
    again and the elements of the output. Its content is `answer_bytes` long without those elements. The rest is what a
    block of the log has once (`gateway.events.blocks`); `row_bytes` are those of an input's and an output's row
    together.
    """

    answer: tuple[bytes, bytes, bytes, bytes, bytes]
    answer_bytes: int
    head: bytes
    input_head: bytes
    output_head: bytes
    input_dtype: str
    output_dtype: str
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    row_bytes: int

    def most_in_block(self, rows: int) -> int:
        """How many requests of so many rows one block of the log may hold."""
        return min(MAX_BLOCK, max(1, BLOCK_BYTES // (self.row_bytes * rows)))

    def block(
        self,
        run: Run,
        inputs: Array,
        outputs: Array,
        *,
        rows: int,
        arrived: Sequence[float],
        queued: Sequence[float],
        keys: bytes = b"",
        now: float,
        stamp: bytes,
    ) -> bytes:
        """Render the record of requests that follow one another in their run.

        Parameters
        ----------
        inputs, outputs : arrays
            Of all of them.
        rows : int
            Of each.
        arrived, queued : sequence of float
            When each arrived and was queued, in seconds of `time.perf_counter()`.
        keys : bytes
            The hash of each one's routing key, or `NO_KEY`; empty where none has one.
        now : float
            When they are answered.
        stamp : bytes
            The same, from `record_time`.
        """
        count, sent_at = len(arrived), run.sent_at
        block = PredictionBlock(
            self.head,
            self.input_head,
            self.output_head,
            self.input_dtype,
            self.output_dtype,
            self.input_axes,
            self.output_axes,
            stamp,
            run.inference_ns // 1000,
            b"" if rows == 1 else _column([rows] * count),
            _column([int((sent_at - at) * 1e6) for at in queued]),
            _column([int((now - at) * 1e6) for at in arrived]),
            keys,
            inputs.tobytes(),
            outputs.tobytes(),
        )
        return encode_block(block, count)

    def answers(self, texts: Sequence[bytes], sequence: int) -> list[bytes]:
        """Render answers whose records are numbered from `sequence`.

        Parameters
        ----------
        texts : sequence of bytes
            The elements of each one's output, as JSON without brackets.
        """
        alike = len(_LOWEST) - sequence % len(_LOWEST)  # so many numbers differ in the last two digits only
        if len(texts) > alike:
            return self.answers(texts[:alike], sequence) + self.answers(texts[alike:], sequence + alike)
        before, headers, content, behind, end = self.answer
        high = b"%08x" % (sequence // len(_LOWEST))
        before, content = before + high, content + high
        size, join = self.answer_bytes, b"".join
        return [
            join((before, low, headers, b"%d" % (size + len(text)), content, low, behind, text, end))
            for low, text in zip(_LOWEST[sequence % len(_LOWEST) :], texts, strict=False)
        ]


def _column(numbers: Sequence[int]) -> bytes:
    return _U32.pack(numbers[0]) if len(numbers) == 1 else array("I", numbers).tobytes()


def make_stencil(
    head: bytes,
    *,
    boot: bytes,
    rows: int,
    inputs: Array,
    outputs: Array,
    input_head: bytes,
    output_head: bytes,
    answer_head: bytes,
    version: bytes,
    arm: bytes,
) -> Stencil:
    """Render what is constant.

    Parameters
    ----------
    head : bytes
        From `prediction_head`.
    boot : bytes
        What the ids of this front begin with.
    rows : int
        Of each request.
    inputs, outputs : arrays
        Of any number of rows.
    input_head, output_head : bytes
        From `tensor_head`.
    answer_head : bytes
        The answer's JSON up to its parameters.
    """
    shape = b",".join([b"%d" % axis for axis in (rows, *outputs.shape[1:])])
    body = b'%b"parameters":{"prediction_id":"%b"},"outputs":[%b%b],"data":[' % (answer_head, _ID, output_head, shape)
    answer = infer_answer(body, prediction_id=_ID, version=version, arm=arm, keep_alive=True)
    before, between, behind = answer.split(_ID)
    headers, word, content = between.partition(b"content-length: ")
    own = b"%b-" % boot
    return Stencil(
        answer=(before + own, headers + word, content.lstrip(b"0123456789") + own, behind, b"]}]}"),
        answer_bytes=len(body) - len(_ID) + ID_BYTES + len(b"]}]}"),
        head=head,
        input_head=input_head,
        output_head=output_head,
        input_dtype=inputs.dtype.newbyteorder("<").str,
        output_dtype=outputs.dtype.newbyteorder("<").str,
        input_axes=inputs.shape[1:],
        output_axes=outputs.shape[1:],
        row_bytes=(inputs.nbytes // len(inputs) + outputs.nbytes // len(outputs)),
    )
