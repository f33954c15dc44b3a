"""A front beside the gateway's own, with parts of it taken out: what is left tells what a part costs.

Run by the suite: python -m benchmarks.front SETTINGS.json SLOT PORT PART...
It is the gateway's front, with its engines and its store; only what is named does nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.app import run_front
from gateway.engine.job import Job
from gateway.engine.lane import Array, Lane
from gateway.engine.session import ModelSession
from gateway.protocol.encode import encode_flat, encode_string
from gateway.serving.answers import status_of
from gateway.serving.delivery import Answer, Delivery, rows_of, stencil_of
from gateway.serving.front import Front
from gateway.serving.inference import Inference
from gateway.serving.tally import RunTally
from gateway.serving.version import ServedVersion
from gateway.settings import Settings

__all__ = ("PARTS", "build_front")

PARTS = ("log", "metrics", "statistics", "isolation")
"""What can be taken out; `metrics` takes `statistics` with it."""


class _NothingTallied(RunTally):
    def add(self, jobs: Sequence[Any], *, now: float, time: float) -> None:
        """Count nothing."""


class _Unlogged(Delivery):
    """Makes no records; answers are made as ever, each with a number."""

    _numbers = itertools.count(1)

    def deliver(self, inferences: Sequence[Inference]) -> None:
        now = time.perf_counter()
        boot = self._spool.boot.encode()
        answers: list[Answer] = []
        results: object = None
        rows: Sequence[bytes] | None = None
        for inference in inferences:
            event_id = b"%b-%010x" % (boot, next(self._numbers))
            if inference.plain and inference.failure is None and inference.keep_alive:
                if inference.results is not results:
                    results = inference.results
                    rows = rows_of(inference)
                if rows is not None and (stencil := stencil_of(inference)) is not None:
                    first, count = inference.row, inference.rows
                    flat = rows[first] if count == 1 else b",".join(rows[first : first + count])
                    answer = stencil.answer % (event_id, stencil.answer_bytes + len(flat), event_id, flat)
                    answers.append((event_id, answer, 200, True))
                    continue
            answers.append((event_id, *self._body(inference, event_id), False))
        self._release(inferences, answers, now)

    def _body(self, inference: Inference, event_id: bytes) -> tuple[bytes, int]:
        failure = inference.failure
        if failure is not None:
            return b'{"error":%b}' % encode_string(str(failure)), status_of(failure)
        said = inference.said()
        flats = [
            encode_flat(output) if said is None or position in said else None
            for position, output in enumerate(inference.outputs)
        ]
        return inference.body_of(event_id, inference.outputs_of(flats)), 200


class _Uncounted(Delivery):
    """Counts nothing."""

    def _count(self, inferences: Sequence[Inference], answers: Sequence[Answer], *, now: float) -> None:
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

    def _send(self, jobs: list[Job], link: Any, *, now: float, whole: list[list[Array]] | None) -> None:
        self._next_id += 1
        for job in jobs:
            job.sent_at = now
        jobs[0].batch_rows = sum(job.rows for job in jobs)
        assert self.hello is not None
        parts = whole or zip(*[job.inputs for job in jobs], strict=True)
        inputs = {
            spec.name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for spec, arrays in zip(self.hello.signature.inputs, parts, strict=True)
        }
        began = time.perf_counter_ns()
        outputs = self.session.run(inputs)
        self._in_flight[self._next_id] = jobs
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
