"""Engines that are started as the supervisor starts them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.engine.oneshot import open_engine
from gateway.engine.order import EngineOrder
from gateway.engine.pulse import read_beats
from gateway.repository.add import add_version
from gateway.repository.lineage import Lineage
from gateway.repository.manifest import load_version
from gateway.repository.policy import ModelPolicy

__all__ = ("made", "started")

BIKE_DEMAND = Path(__file__).parents[1] / "models" / "bike-demand"


def made(tmp_path: Path, file: Path) -> Path:
    """The folder of a version that is made of an ONNX file."""
    added = add_version(
        tmp_path / "made", "bike-demand", file, open_runner=open_engine, policy=ModelPolicy(), lineage=Lineage()
    )
    return added.folder


@contextlib.contextmanager
def started(
    tmp_path: Path, policy: str = "", *, version: Path = BIKE_DEMAND / "1", threads: int = 1, instances: int = 1
) -> Iterator[tuple[subprocess.Popen[bytes], EngineOrder, Path]]:
    """An engine of a version 1, as the supervisor starts it; what it says goes to the file."""
    model = tmp_path / "models" / "bike-demand"
    shutil.copytree(version, model / "1")
    (model / "model.toml").write_text(policy)
    run = tmp_path / "run"
    run.mkdir()
    order = EngineOrder(
        model="bike-demand",
        version=1,
        digest=load_version(model / "1").digest,
        folder=str(model / "1"),
        staged=str(tmp_path / "loaded"),
        socket=str(run / "e.sock"),
        beat=str(run / "e.beat"),
        failure=str(run / "e.failure"),
        threads=threads,
        instances=instances,
        hang_seconds=10.0,
        max_resident_bytes=2**30,
        max_output_bytes=2**26,
        drain_seconds=10.0,
        start_timeout_seconds=30.0,
        json_lines=False,
    )
    command = [sys.executable, "-m", "gateway.engine", msgspec.json.encode(order).decode()]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process, order, tmp_path / "log"
        finally:
            process.kill()
            process.wait()
            for pid in read_beats(Path(order.beat)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
