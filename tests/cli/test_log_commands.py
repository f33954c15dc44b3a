"""Questions to the log as commands, on a state directory without a gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gateway.cli.predictions import app
from gateway.events.addresses import format_id
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.segments import list_segments, scan
from gateway.predictions.spool import SpoolWriter
from gateway.predictions.versions import open_version
from gateway.protocol.datatypes import TensorSpec
from gateway.protocol.encode import tensor_head
from gateway.serving.records import feedback_record, prediction_head, prediction_record, record_time, tensor_records
from gateway.settings import SpoolSettings

MODELS = Path(__file__).parents[2] / "models"
MODEL = "bike-demand"
START = 1_330_560_000.0
COUNT = 60
HEADS = [tensor_head(TensorSpec(name, "FP32", (-1, -1))) for name in ("features", "count")]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of predictions of the demo model, one a second, as it answers them, each with a label."""
    state = tmp_path_factory.mktemp("state")
    draw = np.random.default_rng(1)
    writer = SpoolWriter(state / "spool" / "front-0", slot=0, settings=SpoolSettings(segment_bytes=4096))
    with open_version(MODELS, MODEL, 1, threads=1) as opened:
        head = prediction_head(
            gateway="g", model=MODEL, version=1, digest=opened.digest, arm="stable", weight=0.0, reason="stable"
        )
        for second in range(COUNT):
            row = draw.uniform(0, 12, (1, 6)).astype("f4")
            answer = opened.replayed.runner.run({"features": row})["count"]
            event_id = format_id(writer.boot, writer.next_sequence)
            record = prediction_record(
                head,
                event_id=event_id.encode(),
                time=record_time(START + second),
                sequence=writer.next_sequence,
                status=200,
                rows=1,
                timings=(1, 2, 3),
                inputs=tensor_records(HEADS[:1], [row], [None], max_bytes=4096),
                outputs=tensor_records(HEADS[1:], [answer], [None], max_bytes=4096),
                parameters={},
                request_id=None,
                key=None,
                error=None,
            )
            label = feedback_record(
                event_id=format_id(writer.boot, writer.next_sequence + 1),
                time=record_time(START + second),
                gateway="g",
                sequence=writer.next_sequence + 1,
                model=MODEL,
                prediction_id=event_id,
                row=0,
                label=float(second),
            )
            writer.append([(KIND_PREDICTION, record), (KIND_FEEDBACK, label)])
    writer.close()
    return state


def called(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def answered(*arguments: object, status: int = 0) -> Any:
    return json.loads(called(*arguments, "--json", status=status).stdout)


def test_replay_gives_the_logged_answers_again_bit_for_bit(state: Path) -> None:
    report = answered("replay", "--model", MODEL, "--version", 1, "--models", MODELS, "--state-dir", state)
    assert report["replayed"] == COUNT and report["bit_identical"] and report["not_replayed"] == {}
    assert report["latency"]["version 1"]["p50_us"] > 0


def test_replay_takes_a_window_and_another_version(state: Path) -> None:
    window = ("--since", "2012-03-01T00:00:10", "--until", "2012-03-01T00:00:20Z")
    common = ("replay", "--model", MODEL, "--models", MODELS, "--state-dir", state)
    report = answered(*common, "--version", 2, "--against", 1, *window)
    assert report["replayed"] == 10 and not report["bit_identical"]
    assert report["compared"][0]["against"] == "version 1"
    text = called(*common, "--version", 2, "--require", "bits", status=1).output
    assert "0 of 60 equal bit for bit" in text and "PSI" in text


def test_replay_says_what_is_wrong(state: Path, tmp_path: Path) -> None:
    common = ("replay", "--model", MODEL, "--models", MODELS)
    assert "expected a folder" in called(*common, "--version", 1, "--state-dir", tmp_path, status=1).output
    assert "version 9 of bike-demand" in called(*common, "--version", 9, "--state-dir", state, status=1).output
    called(*common, "--version", 1, "--since", "yesterday", "--state-dir", state, status=2)
    called(*common, "--version", 0, "--state-dir", state, status=2)
    nothing = called(*common, "--version", 1, "--since", "1s", "--state-dir", state, status=1)
    assert "nothing was replayed" in nothing.output


def test_reconcile_names_what_is_missing(state: Path, tmp_path: Path) -> None:
    body = answered("reconcile", "--state-dir", state)
    assert body["ok"] and [life["records"] for life in body["lives"]] == [2 * COUNT]
    folder = tmp_path / "spool" / "front-0"
    folder.mkdir(parents=True)
    for name in list_segments(state / "spool" / "front-0"):
        (folder / name).write_bytes((state / "spool" / "front-0" / name).read_bytes())
    second = list_segments(folder)[1]
    lost = scan((folder / second).read_bytes(), second[:14]).records
    (folder / second).unlink()
    body = answered("reconcile", "--state-dir", tmp_path, status=1)
    [gap] = body["lives"][0]["gaps"]
    assert (gap["first"], gap["last"]) == (lost[0].sequence, lost[-1].sequence) and not body["ok"]
    assert (
        f"numbers {lost[0].sequence} to {lost[-1].sequence}"
        in called("reconcile", "--state-dir", tmp_path, status=1).output
    )


def test_reconcile_of_a_window_starts_where_the_window_does(state: Path) -> None:
    body = answered("reconcile", "--state-dir", state, "--since", "2012-03-01T00:00:30")
    assert body["ok"] and body["lives"][0]["records"] == COUNT and body["lives"][0]["first"] == COUNT + 1


def test_a_prediction_is_shown_with_its_label(state: Path) -> None:
    name = list_segments(state / "spool" / "front-0")[0]
    event_id = format_id(name[:14], 7)
    body = answered("show", event_id, "--state-dir", state)
    assert body["prediction"]["id"] == event_id
    assert [(label["label"], label["row"]) for label in body["labels"]] == [(3.0, 0)]
    assert "3 for row 0" in called("show", event_id, "--state-dir", state).output
