"""A real Prometheus for tests: promtool for rules, a server that scrapes a running gateway.

Debian's package `prometheus` has both. `GATEWAY_TEST_PROMETHEUS` names the folder they lie in, else the PATH is
searched. Without them tests skip with the reason, and fail where `CI=true`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ("RunningPrometheus", "missing", "program", "promtool", "running_prometheus")


def missing(reason: str) -> None:
    """Skip the test for `reason`; in CI, where nothing may be missing, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and CI=true allows no skip")
    pytest.skip(reason)


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`, or skip."""
    folder = os.environ.get("GATEWAY_TEST_PROMETHEUS")
    found = shutil.which(name, path=folder) if folder else shutil.which(name)
    if found is None:
        missing(f"{name} is not installed (Debian: prometheus; or set GATEWAY_TEST_PROMETHEUS to its folder)")
    assert found is not None
    return found


def promtool(*arguments: str | Path, page: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool, with `page` on its standard input, and return what it said."""
    return subprocess.run(
        [program("promtool"), *map(str, arguments)],
        input=page.decode() if page is not None else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


@dataclass(frozen=True)
class RunningPrometheus:
    """A server on loopback."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        found: list[dict[str, Any]] = self._ask("query", {"query": expression})["result"]
        return found

    def query_range(self, expression: str, *, seconds: float, step_seconds: float = 1.0) -> list[dict[str, Any]]:
        """Return the series of `expression` over the last `seconds`."""
        now = time.time()
        asked = {"query": expression, "start": str(now - seconds), "end": str(now), "step": str(step_seconds)}
        found: list[dict[str, Any]] = self._ask("query_range", asked)["result"]
        return found

    def wait_for(self, expression: str, *, seconds: float = 30.0) -> list[dict[str, Any]]:
        """Return the series of an instant query once there is one, or fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.query(expression)
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"no series within {seconds:g} s: {expression}")

    def _ask(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)["data"]
            return found


@contextmanager
def running_prometheus(folder: Path, metrics_url: str, *, rules: Path | None = None) -> Iterator[RunningPrometheus]:
    """Start a Prometheus that scrapes `metrics_url` every second under the job `gateway`, and stop it at the end."""
    address = f"127.0.0.1:{_free_port()}"
    target = urllib.parse.urlsplit(metrics_url)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {
                "job_name": "gateway",
                "metrics_path": target.path.rstrip("/") or "/metrics",
                "static_configs": [{"targets": [target.netloc]}],
            }
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_ready(f"http://{address}", process, folder / "prometheus.log")
        yield RunningPrometheus(f"http://{address}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus did not get ready:\n{log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
