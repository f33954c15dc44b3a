"""The gateway with everything on against a bare uvicorn handler that runs onnxruntime inline and logs nothing.

Both are measured in turn in one run, so that a machine whose speed drifts slows both: read the ratios, not the
figures. Needs `wrk` (Debian: apt-get install wrk) and the development environment (make bench installs it).

    python benchmarks/serving.py [--seconds 3] [--rounds 3] [--connections 64] [--rows 1]

One core for the server (front and engine; for the peer its one process), the other for the load; the gateway's
monitor, admin and supervisor run on the load's core, as they would on another one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "benchmarks"
FEATURES = 30
SERVER_CORE, LOAD_CORE = 0, 1


def main() -> int:
    arguments = _arguments()
    if shutil.which("wrk") is None:
        print("wrk is not installed; try: apt-get install wrk", file=sys.stderr)
        return 2
    model = tabular_model()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        place = Path(folder)
        body = place / "body.json"
        body.write_text(json.dumps(request(arguments.rows)))
        script = place / "post.lua"
        script.write_text(
            f'wrk.method="POST"\nlocal f=io.open("{body}"); wrk.body=f:read("*a"); f:close()\n'
            'wrk.headers["content-type"]="application/json"\n'
        )
        with gateway(place, model) as ours, bare(model) as peer:
            cases = {"gateway, everything on": ours, "bare ASGI handler": peer}
            check_answers(cases, body)
            results: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
            for _ in range(arguments.rounds):
                for name, (url, pids) in cases.items():
                    results[name].append(measure(url, pids, script, arguments))
            show(results, arguments, logged=logged(place))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=3, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1, help="rows in one request")
    return parser.parse_args()


def tabular_model() -> Path:
    """100 boosted trees over 30 features, trained once and kept."""
    path = CACHE / "tabular.onnx"
    if path.exists():
        return path
    import numpy as np
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import GradientBoostingRegressor

    draw = np.random.default_rng(0)
    features = draw.normal(size=(4000, FEATURES)).astype("f4")
    target = features[:, 0] * 2 + np.sin(features[:, 1]) + features[:, 2] * features[:, 3]
    trees = GradientBoostingRegressor(n_estimators=100, max_depth=3, random_state=0).fit(features, target)
    converted = convert_sklearn(trees, initial_types=[("features", FloatTensorType([None, FEATURES]))], target_opset=17)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converted.SerializeToString())
    return path


def request(rows: int) -> dict[str, Any]:
    values = [round((index * 37 % 101) / 101 - 0.5, 4) for index in range(rows * FEATURES)]
    return {"inputs": [{"name": "features", "shape": [rows, FEATURES], "datatype": "FP32", "data": values}]}


@contextlib.contextmanager
def gateway(place: Path, model: Path) -> Iterator[tuple[str, list[int]]]:
    """The whole gateway on embedded defaults, one front."""
    program = [sys.executable, "-m", "gateway"]
    models, state = place / "models", place / "state"
    reference = place / "reference.csv"
    _write_reference(reference)
    models.mkdir()
    add = ["models", "add", "tabular", str(model), "--models", str(models), "--reference", str(reference)]
    subprocess.run([*program, *add], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    digest = json.loads((models / "tabular" / "1" / "manifest.json").read_bytes())["digest"]
    (models / "tabular" / "model.toml").write_text(f'[approvals]\n"1" = "{digest}"\n[route]\nstable = 1\n')
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0"]
    command = [*program, "serve", "--models", str(models), "--state-dir", str(state), "--fronts", "1", *ports]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        note = state / "run" / "gateway.json"
        _await(note.exists)
        ports = json.loads(note.read_bytes())
        port = ports["http_port"]
        _await(lambda: _answers(f"http://127.0.0.1:{port}/v2/health/ready"))
        _await(lambda: _answers(f"http://127.0.0.1:{ports['admin_port']}/api/v1/health"))
        _await((state / "monitor" / "status.json").exists)
        served = _children(process.pid, "gateway: front") + _children(process.pid, "gateway: engine")
        others = [process.pid, *_children(process.pid, "gateway: monitor"), *_children(process.pid, "gateway: admin")]
        for pids, core in ((served, SERVER_CORE), (others, LOAD_CORE)):
            for pid in pids:
                _pin(pid, core)
        yield f"http://127.0.0.1:{port}/v2/models/tabular/infer", served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextlib.contextmanager
def bare(model: Path) -> Iterator[tuple[str, list[int]]]:
    """One uvicorn process, a bare ASGI callable, onnxruntime on the loop; no validation, no log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "benchmarks" / "bare_handler.py"), str(model), str(port)]
    process = subprocess.Popen(command)
    try:
        _await(lambda: _answers(f"http://127.0.0.1:{port}/"))
        _pin(process.pid, SERVER_CORE)
        yield f"http://127.0.0.1:{port}/v2/models/tabular/infer", [process.pid]
    finally:
        process.kill()
        process.wait()


