"""Coverage-guided fuzzing of the request decoder: whatever the bytes are, a request comes back or `CallerError`, and
the same where the body is read in slices.

atheris is no dependency of the project; it gets an environment of its own. `tests/hostile/test_fuzz.py` makes one and
runs this for some seconds, longer where GATEWAY_TEST_FUZZ_SECONDS says so. By hand:

    python3 -m venv .cache/fuzz/venv
    .cache/fuzz/venv/bin/pip install atheris==3.0.0 -c requirements.lock numpy msgspec orjson pysimdjson
    nice -n 19 .cache/fuzz/venv/bin/python tests/hostile/fuzz_decode.py --seconds 300

It starts from good requests and from `tests/hostile/corpus`, which the test suite replays. What adds coverage is kept
in `.cache/fuzz/corpus`; a finding is left in `.cache/fuzz` as `crash-*`, or where `--keep` says.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
CACHE = ROOT / ".cache" / "fuzz"
NO_LENGTH = 0xFFFF
FEW_BYTES = 8
TOKENS = (
    *("inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "x", "a", "b"),
    *("binary_data_size", "binary_data_output", "binary_data", "classification", "timeout", "shared_memory_region"),
    *("FP32", "FP16", "INT64", "UINT8", "BOOL", "BYTES"),
)
WORDS = ("NaN", "Infinity", "-Infinity", "null", "true", "1e400", "1e39", "-0.0", "9223372036854775808", "\\\\ud800")


class Target:
    """Decoders of many signatures; the first byte of an input chooses one, the next two are the length of its JSON."""

    def __init__(self) -> None:
        from gateway.protocol import slices
        from gateway.protocol.datatypes import Signature, TensorSpec
        from gateway.protocol.decode import RequestDecoder
        from gateway.protocol.encode import tensor_head
        from gateway.protocol.errors import CallerError
        from gateway.serving.records import Kept, tensor_records

        self.refusal = CallerError
        self._slices = slices
        self._records, self._kept, self._head = tensor_records, Kept(1 << 16), tensor_head
        outputs = (TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "BYTES", (-1, 2)))
        shapes = (
            (("x", "FP32", (-1, 3)),),
            (("x", "FP32", ()),),
            (("x", "FP64", (-1, -1)),),
            (("x", "INT64", (-1,)),),
            (("x", "UINT8", (2, -1)),),
            (("x", "INT32", (-1, 2)), ("a", "BOOL", (-1,))),
            (("x", "BYTES", (-1,)), ("a", "FP16", (-1, 2)), ("b", "BF16", (-1,))),
            (("x", "BYTES", (1,)),),
            (("x", "BOOL", (-1, 1)),),
            (("x", "UINT64", (-1,)),),
        )
        self.signatures = [Signature(tuple(TensorSpec(*each) for each in specs), outputs) for specs in shapes]
        self.decoders = [RequestDecoder("m", signature) for signature in self.signatures]

    def __call__(self, given: bytes) -> bool:
        """Decode one input; True when it is a request. Anything but a request or a refusal is raised."""
        if len(given) < 3:
            return False
        choice = given[0] % len(self.decoders)
        length = int.from_bytes(given[1:3], "little")
        decoder, said = self.decoders[choice], None if length == NO_LENGTH else length
        request = self._decoded(decoder.decode, given[3:], said)
        sliced = self._decoded(decoder.again().decode_in_slices, given[3:], said)
        if (request is None) != (sliced is None):
            raise AssertionError(f"{'taken' if sliced else 'refused'} in slices only")
        if request is None:
            return False
        if [a.tobytes() for a in request.inputs] != [a.tobytes() for a in sliced.inputs] and not _has_texts(request):
            raise AssertionError("in slices it says something else")
        self._check(request, choice)
        return True

    def _decoded(self, decode: Any, body: bytes, length: int | None) -> Any:
        slice_bytes, self._slices.SLICE_BYTES = self._slices.SLICE_BYTES, FEW_BYTES
        try:
            return decode(body, length)
        except self.refusal as refused:
            if not 0 < len(str(refused)) < 2000:
                raise AssertionError(f"a refusal of {len(str(refused))} characters") from refused
            return None
        finally:
            self._slices.SLICE_BYTES = slice_bytes

    def _check(self, request: Any, choice: int) -> None:
        specs = self.signatures[choice].inputs
        heads = [self._head(spec) for spec in specs]
        logged = json.loads(self._records(heads, request.inputs, request.fragments, kept=self._kept))
        json.dumps(request.parameters, allow_nan=False).encode()
        for spec, array, fragment, tensor in zip(specs, request.inputs, request.fragments, logged, strict=True):
            if len(array.shape) != len(spec.shape) or tensor["shape"] != list(array.shape):
                raise AssertionError(f"{spec} came as {array.shape}, logged as {tensor['shape']}")
            if fragment is not None and spec.datatype == "FP32":
                said = json.loads(fragment)
                if len(said) != array.size or not all(
                    math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-37)
                    for one, other in zip(said, array.ravel().tolist(), strict=True)
                ):
                    raise AssertionError(f"the log would say {fragment!r} of {array}")


def _has_texts(request: Any) -> bool:
    return any(array.dtype.kind == "O" for array in request.inputs)


def seeds() -> list[bytes]:
    """Good requests of each decoder in each form, to start from."""
    return [seed for choice, signature in enumerate(Target().signatures) for seed in _good(choice, signature)]


def _given(choice: int, body: bytes, length: int = NO_LENGTH) -> bytes:
    return bytes([choice]) + length.to_bytes(2, "little") + body


def _good(choice: int, signature: Any) -> list[bytes]:
    from gateway.protocol.binary import tensor_to_bytes
    from gateway.protocol.datatypes import NUMPY_OF, numbers_of

    said, raw, blocks = [], [], b""
    for spec in signature.inputs:
        shape = [2 if axis < 0 else axis for axis in spec.shape]
        array = np.zeros(shape, NUMPY_OF[spec.datatype])
        if spec.datatype == "BYTES":
            array.fill("a\u00e9")
        block = bytes(tensor_to_bytes(array))
        tensor = {"name": spec.name, "shape": shape, "datatype": spec.datatype}
        said.append({**tensor, "data": numbers_of(array).tolist()})
        raw.append({**tensor, "parameters": {"binary_data_size": len(block)}})
        blocks += block
    more = {
        "id": "1",
        "parameters": {"timeout": 5, "a": "b", "binary_data_output": True},
        "outputs": [{"name": "x", "parameters": {"classification": 2}}, {"name": "y"}],
    }
    found = [_given(choice, json.dumps(body).encode()) for body in ({"inputs": said}, {**more, "inputs": said})]
    for body in ({"inputs": raw}, {"inputs": raw, **more}):
        head = json.dumps(body).encode()
        found.append(_given(choice, head + blocks, len(head)))
    return [*found, found[0].replace(b"0.0", b"NaN"), _given(choice, blocks, 0)]


def fuzz(seconds: int, keep: Path) -> None:
    """Run atheris for so many seconds; the process ends with it, and not with 0 if something was found.

    Parameters
    ----------
    keep : Path
        Folder for what adds coverage, and for findings.
    """
    import atheris

    with atheris.instrument_imports(include=["gateway.protocol", "gateway.serving.records"]):
        target = Target()
    corpus = keep / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    words = [*(f'\\"{token}\\"' for token in TOKENS), *WORDS]
    (keep / "words.dict").write_text("".join(f'"{word}"\n' for word in words))
    arguments = (
        "-max_len=2048",
        "-timeout=10",
        "-rss_limit_mb=2048",
        f"-max_total_time={seconds}",
        f"-dict={keep / 'words.dict'}",
        f"-artifact_prefix={keep}/",
        "-print_final_stats=1",
    )
    atheris.Setup([sys.argv[0], *arguments, str(corpus), str(CORPUS)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--keep", type=Path, default=CACHE)
    arguments = parser.parse_args()
    fuzz(arguments.seconds, arguments.keep)
