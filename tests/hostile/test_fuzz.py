"""The fuzz target over its committed inputs, and for some seconds under atheris, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.clients.environments import client_python
from tests.hostile.fuzz_decode import CORPUS, Target, seeds

SECONDS = int(os.environ.get("GATEWAY_TEST_FUZZ_SECONDS", "20"))
LIBRARIES = ("blake3", "msgspec", "numpy", "orjson", "pysimdjson")
PACKAGES = ("atheris==3.0.0", *(f"{name}=={version(name)}" for name in LIBRARIES))


@pytest.mark.promise("P6")
def test_every_input_the_fuzzer_kept_is_a_request_or_a_refusal() -> None:
    target = Target()
    kept = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    taken = sum(map(target, [*kept, *seeds()]))
    assert len(kept) > 30 and taken > 20


def test_the_target_tells_a_request_from_a_refusal() -> None:
    target = Target()
    good = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
    assert target(b"\x00\xff\xff" + good)
    assert not target(b"\x00\xff\xff" + good[:-1])
    assert not target(b"\x01\xff\xff" + good)


@pytest.mark.slow
def test_atheris_finds_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz_decode.py")
    command = [str(client_python("fuzz", *PACKAGES)), str(script), "--seconds", str(SECONDS), "--keep", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 60)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "stat::number_of_executed_units" in ended.stdout + ended.stderr
