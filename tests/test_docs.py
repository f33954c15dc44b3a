"""Documentation held against the program: what is named exists, and what exists is named."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from gateway.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "deploy" / "README.md"])
PROMISED = re.compile(r"^\| \*\*(P\d+)\*\* \|", re.MULTILINE)
PROVEN = re.compile(r'mark\.promise\("(P\d+)"\)')


def test_every_promise_of_the_readme_is_proven_by_a_test_and_the_reverse() -> None:
    proven = {number for path in (ROOT / "tests").rglob("test_*.py") for number in PROVEN.findall(path.read_text())}
    assert set(PROMISED.findall(README)) == proven


def test_every_command_the_pages_show_exists() -> None:
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                words = line.split("#")[0].split()
                for place, word in enumerate(words[:-1]):
                    if word.rsplit("/", 1)[-1] == "gateway" and place == 0 and not words[1].startswith("-"):
                        assert words[1] in COMMANDS, f"{page.name}: {line}"


def test_every_make_target_the_pages_show_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_settings_page_is_in_step_with_the_settings() -> None:
    specification = importlib.util.spec_from_file_location("write_settings", ROOT / "docs" / "write_settings.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.PLACE.read_text() == module.settings_page(), "run: python docs/write_settings.py"
