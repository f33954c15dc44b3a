"""The conformance kit's options, against a server that knows little."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class _Little(http.server.BaseHTTPRequestHandler):
    """Live, with a name and an extension that it does not keep to; nothing else is there."""

    known: dict[str, dict[str, Any]] = {
        "/v2/health/live": {"live": True},
        "/v2": {"name": "little", "version": "1", "extensions": ["binary_tensor_data"]},
    }

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = (200, self.known[self.path]) if self.path in self.known else (404, {"error": "Not Found"})
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def little_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Little) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def score(*options: str, report: Path) -> dict[str, Any]:
    kit = ["-c", "tests/conformance/pytest.ini", "tests/conformance"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *kit, "--report", str(report), *options],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert ended.returncode == 1, ended.stdout[-2000:] + ended.stderr[-2000:]
    written: dict[str, Any] = json.loads(report.read_text())
    assert f"{written['passed']} / {written['total']}" in ended.stdout.replace("   ", " ")
    return written


def test_a_server_by_url_is_scored_by_area_and_the_report_names_what_failed(tmp_path: Path) -> None:
    with little_server() as url:
        said = score("--url", url, report=tmp_path / "score.json")
        areas = said["areas"]
        assert areas["health"]["passed"] == 3 and areas["health"]["total"] == 6
        assert "ready: 200 says that all models are ready for inferencing" in areas["health"]["failed"]
        assert areas["binary"]["passed"] == 0 < areas["binary"]["total"]  # offered, and not kept to
        assert areas["statistics"]["total"] == areas["grpc"]["total"] == 0
        assert said["passed"] == sum(area["passed"] for area in areas.values())
        without = score("--url", url, "--no-binary", report=tmp_path / "less.json")
        assert without["areas"]["binary"]["total"] == 0
        assert without["total"] < said["total"]
