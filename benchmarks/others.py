"""The peers: how each is started. The bare ones run in the project's environment, the others in their own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import environment
from benchmarks.processes import tree
from benchmarks.servers import Running, answers, free_port, started, wait_until

__all__ = ("PEERS", "Peer", "running_peer", "running_triton")

_PROGRAMS = Path(__file__).parent / "peers"
_MODEL_VARIABLE = "BENCHMARK_MODEL"
_TRITON_ROWS = 256
_MODEL = "m"
"""As what servers with a repository of their own know the model."""
_INFER = f"/v2/models/{_MODEL}/infer"


@dataclass(frozen=True)
class Start:
    """What a peer is started with; `python` is its environment's."""

    python: Path
    model: Path
    port: int
    grpc_port: int
    folder: Path


@dataclass(frozen=True)
class Peer:
    """A server to measure against.

    Attributes
    ----------
    name : str
        As tables and `--peers` name it.
    environment : str
        Whose requirements it runs on; empty for the project's own environment.
    command : callable
        `Start` to the command line.
    path, ready : str
        Where inference and readiness are asked for.
    checked : bool
        Whether it answers with what the model says.
    speaks_grpc : bool
    """

    name: str
    environment: str
    command: Callable[[Start], list[str]]
    path: str = "/infer"
    ready: str = "/"
    checked: bool = True
    speaks_grpc: bool = False


def _program(name: str) -> Callable[[Start], list[str]]:
    return lambda start: [str(start.python), str(_PROGRAMS / name), str(start.model), str(start.port)]


def _mosec(start: Start) -> list[str]:
    place = ["--address", "127.0.0.1", "--port", str(start.port), "--path", str(start.folder / "sockets")]
    return [str(start.python), str(_PROGRAMS / "mosec_app.py"), *place, "--log-level", "error"]


def _bentoml(start: Start) -> list[str]:
    program = str(start.python.with_name("bentoml"))
    place = ["--host", "127.0.0.1", "--port", str(start.port), "--working-dir", str(_PROGRAMS)]
    return [program, "serve", "bentoml_app:Model", *place]


def _mlserver(start: Start) -> list[str]:
    shutil.copy(_PROGRAMS / "mlserver_model.py", start.folder)
    settings = {
        "host": "127.0.0.1",
        "http_port": start.port,
        "grpc_port": start.grpc_port,
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
        "access_log": False,
    }
    (start.folder / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": _MODEL,
        "implementation": "mlserver_model.OnnxModel",
        "parameters": {"uri": str(start.model), "version": "1"},
    }
    (start.folder / "model-settings.json").write_text(json.dumps(model))
    return [str(start.python.with_name("mlserver")), "start", str(start.folder)]


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("constant reply", "", _program("constant.py"), checked=False),
        Peer("bare handler", "", _program("bare.py")),
        Peer("FastAPI", "fastapi", _program("fastapi_app.py"), ready="/ready"),
        Peer("MLServer", "mlserver", _mlserver, path=_INFER, ready="/v2/health/ready", speaks_grpc=True),
        Peer("mosec", "mosec", _mosec, path="/inference"),
        Peer("BentoML", "bentoml", _bentoml, ready="/readyz"),
        Peer("LitServe", "litserve", _program("litserve_app.py"), path="/predict", ready="/health"),
    )
}


@contextlib.contextmanager
def running_peer(peer: Peer, model: Path, *, cache: Path, place: Path) -> Iterator[list[Running]]:
    """Install the peer when need be, start it with one model, and end it with the block.

    Raises
    ------
    ServerFailed
    """
    python = environment(peer.environment, cache) if peer.environment else Path(sys.executable)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f"{peer.name.replace(' ', '-')}-"))
    start = Start(python, model.resolve(), free_port(), free_port(), folder)
    log = folder / "output.log"
    variables = {_MODEL_VARIABLE: str(start.model), "BENTOML_DO_NOT_TRACK": "True"}
    with started(peer.command(start), folder=folder, log=log, environment=variables) as process:
        base = f"http://127.0.0.1:{start.port}"
        wait_until(lambda: answers(base + peer.ready), process, log=log)
        grpc_port = start.grpc_port if peer.speaks_grpc else None
        yield [_running(peer.name, base + peer.path, process, checked=peer.checked, grpc_port=grpc_port)]


@contextlib.contextmanager
def running_triton(program: Path, model: Path, *, place: Path) -> Iterator[list[Running]]:
    """Start a tritonserver binary with its onnxruntime backend; it lies where the binary's distribution has it.

    Raises
    ------
    ServerFailed
    """
    folder = Path(tempfile.mkdtemp(dir=place, prefix="triton-"))
    (folder / "models" / _MODEL / "1").mkdir(parents=True)
    shutil.copy(model, folder / "models" / _MODEL / "1" / "model.onnx")
    parameters = '{ key: "intra_op_thread_count" value: { string_value: "1" } }'
    (folder / "models" / _MODEL / "config.pbtxt").write_text(
        f'backend: "onnxruntime"\nmax_batch_size: {_TRITON_ROWS}\ninstance_group [{{ count: 1 kind: KIND_CPU }}]\n'
        f"parameters {parameters}\ndynamic_batching {{ }}\n"
    )
    port, grpc_port, log = free_port(), free_port(), folder / "output.log"
    options = ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-metrics=false"]
    options += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"]
    backends = program.resolve().parent.parent / "backends"
    if backends.is_dir():
        options.append(f"--backend-directory={backends}")
    command = [str(program), f"--model-repository={folder / 'models'}", *options]
    with started(command, folder=folder, log=log) as process:
        base = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{base}/v2/health/ready"), process, log=log)
        yield [_running("Triton", base + _INFER, process, grpc_port=grpc_port)]


def _running(
    name: str, url: str, process: subprocess.Popen[bytes], *, checked: bool = True, grpc_port: int | None = None
) -> Running:
    grpc = "" if grpc_port is None else f"127.0.0.1:{grpc_port}"
    return Running(name, url, lambda: tree([process.pid]), checked=checked, grpc=grpc, served_as=_MODEL)
