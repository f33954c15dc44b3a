from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from gateway.engine.arena import Arena
from gateway.engine.memory import resident_bytes
from tests.engines import save_model

SCRIPT = """
import sys, time, math
from pathlib import Path
import numpy as np
from gateway.engine.loading import load_session, warm_up
from gateway.engine.memory import SLACK_BYTES, Floor, resident_bytes
session = load_session(Path(sys.argv[1]), threads=1)
warm = warm_up(session, profile=None, max_rows=1, max_seconds=30)
floor = Floor(lambda: session.shrink(warm.row, until=math.inf))
before = resident_bytes()
for _ in range(2):
    session.run({"x": np.ones((25_000, 1000), "f4")})
    after = resident_bytes()
    floor.keep()
    kept = resident_bytes()
    print(before >> 20, after >> 20, kept >> 20)
    assert after > before + 4 * SLACK_BYTES, "the arena keeps what it once had"
    assert kept < before + SLACK_BYTES, "what a large run took was not given back"
floor.keep()
"""


def test_memory_that_a_large_run_took_is_given_back(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    shape = (TensorProto.FLOAT, ["n", 1000])
    path = save_model(tmp_path / "m.onnx", nodes, inputs={"x": shape}, outputs={"y": shape})
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    print(done.stdout.decode())


def test_what_is_read_of_a_fronts_memory_is_not_an_engines() -> None:
    arena = Arena(2**26)
    place = arena.lend(2**25)
    assert place is not None
    before = resident_bytes()
    place[:] = 1
    assert resident_bytes() < before + 2**24
    own = np.ones(2**27, np.uint8)  # so large that it comes from nothing that was free
    assert resident_bytes() > before + 2**26
    del own, place


def test_a_process_that_is_gone_has_nothing() -> None:
    assert resident_bytes(2**22 + 1) == 0
