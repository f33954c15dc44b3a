"""What watching costs: microseconds of one core per prediction of 30 features, binning included.

Run: python benchmarks/drift_cost.py
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gateway.drift.ecusum import BinnedECusum
from gateway.drift.profile import FeatureProfile, bin_counts, build_feature, columns_of

FEATURES = 30
REFERENCE_ROWS = 20_000
BATCH_ROWS = (64, 256, 1024)
ROUNDS = 5
UPDATES = 60


def main() -> None:
    rng = np.random.default_rng(1)
    names = tuple(f"x[{column}]" for column in range(FEATURES))
    features = {name: build_feature(rng.normal(size=REFERENCE_ROWS)) for name in names}
    print(f"{FEATURES} features, best of {ROUNDS} rounds of {UPDATES} batches, us per prediction")
    print(f"{'batch':>6} {'columns':>8} {'binning':>8} {'update':>8} {'total':>8} {'every 8th':>10}")
    for rows in BATCH_ROWS:
        tensor = rng.normal(size=(rows, FEATURES)).astype(np.float32)
        every, eighth = BinnedECusum(features), BinnedECusum(features, solve_every=8)
        columns = columns_of({"x": tensor}, {})
        counts = {name: bin_counts(feature, columns[name]) for name, feature in features.items()}
        splitting = _best(functools.partial(columns_of, {"x": tensor}, {}), rows)
        binning = _best(functools.partial(_bin, features, columns), rows)
        update = _best(functools.partial(every.update, counts), rows)
        seldom = _best(functools.partial(eighth.update, counts), rows)
        binned = splitting + binning
        cells = (splitting, binning, update, binned + update)
        print(f"{rows:>6} " + " ".join(f"{cell:>8.2f}" for cell in cells) + f" {binned + seldom:>10.2f}")
    state = every.state()
    size = sum(len(part) for part in state.values() if isinstance(part, bytes))
    print(f"state: {size / 1000:.1f} kB")


def _bin(features: dict[str, FeatureProfile], columns: dict[str, Any]) -> None:
    for name, feature in features.items():
        bin_counts(feature, columns[name])


def _best(work: Callable[[], object], rows: int) -> float:
    """Microseconds per row of the fastest round."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(UPDATES):
            work()
        best = min(best, time.perf_counter() - began)
    return best / UPDATES / rows * 1e6


if __name__ == "__main__":
    main()
