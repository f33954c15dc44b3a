"""What the log holds of predictions that are redacted, sampled out, failed or shed."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.predictions.reader import SpoolReader
from gateway.protocol.errors import Overloaded
from gateway.routing.table import Route, hash_key
from gateway.serving.inference import Inference
from gateway.telemetry.cells import CellFile
from tests.clients.environments import client_python
from tests.serving.fronts import ROW, door, post, run

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
FAILS = {"inputs": [{**ROW, "data": [1.0, 2.0, "x"]}]}


def events(cells: CellFile, state: str) -> float:
    return cells.counter("gateway_log_events_total", {"state": state}).value


def test_sampled_out_predictions_keep_their_record_and_are_counted(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, engine_options={"logging": {"sample": 0.4}}) as d:
            keys = [f"rider-{number}" for number in range(40)]
            requests = [post(headers=f"Gateway-Routing-Key: {key}\r\n") for key in keys for _ in range(2)]
            answers = await d.send(*requests, read=len(requests))
            assert {status for status, _, _ in answers} == {200}
            records = d.log()
            assert [record["id"] for record in records] == [
                headers["gateway-prediction-id"] for _, headers, _ in answers
            ]
            for record in records:
                wanted = int(record["key"], 16) / 2**64 < 0.4
                assert record["sample"] == 0.4 and record.get("sampled", True) is wanted
                assert bool(record["inputs"]) is bool(record["outputs"]) is wanted
            sampled = [record.get("sampled", True) for record in records]
            assert sampled[::2] == sampled[1::2], "one key is logged whole each time, or never"
            assert 0 < sum(sampled) < len(records)
            assert events(d.front.cells, "spooled") == len(records)
            assert events(d.front.cells, "sampled_out") == len(records) - sum(sampled)

    run(test)


def test_without_a_key_the_id_decides_and_a_failed_prediction_is_always_whole(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, engine_options={"logging": {"sample": 0.5}}) as d:
            requests = [post()] * 30 + [post(FAILS)]
            await d.send(*requests, read=len(requests))
            answered, [failed] = ([r for r in d.log() if r["status"] == status] for status in (200, 400))
            assert len(answered) == 30
            for record in answered:
                assert record.get("sampled", True) is (int(hash_key(record["id"]), 16) < 2**63)
            assert {record.get("sampled", True) for record in answered} == {True, False}
            assert failed["status"] == 400 and "sample" not in failed and "sampled" not in failed

    run(test)


def test_what_a_caller_writes_is_not_taken_for_the_mark_of_a_sampled_out_record(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, engine_options={"logging": {"sample": 0.999999}}) as d:
            forged = {
                "inputs": [ROW],
                "parameters": {"x": ',"sampled":false}', "sampled": False},
                "id": '"sampled":false}',
            }
            await d.send(post(forged), read=1)
            assert d.log()[0].get("sampled", True) is True
            assert events(d.front.cells, "sampled_out") == 0

    run(test)


@pytest.mark.parametrize("largest", [65_536, 4])
def test_nothing_in_a_record_tells_what_a_redacted_column_held(tmp_path: Path, largest: int) -> None:
    secret = 7654321.0

    async def test() -> None:
        options = {"logging": {"redact_columns": {"x": {"income": 1}}}}
        async with door(tmp_path, engine_options=options, log={"max_tensor_bytes": largest}) as d:
            d.engine.run = lambda inputs: [inputs[0][:, :1].repeat(3, axis=1)]
            await d.send(post({"inputs": [{**ROW, "data": [1.0, secret, 3.0]}]}), read=1)
            [record] = d.log()
            assert "7654321" not in json.dumps(record)
            [tensor] = record["inputs"]
            assert tensor["redacted_columns"] == {"income": 1} and "digest" not in tensor
            if largest > 4:
                assert tensor["data"] == [1.0, None, 3.0]
            else:
                assert tensor["summary"]["max"] == 3.0 and tensor["summary"]["count"] == 2

    run(test)


def test_a_large_body_is_redacted_as_a_small_one(tmp_path: Path) -> None:
    rows = 40_000

    async def test() -> None:
        options = {"logging": {"redact_columns": {"x": {"income": 1}}}}
        async with door(tmp_path, engine_options=options, log={"max_tensor_bytes": 10**9}) as d:
            d.engine.run = lambda inputs: [inputs[0][:, :1].repeat(3, axis=1)]
            large = {**ROW, "shape": [rows, 3], "data": [1.0, 7654321.0, 3.0] * rows}
            [(status, _, _)] = await d.send(post({"inputs": [large]}), read=1)
            [record] = d.log()
            assert status == 200 and record["inputs"][0]["data"] == [1.0, None, 3.0] * rows
            assert "7654321" not in json.dumps(record)

    run(test)


@pytest.mark.parametrize("digests", [True, False])
def test_large_inputs_and_outputs_have_a_digest_unless_the_setting_says_otherwise(
    tmp_path: Path, digests: bool
) -> None:
    async def test() -> None:
        async with door(tmp_path, log={"max_tensor_bytes": 4, "tensor_digests": digests}) as d:
            await d.send(post(), read=1)
            [record] = d.log()
            for tensor in record["inputs"] + record["outputs"]:
                assert ("digest" in tensor) is digests and tensor["summary"]["count"] and "data" not in tensor

    run(test)


def test_records_of_every_sort_are_what_the_committed_schemas_say(tmp_path: Path) -> None:
    python = client_python("jsonschema", "jsonschema==4.25.1")
    options = {"logging": {"sample": 0.5, "redact_columns": {"x": {"income": 1}}}}
    wide = {"inputs": [{**ROW, "shape": [40, 3], "data": [0.5] * 120}]}

    async def test() -> None:
        async with door(
            tmp_path, engine_options=options, log={"max_tensor_bytes": 200}, limits={"max_queue_requests": 2}
        ) as d:
            keyed = post(headers="Gateway-Routing-Key: a\r\n")
            answers = await d.send(*[post(), keyed, post(wide), post(FAILS)] * 8, read=32)
            label = {"prediction_id": answers[0][1]["gateway-prediction-id"], "label": 1.5}
            assert [status for status, _, _ in await d.send(post(label, path="/v2/models/m/feedback"), read=1)] == [200]
            d.engine.hold.clear()
            _, writer = await d.connect()
            writer.write(post() * 12)
            while not any(record.get("status") == 503 for record in d.log()):
                await asyncio.sleep(0.01)
            d.engine.die()
            while not any(record.get("status") == 500 for record in d.log()):
                await asyncio.sleep(0.01)
            writer.close()

    run(test)
    records = all_records(tmp_path / "spool")
    assert {record.get("status") for _, record in records} >= {200, 400, 500, 503, None}
    assert any(record.get("sampled") is False for _, record in records)
    assert any("summary" in tensor for _, record in records for tensor in record.get("inputs", ()))
    checked = subprocess.run(
        [str(python), "-c", CHECK, str(SCHEMAS)], input=json.dumps(records).encode(), capture_output=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr.decode()
    assert int(checked.stdout) == len(records)


CHECK = """
import json, pathlib, sys
from jsonschema import Draft202012Validator
names = {1: "prediction", 2: "feedback", 3: "decision"}
schemas = {k: json.loads((pathlib.Path(sys.argv[1]) / f"{n}.json").read_text()) for k, n in names.items()}
for schema in schemas.values():
    Draft202012Validator.check_schema(schema)
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False  # nothing may be written that the schema does not name
records = json.load(sys.stdin)
for kind, record in records:
    Draft202012Validator(schemas[kind]).validate(record)
    try:
        Draft202012Validator(schemas[kind]).validate({**record, "time": 5})
    except Exception:
        continue
    raise SystemExit("the schema takes anything")
print(len(records))
"""


def all_records(spool_dir: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = SpoolReader(spool_dir)
    records = [(record.kind, json.loads(record.payload)) for record in reader.read(100_000)]
    reader.close()
    return records


def test_what_versions_shed_in_one_pass_of_the_loop_is_counted_for_each_of_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            models = {"m": 1, "n": 2}
            approved = {("m", 1): "sha256:01", ("n", 1): "sha256:02"}
            d.front.follow(2, {model: Route(model, stable=1) for model in models}, approved)
            connection: Any = SimpleNamespace(answered=lambda inference: None)
            for model, count in models.items():
                for _ in range(count):
                    inference = Inference(connection, model)
                    inference.refused = Overloaded("the queue is full")
                    d.front.accept(inference)
            await asyncio.sleep(0)
            for model, count in models.items():
                assert d.front.versions[model, 1].requests("stable", 503).value == count
            assert [record["model"] for record in d.log()] == ["m", "n", "n"]

    run(test)
