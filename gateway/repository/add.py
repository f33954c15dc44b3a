"""Adding a version: everything is made in a folder beside the target, which appears by one rename or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from gateway.drift.profile import Profile, encode_profile
from gateway.engine.errors import EngineError, EngineGone
from gateway.protocol.datatypes import Signature
from gateway.repository.card import write_card
from gateway.repository.errors import ModelFileError, RepositoryError, VersionExistsError
from gateway.repository.files import copy_named, copy_regular, open_folder
from gateway.repository.independence import examine_batching
from gateway.repository.lineage import Lineage, ReferenceFile
from gateway.repository.manifest import (
    ADDING_PREFIX,
    CARD_NAME,
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    MAX_FOLDER_BYTES,
    MAX_FOLDER_FILES,
    MODEL_FILE_NAME,
    PROFILE_NAME,
    TRIED_ROWS,
    Batching,
    FileEntry,
    Manifest,
    ModelVersion,
    digest_of,
    is_model_name,
    load_version,
    parse_version,
)
from gateway.repository.policy import ModelPolicy
from gateway.repository.profiling import profile_reference
from gateway.repository.reference import read_reference
from gateway.repository.remarks import Witness, told_beside
from gateway.repository.runner import OpenRunner
from gateway.repository.weights import external_weights

__all__ = ("add_version", "next_version")

MAX_CARD_BYTES = 2**20
MAX_WEIGHT_FILES = MAX_FOLDER_FILES - 3
FILE_MODE = 0o644
FOLDER_MODE = 0o755


def next_version(models_dir: Path, name: str) -> int:
    """One more than the highest version folder of a model, served or not.

    Raises
    ------
    RepositoryError
        The model's folder cannot be read.
    """
    try:
        entries = os.listdir(models_dir / name)
    except FileNotFoundError:
        return 1
    except OSError as error:
        raise RepositoryError(f"cannot read {models_dir / name}: {error.strerror}") from None
    return max((parse_version(entry) or 0 for entry in entries), default=0) + 1


def add_version(
    models_dir: Path,
    name: str,
    model_file: Path,
    *,
    open_runner: OpenRunner,
    policy: ModelPolicy,
    lineage: Lineage,
    version: int | None = None,
    reference: Path | None = None,
    report: Callable[[str], None] = lambda step: None,
) -> ModelVersion:
    """Copy a model into the repository as a new version, look at it, and write down what was seen.

    Parameters
    ----------
    models_dir : Path
        The folder of all models.
    name : str
        The model.
    model_file : Path
        ONNX; weights it names in other files lie beside it. A `card.md` beside it is taken as the model card.
    open_runner : OpenRunner
        Loads the copy, so that what is looked at is what was hashed.
    policy : ModelPolicy
        The model's; `quality` tells which output a label in the reference speaks of.
    lineage : Lineage
        `reference` in it is set here.
    version : int, optional
        Left out: one more than the highest there is.
    reference : Path, optional
        Reference rows; without them the version has no profile and drift cannot be told.
    report : callable
        Told each step, for a person who waits.

    Raises
    ------
    VersionExistsError
        Versions are never overwritten.
    RepositoryError
        What is wrong with model, weights, reference or folder; nothing is left behind then.
    """
    if not is_model_name(name):
        raise RepositoryError(f"{name!r} is not a model name: expected letters, digits, '.', '_', '-', no more than 64")
    version = next_version(models_dir, name) if version is None else version
    if parse_version(str(version)) is None:
        raise RepositoryError(f"{version} is not a version: expected a positive whole number")
    target = models_dir / name / str(version)
    if os.path.lexists(target):
        raise VersionExistsError(f"{name}/{version} is already there; versions are never overwritten")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{ADDING_PREFIX}{version}-", dir=target.parent))
    except OSError as error:
        raise RepositoryError(f"cannot make a folder for {name}/{version}: {error.strerror}") from None
    try:
        report("copying the model")
        files = _copy_model(model_file, staging)
        try:
            seen = _look(staging, open_runner, policy=policy, reference=reference, report=report)
        except EngineError as error:
            raise ModelFileError(f"the model cannot be used: {error}") from None
        remarks = (*seen.remarks, *told_beside(target.parent, version, seen.signature))
        lineage = msgspec.structs.replace(lineage, reference=seen.reference)
        if seen.profile is not None:
            files.append(_write(staging, PROFILE_NAME, encode_profile(seen.profile)))
        card = _given_card(model_file) or _card(name, version, policy=policy, seen=seen, lineage=lineage)
        files.append(_write(staging, CARD_NAME, card))
        _write_manifest(staging, files, seen, lineage, remarks)
        _publish(staging, target)
        return load_version(target)
    except OSError as error:
        raise RepositoryError(f"cannot write {name}/{version}: {error.strerror}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # a first version that was refused leaves no empty model behind


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    signature: Signature
    batching: Batching
    profile: Profile | None
    reference: ReferenceFile | None
    remarks: tuple[str, ...]


def _look(
    staging: Path,
    open_runner: OpenRunner,
    *,
    policy: ModelPolicy,
    reference: Path | None,
    report: Callable[[str], None],
) -> _Seen:
    run = partial(_run, staging, open_runner, policy=policy, reference=reference, report=report)
    most = policy.batching.max_rows
    try:
        return run(most=most)
    except EngineGone:
        if most <= TRIED_ROWS:
            raise
        # More rows than it has memory for may have ended it, and these nobody needs.
        report("the engine ended; trying again with smaller runs")
        return run(most=TRIED_ROWS)


def _run(
    staging: Path,
    open_runner: OpenRunner,
    *,
    policy: ModelPolicy,
    reference: Path | None,
    report: Callable[[str], None],
    most: int,
) -> _Seen:
    model_file = staging / MODEL_FILE_NAME
    with open_runner(model_file) as opened:
        runner = Witness(opened, model_file)
        if reference is None:
            report("running made-up rows together and apart; without reference rows there is no profile")
            batching = examine_batching(runner, None, max_rows=most)
            return _Seen(runner.signature, batching, None, None, tuple(runner.remarks()))
        report("reading the reference rows")
        rows = read_reference(reference, signature=runner.signature, label=policy.quality.output)
        report("running rows together and apart")
        batching = examine_batching(runner, rows.inputs, max_rows=most)
        report(f"profiling {rows.file.rows} reference rows")
        profile = profile_reference(runner, rows, batching=batching, quality=policy.quality)
        return _Seen(runner.signature, batching, profile, rows.file, tuple(runner.remarks()))


def _copy_model(model_file: Path, staging: Path) -> list[FileEntry]:
    model = _entry(
        MODEL_FILE_NAME,
        copy_named(model_file, staging / MODEL_FILE_NAME, max_bytes=MAX_FILE_BYTES, mode=FILE_MODE),
    )
    files = [model]
    weights = external_weights(staging / MODEL_FILE_NAME, name=model_file.name)
    if len(weights) > MAX_WEIGHT_FILES:
        raise ModelFileError(f"the model names {len(weights)} weight files: expected no more than {MAX_WEIGHT_FILES}")
    if not weights:
        return files
    with open_folder(model_file.parent.resolve()) as folder:
        for path, needed in sorted(weights.items()):
            destination = staging / path
            destination.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            left = MAX_FOLDER_BYTES - sum(entry.size for entry in files)
            entry = _entry(path, copy_regular(folder, path, destination, max_bytes=left, mode=FILE_MODE))
            if entry.size < needed:
                raise ModelFileError(f"{path} has {entry.size} bytes: the model names weights up to byte {needed}")
            files.append(entry)
    return files


def _entry(path: str, written: tuple[int, str]) -> FileEntry:
    size, sha256 = written
    return FileEntry(path=path, size=size, sha256=sha256)


def _given_card(model_file: Path) -> bytes | None:
    if (model_file.parent / MANIFEST_NAME).exists():
        return None  # the card of another version, which speaks of that one
    try:
        with open(model_file.parent / CARD_NAME, "rb") as file:
            return file.read(MAX_CARD_BYTES)
    except FileNotFoundError:
        return None


def _card(name: str, version: int, *, policy: ModelPolicy, seen: _Seen, lineage: Lineage) -> bytes:
    text = write_card(
        name,
        version,
        description=policy.description,
        signature=seen.signature,
        columns=seen.profile.columns if seen.profile else {},
        batching=seen.batching,
        lineage=lineage,
    )
    return text.encode()


def _write(staging: Path, name: str, content: bytes) -> FileEntry:
    descriptor = os.open(staging / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    return FileEntry(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def _write_manifest(
    staging: Path, files: list[FileEntry], seen: _Seen, lineage: Lineage, remarks: tuple[str, ...]
) -> None:
    manifest = Manifest(
        files=tuple(sorted(files, key=lambda entry: entry.path)),
        signature=seen.signature,
        batching=seen.batching,
        lineage=lineage,
        digest="",
        remarks=remarks,
    )
    manifest = msgspec.structs.replace(manifest, digest=digest_of(msgspec.to_builtins(manifest)))
    _write(staging, MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def _publish(staging: Path, target: Path) -> None:
    # mkdtemp makes folders that only we can read; whoever serves may be somebody else.
    os.chmod(staging, FOLDER_MODE)
    _sync_folder(staging)
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise VersionExistsError(f"{target.parent.name}/{target.name} was added meanwhile") from None
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
