"""What is written about the commands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from gateway.cli.main import COMMANDS
from gateway.control.moves import TRAFFIC_KINDS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    page = runpy.run_path(str(DOCS / "write_cli.py"))["page"]()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == page, "run: python docs/write_cli.py"


def test_commands_that_governance_names_exist() -> None:
    headings = set(re.findall(r"^## (gateway .*)$", (DOCS / "cli.md").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"`(gateway [a-z]+(?: [a-z]+)?)", (DOCS / "governance.md").read_text(encoding="utf-8"))
    assert named
    for command in named:
        assert command in headings or command.split()[1] in COMMANDS, command


def test_governance_names_every_kind_that_moves_traffic() -> None:
    text = (DOCS / "governance.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in text for kind in TRAFFIC_KINDS)
