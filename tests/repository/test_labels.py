from __future__ import annotations

from pathlib import Path

import pytest

from gateway.repository.labels import MAX_LABEL_BYTES, read_labels
from gateway.repository.policy import PolicyError, load_policy


def test_a_label_file_names_the_classes_of_an_output_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('[labels]\nscores = "animals.txt"\n')
    (tmp_path / "animals.txt").write_text("cat\nköter\n\nfish")
    assert read_labels(tmp_path, load_policy(tmp_path).labels) == {"scores": ("cat", "köter", "", "fish")}


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("missing.txt", None, "cannot read .*missing.txt: No such file"),
        ("../secret", None, "expected the name of a file here"),
        ("/etc/passwd", None, "expected the name of a file here"),
        ("", None, "expected the name of a file here"),
        ("latin.txt", b"\xe9", "must be UTF-8"),
        ("large.txt", b"a" * (MAX_LABEL_BYTES + 1), "more than 1048576 bytes"),
    ],
)
def test_a_label_file_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PolicyError, match=match):
        read_labels(tmp_path, {"scores": name})
