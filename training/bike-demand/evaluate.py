"""How well each version of `bike-demand` does, quarter by quarter, fed as callers feed it.

    python training/bike-demand/evaluate.py [--models models]

The versions are those of the models folder, run by the engine that serves them. Version 3 without its mistake is
trained for the comparison and thrown away.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from hours import Hours, read_hours
from numpy.typing import NDArray
from train import CHECKOUT, HELD_OUT_WEEKS, MODEL, SPANS, train_version

from gateway.engine.oneshot import open_engine
from gateway.repository.manifest import ModelVersion, load_version
from gateway.repository.policy import load_policy

RUN_ROWS = 512
QUARTERS = {
    f"{year}Q{quarter}": (f"{year}-{3 * quarter - 2:02}-01", f"{year}-{3 * quarter:02}-31")
    for year in (2011, 2012, 2013)
    for quarter in (1, 2, 3, 4)
}


def errors_of(version: ModelVersion, hours: Hours) -> NDArray[np.float64]:
    """Absolute errors of a version on every hour, shape [rows]."""
    parts = []
    with open_engine(version.folder / "model.onnx") as engine:
        for start in range(0, len(hours.counts), RUN_ROWS):
            answer = engine.run({"features": hours.features[start : start + RUN_ROWS]})
            parts.append(answer["count"][:, 0].astype(np.float64))
    return np.abs(np.concatenate(parts) - hours.counts)


def held_out(hours: Hours, version: int) -> NDArray[np.bool_]:
    """The weeks of a version's time span that it did not learn from, shape [rows]."""
    span = SPANS[version]
    within: NDArray[np.bool_] = hours.between(span.first_day, span.last_day)
    return within & (hours.weeks() % HELD_OUT_WEEKS == 0)


def table(title: str, rows: dict[str, list[str]]) -> str:
    """A Markdown table: a line for each version, a column for each quarter."""
    lines = [
        f"| {title} | {' | '.join(QUARTERS)} | held out |",
        f"|---|{'---:|' * (len(QUARTERS) + 1)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Errors of the versions of bike-demand, quarter by quarter.")
    parser.add_argument("--models", type=Path, default=CHECKOUT / "models", help="the folder of all models")
    models: Path = parser.parse_args().models
    hours, policy = read_hours(), load_policy(CHECKOUT / "models" / MODEL)
    miss_above = policy.quality.miss_above
    if miss_above is None:
        parser.error("model.toml has no quality.miss_above: expected the error in bikes above which an hour is a miss")
    with tempfile.TemporaryDirectory() as scratch:
        correct = train_version(3, Path(scratch), hours=hours, policy=policy, correct=True)
        versions = {str(version): load_version(models / MODEL / str(version)) for version in SPANS}
        versions["3 without the mistake"] = correct
        errors = {name: errors_of(version, hours) for name, version in versions.items()}
    missed: dict[str, list[str]] = {}
    absolute: dict[str, list[str]] = {}
    for name, version in versions.items():
        spans = [*(hours.between(*days) for days in QUARTERS.values()), held_out(hours, version.version)]
        missed[name] = [f"{100 * (errors[name][span] > miss_above).mean():.1f}" for span in spans]
        absolute[name] = [f"{errors[name][span].mean():.0f}" for span in spans]
    print(table(f"misses in % (more than {miss_above:g} bikes off)", missed), end="\n\n")
    print(table("mean absolute error in bikes", absolute))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
