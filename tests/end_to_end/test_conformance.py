"""The conformance kit against this gateway, as anybody would run it: in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gateway_passes_its_conformance_kit_whole() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/conformance"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    [(passed, total)] = re.findall(r"^overall +(\d+) / (\d+)", done.stdout, re.MULTILINE)
    assert passed == total and int(total) > 150
