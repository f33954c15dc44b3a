from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from gateway.behind import SLICE_NS, step_behind

SCRIPT = """
import ctypes, os, struct, threading
from gateway.behind import step_behind
os.setpriority(os.PRIO_PROCESS, 0, {before})
step_behind(10)
def show():
    attributes = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None).syscall(315, 0, attributes, 48, 0) == 0
    _, policy, _, nice, _, runtime = struct.unpack_from("=IIQiIQ", attributes)
    print(policy, nice, runtime)
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
"""


def release() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="asks Linux on x86-64")
@pytest.mark.parametrize(("before", "after"), [(0, 10), (5, 15), (12, 19)])
def test_a_process_and_its_threads_step_behind_those_that_wake_up(before: int, after: int) -> None:
    if os.getpriority(os.PRIO_PROCESS, 0) > before:
        pytest.skip("this process is nice already")
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)], capture_output=True, text=True, check=True, timeout=30
    ).stdout.splitlines()
    # Kernels before 6.12 have one slice for all and tell 0.
    slice_ns = SLICE_NS if release() >= (6, 12) else 0
    assert told == [f"0 {after} {slice_ns}"] * 2


def test_where_the_system_refuses_the_niceness_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError(38, "Function not implemented")

    added: list[int] = []
    monkeypatch.setattr(os, "nice", lambda niceness: added.append(niceness) or niceness)
    monkeypatch.setattr(os, "sched_getscheduler", refuse)
    step_behind(7)
    assert added == [7]
