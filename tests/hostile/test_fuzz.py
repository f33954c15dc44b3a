"""The fuzz target over its committed inputs, and for some seconds under atheris where that is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.fuzz_decode import CORPUS, Target, seeds

SECONDS = 5


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


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_nothing_in_a_few_seconds() -> None:
    script = Path(__file__).with_name("fuzz_decode.py")
    command = [sys.executable, str(script), "--seconds", str(SECONDS)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 60)
    assert ended.returncode == 0, ended.stderr[-2000:]
