"""What is served and what is refused, and why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.repository.errors import IntegrityError, ManifestError, RepositoryError
from gateway.repository.manifest import digest_of, load_version, scan, verify

WriteVersion = Callable[..., Path]


def test_a_complete_folder_is_read(write_version: WriteVersion) -> None:
    folder = write_version("12", model="bike-demand", files={"model.onnx": b"abc", "weights/w.bin": b"1234"})
    version = load_version(folder)
    assert (version.model, version.version, version.folder) == ("bike-demand", 12, folder)
    assert [entry.path for entry in version.manifest.files] == ["model.onnx", "weights/w.bin"]
    assert repr(version) == f"<ModelVersion bike-demand/12 {version.digest[:19]}>"
    verify(version)


def _without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _half_a_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edited_lineage(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"lineage":{}', b'"lineage":{"author":"somebody else"}'))


def _edited_batching(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"equal"', b'"within"'))


def _linked_manifest(folder: Path) -> None:
    shutil.move(folder / "manifest.json", folder.parent / "elsewhere.json")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere.json")


def _huge_manifest(folder: Path) -> None:
    with open(folder / "manifest.json", "ab") as file:
        file.truncate(2**20 + 1)


def _missing_file(folder: Path) -> None:
    (folder / "card.md").unlink()


def _extra_file(folder: Path) -> None:
    (folder / "custom_operators.so").write_bytes(b"\x7fELF")


def _extra_file_below(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_bytes(b"")


def _shorter_file(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"a mod")


def _symbolic_link(folder: Path) -> None:
    shutil.move(folder / "model.onnx", folder.parent / "model.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "model.onnx")


def _hard_link(folder: Path) -> None:
    os.link(folder / "model.onnx", folder.parent / "same.onnx")


def _fifo(folder: Path) -> None:
    (folder / "card.md").unlink()
    os.mkfifo(folder / "card.md")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_without_manifest, "no manifest.json"),
        (_half_a_manifest, "manifest.json: it ends too early"),
        (_edited_lineage, "its content has 'sha256:"),
        (_edited_batching, "its content has 'sha256:"),
        (_linked_manifest, "manifest.json cannot be opened"),
        (_huge_manifest, "expected no more than 1048576"),
        (_missing_file, "card.md is missing"),
        (_extra_file, "'custom_operators.so' is not in the manifest"),
        (_extra_file_below, "'deep/er/file' is not in the manifest"),
        (_shorter_file, "model.onnx has 5 bytes: the manifest says 7"),
        (_symbolic_link, "model.onnx is not a regular file"),
        (_hard_link, "model.onnx is not a regular file with one name"),
        (_fifo, "card.md is not a regular file"),
    ],
)
def test_a_folder_that_is_not_as_its_manifest_says_is_refused(
    write_version: WriteVersion, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = write_version()
    assert load_version(folder).version == 1
    spoil(folder)
    with pytest.raises(ManifestError, match="^.*" + reason.replace("(", r"\(")):
        load_version(folder)
    versions, refused = scan(folder.parent.parent)
    assert versions == []
    assert [path for path, _ in refused] == [folder]
    assert reason in refused[0][1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"files": []}, "does not list model.onnx"),
        ({"files": [{"path": "../model.onnx", "size": 1, "sha256": "0" * 64}]}, "plain relative paths"),
        ({"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}]}, "plain relative paths"),
        ({"files": [{"path": "manifest.json", "size": 1, "sha256": "0" * 64}]}, "plain relative paths"),
        ({"files": [{"path": "model.onnx", "size": 1, "sha256": "0" * 64}] * 2}, "lists a file twice"),
        ({"files": [{"path": "model.onnx", "size": 2**33, "sha256": "0" * 64}]}, "no more than 4294967296"),
        ({"files": [{"path": "model.onnx", "size": -1, "sha256": "0" * 64}]}, "size"),
        ({"files": [{"path": "model.onnx", "size": 1, "sha256": "zz"}]}, "sha256"),
        ({"batching": {"verdict": "surely"}}, "surely"),
        ({"batching": {}}, "verdict"),
        ({"lineage": {"autor": "x"}}, "autor"),
        ({"approved": True}, "approved"),
        ({"digest": "sha256:" + "0" * 64}, "its content has"),
        ({"digest": ""}, "its content has"),
    ],
)
def test_a_manifest_that_says_what_it_must_not_is_refused(
    write_version: WriteVersion, changes: dict[str, Any], reason: str
) -> None:
    folder = write_version(changes=changes)
    with pytest.raises(ManifestError, match=reason):
        load_version(folder)


def test_a_manifest_lists_no_more_files_than_the_limit(write_version: WriteVersion) -> None:
    sixty_four = {"model.onnx": b"", **{f"w{number}": b"" for number in range(63)}}
    assert len(load_version(write_version("1", files=sixty_four)).manifest.files) == 64
    with pytest.raises(ManifestError, match="65 files"):
        load_version(write_version("2", files={**sixty_four, "one-more": b""}))


@pytest.mark.parametrize("name", ["01", "v1", "0", "1.0", "+1", "²", "1000000000", ".tmp1", ".adding-1-abc"])
def test_only_plain_numbers_are_versions(write_version: WriteVersion, name: str) -> None:
    folder = write_version(name)
    with pytest.raises(ManifestError, match="is not a version"):
        load_version(folder)
    versions, refused = scan(folder.parent.parent)
    assert versions == []
    hidden = name.startswith(".")
    assert [path for path, _ in refused] == ([] if hidden else [folder])


def test_scan_sorts_by_model_and_number_and_goes_on_after_a_refusal(write_version: WriteVersion) -> None:
    for version in ("10", "9", "2"):
        models = write_version(version, model="b").parent.parent
    write_version("1", model="a")
    (models / "b" / "9" / "card.md").unlink()
    (models / "b" / "model.toml").write_text("")
    (models / "README.md").write_text("")
    (models / ".git").mkdir()
    (models / "not a model").mkdir()
    (models / "b" / "7").write_text("a file")
    versions, refused = scan(models)
    assert [(version.model, version.version) for version in versions] == [("a", 1), ("b", 2), ("b", 10)]
    assert {path.name for path, _ in refused} == {"9", "7", "not a model"}


def test_a_version_folder_that_is_a_link_is_refused(write_version: WriteVersion) -> None:
    folder = write_version("1")
    (folder.parent / "2").symlink_to(folder)
    versions, refused = scan(folder.parent.parent)
    assert [version.version for version in versions] == [1]
    assert refused[0][0].name == "2" and "cannot be opened as a folder" in refused[0][1]


def test_a_missing_models_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="nowhere: No such file"):
        scan(tmp_path / "nowhere")


def test_verify_finds_bytes_that_changed_without_changing_the_size(write_version: WriteVersion) -> None:
    folder = write_version()
    version = load_version(folder)
    (folder / "model.onnx").write_bytes(b"A model")
    with pytest.raises(IntegrityError, match="model.onnx is not as recorded"):
        verify(load_version(folder))
    with pytest.raises(IntegrityError, match="model.onnx is not as recorded"):
        verify(version)


def test_the_digest_does_not_depend_on_the_order_of_keys_nor_on_itself() -> None:
    content = {"files": [{"path": "a", "size": 1}], "lineage": {"x": 1, "y": 2}}
    reordered = {"lineage": {"y": 2, "x": 1}, "files": [{"size": 1, "path": "a"}], "digest": "anything"}
    assert digest_of(content) == digest_of(reordered)
    assert digest_of(content) != digest_of({**content, "lineage": {"x": 1, "y": 3}})


def test_a_key_that_a_later_release_adds_leaves_old_digests_as_they_are(write_version: WriteVersion) -> None:
    # The file leaves out every key that has a default, as a file of an earlier release does.
    folder = write_version()
    assert b"max_difference" not in (folder / "manifest.json").read_bytes()
    content = msgspec.json.decode((folder / "manifest.json").read_bytes())
    assert load_version(folder).digest == digest_of(content)
