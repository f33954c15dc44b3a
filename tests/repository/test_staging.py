"""What is loaded is exactly what was hashed."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.repository.errors import IntegrityError, RepositoryError
from gateway.repository.manifest import load_version
from gateway.repository.staging import stage

WriteVersion = Callable[..., Path]


def test_a_staged_copy_is_private_and_complete(write_version: WriteVersion, tmp_path: Path) -> None:
    version = load_version(write_version(files={"model.onnx": b"abc", "w/a.bin": b"weights"}))
    model = stage(version, tmp_path / "loaded" / "m-1", expected_digest=version.digest)
    assert model == tmp_path / "loaded" / "m-1" / "model.onnx"
    assert model.read_bytes() == b"abc"
    assert (model.parent / "w" / "a.bin").read_bytes() == b"weights"
    assert stat.S_IMODE(model.parent.stat().st_mode) == 0o700
    assert os.listdir(tmp_path / "loaded") == ["m-1"]


def test_staging_again_replaces_the_copy(write_version: WriteVersion, tmp_path: Path) -> None:
    version = load_version(write_version())
    target = tmp_path / "loaded" / "m-1"
    stage(version, target, expected_digest=version.digest)
    (target / "left-over").write_text("from an earlier life")
    stage(version, target, expected_digest=version.digest)
    assert sorted(os.listdir(target)) == ["card.md", "model.onnx"]
    assert os.listdir(target.parent) == ["m-1"]


def test_a_digest_that_was_not_approved_is_not_loaded(write_version: WriteVersion, tmp_path: Path) -> None:
    version = load_version(write_version())
    with pytest.raises(IntegrityError, match="approved is sha256:1234"):
        stage(version, tmp_path / "loaded", expected_digest="sha256:1234")
    assert not (tmp_path / "loaded").exists()


def _swapped_bytes(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"A model")


def _grown(folder: Path) -> None:
    with open(folder / "model.onnx", "ab") as file:
        file.write(b"!")


def _shrunk(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"a")


def _missing(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def _symbolic_link(folder: Path) -> None:
    shutil.move(folder / "model.onnx", folder.parent / "model.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "model.onnx")


def _hard_link(folder: Path) -> None:
    os.link(folder / "model.onnx", folder.parent / "same.onnx")


def _fifo(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def _linked_parent(folder: Path) -> None:
    shutil.move(folder / "w", folder.parent / "w")
    (folder / "w").symlink_to(folder.parent / "w")


def _linked_folder(folder: Path) -> None:
    shutil.move(folder, folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_swapped_bytes, "model.onnx is not as recorded"),
        (_grown, "more than 7 bytes"),
        (_shrunk, "expected 7 bytes"),
        (_missing, "model.onnx cannot be opened"),
        (_symbolic_link, "model.onnx cannot be opened"),
        (_hard_link, "2 hard links"),
        (_fifo, "not a regular file"),
        (_linked_parent, "w/a.bin cannot be opened"),
        (_linked_folder, "cannot be opened as a folder"),
    ],
)
def test_what_changed_after_it_was_read_is_not_loaded(
    write_version: WriteVersion, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = write_version(files={"model.onnx": b"a model", "w/a.bin": b"weights"})
    version = load_version(folder)
    target = tmp_path / "loaded" / "m-1"
    stage(version, target, expected_digest=version.digest)
    spoil(folder)
    with pytest.raises(IntegrityError, match=reason):
        stage(version, target, expected_digest=version.digest)
    assert (target / "model.onnx").read_bytes() == b"a model", "the copy that serves is left as it is"
    assert os.listdir(tmp_path / "loaded") == ["m-1"]


def test_a_file_swapped_to_and_fro_is_loaded_as_hashed_or_not_at_all(
    write_version: WriteVersion, tmp_path: Path
) -> None:
    folder = write_version(files={"model.onnx": b"good" * 50_000})
    version = load_version(folder)
    evil = tmp_path / "evil.onnx"
    evil.write_bytes(b"evil" * 50_000)
    stop = threading.Event()

    def swap() -> None:
        good = (folder / "model.onnx").read_bytes()
        while not stop.is_set():
            (tmp_path / "link").symlink_to(evil)
            os.replace(tmp_path / "link", folder / "model.onnx")
            (tmp_path / "copy").write_bytes(good)
            os.replace(tmp_path / "copy", folder / "model.onnx")

    swapper = threading.Thread(target=swap)
    swapper.start()
    loaded, refused = 0, 0
    try:
        for attempt in range(2_000):
            if min(loaded, refused) >= 20:
                break
            try:
                model = stage(version, tmp_path / "loaded" / str(attempt % 2), expected_digest=version.digest)
            except IntegrityError:
                refused += 1
            else:
                loaded += 1
                assert model.read_bytes() == b"good" * 50_000
    finally:
        stop.set()
        swapper.join(timeout=10)
    assert loaded + refused >= 20


def test_a_target_that_cannot_be_written_is_an_error_that_names_it(write_version: WriteVersion, tmp_path: Path) -> None:
    version = load_version(write_version())
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot write the copy .*/file/m-1"):
        stage(version, tmp_path / "file" / "m-1", expected_digest=version.digest)
