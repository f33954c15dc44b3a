"""The program as a process, against a real admin process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worlds import World

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 30

pytestmark = pytest.mark.fault


class Admin:
    """A running admin process over a small world."""

    def __init__(self, world: World, *, port: int, metrics_port: int) -> None:
        self.world = world
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
            "PYTHONPATH": str(ROOT),
            "GATEWAY_URL": self.url,
        }
        ports = {"GATEWAY_SERVER__ADMIN_PORT": str(port), "GATEWAY_SERVER__METRICS_PORT": str(metrics_port)}
        arguments = ["admin-process", "--state-dir", str(world.settings.state_dir)]
        arguments += ["--models", str(world.settings.models)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments], env={**self.environment, **ports}, cwd=world.folder
        )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api/v1/health", timeout=2).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def gateway(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.world.folder,
        )

    def call(self, *arguments: object) -> tuple[int, str, str]:
        process = self.gateway(*arguments)
        out, err = process.communicate(timeout=WAIT_SECONDS)
        return process.returncode, out, err


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    world = World(tmp_path)
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    numbers = [port.getsockname()[1] for port in ports]
    for port in ports:
        port.close()
    admin = Admin(world, port=numbers[0], metrics_port=numbers[1])
    try:
        admin.wait_until_up()
        yield admin
    finally:
        if admin.process.poll() is None:
            admin.process.kill()
        admin.process.wait(WAIT_SECONDS)
        world.close()


def test_the_program_speaks_to_a_running_admin_process(admin: Admin) -> None:
    admin.world.serve(1, 2)
    code, out, err = admin.call("route", "set", "m", "--stable", 1, "--canary", 2, "--weight", 25)
    assert (code, out, err) == (0, "m: version 1 is stable, version 2 is the canary with 25 %\n", "")
    code, out, err = admin.call("route", "show", "m", "--json")
    assert (code, json.loads(out)["weight"], err) == (0, 25, "")
    code, out, err = admin.call("route", "set", "m", "--stable", 9)
    assert (code, out, err) == (1, "", "gateway: there is no version 9 of model 'm'\n")
    code, out, err = admin.call("route", "set", "m")
    assert (code, out) == (2, "") and err
    with urllib.request.urlopen(admin.metrics_url, timeout=5) as page:
        assert b'gateway_process_up{process="admin"} 1.0' in page.read()


def test_the_tail_follows_what_is_logged_and_ends_with_the_admin_process(admin: Admin) -> None:
    first = admin.world.predict("m")
    tail = admin.gateway("predictions", "tail", "--from", "start", "--json")
    assert tail.stdout is not None
    assert json.loads(tail.stdout.readline())["id"] == first[0]
    second = admin.world.predict("m", slot=1)
    assert json.loads(tail.stdout.readline())["id"] == second[0]
    admin.process.send_signal(signal.SIGTERM)
    assert admin.process.wait(WAIT_SECONDS) == 0
    tail.communicate(timeout=WAIT_SECONDS)
    code, out, err = admin.call("models", "list")
    assert (code, out) == (1, "")
    assert err == f"gateway: no gateway answers at {admin.url}; start one with `gateway serve`, or set GATEWAY_URL\n"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from gateway.cli.main import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    loaded = set(found.stdout.split())
    assert "gateway.cli.main" in loaded, found.stderr
    assert not loaded & {"numpy", "sqlalchemy", "starlette", "onnxruntime", "onnx", "pydantic", "httpx2", "uvicorn"}
