"""The cases: what the Open Inference Protocol and its extensions say, sentence by sentence.

Each case is one exchange and what its answer must be. `area` groups the score; an area of an extension is left out
where the server does not list the extension.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.conformance import checks
from tests.conformance.checks import Check, all_of, data, error, fields, names, ok, raw, shape, value
from tests.conformance.exchange import HEADER_LENGTH, Request, binary, floats, infer, strings, tensor
from tests.conformance.models import DATATYPES

__all__ = ("AREAS", "CASES", "Case")

AREAS: dict[str, str] = {
    "health": "",
    "metadata": "",
    "infer": "",
    "datatypes": "",
    "ids and parameters": "",
    "errors": "",
    "binary": "binary_tensor_data",
    "compression": "",
    "classification": "classification",
    "configuration": "model_configuration",
    "batching": "",
    "statistics": "statistics",
    "repository": "model_repository",
}
"""Areas in the order of the score, and the extension each belongs to (empty: the protocol itself)."""


@dataclass(frozen=True)
class Case:
    """One sentence of the specification, put to the test. `binary`: needs the binary tensor extension."""

    area: str
    says: str
    request: Request
    check: Check
    binary: bool = False


A = list(range(16))
B = [1] * 16
SUM = [a + 1 for a in A]
DIFFERENCE = [a - 1 for a in A]
IN0 = tensor("INPUT0", "INT32", [1, 16], A)
IN1 = tensor("INPUT1", "INT32", [1, 16], B)
SIMPLE = infer("simple", IN0, IN1)
BOTH = all_of(data("OUTPUT0", SUM), data("OUTPUT1", DIFFERENCE), names("OUTPUT0", "OUTPUT1"))
SCORES = tensor("INPUT0", "FP32", [1, 4], [0.5, 3.0, -1.0, 2.0])
A_BYTES, B_BYTES = struct.pack("<16i", *A), struct.pack("<16i", *B)
SUM_BYTES, DIFFERENCE_BYTES = struct.pack("<16i", *SUM), struct.pack("<16i", *DIFFERENCE)
BINARY0 = ("INPUT0", "INT32", [1, 16], A_BYTES)
BINARY1 = ("INPUT1", "INT32", [1, 16], B_BYTES)

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 4294967295],
    "UINT64": [0, 18446744073709551615],
    "INT8": [-128, 127],
    "INT16": [-32768, 32767],
    "INT32": [-2147483648, 2147483647],
    "INT64": [-9223372036854775808, 9007199254740993],
    "FP32": [0.1, -3.4028234663852886e38],
    "FP64": [0.1, -1.7976931348623157e308],
    "BYTES": ["", "caf\u00e9 \u2603"],
}
PACKED: dict[str, bytes] = {
    "BOOL": b"\1\0",
    "UINT8": b"\0\xff",
    "UINT16": struct.pack("<2H", 0, 65535),
    "UINT32": struct.pack("<2I", 0, 2**32 - 1),
    "UINT64": struct.pack("<2Q", 0, 2**64 - 1),
    "INT8": struct.pack("<2b", -128, 127),
    "INT16": struct.pack("<2h", -32768, 32767),
    "INT32": struct.pack("<2i", -(2**31), 2**31 - 1),
    "INT64": struct.pack("<2q", -(2**63), 2**53 + 1),
    "FP32": floats(0.5, -1.0),
    "FP64": struct.pack("<2d", 0.1, -1e300),
    "BYTES": strings(b"", "caf\u00e9\0".encode()),
}


def _datatypes(datatype: str, values: list[Any]) -> Request:
    zeros = {"BOOL": False, "BYTES": ""}
    given = {name: values if name == datatype else [zeros.get(name, 0)] * 2 for name in DATATYPES}
    return infer("datatypes", *[tensor(f"IN_{name}", name, [1, 2], given[name]) for name in DATATYPES])


def _packed(datatype: str) -> Request:
    zeros = {"BOOL": False, "BYTES": ""}
    inputs: list[Any] = [
        tensor(f"IN_{name}", name, [1, 2], [zeros.get(name, 0)] * 2) for name in DATATYPES if name != datatype
    ]
    inputs.append((f"IN_{datatype}", datatype, [1, 2], PACKED[datatype]))
    return binary("datatypes", *inputs, outputs=[{"name": f"OUT_{datatype}", "parameters": {"binary_data": True}}])


def _halves(first: bytes, second: bytes) -> Request:
    return binary(
        "halves",
        ("IN_FP16", "FP16", [1, 2], first),
        ("IN_BF16", "BF16", [1, 2], second),
        parameters={"binary_data_output": True},
    )


def _body(request: Request, **changed: Any) -> Request:
    assert isinstance(request.body, dict)
    return replace(request, body={**request.body, **changed})


def _headers(request: Request, **headers: str) -> Request:
    return replace(request, headers={**request.headers, **{name.replace("_", "-"): v for name, v in headers.items()}})


def _with_length(request: Request, length: str) -> Request:
    return replace(request, headers={**request.headers, HEADER_LENGTH: length})


def get(path: str) -> Request:
    return Request("GET", path)


def post(path: str, body: Any = None) -> Request:
    return Request("POST", path, body)


def _health() -> Iterator[tuple[str, Request, Check]]:
    yield "live: 200 says that the server receives and answers requests", get("/v2/health/live"), ok
    yield "ready: 200 says that all models are ready for inferencing", get("/v2/health/ready"), ok
    yield "model ready: 200 says that a model is ready", get("/v2/models/simple/ready"), ok
    yield "model ready takes a version in the path", get("/v2/models/simple/versions/1/ready"), ok
    yield "an unknown model is not ready", get("/v2/models/no_such_model/ready"), error()
    yield "an unknown version is not ready", get("/v2/models/simple/versions/99/ready"), error()


def _metadata() -> Iterator[tuple[str, Request, Check]]:
    server = fields(name=str, version=str, extensions=list)
    yield "server metadata has name, version and extensions", get("/v2"), server
    yield "the REST schema writes server metadata with a slash", get("/v2/"), server
    model = get("/v2/models/simple")
    yield (
        "model metadata has name, platform, inputs and outputs",
        model,
        fields(name=str, platform=str, inputs=list, outputs=list),
    )
    yield "model metadata carries the model's name", model, value("name", equals="simple")
    yield "versions are strings", model, value("versions", equals=["1"])
    yield "each input has name, datatype and shape", model, fields("inputs", 0, name=str, datatype=str, shape=list)
    yield "each output has name, datatype and shape", model, fields("outputs", 1, name=str, datatype=str, shape=list)
    yield "a datatype is written as the protocol names it", model, value("inputs", 0, "datatype", equals="INT32")
    yield "a variable-size dimension is -1", model, value("inputs", 0, "shape", equals=[-1, 16])
    yield "a fixed dimension is its size", get("/v2/models/fixed"), value("inputs", 0, "shape", equals=[2, 3])
    yield "strings are BYTES", get("/v2/models/simple_string"), value("outputs", 0, "datatype", equals="BYTES")
    yield (
        "model metadata takes a version in the path",
        get("/v2/models/simple/versions/1"),
        value("name", equals="simple"),
    )
    yield "an unknown model is an error object", get("/v2/models/no_such_model"), error()
    yield "an unknown version is an error object", get("/v2/models/simple/versions/99"), error()


def _infer() -> Iterator[tuple[str, Request, Check]]:
    yield "an inference answers with the outputs of the model", SIMPLE, BOTH
    yield "an answer names its model", SIMPLE, value("model_name", equals="simple")
    yield "an output has name, shape and datatype", SIMPLE, shape("OUTPUT0", [1, 16], "INT32")
    yield (
        "a version in the path is the one that answers",
        infer("simple", IN0, IN1, version=1),
        all_of(BOTH, value("model_version", equals="1")),
    )
    yield "tensor data may be nested", infer("simple", tensor("INPUT0", "INT32", [1, 16], [A]), IN1), BOTH
    two = [tensor("INPUT0", "INT32", [2, 16], A + B), tensor("INPUT1", "INT32", [2, 16], B + A)]
    yield "tensor data is in row-major order", infer("simple", *two), data("OUTPUT1", DIFFERENCE + [1 - a for a in A])
    yield "the order of the inputs does not matter", infer("simple", IN1, IN0), BOTH
    yield "without outputs all outputs are answered", infer("simple", IN0, IN1, outputs=[]), names("OUTPUT0", "OUTPUT1")
    yield (
        "with outputs those are answered",
        infer("simple", IN0, IN1, outputs=[{"name": "OUTPUT1"}]),
        all_of(names("OUTPUT1"), data("OUTPUT1", DIFFERENCE)),
    )
    yield (
        "a shape without a batch axis is taken as the model has it",
        infer("fixed", tensor("INPUT0", "FP32", [2, 3], [1, 2, 3, 4, 5, 6.5])),
        all_of(shape("OUTPUT0", [2, 3], "FP32"), data("OUTPUT0", [-1.0, -2.0, -3.0, -4.0, -5.0, -6.5])),
    )
    digits = [str(n) for n in A]
    yield (
        "string tensors go in and out as JSON strings",
        infer(
            "simple_string", tensor("INPUT0", "BYTES", [1, 16], digits), tensor("INPUT1", "BYTES", [1, 16], ["1"] * 16)
        ),
        data("OUTPUT0", [str(n) for n in SUM]),
    )
    yield "a body is JSON without a Content-Type too", replace(SIMPLE, headers={}), BOTH
    yield (
        "and with application/octet-stream, as tritonclient sends it",
        replace(SIMPLE, headers={"Content-Type": "application/octet-stream"}),
        BOTH,
    )
    yield "query parameters are ignored", replace(SIMPLE, path=f"{SIMPLE.path}?test_1=1&test_2=2"), BOTH
    yield "a body may come in chunks", replace(SIMPLE, chunked=True), BOTH


def _types() -> Iterator[tuple[str, Request, Check]]:
    for datatype, values in VALUES.items():
        check = checks.singles if datatype == "FP32" else data
        yield f"{datatype} goes through JSON unchanged", _datatypes(datatype, values), check(f"OUT_{datatype}", values)
    yield "a NUL inside a string is part of it", _datatypes("BYTES", ["a\0b", "\0"]), data("OUT_BYTES", ["a\0b", "\0"])
    yield (
        "an integer may be written for a floating point element",
        _datatypes("FP64", [1, -2]),
        data("OUT_FP64", [1.0, -2.0]),
    )


def _binary_types() -> Iterator[tuple[str, Request, Check]]:
    for datatype, block in PACKED.items():
        yield f"{datatype} goes through bytes unchanged", _packed(datatype), raw(f"OUT_{datatype}", block)
    halves = _halves(b"\x00\x3c\x00\xc0", b"\x80\x3f\x00\xc0")
    yield "FP16 goes through bytes unchanged", halves, raw("OUT_FP16", b"\x00\x3c\x00\xc0")
    yield "BF16 goes through bytes unchanged", halves, raw("OUT_BF16", b"\x80\x3f\x00\xc0")
    yield (
        "FP16 has no representation in JSON",
        infer("halves", tensor("IN_FP16", "FP16", [1, 1], [1.0]), tensor("IN_BF16", "BF16", [1, 1], [1.0])),
        error(),
    )


def _ids() -> Iterator[tuple[str, Request, Check]]:
    yield "an id that was given is returned", infer("simple", IN0, IN1, id="42-a"), value("id", equals="42-a")
    yield (
        "an id is returned with an answer to a version too",
        infer("simple", IN0, IN1, version=1, id="x"),
        value("id", equals="x"),
    )
    any_kind = {"text": "a", "number": 1, "fraction": 0.5, "flag": True}
    yield "parameters are strings, numbers and booleans", infer("simple", IN0, IN1, parameters=any_kind), BOTH
    yield (
        "an input has parameters of its own",
        infer("simple", tensor("INPUT0", "INT32", [1, 16], A, mine="yes"), IN1),
        BOTH,
    )
    yield (
        "a requested output has parameters of its own",
        infer("simple", IN0, IN1, outputs=[{"name": "OUTPUT0", "parameters": {"mine": 1}}]),
        data("OUTPUT0", SUM),
    )
    yield "keys that the protocol does not know do no harm", infer("simple", IN0, IN1, something_else={"a": [1]}), BOTH


def _errors() -> Iterator[tuple[str, Request, Check]]:
    bad = error(400)
    path = "/v2/models/simple/infer"
    yield (
        "inference with an unknown model is an error object",
        infer("no_such_model", IN0, IN1),
        error(400, 404, text="no_such_model"),
    )
    yield "inference with an unknown version is an error object", infer("simple", IN0, IN1, version=99), error()
    yield "an unknown path is 404", get("/v2/no/such/path"), error(404)
    yield "a wrong method is 405", get(path), error(405)
    yield "an empty body is an error", post(path, b""), bad
    yield "a body that is no JSON is an error", post(path, b'{"inputs": ['), bad
    yield "a body that is no object is an error", post(path, b"[]"), bad
    yield "a body that is no UTF-8 is an error", post(path, b'{"inputs": [], "id": "\xff"}'), bad
    yield "inputs are required", post(path, {"outputs": []}), bad
    yield "inputs must not be empty", post(path, {"inputs": []}), bad
    yield "a missing input is an error", infer("simple", IN0), bad
    yield "an input twice is an error", infer("simple", IN0, IN1, IN1), bad
    yield (
        "an unknown input is named in the error",
        infer("simple", IN0, IN1, tensor("INPUT9", "INT32", [1, 16], A)),
        error(400, text="INPUT9"),
    )
    yield (
        "an unknown output is named in the error",
        infer("simple", IN0, IN1, outputs=[{"name": "NOPE"}]),
        error(400, 404, text="NOPE"),
    )
    for says, changed in (
        ("a datatype that is not the model's is an error", {"datatype": "FP32"}),
        ("a datatype that does not exist is an error", {"datatype": "FP31"}),
        ("a shape that is not the model's is an error", {"shape": [1, 8], "data": A[:8]}),
        ("a rank that is not the model's is an error", {"shape": [16]}),
        ("fewer elements than the shape says is an error", {"data": A[:15]}),
        ("more elements than the shape says is an error", {"data": [*A, 1]}),
        ("a negative dimension is an error", {"shape": [-1, 16]}),
        ("a dimension that is no integer is an error", {"shape": ["1", 16]}),
        ("a shape whose elements cannot be counted in 64 bits is an error", {"shape": [2**62, 16]}),
        ("an element that is no number is an error", {"data": [*A[:15], "x"]}),
        ("an element that is null is an error", {"data": [*A[:15], None]}),
    ):
        yield says, infer("simple", {**IN0, **changed}, IN1), bad
    for missing in ("name", "shape", "datatype", "data"):
        without = {key: given for key, given in IN0.items() if key != missing}
        yield f"an input without its {missing} is an error", infer("simple", without, IN1), bad
    yield "a body nested 200 deep is an error", post(path, b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}"), bad
    yield "a compression that is not known is an error", _headers(SIMPLE, Content_Encoding="br"), error(400, 415, 501)


def _binary() -> Iterator[tuple[str, Request, Check]]:
    both = {"binary_data_output": True}
    bad = error(400)
    simple = binary("simple", BINARY0, BINARY1)
    yield "inputs may be binary, and outputs are JSON unless asked otherwise", simple, BOTH
    yield "one input may be binary and another JSON", binary("simple", BINARY0, IN1), BOTH
    yield (
        "binary_data_output asks for all outputs in binary",
        binary("simple", BINARY0, BINARY1, parameters=both),
        (all_of(raw("OUTPUT0", SUM_BYTES), raw("OUTPUT1", DIFFERENCE_BYTES))),
    )
    yield (
        "a request in JSON may ask for binary outputs",
        infer("simple", IN0, IN1, parameters=both),
        raw("OUTPUT1", DIFFERENCE_BYTES),
    )
    wanted = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}, {"name": "OUTPUT1"}]
    yield (
        "one output may be binary and another JSON",
        infer("simple", IN0, IN1, outputs=wanted),
        all_of(raw("OUTPUT0", SUM_BYTES), data("OUTPUT1", DIFFERENCE)),
    )
    against = [{"name": "OUTPUT0", "parameters": {"binary_data": False}}]
    yield (
        "binary_data of an output overrides binary_data_output",
        infer("simple", IN0, IN1, outputs=against, parameters=both),
        data("OUTPUT0", SUM),
    )
    yield "a binary output has no data in the JSON", infer("simple", IN0, IN1, parameters=both), _no_data
    yield "the answer's header length is that of its JSON", infer("simple", IN0, IN1, parameters=both), _length_fits
    yield (
        "a tensor of no rows is legal",
        binary("scores", ("INPUT0", "FP32", [0, 4], b""), parameters=both),
        all_of(shape("OUTPUT0", [0, 4], "FP32"), raw("OUTPUT0", b"")),
    )
    digits = strings(*[str(n).encode() for n in A])
    ones = strings(*[b"1"] * 16)
    yield (
        "strings are their length and their bytes",
        binary(
            "simple_string", ("INPUT0", "BYTES", [1, 16], digits), ("INPUT1", "BYTES", [1, 16], ones), parameters=both
        ),
        raw("OUTPUT0", strings(*[str(n).encode() for n in SUM])),
    )
    yield (
        "a header length of 0 is a raw request: the body is the one input",
        Request("POST", "/v2/models/scores/infer", floats(1, 2, 3, 4), {HEADER_LENGTH: "0"}),
        raw("OUTPUT0", floats(1, 2, 3, 4)),
    )
    yield (
        "a raw request needs a model with one input",
        Request("POST", "/v2/models/simple/infer", A_BYTES, {HEADER_LENGTH: "0"}),
        bad,
    )
    yield "a header length beyond the body is an error", _with_length(simple, "99999999999"), bad
    yield "a negative header length is an error", _with_length(simple, "-5"), bad
    yield "a header length that is no number is an error", _with_length(simple, "five"), bad
    yield "a header length that cuts the JSON is an error", _with_length(simple, "10"), bad
    yield "bytes left over are an error", binary("simple", BINARY0, BINARY1, tail=b"x"), bad
    short = ("INPUT1", "INT32", [1, 16], B_BYTES[:-4])
    yield "a size that is not that of the shape is an error", binary("simple", BINARY0, short), bad
    yield "sizes beyond the body are an error", replace(simple, body=_bytes_of(simple)[:-8]), bad
    for size in (-1, 64.5, "64", True):
        changed = {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16], "parameters": {"binary_data_size": size}}
        yield f"binary_data_size {size!r} is an error", binary("simple", BINARY0, changed, tail=B_BYTES), bad
    twice = tensor("INPUT1", "INT32", [1, 16], B, binary_data_size=64)
    yield "data and binary_data_size exclude each other", binary("simple", BINARY0, twice, tail=B_BYTES), bad
    for says, block in (
        ("a string longer than the tensor is an error", struct.pack("<I", 2**32 - 1) + b"a"),
        ("a string's length cut off is an error", b"\1\0\0"),
        ("fewer strings than the shape says is an error", strings(b"1")),
    ):
        given = ("INPUT1", "BYTES", [1, 16], block)
        yield says, binary("simple_string", ("INPUT0", "BYTES", [1, 16], digits), given), bad


def _no_data(answer: Any) -> None:
    ok(answer)
    assert all("data" not in output for output in answer.json["outputs"]), answer.json


def _length_fits(answer: Any) -> None:
    ok(answer)
    sizes = [output["parameters"]["binary_data_size"] for output in answer.json["outputs"]]
    assert answer.json_bytes + sum(sizes) == len(answer.content) == int(answer.headers["content-length"])


def _bytes_of(request: Request) -> bytes:
    assert isinstance(request.body, bytes)
    return request.body


def _compression() -> Iterator[tuple[str, Request, Check]]:
    plain = b'{"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'
    path = "/v2/models/scores/infer"
    answered = data("OUTPUT0", [1.0, 2.0, 3.0, 4.0])
    yield "a request may be gzip", Request("POST", path, gzip.compress(plain), {"Content-Encoding": "gzip"}), answered
    yield (
        "a request may be deflate, in the zlib container",
        Request("POST", path, zlib.compress(plain), {"Content-Encoding": "deflate"}),
        answered,
    )
    yield "identity is no compression", Request("POST", path, plain, {"Content-Encoding": "identity"}), answered
    yield (
        "an answer is gzip where that is accepted",
        Request("POST", path, plain, {"Accept-Encoding": "gzip"}),
        (checks.compressed("gzip", gzip.decompress, answered)),
    )
    yield (
        "an answer is deflate where that is accepted",
        Request("POST", path, plain, {"Accept-Encoding": "deflate"}),
        (checks.compressed("deflate", zlib.decompress, answered)),
    )
    yield "an answer is plain where nothing is accepted", Request("POST", path, plain), all_of(answered, _not_encoded)
    yield (
        "a refused coding is not used",
        Request("POST", path, plain, {"Accept-Encoding": "gzip;q=0"}),
        all_of(answered, _not_encoded),
    )
    yield (
        "an error is never compressed, since clients do not inflate it",
        _headers(infer("simple", IN0), Accept_Encoding="gzip, deflate"),
        all_of(error(), _not_encoded),
    )
    yield (
        "metadata is never compressed, since clients do not inflate it",
        Request("GET", "/v2/models/datatypes", None, {"Accept-Encoding": "gzip, deflate, br"}),
        all_of(ok, _not_encoded),
    )
    yield "a corrupt body is an error", Request("POST", path, b"\x1f\x8bnot", {"Content-Encoding": "gzip"}), error(400)


def _not_encoded(answer: Any) -> None:
    assert answer.headers.get("content-encoding", "identity") == "identity", answer.headers


def _classification() -> Iterator[tuple[str, Request, Check]]:
    def asked(count: int, *rows: list[float]) -> Request:
        given = tensor("INPUT0", "FP32", [len(rows), 4], [element for row in rows for element in row])
        return infer("scores", given, outputs=[{"name": "OUTPUT0", "parameters": {"classification": count}}])

    row = [0.5, 3.0, -1.0, 2.0]
    yield (
        "the top k values are answered as BYTES, with the batch axis before k",
        asked(2, row),
        shape("OUTPUT0", [1, 2], "BYTES"),
    )
    yield "a class is '<value>:<index>', the highest value first", asked(2, row), _classes([1, 3], [3.0, 2.0])
    yield "each row has its own classes", asked(1, row, [9.0, 0.0, 0.0, 0.0]), _classes([1, 0], [3.0, 9.0])
    yield "more classes than values are all values", asked(4, row), _classes([1, 3, 0, 2], [3.0, 2.0, 0.5, -1.0])


def _classes(indices: list[int], values: list[float]) -> Check:
    def check(answer: Any) -> None:
        ok(answer)
        found = [text.split(":") for text in answer.output("OUTPUT0")["data"]]
        assert [int(parts[1]) for parts in found] == indices, found
        assert [float(parts[0]) for parts in found] == values, found

    return check


def _configuration() -> Iterator[tuple[str, Request, Check]]:
    config = get("/v2/models/simple/config")
    yield "a configuration carries the model's name", config, value("name", equals="simple")
    yield (
        "a configuration has max_batch_size, input and output",
        config,
        fields(max_batch_size=int, input=list, output=list),
    )
    yield "an input has name, data_type and dims", config, fields("input", 0, name=str, data_type=str, dims=list)
    yield "data types are those of ModelConfig", config, value("input", 0, "data_type", equals="TYPE_INT32")
    yield "dims leave the batch axis out where the model batches", config, value("input", 0, "dims", equals=[16])
    yield (
        "a model without a batch axis has max_batch_size 0",
        get("/v2/models/fixed/config"),
        value("max_batch_size", equals=0),
    )
    yield "and all of its dims", get("/v2/models/fixed/config"), value("output", 0, "dims", equals=[2, 3])
    yield (
        "strings are TYPE_STRING",
        get("/v2/models/simple_string/config"),
        value("input", 0, "data_type", equals="TYPE_STRING"),
    )
    yield "a configuration takes a version in the path", get("/v2/models/simple/versions/1/config"), ok
    yield "an unknown model has no configuration", get("/v2/models/no_such_model/config"), error()


def _batching() -> Iterator[tuple[str, Request, Check]]:
    for rows in (1, 2, 7, 16):
        many = [float(number) for number in range(4 * rows)]
        yield (
            f"a request of {rows} rows has an answer of {rows} rows",
            infer("scores", tensor("INPUT0", "FP32", [rows, 4], many)),
            all_of(shape("OUTPUT0", [rows, 4], "FP32"), data("OUTPUT0", many)),
        )
    uneven = [tensor("INPUT0", "INT32", [1, 16], A), tensor("INPUT1", "INT32", [2, 16], B + B)]
    yield "inputs of one request have equally many rows", infer("simple", *uneven), error(400)


def _statistics() -> Iterator[tuple[str, Request, Check]]:
    one = get("/v2/models/simple/stats")
    yield "statistics of a model are a list of one for each version", one, _one_entry
    yield "an entry has name and version", one, fields("model_stats", 0, name=str, version=str)
    yield (
        "an entry counts inferences and executions",
        one,
        fields("model_stats", 0, inference_count=int, execution_count=int, last_inference=int),
    )
    durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    for name in durations:
        yield (
            f"{name} is a count and nanoseconds",
            one,
            fields("model_stats", 0, "inference_stats", name, count=int, ns=int),
        )
    yield "batch_stats is a list", one, fields("model_stats", 0, batch_stats=list)
    yield "statistics take a version in the path", get("/v2/models/simple/versions/1/stats"), _one_entry
    yield "statistics of all models are there too", get("/v2/models/stats"), _all_entries
    yield "an unknown model has no statistics", get("/v2/models/no_such_model/stats"), error()


def _one_entry(answer: Any) -> None:
    ok(answer)
    assert [entry["name"] for entry in answer.json["model_stats"]] == ["simple"], answer.json


def _all_entries(answer: Any) -> None:
    ok(answer)
    assert {"simple", "fixed", "scores"} <= {entry["name"] for entry in answer.json["model_stats"]}


def _repository() -> Iterator[tuple[str, Request, Check]]:
    index = "/v2/repository/index"
    yield "the index is a list of models with their state", post(index, b""), _states
    yield "the index may be asked for ready models only", post(index, {"ready": True}), _ready
    yield (
        "a failed load begins with 'failed to load'",
        post("/v2/repository/models/no_such_model/load", {}),
        error(400, 401, 403, 404),
    )


def _states(answer: Any) -> None:
    ok(answer)
    states = {entry["name"]: entry.get("state") for entry in answer.json}
    assert states.get("simple") == "READY", states


def _ready(answer: Any) -> None:
    ok(answer)
    assert answer.json and {entry.get("state") for entry in answer.json} == {"READY"}, answer.json


_TABLES = {
    "health": _health,
    "metadata": _metadata,
    "infer": _infer,
    "datatypes": _types,
    "ids and parameters": _ids,
    "errors": _errors,
    "binary": _binary,
    "compression": _compression,
    "classification": _classification,
    "configuration": _configuration,
    "batching": _batching,
    "statistics": _statistics,
    "repository": _repository,
}

CASES = tuple(
    Case(area, says, request, check, binary=area == "binary")
    for area, table in _TABLES.items()
    for says, request, check in table()
) + tuple(Case("datatypes", says, request, check, binary=True) for says, request, check in _binary_types())
