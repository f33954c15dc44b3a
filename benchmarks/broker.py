"""A real Apache Kafka to ship to: the test kit's."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cases import Bench
from benchmarks.errors import ServerFailed
from benchmarks.processes import pin, tree

__all__ = ("running_broker",)

_CORE = 1
_NICE = 10
"""A broker is another machine's work: here it gives way to the load and to the gateway."""


@contextlib.contextmanager
def running_broker(bench: Bench) -> Iterator[str]:
    """Start one node of Apache Kafka on loopback; gives its address.

    Raises
    ------
    ServerFailed
        Java, Maven or its jars are missing.
    """
    from tests.brokers import KafkaBroker

    before = set(tree([os.getpid()]))
    try:
        broker = KafkaBroker(Path(tempfile.mkdtemp(dir=bench.place, prefix="kafka-")))
        broker.start()
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        raise ServerFailed(str(error)) from None
    try:
        pids = [pid for pid in tree([os.getpid()]) if pid not in before]
        pin(pids, (_CORE,))
        for pid in pids:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), _NICE)
        yield broker.bootstrap_servers
    finally:
        broker.kill()
