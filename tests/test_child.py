from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gateway.child import Child

PROGRAM = """
import os, pathlib, signal, time
pathlib.Path(os.environ["BEGUN"]).touch()
time.sleep(0.3)
from gateway.parent import PARENT_VARIABLE, follow
follow(int(os.environ[PARENT_VARIABLE]))
os.kill(os.getpid(), signal.SIGINT)
raise SystemExit(7 if not signal.pthread_sigmask(signal.SIG_BLOCK, ()) else 8)
"""


async def test_ctrl_c_does_not_reach_a_child_that_is_still_starting(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(PROGRAM)
    begun, path = tmp_path / "begun", os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    statuses: list[int] = []

    def ended(child: Child, status: int) -> None:
        child.stopping = True
        statuses.append(status)

    children = [Child("late", ["late"], ended=ended, environment={"BEGUN": str(begun), "PYTHONPATH": path})]
    children.append(Child("later", ["late"], ended=ended, environment={"BEGUN": f"{begun}2", "PYTHONPATH": path}))
    for child in children:
        child.start()
    async with asyncio.timeout(20):
        while not (begun.exists() and Path(f"{begun}2").exists()):
            await asyncio.sleep(0.01)
        for child in children:
            child.signal(signal.SIGINT)
        while len(statuses) < 2:
            await asyncio.sleep(0.01)
    assert statuses == [7, 7], "told by Ctrl-C, it would end before it follows"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the supervisor takes Ctrl-C itself"


async def test_a_child_runs_nothing_that_lies_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    over = asyncio.Event()
    statuses: list[int] = []

    def ended(child: Child, status: int) -> None:
        child.stopping = True
        statuses.append(status)
        over.set()

    Child("apart", ["random"], ended=ended).start()
    await asyncio.wait_for(over.wait(), 20)
    assert statuses == [0], "the library's random tests itself"
