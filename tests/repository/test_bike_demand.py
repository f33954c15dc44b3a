"""The shipped model: its folders are as they were added, and training it again gives the same."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.drift.profile import decode_profile
from gateway.engine.oneshot import open_engine
from gateway.repository.lineage import read_lineage
from gateway.repository.manifest import ModelVersion, load_version, scan, verify
from gateway.repository.policy import load_policy
from gateway.repository.reference import read_reference

CHECKOUT = Path(__file__).resolve().parents[2]
MODEL = CHECKOUT / "models" / "bike-demand"
TRAINING = CHECKOUT / "training" / "bike-demand"
FEATURES = ("hour", "weekday", "month", "tmin", "tmax", "pn")

Array = np.ndarray[Any, np.dtype[Any]]


def read_hours() -> tuple[list[str], Array, Array]:
    with gzip.open(TRAINING / "hours.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    features = np.array([[row[name] for name in FEATURES] for row in rows], dtype=np.float32)
    return [row["time"] for row in rows], features, np.array([float(row["count"]) for row in rows])


def predict(version: ModelVersion, features: Array) -> Array:
    with open_engine(version.folder / "model.onnx") as engine:
        return engine.run({"features": features})["count"][:, 0].astype(np.float64)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_committed_version_is_as_it_was_added(number: int) -> None:
    version = load_version(MODEL / str(number))
    verify(version)
    assert version in scan(CHECKOUT / "models")[0]
    assert (version.folder / "model.onnx").stat().st_size < 400_000


def test_versions_1_and_2_are_approved_by_their_digests_and_version_3_is_not() -> None:
    assert load_policy(MODEL).approvals == {str(n): load_version(MODEL / str(n)).digest for n in (1, 2)}


def test_the_files_shown_in_the_documentation_are_rows_and_lineage_of_the_model(tmp_path: Path) -> None:
    text = (CHECKOUT / "docs" / "models.md").read_text()
    [line] = re.findall(r"^gunzip .*$", text, re.M)
    (tmp_path / "training").symlink_to(CHECKOUT / "training")
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=30)
    [sample] = re.findall(r"```\n(hour,.*?)```", text, re.S)
    assert (tmp_path / "rows.csv").read_text().startswith(sample)
    signature = load_version(MODEL / "2").manifest.signature
    reference = read_reference(tmp_path / "rows.csv", signature=signature, label="count")
    assert reference.columns == {"features": FEATURES} and len(reference.inputs["features"]) == 8760
    [lineage] = re.findall(r"```toml\n(.*?)```", text, re.S)
    (tmp_path / "lineage.toml").write_text(lineage)
    assert read_lineage(tmp_path / "lineage.toml").data.rows == 8760


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_version_says_where_it_comes_from(number: int) -> None:
    manifest = load_version(MODEL / str(number)).manifest
    lineage = manifest.lineage
    assert lineage.source.commit and lineage.source.dirty is False
    assert lineage.data.sha256 == hashlib.sha256((TRAINING / "hours.csv.gz").read_bytes()).hexdigest()
    assert lineage.parent == (number - 1 or None)
    assert lineage.data.rows and lineage.data.start and lineage.data.end and lineage.author and lineage.created
    assert manifest.batching.verdict == "equal"
    profile = decode_profile((MODEL / str(number) / "profile.json").read_bytes())
    assert tuple(profile.features) == FEATURES
    assert profile.loss is not None and profile.loss.miss_above == load_policy(MODEL).quality.miss_above
    assert profile.loss.misses / profile.loss.rows == pytest.approx(lineage.metrics["held_out_miss_rate"], abs=1e-3)


def test_the_story_of_the_versions_is_in_the_data() -> None:
    times, features, counts = read_hours()
    limit = load_policy(MODEL).quality.miss_above
    assert limit is not None
    missed = {n: np.abs(predict(load_version(MODEL / str(n)), features) - counts) > limit for n in (1, 2, 3)}

    def rate(version: int, first: str, last: str) -> float:
        return float(missed[version][[first <= time[:7] <= last for time in times]].mean())

    at_home = load_version(MODEL / "1").manifest.lineage.metrics["held_out_miss_rate"]
    assert 0.05 <= at_home <= 0.10
    assert rate(1, "2012-01", "2012-12") > 5 * at_home, "version 1 is overtaken by growth"
    assert rate(2, "2013-01", "2013-06") < 0.7 * rate(1, "2013-01", "2013-06"), "version 2 does clearly better"
    assert rate(3, "2013-07", "2013-12") > 1.4 * rate(2, "2013-07", "2013-12"), "version 3 does clearly worse"
    by_itself = load_version(MODEL / "3").manifest.lineage.metrics["held_out_miss_rate"]
    assert by_itself < 0.2, "and yet looks good by its own metrics"


def train(models: Path, *arguments: str) -> None:
    command = [sys.executable, str(TRAINING / "train.py"), "--models", str(models), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=240)


@pytest.mark.slow
def test_training_again_gives_the_same_answers(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx", reason="training packages are not installed")
    train(tmp_path, "--versions", "1")
    features = read_hours()[1]
    trained, committed = load_version(tmp_path / "bike-demand" / "1"), load_version(MODEL / "1")
    np.testing.assert_allclose(predict(trained, features), predict(committed, features), atol=1e-2)
    assert trained.manifest.lineage.metrics == committed.manifest.lineage.metrics
    assert trained.manifest.lineage.reference == committed.manifest.lineage.reference


@pytest.mark.slow
def test_version_3_without_its_mistake_does_as_well_as_version_2(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx", reason="training packages are not installed")
    train(tmp_path, "--versions", "3", "--correct")
    times, features, counts = read_hours()
    autumn = np.array([time >= "2013-07" for time in times])
    correct = load_version(tmp_path / "bike-demand" / "3")
    with_the_mistake, second = load_version(MODEL / "3"), load_version(MODEL / "2")
    errors = {
        version: np.abs(predict(version, features[autumn]) - counts[autumn]).mean()
        for version in (correct, with_the_mistake, second)
    }
    assert errors[correct] < 1.05 * errors[second] < errors[with_the_mistake]


def test_the_readme_has_the_table_that_its_command_makes() -> None:
    readme = (TRAINING / "README.md").read_text()
    times, features, counts = read_hours()
    limit = load_policy(MODEL).quality.miss_above
    assert limit is not None and f"more than {limit:g} bikes off" in readme
    line = next(line for line in readme.splitlines() if re.match(r"\| 2 \| \d+\.\d \|", line))
    errors = np.abs(predict(load_version(MODEL / "2"), features) - counts)
    spring = np.array(["2012-01" <= time[:7] <= "2012-03" for time in times])
    assert line.split("|")[6].strip() == f"{100 * (errors[spring] > limit).mean():.1f}"
