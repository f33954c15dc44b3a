"""Train the versions of `bike-demand` and add each to a models folder.

    python training/bike-demand/train.py [--models models] [--versions 1 2 3] [--correct]

Version 3 has a mistake on purpose: the join that made its training rows took the weather from a source in degrees
Fahrenheit, while every caller sends Celsius. Its reference rows come from the same join, so its own metrics look as
good as ever. `--correct` trains it without the mistake.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from importlib.metadata import version as package_version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hours import FEATURES, HOURS_FILE, Hours, read_hours, sha256_of_file
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingRegressor

from gateway.engine.oneshot import open_engine
from gateway.repository.add import add_version
from gateway.repository.errors import RepositoryError, VersionExistsError
from gateway.repository.lineage import Lineage, TrainingData, detect_source
from gateway.repository.manifest import ModelVersion
from gateway.repository.policy import ModelPolicy, load_policy

MODEL = "bike-demand"
CHECKOUT = Path(__file__).resolve().parents[2]
HYPERPARAMETERS = {
    "n_estimators": 150,
    "max_depth": 5,
    "learning_rate": 0.1,
    "subsample": 0.7,
    "min_samples_leaf": 20,
    "random_state": 2011,
}
HELD_OUT_WEEKS = 4
OPSET = 15


class Span(NamedTuple):
    """The days a version learns from, both included, and the version it takes over from."""

    first_day: str
    last_day: str
    parent: int | None


SPANS = {
    1: Span("2011-01-01", "2011-12-31", None),
    2: Span("2012-01-01", "2012-12-31", 1),
    3: Span("2012-07-01", "2013-06-30", 2),
}


def joined_features(hours: Hours, version: int, *, correct: bool) -> NDArray[np.float32]:
    """The feature rows as the training join of a version made them, shape [rows, 6]."""
    features = hours.features.copy()
    if version == 3 and not correct:
        weather = [FEATURES.index("tmin"), FEATURES.index("tmax")]
        features[:, weather] = features[:, weather] * 1.8 + 32
    return features


def train_version(
    version: int, models_dir: Path, *, hours: Hours, policy: ModelPolicy, correct: bool = False
) -> ModelVersion:
    """Train one version and add it."""
    span = SPANS[version]
    in_span = hours.between(span.first_day, span.last_day)
    held_out = in_span & (hours.weeks() % HELD_OUT_WEEKS == 0)
    learned = in_span & ~held_out
    features = joined_features(hours, version, correct=correct)

    model = GradientBoostingRegressor(**HYPERPARAMETERS).fit(features[learned], hours.counts[learned])
    errors = np.abs(model.predict(features[held_out]) - hours.counts[held_out])
    metrics = {"held_out_mae": round(float(errors.mean()), 3)}
    if policy.quality.miss_above is not None:
        metrics["held_out_miss_rate"] = round(float((errors > policy.quality.miss_above).mean()), 4)

    with tempfile.TemporaryDirectory() as folder:
        model_file, reference = Path(folder, "model.onnx"), Path(folder, f"held-out-{version}.csv")
        model_file.write_bytes(to_onnx(model))
        write_reference(reference, features[held_out], hours.counts[held_out])
        return add_version(
            models_dir,
            MODEL,
            model_file,
            open_runner=open_engine,
            policy=policy,
            lineage=Lineage(
                source=detect_source(CHECKOUT),
                data=TrainingData(
                    uri=HOURS_FILE.relative_to(CHECKOUT).as_posix(),
                    sha256=sha256_of_file(),
                    rows=int(learned.sum()),
                    start=span.first_day,
                    end=span.last_day,
                ),
                hyperparameters={"estimator": type(model).__name__, **HYPERPARAMETERS},
                metrics=metrics,
                framework={name: package_version(name) for name in ("numpy", "onnx", "scikit-learn", "skl2onnx")},
                parent=span.parent,
                author="The inference gateway's maintainers",
                created=commit_time(),
                notes=(
                    f"One week in {HELD_OUT_WEEKS} of the time span was not learned from. Metrics and reference rows"
                    " are those weeks."
                ),
            ),
            version=version,
            reference=reference,
        )


def to_onnx(model: GradientBoostingRegressor) -> bytes:
    """The model as ONNX: `features` FP32 [-1, 6] to `count` FP32 [-1, 1]."""
    converted = convert_sklearn(
        model,
        name=MODEL,
        initial_types=[("features", FloatTensorType([None, len(FEATURES)]))],
        final_types=[("count", FloatTensorType([None, 1]))],
        target_opset=OPSET,
    )
    return bytes(converted.SerializeToString(deterministic=True))


def write_reference(path: Path, features: NDArray[np.float32], counts: NDArray[np.float64]) -> None:
    """Reference rows as `gateway models add` reads them: a column for each feature, and the label."""
    with open(path, "w", encoding="ascii", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FEATURES, "count"])
        for row, count in zip(features.tolist(), counts.tolist(), strict=True):
            writer.writerow([*(f"{value:.6g}" for value in row), f"{count:g}"])


def commit_time() -> str | None:
    """The time of the commit that trains, so that training it again writes the same; None outside git."""
    command = ["git", "-C", str(CHECKOUT), "log", "-1", "--format=%cI"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the versions of bike-demand and add each to a models folder.")
    parser.add_argument("--models", type=Path, default=CHECKOUT / "models", help="the folder of all models")
    parser.add_argument("--versions", type=int, nargs="+", choices=sorted(SPANS), default=sorted(SPANS))
    parser.add_argument("--correct", action="store_true", help="version 3 without its mistake")
    arguments = parser.parse_args()
    hours, policy = read_hours(), load_policy(CHECKOUT / "models" / MODEL)
    for version in arguments.versions:
        try:
            added = train_version(version, arguments.models, hours=hours, policy=policy, correct=arguments.correct)
        except VersionExistsError as error:
            print(f"{error}; left as it is")
            continue
        except RepositoryError as error:
            print(f"not added: {error}", file=sys.stderr)
            return 1
        metrics = ", ".join(f"{name} {value:g}" for name, value in added.manifest.lineage.metrics.items())
        print(f"added {MODEL}/{version}: {metrics}, batching {added.manifest.batching.verdict}, {added.digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
