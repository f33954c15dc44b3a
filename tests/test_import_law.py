"""The import law of docs/architecture.md, read from the code's own import statements."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gateway"
PURE = ("protocol", "routing", "drift", "rollout", "events")
BOTTOM = ("protocol", "events")
WORLD = ("repository", "engine", "predictions", "control", "telemetry")
NOT_FOR_PURE = {"asyncio", "logging", "time", "random", "secrets", "os", "socket", "sqlite3", "subprocess", "threading"}
LIBRARIES_FOR_PURE = {"numpy", "msgspec", "orjson", "simdjson", "river"}
NOT_FOR_WORLD = {"serving", "admin", "cli", "app", "supervisor"}
MODULES = sorted(ROOT.rglob("*.py"))


def imports_of(path: Path, root: Path = ROOT) -> Iterator[str]:
    package = path.relative_to(root.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ".".join(package[: len(package) - node.level + 1])
                yield f"{base}.{node.module}" if node.module else base
            elif node.module == "gateway":
                yield from (f"gateway.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("gateway.") and name.count(".") >= 1}


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) in PURE], ids=str)
def test_pure_packages_import_only_what_is_pure(path: Path) -> None:
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "gateway":
            continue
        assert top not in NOT_FOR_PURE, f"{path.name} imports {name}"
        assert top in sys.stdlib_module_names or top in LIBRARIES_FOR_PURE, f"{path.name} imports {name}"
    allowed = set(BOTTOM) if room_of(path) in BOTTOM else set(PURE)
    assert rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) in WORLD], ids=str)
def test_packages_that_touch_the_world_do_not_know_who_uses_them(path: Path) -> None:
    assert not rooms_imported(path) & NOT_FOR_WORLD


def test_only_the_engine_session_imports_onnxruntime() -> None:
    users = [
        path.relative_to(ROOT) for path in MODULES if any(name.startswith("onnxruntime") for name in imports_of(path))
    ]
    assert [str(path) for path in users] == ["engine/session.py"]


def test_only_the_http_side_imports_its_server_and_grpc_does_not_import_that_side() -> None:
    modules = ("incoming", "pipeline", "protocol", "server")
    http = {"uvicorn", "httptools", *(f"gateway.serving.{module}" for module in modules)}
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.is_relative_to(ROOT / "serving")
        and any(name in http or name.split(".")[0] in http for name in imports_of(path))
    }
    assert users == {f"serving/{module}.py" for module in modules}


def test_the_law_finds_an_import_inside_a_function_and_a_relative_one(tmp_path: Path) -> None:
    root = tmp_path / "gateway"
    (root / "drift").mkdir(parents=True)
    offender = root / "drift" / "offender.py"
    offender.write_text("from ..control import store\ndef late():\n    from time import sleep\n")
    assert list(imports_of(offender, root)) == ["gateway.control", "time"]
