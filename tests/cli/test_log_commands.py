"""Questions to the log as commands, on a state directory without a gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner, Result

import gateway.predictions.export
from gateway.cli.main import app as program
from gateway.cli.predictions import app
from gateway.events.addresses import format_id
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.segments import list_segments, scan
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
from tests.clients.environments import client_python

MODELS = Path(__file__).parents[2] / "models"
MODEL = "bike-demand"
START = 1_330_560_000.0
COUNT = 60
NAMES = ("hour", "weekday", "month", "tmin", "tmax", "pn")
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
                inputs=tensor_records(HEADS[:1], [row], [None], kept=Kept(4096)),
                outputs=tensor_records(HEADS[1:], [answer], [None], kept=Kept(4096)),
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


def test_wrong_settings_are_bad_usage(state: Path, tmp_path: Path) -> None:
    settings = tmp_path / "gateway.toml"
    settings.write_text("[log]\nno_such_key = 1\n")
    for command in (("reconcile",), ("replay", "--model", MODEL, "--version", 1)):
        told = called(*command, "--config", settings, "--state-dir", state, status=2)
        assert told.stderr.startswith("gateway: ") and "log.no_such_key" in told.stderr


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


def test_an_export_of_what_is_neither_logged_nor_there_is_refused(state: Path) -> None:
    common = ("export", "--models", MODELS, "--state-dir", state)
    for unknown in (("--model", "other"), ("--model", MODEL, "--version", 99)):
        assert "no prediction" in called(*common, *unknown, status=1).stderr
    assert called(*common, "--model", MODEL, "--version", 2).stdout == ""


@pytest.mark.parametrize("name", ["table.jsonl", "table.parquet"])
def test_an_export_of_what_is_neither_logged_nor_there_takes_no_files_place(
    state: Path, tmp_path: Path, name: str
) -> None:
    table = tmp_path / name
    table.write_text("of last week")
    common = ("export", "--models", MODELS, "--state-dir", state, "-o", table)
    assert "has no prediction of nobody" in called(*common, "--model", "nobody", status=1).output
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert table.read_text() == "of last week"


@pytest.mark.parametrize("command", [("export",), ("replay", "--model", MODEL, "--version", 1), ("reconcile",)])
def test_a_window_that_ends_before_it_begins_is_bad_usage(state: Path, command: tuple[str, ...]) -> None:
    said = called(*command, "--state-dir", state, "--since", "1h", "--until", "2h", status=2).stderr
    assert "--until" in said and "not after" in said


def test_a_replay_of_a_version_that_is_not_there_names_those_that_are(state: Path) -> None:
    common = ("replay", "--models", MODELS, "--state-dir", state)
    said = called(*common, "--model", MODEL, "--version", 99, status=1).stderr
    assert f"there is no version 99 of {MODEL} in {MODELS}; there are 1, 2, 3" in " ".join(said.split())
    assert "there is no model other in" in called(*common, "--model", "other", "--version", 1, status=1).stderr


def test_an_export_is_a_table_with_the_names_of_the_reference_and_the_labels(state: Path, tmp_path: Path) -> None:
    common = ("export", "--model", MODEL, "--models", MODELS, "--state-dir", state)
    lines = [json.loads(line) for line in called(*common).stdout.splitlines()]
    assert len(lines) == COUNT and [line["label"] for line in lines] == list(range(COUNT))
    assert all(isinstance(lines[0][name], float) for name in (*NAMES, "count"))
    called(*common, "--output", tmp_path / "table.jsonl", "--since", "2012-03-01T00:00:50")
    assert (tmp_path / "table.jsonl").read_bytes().splitlines() == [
        line.encode() for line in called(*common).stdout.splitlines()[50:]
    ]
    assert "60 rows in" in called(*common, "-o", tmp_path / "table.parquet").output
    table = parquet.read_table(tmp_path / "table.parquet")
    assert table.column("prediction_id").to_pylist() == [line["prediction_id"] for line in lines]
    for name in (*NAMES, "count", "label"):
        assert table.column(name).to_pylist() == [np.float32(line[name]) for line in lines]
    assert (
        str(table.schema.field("count").type) == "float"
        and str(table.schema.field("time").type) == "timestamp[us, tz=UTC]"
    )
    assert table.column("time").to_pylist()[1].timestamp() == START + 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def late_prediction(state: Path, *, time: float) -> None:
    """One more prediction in another front's stream, of another model with a column of its own."""
    writer = SpoolWriter(state / "spool" / "front-1", slot=1, settings=SpoolSettings())
    event_id = format_id(writer.boot, writer.next_sequence)
    record = prediction_record(
        prediction_head(
            gateway="g", model="late", version=1, digest="sha256:0", arm="stable", weight=0.0, reason="stable"
        ),
        event_id=event_id.encode(),
        time=record_time(time),
        sequence=writer.next_sequence,
        status=200,
        rows=1,
        timings=(1, 2, 3),
        inputs=tensor_records(
            [tensor_head(TensorSpec("late", "FP32", (-1, 1)))], [np.ones((1, 1), "f4")], [None], kept=Kept(4096)
        ),
        outputs=b"[]",
        parameters={},
        request_id=None,
        key=None,
        error=None,
    )
    writer.append([(KIND_PREDICTION, record)])
    writer.close()


