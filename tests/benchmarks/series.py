"""Measurements as a run would leave them."""

from __future__ import annotations

from benchmarks.cases import Round, Series
from benchmarks.load import Load


def series(
    server: str,
    *rates: float,
    stage: str = "tabular",
    workload: str = "1 row",
    connections: int = 64,
    p50_us: float = 1000.0,
    p99_us: float = 2000.0,
) -> Series:
    """One round of a second for each rate."""
    rounds = [Round(Load(round(rate), 1.0, p50_us, p50_us, p99_us, p99_us), 20.0, 5.0) for rate in rates]
    return Series(stage, workload, 1, connections, "one core", server, rounds, 50_000_000)
