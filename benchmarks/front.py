"""A front beside the gateway's own, with parts of it taken out: what is left tells what a part costs.

Run by the suite: python -m benchmarks.front SETTINGS.json SLOT PORT PART...
It is the gateway's front, with its engines and its store; only what is named does nothing.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.app import run_front
from gateway.engine.job import Job, Run
from gateway.engine.lane import Array, Lane
from gateway.engine.session import ModelSession
from gateway.protocol.encode import encode_flat, encode_string
from gateway.serving.answers import status_of
from gateway.serving.delivery import Delivery
from gateway.serving.front import Front
from gateway.serving.inference import Inference
from gateway.serving.stencil import Stencil
from gateway.serving.tally import RunTally
from gateway.serving.version import ServedVersion
from gateway.settings import Settings

__all__ = ("PARTS", "build_front")

PARTS = ("log", "metrics", "statistics", "isolation")
"""What can be taken out; `metrics` takes `statistics` with it."""


class _NothingTallied(RunTally):
    def add(self, run: Run, count: int, rows: int, *, arrived: float, queued: float, now: float) -> None:
        """Count nothing."""

    def count_run(self, run: Run, *, time: float) -> None:
        """Count nothing."""


class _Unlogged(Delivery):
    """Makes no records; answers are made as ever, each with a number."""

    def _block_of(
        self, stencil: Stencil, alike: Sequence[Inference], *, run: Run, now: float, stamp: bytes
    ) -> list[tuple[int, bytes]]:
        return []

    def _finish(
        self, inference: Inference, event_id: bytes, *, now: float, stamp: bytes, sequence: int
    ) -> tuple[bytes, bytes, int]:
        failure = inference.failure
        if failure is not None:
            return b"", b'{"error":%b}' % encode_string(str(failure)), status_of(failure)
        said = inference.said()
        flats = [
            encode_flat(output) if said is None or position in said else None
            for position, output in enumerate(inference.outputs)
        ]
        return b"", inference.body_of(event_id, inference.outputs_of(flats)), 200

    def _append(self, batch: Any) -> None:
        self._spool.next_sequence += len(batch.inferences)


class _Uncounted(Delivery):
    """Counts nothing."""

    def _count(self, batch: Any, *, now: float) -> None:
        """Count nothing."""


class _Untallied(Front):
    """Keeps nothing for the statistics extension."""

    def _open(self, model: str, version: int, *, digest: str) -> ServedVersion:
        served = super()._open(model, version, digest=digest)
        served.tally = _NothingTallied({"model": model, "version": str(version)}, self.cells)
        return served


class _Together(Front):
    """Runs onnxruntime in the front."""

    def _open(self, model: str, version: int, *, digest: str) -> ServedVersion:
        served = super()._open(model, version, digest=digest)
        file = self.settings.models / model / str(version) / "model.onnx"
        # The lane meets its engine as ever and learns the signature from it; only the batches stay here.
        served.lane.__class__ = _LaneInside
        served.lane.session = ModelSession(file, threads=self.settings.engine.threads)  # type: ignore[attr-defined]
        return served


class _LaneInside(Lane):
    """Runs each batch at once, in this process."""

    session: ModelSession

    def _send(self, jobs: list[Job], link: Any, *, now: float, whole: list[Array] | None) -> None:
        self._next_id += 1
        run = Run(jobs, 0, sent_at=now, inputs=whole)
        for job in jobs:
            job.run, job.row = run, run.rows
            run.rows += job.rows
        assert self.hello is not None
        parts = [[array] for array in whole] if whole else zip(*[job.inputs for job in jobs], strict=True)
        inputs = {
            spec.name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for spec, arrays in zip(self.hello.signature.inputs, parts, strict=True)
        }
        began = time.perf_counter_ns()
        outputs = self.session.run(inputs)
        self._in_flight[self._next_id] = run
        self._loop.call_soon(self._result, self._next_id, time.perf_counter_ns() - began, outputs)


_FRONT: dict[str, type[Front]] = {"statistics": _Untallied, "isolation": _Together}
_DELIVERY: dict[str, type[Delivery]] = {"log": _Unlogged, "metrics": _Uncounted}


def build_front(settings: Settings, *, without: Sequence[str], **given: Any) -> Front:
    """Make a front without these `PARTS`; the rest is given to it as to any."""
    kind: type[Front] = type("PartialFront", (*(_FRONT[part] for part in without if part in _FRONT), Front), {})
    front = kind(settings, **given)
    parts = (*(_DELIVERY[part] for part in without if part in _DELIVERY), Delivery)
    front.delivery.__class__ = type("PartialDelivery", parts, {})
    return front


def main(arguments: Sequence[str]) -> None:
    """Run the front until SIGTERM."""
    resolved, slot, port, *without = arguments
    tree = json.loads(Path(resolved).read_bytes())
    tree["server"] |= {"http_port": int(port), "grpc": False}
    settings = Settings.model_validate(tree)
    run_front(settings, slot=int(slot), build=functools.partial(build_front, without=tuple(without)))


if __name__ == "__main__":
    main(sys.argv[1:])