def test_an_export_to_parquet_has_the_rows_whose_columns_it_found_and_no_others(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(state, tmp_path / "state")
    find_columns = gateway.predictions.export._schema

    def and_meanwhile(arrow: Any, lines: Any) -> Any:
        found = find_columns(arrow, lines)
        late_prediction(tmp_path / "state", time=START)
        return found

    monkeypatch.setattr("gateway.predictions.export._schema", and_meanwhile)
    common = ("export", "--models", MODELS, "--state-dir", tmp_path / "state", "-o", tmp_path / "table.parquet")
    assert "60 rows in" in called(*common).output
    assert "61 rows in" in called(*common).output
    late = parquet.read_table(tmp_path / "table.parquet").column("late").to_pylist()
    assert [value for value in late if value is not None] == [1.0] and len(late) == COUNT + 1


def test_an_export_ends_with_the_time_of_the_call_where_no_other_is_given(state: Path, tmp_path: Path) -> None:
    shutil.copytree(state, tmp_path / "state")
    late_prediction(tmp_path / "state", time=time.time() + 3600)
    common = ("export", "--state-dir", tmp_path / "state")
    assert len(called(*common).stdout.splitlines()) == COUNT
    assert len(called(*common, "--until", "2999-01-01T00:00").stdout.splitlines()) == COUNT + 1


def test_an_export_chooses_and_says_what_it_cannot_do(state: Path, tmp_path: Path) -> None:
    common = ("export", "--state-dir", state)
    assert called(*common, "--arm", "canary").stdout == ""
    assert called(*common, "--version", 2).stdout == ""
    unnamed = json.loads(called(*common, "--no-labels", "--models", tmp_path).stdout.splitlines()[0])
    assert unnamed["features[5]"] is not None and unnamed["label"] is None
    called(*common, "--format", "parquet", status=2)
    assert "cannot write" in called(*common, "-o", tmp_path / "no" / "table.jsonl", status=1).output


def test_an_export_takes_the_format_from_an_end_that_tells_one(state: Path, tmp_path: Path) -> None:
    common = ("export", "--state-dir", state)
    for name in ("table.csv", "table", "table.jsonl.gz"):
        said = called(*common, "-o", tmp_path / name, status=2).output
        assert "tells no format" in " ".join(said.replace("│", "").split())
        assert not (tmp_path / name).exists()
    for name, form in (("table.json", ()), ("table.csv", ("--format", "jsonl"))):
        called(*common, "-o", tmp_path / name, *form)
        assert json.loads((tmp_path / name).read_text().splitlines()[0])["model"] == MODEL


@pytest.mark.slow
def test_pandas_and_duckdb_read_an_export(state: Path, tmp_path: Path) -> None:
    python = client_python("frames", "duckdb==1.4.1", "pandas==2.3.3", "pyarrow==22.0.0")
    for name in ("table.parquet", "table.jsonl"):
        called("export", "--models", MODELS, "--state-dir", state, "-o", tmp_path / name)
    done = subprocess.run([python, "-c", READ_FRAMES], cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["60", "60", "60", "60", "1770.0"]


READ_FRAMES = """
import duckdb, pandas
parquet, lines = pandas.read_parquet("table.parquet"), pandas.read_json("table.jsonl", lines=True)
assert list(parquet.columns) == list(lines.columns), (parquet.columns, lines.columns)
assert str(parquet.time.dtype) == "datetime64[us, UTC]", parquet.time.dtype
assert (parquet["count"] == lines["count"].astype("float32")).all()
print(len(parquet), len(lines))
for name in ("table.parquet", "table.jsonl"):
    print(duckdb.sql(f"select count(*) from '{name}' where status = 200").fetchone()[0])
print(duckdb.sql("select sum(label) from 'table.parquet'").fetchone()[0])
"""


def test_an_archive_is_part_of_the_log_for_every_question(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(state, tmp_path / "state")
    monkeypatch.setenv("GATEWAY_SPOOL__ARCHIVE_URL", str(tmp_path / "archive"))
    common = ("--state-dir", tmp_path / "state")
    lines = called("export", "--models", MODELS, *common).stdout
    event_id = json.loads(lines.splitlines()[2])["prediction_id"]
    shown = called("show", event_id, *common).stdout
    moved = CliRunner().invoke(program, ["archive", "--once", "--older-than-hours", "0", *map(str, common)])
    assert moved.exit_code == 0 and "segments with" in moved.output, moved.output
    assert len(list_segments(tmp_path / "state" / "spool" / "front-0")) <= 1
    assert called("export", "--models", MODELS, *common).stdout == lines
    assert called("show", event_id, *common).stdout == shown
    assert answered("reconcile", *common)["ok"]
    assert answered("replay", "--model", MODEL, "--version", 1, "--models", MODELS, *common)["bit_identical"]


def test_an_archive_of_a_damaged_spool_ends_with_a_failure_that_names_it(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(state, tmp_path / "state")
    folder = tmp_path / "state" / "spool" / "front-0"
    name = list_segments(folder)[0]
    content = bytearray((folder / name).read_bytes())
    content[1] ^= 0xFF
    (folder / name).write_bytes(content)
    os.utime(folder / name, (1.0, 1.0))
    monkeypatch.setenv("GATEWAY_SPOOL__ARCHIVE_URL", str(tmp_path / "archive"))
    moved = CliRunner().invoke(
        program, ["archive", "--once", "--older-than-hours", "0", "--state-dir", str(tmp_path / "state")]
    )
    assert moved.exit_code == 1 and "1 places did not check; their segments are *.damaged" in moved.output
    assert (folder / f"{name}.damaged").read_bytes() == content


def test_without_the_extra_the_way_to_it_is_shown(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    parquet_file = tmp_path / "table.parquet"
    way = ".venv/bin/pip install -e '.[archive]'"
    assert way in called("export", "--state-dir", state, "-o", parquet_file, status=1).output
    monkeypatch.setenv("GATEWAY_SPOOL__ARCHIVE_URL", str(tmp_path / "archive"))
    assert way in called("reconcile", "--state-dir", state, status=1).output


def test_an_interrupt_ends_a_command_cleanly(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.predictions.export.table_lines", interrupted)
    output = tmp_path / "table.jsonl"
    assert "stopped after 0" in called("export", "--state-dir", state, "-o", output, status=1).output
    assert list(tmp_path.iterdir()) == []
