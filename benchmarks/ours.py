"""The gateway as it is measured: `gateway serve` on embedded defaults, and fronts beside it with parts taken out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import ServerFailed
from benchmarks.models import FEATURES
from benchmarks.processes import title, tree
from benchmarks.servers import Running, answers, free_port, started, wait_until
from gateway.parent import PARENT_VARIABLE

__all__ = ("EVERYTHING_ON", "OBSERVATION_OFF", "Variant", "add_model", "logged", "running_gateway")

ROOT = Path(__file__).parents[1]
EVERYTHING_ON = "gateway"
OBSERVATION_OFF = "observation off"
_ANSWERING = ("gateway: front", "gateway: engine")
_ADD_SECONDS = 120
_REFERENCE_ROWS = 500
_FIRST_SLOT = 100


@dataclass(frozen=True)
class Variant:
    """The same gateway without some `PARTS` of `benchmarks/front.py`, or with its monitor standing still."""

    name: str
    without: tuple[str, ...]


def add_model(models: Path, name: str, file: Path, *, place: Path) -> None:
    """Register version 1 of a model as an operator would, approved and routed by its model.toml.

    Raises
    ------
    ServerFailed
    """
    command = [sys.executable, "-m", "gateway", "models", "add", name, str(file), "--models", str(models)]
    if file.stem != "image":
        command += ["--reference", str(_reference(place))]
    models.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_ADD_SECONDS)
    if done.returncode:
        raise ServerFailed(f"gateway models add {name}: {done.stderr[-300:].strip()}")
    digest = json.loads((models / name / "1" / "manifest.json").read_bytes())["digest"]
    (models / name / "model.toml").write_text(f'[approvals]\n"1" = "{digest}"\n[route]\nstable = 1\n')


@contextlib.contextmanager
def running_gateway(
    models: Path,
    *,
    model: str,
    place: Path,
    name: str = EVERYTHING_ON,
    fronts: int = 1,
    variants: Sequence[Variant] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[list[Running]]:
    """Start a whole gateway, and a front for each variant; all end with the block.

    Parameters
    ----------
    models : Path
        Folder of model folders.
    model : str
        The one that is asked.
    name : str
        Of the gateway with everything on.
    settings : mapping, optional
        Environment variables, such as `GATEWAY_KAFKA__BOOTSTRAP_SERVERS`.

    Raises
    ------
    ServerFailed
    """
    folder = Path(tempfile.mkdtemp(dir=place, prefix="gateway-"))
    state, log = folder / "state", folder / "output.log"
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0"]
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(models), "--state-dir", str(state), *ports]
    variables = {"PYTHONPATH": str(ROOT), **(settings or {})}
    with contextlib.ExitStack() as held:
        process = held.enter_context(
            started([*command, "--fronts", str(fronts)], folder=folder, log=log, environment=variables)
        )
        note = state / "run" / "gateway.json"
        wait_until(note.exists, process, log=log)
        said = json.loads(note.read_bytes())
        base = f"http://127.0.0.1:{said['http_port']}"
        for url in (f"{base}/v2/health/ready", f"http://127.0.0.1:{said['admin_port']}/api/v1/health"):
            wait_until(lambda url=url: answers(url), process, log=log)  # type: ignore[misc]
        wait_until((state / "monitor" / "status.json").exists, process, log=log)
        root = process.pid
        servers = [
            Running(
                name,
                _infer(base, model),
                lambda: _named(root, *_ANSWERING),
                lambda: _beside(root),
                log=state,
                grpc=f"127.0.0.1:{said['grpc_port']}",
                served_as=model,
            )
        ]
        for number, variant in enumerate(variants):
            servers.append(held.enter_context(_running_variant(variant, model, root=root, state=state, slot=number)))
        yield servers


def logged(state: Path) -> int:
    """How many predictions lie in the log."""
    from gateway.events.records import KIND_PREDICTION
    from gateway.predictions.reader import SpoolReader

    reader, count = SpoolReader(state / "spool"), 0
    while records := reader.read(10_000):
        count += sum(record.kind == KIND_PREDICTION for record in records)
    reader.close()
    return count


@contextlib.contextmanager
def _running_variant(variant: Variant, model: str, *, root: int, state: Path, slot: int) -> Iterator[Running]:
    if variant.without == ("monitor",):
        note = json.loads((state / "run" / "gateway.json").read_bytes())
        base = f"http://127.0.0.1:{note['http_port']}"
        silent = Running(
            variant.name,
            _infer(base, model),
            lambda: _named(root, *_ANSWERING),
            lambda: [pid for pid in _beside(root) if title(pid) != "gateway: monitor"],
            log=state,
        )
        yield silent
        return
    port, log = free_port(), state.parent / f"{variant.name.replace(' ', '-')}.log"
    arguments = [str(state / "run" / "settings.json"), str(_FIRST_SLOT + slot), str(port), *variant.without]
    with started(
        [sys.executable, "-m", "benchmarks.front", *arguments],
        folder=state.parent,
        log=log,
        environment={"PYTHONPATH": str(ROOT), PARENT_VARIABLE: str(os.getpid())},
    ) as process:
        base = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{base}/v2/health/ready"), process, log=log)
        front = process.pid
        engines = [] if "isolation" in variant.without else ["gateway: engine"]
        yield Running(
            variant.name,
            _infer(base, model),
            lambda: [*tree([front]), *_named(root, *engines)],
            log=None if "log" in variant.without else state,
        )


def _infer(base: str, model: str) -> str:
    return f"{base}/v2/models/{model}/infer"


def _named(root: int, *titles: str) -> list[int]:
    return [pid for pid in tree([root]) if titles and title(pid).startswith(titles)]


def _beside(root: int) -> list[int]:
    return [pid for pid in tree([root]) if not title(pid).startswith(_ANSWERING)]


def _reference(place: Path) -> Path:
    path = place / "reference.csv"
    if not path.exists():
        names = ",".join(f"feature_{index}" for index in range(FEATURES))
        rows = (
            ",".join(f"{(row * 31 + column * 17) % 97 / 48.5 - 1.0:.6f}" for column in range(FEATURES))
            for row in range(_REFERENCE_ROWS)
        )
        path.write_text("\n".join([names, *rows]) + "\n")
    return path
