"""`python -m gateway`: the command line."""

from __future__ import annotations

from gateway.cli.main import run

run()
