"""A gateway that samples, redacts and archives, under load and with a killed front: its log still answers for all."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import ROOT, RunningGateway, call, eventually, running_gateway
from tests.load import Load

MODEL = "bike-demand"
LOGGING = '\n[logging]\nsample = 0.5\nredact = ["pn"]\n'

pytestmark = pytest.mark.fault


def asked(gateway: RunningGateway, *arguments: str, archive: Path, status: int = 0) -> Any:
    os.environ["GATEWAY_SPOOL__ARCHIVE_URL"] = str(archive)
    try:
        found = gateway.cli("predictions", *arguments, "--json", "--state-dir", str(gateway.state_dir), status=status)
    finally:
        del os.environ["GATEWAY_SPOOL__ARCHIVE_URL"]
    return json.loads(found)


def test_served_is_logged_plus_sampled_out_through_load_a_killed_front_and_an_archive(tmp_path: Path) -> None:
    models, archive = tmp_path / "models", tmp_path / "archive"
    shutil.copytree(ROOT / "models", models)
    policy = models / MODEL / "model.toml"
    policy.write_text(policy.read_text() + LOGGING)
    environment = {
        "GATEWAY_SPOOL__SEGMENT_BYTES": "16384",
        "GATEWAY_SPOOL__MAX_AGE_HOURS": "0.0005",
        "GATEWAY_SPOOL__ARCHIVE_URL": str(archive),
    }
    with running_gateway(tmp_path, fronts=2, models=models, environment=environment) as gateway:
        with Load(gateway.http_port, MODEL, fresh=True) as load:
            load.wait(100)
            os.kill(gateway.children("front 0")[0], signal.SIGKILL)
            load.wait(100)
            eventually(gateway.is_ready, what="the front again")
            load.wait(100)
        answered = [answer.prediction_id for answer in load.answers if answer.status == 200]
        label = {"prediction_id": answered[0], "label": 12.5}
        assert call(f"{gateway.http_url}/v2/models/{MODEL}/feedback", label)[0] == 200
        eventually(lambda: len(list(archive.rglob("*.parquet"))) > 4, seconds=30, what="the archive")

        body = asked(gateway, "reconcile", archive=archive)
        assert body["ok"] and len(body["lives"]) >= 2 and all(not life["gaps"] for life in body["lives"])
        fronts = body["fronts"]
        logged = sum(front["logged"] + front["sampled_out"] for front in fronts)
        assert logged >= len(answered) and all(front["lost"] == front["dropped"] == 0 for front in fronts)
        assert sum(front["served"] + front["uncounted"] for front in fronts) >= logged
        assert 0.3 < sum(front["sampled_out"] for front in fronts) / logged < 0.7

        lowest: dict[str, str] = {}
        for path in sorted((gateway.state_dir / "spool").glob("front-?/*.seg")):
            lowest.setdefault(path.name[:14], path.name[15:25])
        archived = next(event_id for event_id in answered if event_id[15:] < lowest.get(event_id[:14], "g"))
        shown = json.loads(gateway.cli("predictions", "show", archived, "--json"))["prediction"]
        assert shown["id"] == archived
        for tensor in shown["inputs"]:
            assert tensor["redacted_columns"] == {"pn": 5} and tensor["data"][5] is None
        [found] = json.loads(gateway.cli("predictions", "show", answered[0], "--json"))["labels"]
        assert found["label"] == 12.5

        # The newest: what the archive has of an older one is whole.
        segments = (gateway.state_dir / "spool").glob("front-1/*.seg")
        newest = max(path for path in segments if b"gateway" in path.read_bytes())
        with open(newest, "r+b") as segment:
            segment.seek(segment.read().index(b"gateway"))
            segment.write(b"GATEWAY")
        body = asked(gateway, "reconcile", archive=archive, status=1)
        assert not body["ok"]
        assert sum(life["missing"] for life in body["lives"]) + sum(front["lost"] for front in body["fronts"]) >= 1
