"""What the monitor knows of models: their policies and the reference profiles of their versions."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from gateway.control.change import VersionState
from gateway.drift.profile import Profile, ProfileError, decode_profile
from gateway.repository.agreement import output_names
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import PROFILE_NAME, is_model_name, load_version
from gateway.repository.policy import ModelPolicy, PolicyError, load_policy

__all__ = ("FixedVersions", "FolderVersions", "Versions")

_MAX_PROFILE_BYTES = 64 * 2**20

_AGAIN_SECONDS = 5.0
"""Before a file that could not be used is looked at again."""


class Versions(Protocol):
    """Where policies and profiles come from; asking is cheap, and safe to do for every batch."""

    def follow(self, versions: Iterable[VersionState]) -> None:
        """Take over what the store says of all versions: only profiles of approved bytes are given."""

    def policy(self, model: str) -> ModelPolicy: ...

    def profile(self, model: str, version: int) -> Profile | None: ...

    def notes(self, model: str) -> list[str]:
        """What cannot be used of a model's files now, and why."""

    def news(self) -> list[str]:
        """Notes on any model that have come up since the last call."""


class FixedVersions:
    """Policies and profiles held in memory, for tests and replays."""

    def __init__(self, policies: dict[str, ModelPolicy], profiles: dict[tuple[str, int], Profile]) -> None:
        self._policies = policies
        self._profiles = profiles

    def follow(self, versions: Iterable[VersionState]) -> None: ...

    def policy(self, model: str) -> ModelPolicy:
        return self._policies.get(model, ModelPolicy())

    def profile(self, model: str, version: int) -> Profile | None:
        return self._profiles.get((model, version))

    def notes(self, model: str) -> list[str]:
        return []

    def news(self) -> list[str]:
        return []


class FolderVersions:
    """Reads `models/<name>/model.toml` whenever it changes, and `models/<name>/<version>/profile.json` once.

    A policy that cannot be used, or is gone, leaves the last good one. A profile is given when its folder has the
    approved digest; it cannot change then. What could not be used is looked at again every 5 s.

    Parameters
    ----------
    models_dir : Path
    monotonic : callable
        Seconds that never go back.
    """

    def __init__(self, models_dir: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._models_dir = models_dir
        self._monotonic = monotonic
        self._approved: dict[tuple[str, int], str] = {}
        self._policies: dict[str, tuple[_Stamp, ModelPolicy | None]] = {}
        self._profiles: dict[tuple[str, int], tuple[str, Profile | None]] = {}
        self._notes: dict[str, str] = {}
        self._again_at: dict[str, float] = {}
        self._news: list[str] = []

    def __repr__(self) -> str:
        return f"<FolderVersions {self._models_dir} approved={len(self._approved)} notes={len(self._notes)}>"

    def follow(self, versions: Iterable[VersionState]) -> None:
        approved = {(state.model, state.version): state.digest for state in versions if state.status == "approved"}
        for model, version in self._approved.keys() - approved.keys():
            self._profiles.pop((model, version), None)
            self._is_good(f"{model}/{version}")
        changed = {model for (model, _), _ in approved.items() ^ self._approved.items()}
        self._approved = approved
        for model in changed & self._policies.keys():
            self._look_at_output(model)

    def policy(self, model: str) -> ModelPolicy:
        if not is_model_name(model):
            return ModelPolicy()
        path = self._models_dir / model / "model.toml"
        stamp = _stamp_of(path)
        known = self._policies.get(model)
        last = known[1] if known is not None else None
        if known is not None and known[0] == stamp and not self._is_due(model):
            return last or ModelPolicy()
        policy = last
        try:
            if stamp is None and known is not None and (known[0] is not None or model in self._notes):
                raise PolicyError(f"{path} is gone")
            policy = load_policy(path.parent)
        except PolicyError as error:
            self._is_bad(model, f"{error}; {'the default policy holds' if last is None else 'the last policy stays'}")
        else:
            if last is not None and _stamp_of(path) != stamp:
                return last  # it is being written; the next call reads it
            self._is_good(model)
        self._policies[model] = stamp, policy
        self._look_at_output(model)
        return policy or ModelPolicy()

    def profile(self, model: str, version: int) -> Profile | None:
        digest = self._approved.get((model, version))
        if digest is None or not is_model_name(model):
            return None
        known = self._profiles.get((model, version))
        if known is not None and known[0] == digest:
            return known[1]
        name = f"{model}/{version}"
        if name in self._notes and not self._is_due(name):
            return None
        try:
            profile = _read_profile(self._models_dir / model / str(version), digest)
        except (RepositoryError, ProfileError, OSError) as error:
            self._is_bad(name, f"the profile of {name} cannot be used, and its drift is not followed: {error}")
            return None
        self._is_good(name)
        self._profiles[model, version] = digest, profile
        return profile

    def notes(self, model: str) -> list[str]:
        return [note for name, note in self._notes.items() if name.partition("/")[0] == model]

    def news(self) -> list[str]:
        news, self._news = self._news, []
        return news

    def _look_at_output(self, model: str) -> None:
        """Note an output that labels are to speak of and no approved version has."""
        policy = self._policies[model][1]
        wanted = policy.quality.output if policy is not None else ""
        versions = [version for name, version in self._approved if name == model]
        try:
            known = output_names([load_version(self._models_dir / model / str(version)) for version in versions])
        except RepositoryError:
            known = []  # it may be an output of one that cannot be read
        if not wanted or not known or wanted in known:
            self._is_good(f"{model}/quality")
            return
        path = self._models_dir / model / "model.toml"
        self._is_bad(
            f"{model}/quality",
            f"{path}: quality.output names {wanted!r}, which is no output of an approved version, so no label can be "
            f"used; expected some of {', '.join(known)}",
        )

    def _is_bad(self, name: str, note: str) -> None:
        if self._notes.get(name) != note:
            self._notes[name] = note
            self._news.append(note)
        self._again_at[name] = self._monotonic() + _AGAIN_SECONDS

    def _is_good(self, name: str) -> None:
        self._notes.pop(name, None)
        self._again_at.pop(name, None)

    def _is_due(self, name: str) -> bool:
        return name in self._again_at and self._monotonic() >= self._again_at[name]


_Stamp = tuple[int, int, int] | None
"""Tells a file from what it was before; None for one that is not there."""


def _stamp_of(path: Path) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns, status.st_size


def _read_profile(folder: Path, digest: str) -> Profile | None:
    """The profile whose bytes were approved; None for a version that was added without reference rows."""
    found = load_version(folder)
    if found.digest != digest:
        raise ProfileError(f"its folder has the digest {found.digest}, but {digest} is approved")
    for entry in found.manifest.files:
        if entry.path == PROFILE_NAME:
            with open(folder / PROFILE_NAME, "rb") as file:
                raw = file.read(_MAX_PROFILE_BYTES)
            if hashlib.sha256(raw).hexdigest() != entry.sha256:
                raise ProfileError(f"{folder / PROFILE_NAME} is not the file that the manifest hashed")
            return decode_profile(raw)
    return None
