"""What questions to a large log cost: show, replay, reconcile and export on a spool of real answers.

Makes a state directory with predictions of the demo model, answered by the model itself, and labels for some of them.

Run: python benchmarks/log_questions.py [--megabytes 1000] [--replayed 100000] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gateway.events.addresses import format_id
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.segments import spool_size
from gateway.predictions.spool import SpoolWriter
from gateway.predictions.versions import open_version
from gateway.protocol.datatypes import TensorSpec
from gateway.protocol.encode import tensor_head
from gateway.serving.records import (
    Kept,
    feedback_record,
    prediction_head,
    prediction_record,
    record_time,
    tensor_records,
)
from gateway.settings import SpoolSettings

MODELS = Path(__file__).parents[1] / "models"
MODEL = "bike-demand"
START = 1_330_560_000.0
BATCH = 64
LABEL_EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--replayed", type=int, default=100_000)
    parser.add_argument("--shown", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="Make the state directory here, or use the one that is here.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-log-") as folder:
        state = options.keep or Path(folder)
        if not (state / "spool").is_dir():
            make(state / "spool", options.megabytes * 10**6)
        measure(state, shown=options.shown, replayed=options.replayed)


def make(spool: Path, size: int) -> None:
    """Fill two streams with predictions of version 1 and with labels, up to so many bytes."""
    began = time.perf_counter()
    heads = [tensor_head(TensorSpec(name, "FP32", (-1, -1))) for name in ("features", "count")]
    draw = np.random.default_rng(1)
    settings = SpoolSettings(max_bytes=64 * 2**30)
    writers = [SpoolWriter(spool / f"front-{slot}", slot=slot, settings=settings) for slot in range(2)]
    written = count = 0
    with open_version(MODELS, MODEL, 1, threads=1) as opened:
        head = prediction_head(
            gateway="bench", model=MODEL, version=1, digest=opened.digest, arm="stable", weight=0.0, reason="stable"
        )
        while written < size:
            rows = np.column_stack(
                [draw.integers(0, high, 4096) for high in (24, 7, 12)] + [draw.normal(15, 8, 4096) for _ in range(3)]
            ).astype("f4")
            answers = np.concatenate(
                [opened.replayed.runner.run({"features": rows[at : at + 256]})["count"] for at in range(0, 4096, 256)]
            )
            for at in range(0, 4096, BATCH):
                writer = writers[at // BATCH % 2]
                batch: list[tuple[int, bytes]] = []
                for row in range(at, at + BATCH):
                    count += 1
                    sequence = writer.next_sequence + len(batch)
                    event_id, stamp = format_id(writer.boot, sequence), record_time(START + count / 500)
                    batch.append(
                        (
                            KIND_PREDICTION,
                            prediction_record(
                                head,
                                event_id=event_id.encode(),
                                time=stamp,
                                sequence=sequence,
                                status=200,
                                rows=1,
                                timings=(40, 25, 200),
                                inputs=tensor_records(heads[:1], [rows[row : row + 1]], [None], kept=Kept(4096)),
                                outputs=tensor_records(heads[1:], [answers[row : row + 1]], [None], kept=Kept(4096)),
                                parameters={},
                                request_id=f"order-{count}",
                                key=f"{count * 0x9E3779B97F4A7C15 % 2**64:016x}",
                                error=None,
                            ),
                        )
                    )
                    if count % LABEL_EVERY == 0:
                        label = feedback_record(
                            event_id=format_id(writer.boot, sequence + 1),
                            time=stamp,
                            gateway="bench",
                            sequence=sequence + 1,
                            model=MODEL,
                            prediction_id=event_id,
                            row=0,
                            label=float(row),
                        )
                        batch.append((KIND_FEEDBACK, label))
                writer.append(batch)
                written += sum(len(payload) for _, payload in batch)
    for writer in writers:
        writer.close()
    print(f"made {spool_size(spool) / 1e6:.0f} MB, {count} predictions, in {time.perf_counter() - began:.0f} s")


def measure(state: Path, *, shown: int, replayed: int) -> None:
    from gateway.predictions.segments import list_segments, list_streams, scan

    spool = state / "spool"
    picked: list[str] = []
    chance = random.Random(2)
    for stream in list_streams(spool):
        for name in list_segments(spool / stream):
            found = scan((spool / stream / name).read_bytes(), name[:14]).records
            predictions = [record for record in found if record.kind == KIND_PREDICTION]
            picked += [format_id(r.boot, r.sequence) for r in chance.sample(predictions, min(20, len(predictions)))]
    chance.shuffle(picked)
    print(f"{spool_size(spool) / 1e6:.0f} MB of spool")
    index(spool)
    show(spool, picked[:shown])
    archive(spool)
    for name, arguments in (
        ("replay", ["replay", "--model", MODEL, "--version", "1", "--limit", str(replayed), "--json"]),
        ("reconcile", ["reconcile", "--json"]),
    ):
        seconds, answer = command(state, arguments)
        print(f"{name}: {seconds:.1f} s {told(name, answer)}")


def index(spool: Path) -> None:
    """What the supervisor does for each segment that is closed."""
    from gateway.predictions.index import index_closed

    began = time.process_time()
    if done := index_closed(spool, seconds=3600):
        print(f"index: {(time.process_time() - began) / done * 1000:.0f} ms of CPU for each of {done} closed segments")


def show(spool: Path, ids: list[str]) -> None:
    """As the admin process does it, whose lookup stays open; and once more from the start, as a command does."""
    from gateway.predictions.lookup import LogLookup

    lookup = LogLookup(spool)
    for name, afresh in (("show", False), ("show without what was read before", True)):
        times = []
        for event_id in ids:
            began = time.perf_counter()
            here = LogLookup(spool) if afresh else lookup
            assert here.find(event_id) is not None
            here.labels_of(event_id, since=START)
            times.append((time.perf_counter() - began) * 1000)
        quantiles = statistics.quantiles(times, n=100)
        print(
            f"{name}: {len(ids)} ids with their labels, median {statistics.median(times):.2f} ms, "
            f"p99 {quantiles[98]:.2f} ms"
        )


def archive(spool: Path) -> None:
    """What the archiver does for each segment that is due."""
    from gateway.predictions.archive import Archive
    from gateway.predictions.segments import list_segments

    segments = [spool / "front-0" / name for name in list_segments(spool / "front-0")[:5]]
    with tempfile.TemporaryDirectory() as folder:
        place = Archive(folder)
        place.store(segments[0])
        began = time.process_time()
        records = sum(place.store(segment).records for segment in segments)
        seconds = (time.process_time() - began) / len(segments)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        whole = sum(path.stat().st_size for path in segments)
        print(
            f"archive: {seconds:.2f} s of CPU for a segment of {records // len(segments)} records, "
            f"{size / whole:.2f} of its size"
        )
        last = records // len(segments)
        times = []
        for number in range(1, last, last // 50):
            began = time.perf_counter()
            assert place.find(format_id(segments[0].name[:14], number)) is not None
            times.append((time.perf_counter() - began) * 1000)
        print(f"show from the archive: median {statistics.median(times):.1f} ms")


def command(state: Path, arguments: list[str]) -> tuple[float, dict[str, object]]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "predictions", *arguments, "--state-dir", str(state)],
        capture_output=True,
        env={**os.environ, "GATEWAY_MODELS": str(MODELS)},
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr.decode()
    return time.perf_counter() - began, json.loads(done.stdout)


def told(name: str, answer: dict[str, object]) -> str:
    if name == "replay":
        return f"for {answer['replayed']} predictions, bit-identical: {answer['bit_identical']}"
    return f"nothing missing: {answer['ok']}"


if __name__ == "__main__":
    main()
