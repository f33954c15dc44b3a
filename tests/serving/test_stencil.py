from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.encode import encode_flat, encode_rows, encode_string, encode_tensor, tensor_head
from gateway.serving.answers import infer_answer
from gateway.serving.records import prediction_head, prediction_record, record_time, tensor_records
from gateway.serving.stencil import make_stencil

ID = b"0196f0c5d2a100-0000000011"
TIME = record_time(1332633600.25)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12) | st.sampled_from(
    ["%b", "%%", "%d"]
)


def with_shape(head: bytes, shape: tuple[int, ...]) -> bytes:
    return head + b",".join(b"%d" % axis for axis in shape) + b"]"


@given(
    NAMES,
    NAMES,
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    st.integers(1, 3),
    st.tuples(*[st.integers(0, 2**31)] * 3),
)
def test_what_a_stencil_writes_is_what_is_written_part_by_part(
    input_name: str, output_name: str, row: list[float], rows: int, timings: tuple[int, int, int]
) -> None:
    head: dict[str, Any] = {
        "gateway": "g%1", "model": "m", "version": 2, "digest": "sha256:00", "arm": "canary", "weight": 12.5,
        "reason": "weight",
    }  # fmt: skip
    array, result = np.ones((rows, 2), "f4"), np.array([row] * rows, "f4")
    input_head, output_head = (tensor_head(TensorSpec(name, "FP32", (-1, 2))) for name in (input_name, output_name))
    answer_head = b'{"model_name":%b,"model_version":"2",' % encode_string("m")
    stencil = make_stencil(
        prediction_head(**head),
        rows=rows,
        input_head=with_shape(input_head, array.shape),
        output_head=with_shape(output_head, result.shape),
        answer_head=answer_head,
        version=b"2",
        arm=b"canary",
    )
    fragment, flat = encode_flat(array), encode_flat(result)
    inner = flat[1:-1]

    assert stencil.record % (ID, TIME, 17, *timings, fragment, inner, b',"key":"00"') == prediction_record(
        prediction_head(**head),
        event_id=ID,
        time=TIME,
        sequence=17,
        status=200,
        rows=rows,
        timings=timings,
        inputs=tensor_records([input_head], [array], [fragment], max_bytes=1000),
        outputs=tensor_records([output_head], [result], [flat], max_bytes=1000),
        parameters={},
        request_id=None,
        key="00",
        error=None,
    )
    body = b'%b"parameters":{"prediction_id":"%b"},"outputs":[%b]}' % (
        answer_head,
        ID,
        encode_tensor(output_head, result, flat),
    )
    assert stencil.answer % (ID, stencil.answer_bytes + len(inner), ID, inner) == infer_answer(
        body, prediction_id=ID, version=b"2", arm=b"canary", keep_alive=True
    )


@given(
    st.sampled_from([name for name, dtype in NUMPY_OF.items() if dtype.kind in "fiub"]), st.integers(0, 4), st.data()
)
def test_rows_are_the_elements_one_by_one_or_nothing(datatype: str, rows: int, data: st.DataObject) -> None:
    dtype = NUMPY_OF[datatype]
    shape = (rows, *data.draw(st.lists(st.integers(0, 3), max_size=3)))
    raw = data.draw(
        st.binary(min_size=int(np.prod(shape)) * dtype.itemsize, max_size=int(np.prod(shape)) * dtype.itemsize)
    )
    array = np.frombuffer(raw, dtype).reshape(shape)
    if dtype.kind == "b":
        array = np.frombuffer(raw, "u1").reshape(shape) > 127

    written = encode_rows(array)

    if written is None:
        finite = dtype.kind != "f" or np.isfinite(array).all()
        assert not array.size or datatype == "FP16" or not finite
    else:
        assert [orjson.loads(b"[%b]" % row) for row in written] == [orjson.loads(encode_flat(row)) for row in array]
