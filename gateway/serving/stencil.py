"""Answers and records of requests that differ in little: what they have in common is rendered once.

Most traffic is one input of numbers in, one output of numbers back, again and again. For such requests on one arm, with
tensors of the same shapes, an answer is one formatting, and the records of a batch are one block of the log. The bytes
are those that `answers.py` and `records.py` make; a test holds them against each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gateway.events.addresses import ID_BYTES
from gateway.serving.answers import infer_answer

__all__ = ("Stencil", "make_stencil")

# Stand for what differs while the constant part is rendered; no name can hold them.
_ID, _LENGTH = b"\x00id", b"\x00length"

Array = np.ndarray[Any, np.dtype[Any]]


class Stencil(NamedTuple):
    """What requests of the same rows have in common.

    `answer` is a format for `%`, which takes the number of the record, the content's length, the number again and the
    elements of the output; its content is `answer_bytes` long without those elements. The rest is what a block of the
    log has once (`gateway.events.blocks`); `row_bytes` are those of an input's and an output's row together.
    """

    answer: bytes
    answer_bytes: int
    head: bytes
    input_head: bytes
    output_head: bytes
    input_dtype: str
    output_dtype: str
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    row_bytes: int


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
    before, _, after = answer.partition(b"content-length: ")
    answer = b"%bcontent-length: %b%b" % (before, _LENGTH, after.lstrip(b"0123456789"))
    return Stencil(
        answer=answer.replace(b"%", b"%%").replace(_ID, b"%b-%%010x" % boot).replace(_LENGTH, b"%d") + b"%b]}]}",
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
