"""What bringing the log to Kafka costs: CPU and memory of the shipper while it empties a full spool.

Fills a spool with realistic predictions (30 features), gives it to a running `gateway ship`, and watches that process
until Apache Kafka (the test kit's, a real broker on this machine: needs Java and Maven) has acknowledged everything.
With `--live` the spool is filled by two loaded fronts instead (needs `wrk`), and what counts is that the shipper keeps
up. Read the CPU per event: events a second depend on who else uses the machine.

    python -m benchmarks.shipping [--events 200000] [--compression zstd] [--live SECONDS]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.blocks import random_block
from benchmarks.load import Load, check_installed, run_load
from benchmarks.models import FEATURES, model_file
from benchmarks.ours import add_model, running_gateway
from benchmarks.processes import cpu_seconds, title
from benchmarks.servers import started, wait_until
from gateway.events.records import KIND_BLOCK
from gateway.predictions.backlog import Backlog
from gateway.predictions.checkpoint import CheckpointError, read_checkpoint
from gateway.predictions.spool import SpoolWriter
from gateway.serving.records import prediction_head
from gateway.settings import SpoolSettings
from tests.brokers import KafkaBroker

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "benchmarks"
FRONTS = 2
BATCH = 64
TARGET_EVENTS_A_SECOND = 5_000
SAMPLE_SECONDS = 0.1
LIVE_CONNECTIONS = 32


class Sample(NamedTuple):
    """One look at the shipper: seconds of the clock and of CPU, bytes resident, bytes of the spool acknowledged."""

    at: float
    cpu: float
    resident: int
    shipped_bytes: int


def main() -> int:
    arguments = _arguments()
    if arguments.live:
        check_installed()
    with tempfile.TemporaryDirectory(prefix="gateway-shipping-") as folder, _broker(Path(folder) / "kafka") as broker:
        if arguments.live:
            return live(Path(folder), broker, arguments)
        return drain(Path(folder), broker, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=200_000, help="predictions to ship")
    parser.add_argument("--compression", default="zstd", choices=["zstd", "lz4", "gzip", "none"])
    parser.add_argument("--live", type=int, default=0, metavar="SECONDS", help="load two fronts for so long instead")
    return parser.parse_args()


def drain(place: Path, broker: KafkaBroker, arguments: argparse.Namespace) -> int:
    state, aside = place / "state", place / "aside"
    size = fill(aside, arguments.events)
    (state / "spool").mkdir(parents=True)
    log = place / "shipper.log"
    command = [sys.executable, "-m", "gateway", "ship", "--state-dir", str(state)]
    settings = _settings(broker, arguments.compression) | {"PYTHONPATH": str(ROOT)}
    with started(command, folder=place, log=log, environment=settings) as process:
        # The shipper has connected and made its topics before anything is there to ship, so that its start is not
        # part of the figures.
        wait_until(lambda: "reachable" in log.read_text(), process, log=log)
        time.sleep(1)
        for stream in list(aside.iterdir()):
            stream.rename(state / "spool" / stream.name)
        samples = watch(process.pid, state / "spool", until=lambda sample: sample.shipped_bytes >= size)
    show(arguments.events, samples, lambda sample: sample.shipped_bytes / size)
    return 0


def fill(spool: Path, events: int) -> int:
    """Write so many predictions, as two fronts would have; returns the bytes of the spool."""
    draw = np.random.default_rng(0)
    head = prediction_head(
        gateway="gateway-bench",
        model="tabular",
        version=2,
        digest=f"sha256:{'5a' * 32}",
        arm="canary",
        weight=10.0,
        reason="drawn",
    )
    settings = SpoolSettings(max_bytes=2**40)
    for slot in range(FRONTS):
        writer = SpoolWriter(spool / f"front-{slot}", slot=slot, settings=settings)
        left = events // FRONTS + (events % FRONTS if slot == 0 else 0)
        while left:
            count = min(BATCH, left)
            writer.append([(KIND_BLOCK, random_block(draw, head, count=count, features=FEATURES, keys=2**32))])
            left -= count
        writer.close()
    return sum(file.stat().st_size for file in spool.glob("*/*.seg"))


def _settings(broker: KafkaBroker, compression: str) -> dict[str, str]:
    return {
        "GATEWAY_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "GATEWAY_KAFKA__COMPRESSION": compression,
    }


def watch(pid: int, spool: Path, *, until: Callable[[Sample], bool]) -> list[Sample]:
    """Look at the shipper until it is done, for an hour at most."""
    samples = [_sample(pid, spool)]
    while not until(samples[-1]):
        if samples[-1].at - samples[0].at > 3600:
            raise SystemExit(f"the shipper did not finish within an hour: {samples[-1]}")
        time.sleep(SAMPLE_SECONDS)
        samples.append(_sample(pid, spool))
    return samples


def _sample(pid: int, spool: Path) -> Sample:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return Sample(time.monotonic(), cpu_seconds([pid]), resident, _shipped_bytes(spool))


def _shipped_bytes(spool: Path) -> int:
    try:
        position = read_checkpoint(spool)
    except CheckpointError as error:
        raise SystemExit(str(error)) from None
    return sum(
        offset if file.name == segment else file.stat().st_size
        for stream, (segment, offset) in position.items()
        for file in (spool / stream).glob("*.seg")
        if file.name <= segment
    )


def show(events: int, samples: list[Sample], share: Callable[[Sample], float]) -> None:
    """Print what shipping so many events took, and the memory at shares of the way."""
    seconds, cpu = samples[-1].at - samples[0].at, samples[-1].cpu - samples[0].cpu
    micros = cpu / events * 1e6
    print(f"shipped {events} predictions in {seconds:.1f} s: {events / seconds:.0f} events/s")
    print(
        f"shipper: {cpu:.2f} s of CPU, {micros:.1f} us an event, "
        f"{micros * TARGET_EVENTS_A_SECOND / 1e6:.3f} of a core at {TARGET_EVENTS_A_SECOND} events/s"
    )
    marks = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    sizes = [next(sample.resident for sample in samples if share(sample) >= mark) for mark in marks]
    shown = ", ".join(f"{mark:.0%} {size / 2**20:.0f}" for mark, size in zip(marks, sizes, strict=True))
    print(f"resident MiB by share of the way: {shown}; most {max(s.resident for s in samples) / 2**20:.0f}")


def live(place: Path, broker: KafkaBroker, arguments: argparse.Namespace) -> int:
    """Two fronts under as much load as this machine gives them, and the shipper beside them."""
    models, body = place / "models", place / "body.json"
    add_model(models, "tabular", model_file("tabular", CACHE), place=place)
    values = [round((index * 37 % 101) / 101 - 0.5, 4) for index in range(FEATURES)]
    tensor = {"name": "features", "shape": [1, FEATURES], "datatype": "FP32", "data": values}
    body.write_bytes(msgspec.json.encode({"inputs": [tensor]}))
    settings = _settings(broker, arguments.compression)
    with running_gateway(models, model="tabular", place=place, fronts=FRONTS, settings=settings) as (server,):
        assert server.log is not None
        spool = server.log / "spool"
        pid = next(pid for pid in server.beside() if title(pid) == "gateway: shipper")
        loads: list[Load] = []

        def run() -> None:
            cores = os.sched_getaffinity(0)
            content, seconds = "application/json", arguments.live
            loads.append(
                run_load(
                    server.url,
                    body,
                    content_type=content,
                    json_length=None,
                    connections=LIVE_CONNECTIONS,
                    seconds=seconds,
                    cores=cores,
                    threads=len(cores),
                )
            )

        loading = threading.Thread(target=run)
        loading.start()
        samples = watch(pid, spool, until=lambda _: not loading.is_alive())
        behind = Backlog(spool).count(read_checkpoint(spool))
        samples += watch(pid, spool, until=lambda _: Backlog(spool).count(read_checkpoint(spool)) == 0)
    (load,) = loads
    print(f"{FRONTS} fronts answered {load.requests} in {load.seconds:.1f} s: {load.rate:.0f}/s")
    print(f"{behind} events were not shipped when the load had ended; all were soon after")
    began, seconds = samples[0].at, samples[-1].at - samples[0].at
    show(load.requests, samples, lambda sample: (sample.at - began) / seconds)
    return 0


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


if __name__ == "__main__":
    raise SystemExit(main())
