"""Where a version comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gateway.repository.errors import LineageError
from gateway.repository.lineage import Lineage, Source, TrainingData, detect_source, read_lineage


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "lineage.toml").write_text(
        "parent = 1\ncreated = 2012-01-01T12:00:00Z\n"
        '[data]\nuri = "s3://rows"\nrows = 10\nstart = 2011-01-01\nend = "2011-12-31"\n'
        "[hyperparameters]\ndepth = 5\n[metrics]\nmae = 30\n"
    )
    (tmp_path / "lineage.json").write_text(
        '{"parent": 1, "created": "2012-01-01T12:00:00Z", "metrics": {"mae": 30}, "hyperparameters": {"depth": 5},'
        ' "data": {"uri": "s3://rows", "rows": 10, "start": "2011-01-01", "end": "2011-12-31"}}'
    )
    expected = Lineage(
        data=TrainingData(uri="s3://rows", rows=10, start="2011-01-01", end="2011-12-31"),
        hyperparameters={"depth": 5},
        metrics={"mae": 30.0},
        parent=1,
        created="2012-01-01T12:00:00Z",
    )
    assert read_lineage(tmp_path / "lineage.toml") == expected
    assert read_lineage(tmp_path / "lineage.json") == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("lineage.toml", b"parent = ", "lineage.toml: "),
        ("lineage.toml", b"\xff", "lineage.toml: "),
        ("lineage.json", b"[]", "lineage.json: expected keys with values"),
        ("lineage.json", b'{"parant": 1}', "parant"),
        ("lineage.json", b'{"metrics": {"mae": "low"}}', r"metrics"),
        ("lineage.json", b"[" * 100_000, "lineage.json: "),
        ("lineage.yaml", b"parent: 1", "expected a file that ends in .toml or .json"),
        ("lineage.json", b" " * (2**20 + 1), "more than 1048576 bytes"),
    ],
)
def test_a_lineage_file_with_a_mistake_is_refused_with_its_name(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LineageError, match=reason):
        read_lineage(tmp_path / name)


def test_a_missing_lineage_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(LineageError, match="lineage.toml: No such file"):
        read_lineage(tmp_path / "lineage.toml")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def test_the_commit_is_found_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    assert detect_source(tmp_path) == Source(), "no commit yet"
    (tmp_path / "train.py").write_text("1")
    _git(tmp_path, "add", "train.py")
    _git(tmp_path, "commit", "-q", "-m", "Train")
    (tmp_path / "untracked").write_text("")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert detect_source(tmp_path) == Source(commit=commit, dirty=False)
    (tmp_path / "train.py").write_text("2")
    assert detect_source(tmp_path) == Source(commit=commit, dirty=True)


def test_no_checkout_and_no_git_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect_source(tmp_path) == Source()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_source(tmp_path) == Source()


def test_a_checkout_cannot_make_us_run_a_program(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "commit", "-q", "--allow-empty", "-m", "Begin")
    program = tmp_path / "monitor"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    _git(tmp_path, "config", "core.fsmonitor", str(program))
    assert detect_source(tmp_path).commit
    assert not (tmp_path / "ran").exists()


def test_the_lineage_of_the_documentation_can_be_read_and_shows_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    file = tmp_path / "lineage.toml"
    file.write_text(page.split("```toml\n")[1].split("```")[0])
    lineage = read_lineage(file)
    shown = {field for field in Lineage.__struct_fields__ if getattr(lineage, field) not in (None, {})}
    assert shown == set(Lineage.__struct_fields__) - {"reference"}
    assert None not in (lineage.data.uri, lineage.data.sha256, lineage.data.rows, lineage.data.start, lineage.data.end)
    assert lineage.source.commit is not None and lineage.source.dirty is False