def check_answers(cases: dict[str, tuple[str, list[int]]], body: Path) -> None:
    answers = {name: _post(url, body.read_bytes())["outputs"][0]["data"] for name, (url, _) in cases.items()}
    one, other = answers.values()
    if [round(value, 4) for value in one] != [round(value, 4) for value in other]:
        raise SystemExit(f"the answers differ: {answers}")


def measure(url: str, pids: list[int], script: Path, arguments: argparse.Namespace) -> dict[str, float]:
    before = sum(map(_cpu_seconds, pids))
    load = ["wrk", "-t1", f"-c{arguments.connections}", f"-d{arguments.seconds}", "-s", str(script), "--latency", url]
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *load], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    if "Non-2xx" in done or "Socket errors" in done:
        raise SystemExit(f"requests failed:\n{done}")
    requests = float(re.search(r"(\d+) requests in", done)[1])  # type: ignore[index]
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1]),  # type: ignore[index]
        "p50": _milliseconds(re.search(r"50%\s+([\d.]+)(us|ms|s)", done)),
        "p99": _milliseconds(re.search(r"99%\s+([\d.]+)(us|ms|s)", done)),
        "cpu": (sum(map(_cpu_seconds, pids)) - before) / requests * 1e6,
        "requests": requests,
    }


def show(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace, *, logged: int) -> None:
    print(
        f"{arguments.connections} connections, {arguments.rows} row(s) of {FEATURES} features, "
        f"{arguments.rounds} rounds of {arguments.seconds} s in turn, server on one core"
    )
    print(f"{'':24} {'requests/s':>20} {'p50 ms':>8} {'p99 ms':>8} {'p99/p50':>8} {'cpu us':>8}")
    for name, rounds in results.items():
        rates = [each["rps"] for each in rounds]
        p50, p99, cpu = (statistics.median(each[key] for each in rounds) for key in ("p50", "p99", "cpu"))
        rate = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
        print(f"{name:24} {rate:>20} {p50:8.2f} {p99:8.2f} {p99 / p50:8.2f} {cpu:8.1f}")
    ours, peer = results.values()
    ratios = [one["rps"] / other["rps"] for one, other in zip(ours, peer, strict=True)]
    print(f"gateway / bare handler: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    answered = int(sum(each["requests"] for each in ours))
    print(f"logged {logged} predictions for {answered} counted by the load (which stops without waiting for the last)")


def logged(place: Path) -> int:
    from gateway.predictions.reader import SpoolReader

    reader, count = SpoolReader(place / "state" / "spool"), 0
    while records := reader.read(10_000):
        count += sum(record.kind == 1 for record in records)
    reader.close()
    return count


def _write_reference(path: Path) -> None:
    names = ",".join(f"feature_{index}" for index in range(FEATURES))
    rows = [",".join(str((row * 31 + column * 17) % 97 / 97) for column in range(FEATURES)) for row in range(500)]
    path.write_text("\n".join([names, *rows]) + "\n")


def _children(pid: int, title: str) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/cmdline").read_bytes().decode().startswith(title):
            found.append(int(child))
    return found


def _pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _milliseconds(found: re.Match[str] | None) -> float:
    if found is None:
        return float("nan")
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def _post(url: str, body: bytes) -> Any:
    with _opener().open(urllib.request.Request(url, data=body), timeout=10) as response:
        return json.loads(response.read())


def _answers(url: str) -> bool:
    try:
        with _opener().open(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _await(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("a server did not start in time")
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main())
