"""Options of the conformance kit, the server under test, and the score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import AREAS
from tests.conformance.exchange import Request

AREA = pytest.StashKey[str]()
SCORE = pytest.StashKey[dict[str, dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "Open Inference Protocol conformance")
    group.addoption("--url", default=None, help="base URL of the server; left out, this project's gateway is started")
    group.addoption("--grpc-url", default=None, help="host:port of its gRPC side; left out, gRPC is not scored")
    group.addoption("--binary", action="store_true", dest="binary", default=None, help="score the binary extension")
    group.addoption("--no-binary", action="store_false", dest="binary", help="leave the binary extension out")
    group.addoption("--report", type=Path, default=None, help="write the score to this file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SCORE] = {}


class Server:
    """The server under test."""

    def __init__(self, url: str, grpc_url: str | None) -> None:
        self.url = url
        self.grpc_url = grpc_url
        self.extensions: list[str] = []

    def offers(self, extension: str) -> bool:
        return not extension or extension in self.extensions


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    url = request.config.getoption("--url", None)
    if url is None:
        yield from _own_gateway(tmp_path_factory.mktemp("conformance"))
        return
    yield _asked(Server(url, request.config.getoption("--grpc-url", None)))


def _own_gateway(folder: Path) -> Iterator[Server]:
    from tests.conformance.models import write_gateway
    from tests.gateways import running_gateway

    write_gateway(folder / "models")
    with running_gateway(folder, models=folder / "models", fronts=2) as gateway:
        port = getattr(gateway, "grpc_port", None)
        yield _asked(Server(gateway.http_url, f"127.0.0.1:{port}" if port else None))


def _asked(server: Server) -> Server:
    answer = Request("GET", "/v2").send(server.url)
    if answer.status == 200:
        server.extensions = answer.json.get("extensions", [])
    return server


@pytest.fixture
def scored(request: pytest.FixtureRequest) -> None:
    """Puts a test into the score, under the area of its case."""
    case = request.node.callspec.params["case"]
    request.node.stash[AREA] = case.area


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    area = item.stash.get(AREA, None)
    if area is not None and (report.when == "call" or report.failed):
        score = item.config.stash[SCORE].setdefault(area, {})
        score[item.callspec.id] = report.outcome  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    score = config.stash[SCORE]
    rows = []
    for area in [*AREAS, *(set(score) - set(AREAS))]:
        outcomes = [outcome for outcome in score.get(area, {}).values() if outcome != "skipped"]
        if outcomes:
            rows.append((area, outcomes.count("passed"), len(outcomes)))
        elif area in score:
            rows.append((area, 0, 0))
    if not rows:
        return
    terminalreporter.section("Open Inference Protocol conformance")
    for area, passed, total in rows:
        terminalreporter.line(f"{area:<20} {passed:>4} / {total}" if total else f"{area:<20}  not offered")
    passed, total = (sum(row[column] for row in rows) for column in (1, 2))
    terminalreporter.line(f"{'overall':<20} {passed:>4} / {total}")
    path = config.getoption("--report", None)
    if path is not None:
        failed = {area: [says for says, o in cases.items() if o == "failed"] for area, cases in score.items()}
        areas = {area: {"passed": p, "total": t, "failed": failed[area]} for area, p, t in rows}
        path.write_text(json.dumps({"areas": areas, "passed": passed, "total": total}, indent=2) + "\n")
