"""What the monitor spends on one prediction of 30 features: reading the spool, decoding, joining, binning, evidence.

A real spool of blocks as fronts write them, a real monitor over a real store; flushes as often as a loaded monitor's.

    python -m benchmarks.monitor_cost [--predictions 40000] [--rows 1] [--canary] [--keys 0]
        [--reading blocks|folded|singles] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.blocks import random_block
from gateway.control.compare import FixedRerun
from gateway.control.monitor import Monitor
from gateway.control.store import Store
from gateway.control.versions import FixedVersions
from gateway.drift.profile import build_profile
from gateway.events.blocks import predictions_of
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION, Arm
from gateway.predictions.kafka_source import folded
from gateway.predictions.reader import LogRecord
from gateway.predictions.source import LogSource, SpoolSource
from gateway.predictions.spool import SpoolWriter
from gateway.repository.policy import ModelPolicy
from gateway.serving.records import prediction_head
from gateway.settings import MonitorSettings, SpoolSettings

FEATURES = 30
MODEL = "tabular"
BATCH = 32
BETWEEN_FLUSHES = 4096
"""Predictions: a tenth of a second of a front that is fully loaded, so that flushes are not cheaper than they are."""


def fill(spool_dir: Path, *, predictions: int, rows: int, weight: float, keys: int, one_by_one: bool) -> None:
    """Write predictions as a front does: those of a batch and an arm in a block, or as single records."""
    draw = np.random.default_rng(0)
    arms: tuple[tuple[int, Arm], ...] = ((1, "stable"), (2, "canary"))
    heads = [
        prediction_head(
            gateway="g", model=MODEL, version=version, digest="sha256:0", arm=arm, weight=weight, reason="weight"
        )
        for version, arm in arms
    ]
    writer = SpoolWriter(spool_dir / "front-0", slot=0, settings=SpoolSettings())
    sequence = 1
    while sequence <= predictions:
        chosen = draw.random(BATCH) < weight / 100
        entries: list[tuple[int, bytes]] = []
        for arm, count in enumerate((BATCH - int(chosen.sum()), int(chosen.sum()))):
            if not count:
                continue
            # Answered behind the beginning of the trial.
            payload = random_block(
                draw, heads[arm], count=count, features=FEATURES, rows=rows, keys=keys, seconds_ahead=60.0
            )
            if one_by_one:
                records = predictions_of(payload, boot=writer.boot, sequence=sequence)
                entries += [(KIND_PREDICTION, record) for record in records]
            else:
                entries.append((KIND_BLOCK, payload))
            sequence += count
        writer.append(entries)
    writer.close()


class FoldingSource(SpoolSource):
    """Single records of a spool, put together again as those of Kafka are."""

    async def read(self, max_records: int, timeout_seconds: float) -> list[LogRecord]:
        return folded(await super().read(max_records, timeout_seconds))


def build(place: Path, *, canary: bool, reading: str) -> Monitor:
    """A monitor of one model with a reference profile; with a canary, a trial runs."""
    draw = np.random.default_rng(1)
    reference = draw.normal(size=(8000, FEATURES)).astype("f4")
    profile = build_profile(
        inputs={"features": reference}, outputs={"variable": reference[:, :1] * 2}, columns={}, loss=None
    )
    store = Store(f"sqlite:///{place / 'store.db'}")
    store.create()
    for version in (1, 2):
        store.register(MODEL, version, f"sha256:{version:064x}")
        store.approve(MODEL, version, actor="bench", reason="measured")
    store.set_route(MODEL, stable=1, actor="bench", reason="measured")
    if canary:
        store.set_route(MODEL, stable=1, canary=2, weight=10.0, actor="bench", reason="measured")

    async def open_source(position: dict[str, Any] | None, start: Literal["earliest", "latest"]) -> LogSource:
        if reading == "folded":
            return FoldingSource(place / "spool")
        return SpoolSource(place / "spool", whole_blocks=reading == "blocks")

    return Monitor(
        open_source,
        store,
        source="spool",
        versions=FixedVersions({MODEL: ModelPolicy()}, {(MODEL, version): profile for version in (1, 2)}),
        state_dir=place,
        settings=MonitorSettings(),
        rerun=FixedRerun({}),
        lookup=lambda _: None,
        note=lambda text: print(f"monitor: {text}", file=sys.stderr),
    )


async def measure(place: Path, *, canary: bool, reading: str, profile: cProfile.Profile | None) -> list[float]:
    """Microseconds of CPU a prediction, for each time the monitor flushed."""
    monitor = build(place, canary=canary, reading=reading)
    await monitor.start(asyncio.Event())
    gc.freeze()
    costs = []
    while True:
        if profile:
            profile.enable()
        began = time.process_time()
        taken = 0
        while taken < BETWEEN_FLUSHES and (more := await monitor.step(0.0)):
            taken += more
        await monitor.flush()
        spent = time.process_time() - began
        if profile:
            profile.disable()
        if not taken:
            break
        costs.append(spent / taken * 1e6)
    await monitor.close()
    return costs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--predictions", type=int, default=40_000)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--canary", action="store_true", help="a trial is judged, too")
    parser.add_argument("--keys", type=int, default=0, help="so many callers with a routing key; 0: none has one")
    parser.add_argument("--one-by-one", action="store_true", help="a spool of single records instead of blocks")
    parser.add_argument(
        "--reading",
        choices=["blocks", "folded", "singles"],
        default="blocks",
        help="as from the spool; as from Kafka, single records put together again; single records that stay so",
    )
    parser.add_argument("--profile", action="store_true", help="where the time goes, function by function")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        place = Path(folder)
        fill(
            place / "spool",
            predictions=arguments.predictions,
            rows=arguments.rows,
            weight=10.0 if arguments.canary else 0.0,
            keys=arguments.keys,
            one_by_one=arguments.one_by_one,
        )
        profile = cProfile.Profile() if arguments.profile else None
        costs = sorted(asyncio.run(measure(place, canary=arguments.canary, reading=arguments.reading, profile=profile)))
    print(
        f"{arguments.rows} row(s) of {FEATURES} features: {costs[0]:.1f} us a prediction at best, "
        f"{costs[len(costs) // 2]:.1f} at the median of {len(costs)} flushes; "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB resident at most"
    )
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    return 0


if __name__ == "__main__":
    sys.exit(main())
