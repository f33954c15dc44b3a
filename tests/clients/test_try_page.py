"""The page at /v2/docs in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.environments import client_python
from tests.conformance.models import write_gateway
from tests.gateways import running_gateway
from tests.prometheus import missing

FLOW = Path(__file__).parent / "flows" / "try_page.py"


@pytest.mark.slow
def test_the_page_lists_the_models_and_tries_them_in_chromium(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("Chromium is not installed (Debian: chromium)")
    python = client_python("browser", "playwright==1.56.0")
    write_gateway(tmp_path / "models")
    with running_gateway(tmp_path, models=tmp_path / "models", fronts=1) as gateway:
        ran = subprocess.run(
            [str(python), str(FLOW), gateway.http_url, str(chromium), str(tmp_path / "page.png")],
            capture_output=True,
            timeout=120,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
        assert len(ran.stdout.split()) == 4 and (tmp_path / "page.png").stat().st_size > 10_000
