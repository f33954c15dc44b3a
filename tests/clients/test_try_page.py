"""The page at /v2/docs and the console in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import client_python
from tests.conformance.models import write_gateway
from tests.gateways import RunningGateway, running_gateway
from tests.prometheus import missing

FLOWS = Path(__file__).parent / "flows"


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing("Chromium is not installed (Debian: chromium)")
    return found


@pytest.fixture(scope="module")
def gateway(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("pages")
    write_gateway(folder / "models")
    with running_gateway(folder, models=folder / "models", fronts=1) as gateway:
        yield gateway


def run(flow: str, *arguments: str) -> list[str]:
    """Run a flow in a browser; returns the words that it prints."""
    python = client_python("browser", "playwright==1.56.0")
    command = [str(python), str(FLOWS / flow), *arguments]
    ran = subprocess.run(command, capture_output=True, timeout=120, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    return ran.stdout.split()


@pytest.mark.slow
def test_the_page_lists_the_models_and_tries_them_in_chromium(
    chromium: str, gateway: RunningGateway, tmp_path: Path
) -> None:
    done = run("try_page.py", gateway.http_url, chromium, str(tmp_path / "page.png"))
    assert len(done) == 7 and (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_pages_are_no_wider_than_their_window_from_a_telephone_on(chromium: str, gateway: RunningGateway) -> None:
    done = run("pages_fit.py", chromium, gateway.http_url + "/v2/docs", gateway.admin_url)
    assert done == ["1280", "800", "400", "360"]
