"""Starts whole gateways for tests: real processes, free ports, a state directory of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.engine.notes import EnginePaths
from gateway.engine.pulse import read_beats
from gateway.events.encoding import Record, decode, seconds_of
from gateway.events.records import DecisionRecord, PredictionRecord
from gateway.predictions.reader import SpoolReader

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 45.0


class RunningGateway:
    """A gateway in processes of its own."""

    def __init__(self, process: subprocess.Popen[bytes], state_dir: Path, models: Path, output: Path) -> None:
        self.process = process
        self.state_dir = state_dir
        self.models = models
        self.output = output
        ports = json.loads((state_dir / "run" / "gateway.json").read_bytes())
        self.http_port = ports["http_port"]
        self.grpc_port = ports["grpc_port"]
        self.http_url = f"http://127.0.0.1:{ports['http_port']}"
        self.metrics_url = f"http://127.0.0.1:{ports['metrics_port']}/metrics"
        self.admin_url = f"http://127.0.0.1:{ports['admin_port']}"

    def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        return call(url, None, headers=headers)[1]

    def infer(self, model: str, row: list[float], *, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        status, answer = self.try_infer(model, row, headers=headers)
        assert status == 200, answer
        return answer

    def try_infer(
        self, model: str, row: list[float], *, headers: Mapping[str, str] | None = None, name: str = "features"
    ) -> tuple[int, dict[str, Any]]:
        tensor = {"name": name, "shape": [1, len(row)], "datatype": "FP32", "data": row}
        return call(f"{self.http_url}/v2/models/{model}/infer", {"inputs": [tensor]}, headers=headers)

    def cli(self, *arguments: str, status: int = 0) -> str:
        """Run the command line against this gateway; returns what it printed."""
        environment = os.environ | {"GATEWAY_URL": self.admin_url}
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments], capture_output=True, cwd=ROOT, env=environment, timeout=90
        )
        assert done.returncode == status, done.stdout.decode() + done.stderr.decode()
        return done.stdout.decode() + done.stderr.decode()

    def children(self, name: str) -> list[int]:
        """Process ids of this gateway's processes whose title begins so, such as `front` or `engine bike-demand/2`."""
        return [pid for title, pid in self.titles().items() if title.startswith(name)]

    def titles(self) -> dict[str, int]:
        """What runs under the supervisor now, by its title without the `gateway: ` before it."""
        found = {}
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for child in listing.split():
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace")
                if title.startswith("gateway: "):
                    found[title.removeprefix("gateway: ")] = int(child)
        return found

    def instances(self, model: str, version: int) -> list[int]:
        """Process ids of all instances of an engine, once each has been seen."""
        return list(read_beats(EnginePaths(self.state_dir / "run", model, version).beat))

    def is_ready(self) -> bool:
        """Whether some front says that it is ready."""
        with contextlib.suppress(OSError):
            return call(f"{self.http_url}/v2/health/ready")[0] == 200
        return False

    def predictions(self) -> list[PredictionRecord]:
        """Every prediction record of the spool, in order within a front; fails when the spool is damaged."""
        return [record for record in self._records("front-") if isinstance(record, PredictionRecord)]

    def decisions(self) -> list[DecisionRecord]:
        """Every decision record of the spool."""
        return [record for record in self._records("decisions") if isinstance(record, DecisionRecord)]

    def _records(self, stream: str) -> Iterator[Record]:
        spool = self.state_dir / "spool"
        reader = SpoolReader(spool, streams={path.name for path in spool.glob(f"{stream}*")})
        with contextlib.closing(reader):
            while found := reader.read():
                yield from [decode(record.kind, record.payload) for record in found]
            assert reader.corrupt == reader.missing == 0, repr(reader)

    def add(self, model: str, file: Path, *, approve: bool = True) -> int:
        """Add an ONNX file as the next version and approve it; returns its number."""
        done = json.loads(self.cli("models", "add", model, str(file), "--models", str(self.models), "--json"))
        if approve:
            self.cli("models", "approve", model, str(done["version"]), "--reason", "a test")
        return int(done["version"])

    def set_route(self, model: str, stable: int, canary: int | None = None, weight: float = 0.0) -> float:
        """Set a route by the admin API and wait until every front has it; returns the time of the decision."""
        body = {"stable": stable, "canary": canary, "weight": weight, "reason": "a test"}
        status, answer = call(f"{self.admin_url}/api/v1/routes/{model}", body, method="PUT")
        assert status == 200, answer
        at: float = self.last_decision(model, "route_set")["at"]
        eventually(lambda: self._fronts_follow(model, stable, canary, weight), what="the route on every front")
        return at

    def _fronts_follow(self, model: str, stable: int, canary: int | None, weight: float) -> bool:
        tables = [json.loads(path.read_bytes()) for path in (self.state_dir / "run").glob("routes-front-?.json")]
        routes = [table["routes"].get(model, {}) for table in tables]
        wanted = (stable, canary, weight)
        return bool(routes) and all(
            (route.get("stable"), route.get("canary"), route.get("weight")) == wanted for route in routes
        )

    def last_decision(self, model: str, kind: str) -> dict[str, Any]:
        """The newest decision of a kind about a model, once there is one; its time in seconds stands under `at`."""
        decision: dict[str, Any] = eventually(lambda: self._newest(model, kind), seconds=60, what=f"{kind} of {model}")
        return decision | {"at": seconds_of(decision["time"])}

    def _newest(self, model: str, kind: str) -> dict[str, Any] | None:
        status, answer = call(f"{self.admin_url}/api/v1/decisions?model={model}&limit=50")
        assert status == 200, answer
        # Alarms come in between, whenever the monitor has seen enough.
        found = [one for one in answer["decisions"] if one["kind"] == kind]
        return found[-1] if found else None

    def kill(self) -> None:
        """SIGKILL the supervisor."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, wait, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway did not stop:\n{self.output.read_text()}") from None


def call(
    url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, method: str | None = None
) -> tuple[int, Any]:
    """One HTTP call; returns status and decoded JSON (or text)."""
    status, _, content = exchange(url, body, headers=headers, method=method)
    return status, content


def exchange(
    url: str, body: Any = None, *, headers: Mapping[str, str] | None = None, method: str | None = None
) -> tuple[int, dict[str, str], Any]:
    """One HTTP call; returns status, headers by their names in lower case, and decoded JSON (or text)."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=content, headers=dict(headers or {}), method=method)
    if content is not None:
        request.add_header("content-type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            status, found, raw = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            status, found, raw = error.code, error.headers, error.read()
    fields = {name.lower(): value for name, value in found.items()}
    try:
        return status, fields, json.loads(raw)
    except ValueError:
        return status, fields, raw.decode()


def arrival(record: PredictionRecord) -> float:
    """When the request had been read, in seconds since 1970."""
    return seconds_of(record.time) - record.timings.total_us / 1e6


def front_of(record: PredictionRecord) -> str:
    """The front that answered: the writer's slot in the boot, two hex digits."""
    return record.id[12:14]


def eventually(condition: Any, *, seconds: float = 15.0, what: str = "it") -> Any:
    """Ask until the answer is truthy; returns it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds:g} s")
        time.sleep(0.05)


def start_gateway(
    tmp_path: Path,
    *,
    kafka: str | None = None,
    fronts: int = 1,
    environment: Mapping[str, str] | None = None,
    models: Path | None = None,
    arguments: tuple[str, ...] = (),
) -> RunningGateway:
    """Start `gateway serve` and wait until it is ready.

    A copy of the shipped models is served unless `models` names another folder; a second start on the same
    `tmp_path` goes on with its state.
    """
    state_dir = tmp_path / "state"
    if models is None:
        models = tmp_path / "models"
        if not models.exists():
            shutil.copytree(ROOT / "models", models)
    output = tmp_path / "gateway.log"
    ports = [flag for name in ("http", "grpc", "metrics", "admin") for flag in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(models), "--state-dir", str(state_dir)]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
    variables |= dict(environment or {})
    if kafka:
        variables["GATEWAY_KAFKA__BOOTSTRAP_SERVERS"] = kafka
    (state_dir / "run" / "gateway.json").unlink(missing_ok=True)
    with output.open("ab") as log:
        process = subprocess.Popen(
            [*command, *ports, "--fronts", str(fronts), *arguments], stdout=log, stderr=log, cwd=ROOT, env=variables
        )
    try:
        _await_ready(process, state_dir, output)
        return RunningGateway(process, state_dir, models, output)
    except BaseException:
        process.kill()
        process.wait()
        raise


@contextlib.contextmanager
def running_gateway(tmp_path: Path, **options: Any) -> Iterator[RunningGateway]:
    """`start_gateway`, stopped at the end."""
    gateway = start_gateway(tmp_path, **options)
    try:
        yield gateway
    finally:
        gateway.stop()


def _await_ready(process: subprocess.Popen[bytes], state_dir: Path, output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the gateway ended with {process.returncode}:\n{output.read_text()}")
        with contextlib.suppress(OSError, ValueError):
            ports = json.loads((state_dir / "run" / "gateway.json").read_bytes())
            ready, _ = call(f"http://127.0.0.1:{ports['http_port']}/v2/health/ready")
            admin, _ = call(f"http://127.0.0.1:{ports['admin_port']}/api/v1/health")
            metrics, _ = call(f"http://127.0.0.1:{ports['metrics_port']}/metrics")
            if ready == admin == metrics == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"the gateway was not ready within {START_SECONDS:g} s:\n{output.read_text()}")
