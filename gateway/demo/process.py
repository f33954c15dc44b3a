"""The gateway of the demo: `gateway serve` in a process of its own, on free ports, with a state of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2

from gateway.demo.errors import DemoError
from gateway.parent import die_with_parent

__all__ = ("GatewayProcess", "lay_out")

START_SECONDS = 90.0
STOP_SECONDS = 30.0
PROBE_SECONDS = 2.0
_LAST_LINES = 5


def lay_out(folder: Path, *, models: Path, model: str, candidate: Path | None) -> None:
    """Copy the model that the demo serves below `folder`; `candidate` takes the place of version 3.

    Raises
    ------
    DemoError
        A folder is not there, or cannot be copied.
    """
    for source in (models / model, candidate):
        if source is not None and not source.is_dir():
            raise DemoError(f"there is no folder {source}")
    target = folder / "models" / model
    try:
        shutil.copytree(models / model, target)
        if candidate is not None:
            shutil.rmtree(target / "3", ignore_errors=True)
            shutil.copytree(candidate, target / "3")
        (folder / "gateway.toml").touch()
    except (OSError, shutil.Error) as error:
        raise DemoError(f"cannot copy the models to {folder}: {error}") from None


class GatewayProcess:
    """A running gateway; `start` before anything else, `stop` in any case.

    Parameters
    ----------
    folder : Path
        Holds `models/`; state and output are written here.
    """

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.output = folder / "gateway.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<GatewayProcess {self._process and self._process.pid} {self._ports}>"

    @property
    def http_port(self) -> int:
        return self._ports["http_port"]

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['admin_port']}"

    @property
    def spool_dir(self) -> Path:
        return self.state_dir / "spool"

    async def start(self) -> None:
        """Start it and wait until it answers predictions and operators.

        Raises
        ------
        DemoError
            It ended, or was not ready in time.
        """
        self._launch()
        until = time.monotonic() + START_SECONDS
        while not await asyncio.to_thread(self._is_ready):
            self.check()
            if time.monotonic() > until:
                raise DemoError(f"the gateway was not ready within {START_SECONDS:g} s: {self._last_words()}")
            await asyncio.sleep(0.05)

    def check(self) -> None:
        """Raise DemoError when the gateway has ended."""
        if self._process is None or self._process.poll() is not None:
            status = "was not started" if self._process is None else f"ended with {self._process.returncode}"
            raise DemoError(f"the gateway {status}: {self._last_words()}")

    def stop(self) -> int:
        """Stop it as an operator does, by SIGTERM; returns its exit status. Waits a bounded time, then kills."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(STOP_SECONDS)

    def _launch(self) -> None:
        command = [sys.executable, "-P", "-m", "gateway", "serve"]
        command += ["--config", str(self._folder / "gateway.toml"), "--models", str(self._folder / "models")]
        command += ["--state-dir", str(self.state_dir)]
        for name in ("http", "grpc", "metrics", "admin"):
            command += [f"--{name}-port", "0"]
        # Settings of the caller's own gateway are not meant for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  (our own program)
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _is_ready(self) -> bool:
        try:
            self._ports = json.loads((self.state_dir / "run" / "gateway.json").read_bytes())
            asked = (f"http://127.0.0.1:{self.http_port}/v2/health/ready", f"{self.admin_url}/api/v1/health")
            return all(httpx2.get(url, timeout=PROBE_SECONDS, trust_env=False).status_code == 200 for url in asked)
        except (OSError, ValueError, KeyError, httpx2.HTTPError):
            return False

    def _last_words(self) -> str:
        try:
            lines = self.output.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return " / ".join(lines[-_LAST_LINES:]) or "it said nothing"
