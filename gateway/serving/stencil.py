"""Records and answers of requests that differ in little, rendered once with gaps for what differs.

Most traffic is one input of numbers in, one output of numbers back, again and again. For such requests on one arm, with
tensors of the same shapes, a record and an answer are one formatting each. The bytes are those that `records.py` and
`answers.py` make; a test holds the two against each other.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.events.addresses import ID_BYTES
from gateway.serving.answers import infer_answer

__all__ = ("Stencil", "make_stencil")

# Stand for what differs while the constant part is rendered; no name can hold them.
_ID, _LENGTH = b"\x00id", b"\x00length"


class Stencil(NamedTuple):
    """Two formats for `%`.

    `record` takes id, time, sequence, queue, inference and total in microseconds, the elements of input and output as
    JSON without brackets, and further members. `answer` takes id, content length, id and the elements of the output;
    its content is `answer_bytes` long without those elements.
    """

    record: bytes
    answer: bytes
    answer_bytes: int


def make_stencil(
    record_head: bytes,
    *,
    rows: int,
    input_head: bytes,
    output_head: bytes,
    answer_head: bytes,
    version: bytes,
    arm: bytes,
) -> Stencil:
    """Render what is constant.

    Parameters
    ----------
    record_head : bytes
        From `prediction_head`.
    input_head, output_head : bytes
        From `tensor_head`, with the shape behind it.
    answer_head : bytes
        The answer's JSON up to its parameters.
    """
    body = b'%b"parameters":{"prediction_id":"%b"},"outputs":[%b,"data":[' % (answer_head, _ID, output_head)
    answer = infer_answer(body, prediction_id=_ID, version=version, arm=arm, keep_alive=True)
    head, _, content = answer.partition(b"\r\n\r\n")
    before, _, after = head.partition(b"content-length: ")
    answer = b"%bcontent-length: \x00length%b\r\n\r\n%b" % (before, after.lstrip(b"0123456789"), content)
    return Stencil(
        record=(
            b'%b,"id":"%%b","time":"%%b","seq":%%d,"status":200,"rows":%d,'
            b'"timings":{"queue_us":%%d,"inference_us":%%d,"total_us":%%d},'
            b'"inputs":[%b,"data":%%b}],"outputs":[%b,"data":[%%b]}],"parameters":{}%%b}'
            % (_escaped(record_head), rows, _escaped(input_head), _escaped(output_head))
        ),
        answer=_escaped(answer).replace(_ID, b"%b").replace(_LENGTH, b"%d") + b"%b]}]}",
        answer_bytes=len(body) - len(_ID) + ID_BYTES + len(b"]}]}"),
    )


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
