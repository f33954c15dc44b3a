"""What the monitor knows of models: their policies and the reference profiles of their versions."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

from gateway.drift.profile import Profile, ProfileError, decode_profile
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import PROFILE_NAME, is_model_name, load_version
from gateway.repository.policy import ModelPolicy, PolicyError, load_policy

__all__ = ("FixedVersions", "FolderVersions", "Versions")

_MAX_PROFILE_BYTES = 64 * 2**20


class Versions(Protocol):
    """Where policies and profiles come from; asking is cheap, and safe to do for every batch."""

    def policy(self, model: str) -> ModelPolicy: ...

    def profile(self, model: str, version: int) -> Profile | None: ...


class FixedVersions:
    """Policies and profiles held in memory, for tests and replays."""

    def __init__(self, policies: dict[str, ModelPolicy], profiles: dict[tuple[str, int], Profile]) -> None:
        self._policies = policies
        self._profiles = profiles

    def policy(self, model: str) -> ModelPolicy:
        return self._policies.get(model, ModelPolicy())

    def profile(self, model: str, version: int) -> Profile | None:
        return self._profiles.get((model, version))


class FolderVersions:
    """Reads `models/<name>/model.toml` and `models/<name>/<version>/profile.json`, each again only when it changed.

    A file that cannot be used leaves the last good policy, or no profile; `notes` says why.
    """

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._policies: dict[str, tuple[int, ModelPolicy]] = {}
        self._profiles: dict[tuple[str, int], tuple[int, Profile | None]] = {}
        self.notes: dict[str, str] = {}

    def policy(self, model: str) -> ModelPolicy:
        if not is_model_name(model):
            return ModelPolicy()
        folder = self._models_dir / model
        stamp = _changed(folder / "model.toml")
        known = self._policies.get(model)
        if known is not None and known[0] == stamp:
            return known[1]
        policy = known[1] if known is not None else ModelPolicy()
        try:
            policy = load_policy(folder)
            self.notes.pop(model, None)
        except PolicyError as error:
            self.notes[model] = str(error)
        self._policies[model] = stamp, policy
        return policy

    def profile(self, model: str, version: int) -> Profile | None:
        if not is_model_name(model):
            return None
        folder = self._models_dir / model / str(version)
        stamp = _changed(folder / PROFILE_NAME)
        known = self._profiles.get((model, version))
        if known is not None and known[0] == stamp:
            return known[1]
        profile = None
        try:
            profile = _read_profile(folder)
            self.notes.pop(f"{model}/{version}", None)
        except (RepositoryError, ProfileError, OSError) as error:
            self.notes[f"{model}/{version}"] = str(error)
        self._profiles[model, version] = stamp, profile
        return profile


def _changed(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _read_profile(folder: Path) -> Profile | None:
    """The profile whose bytes the manifest hashed; None for a version that was added without reference rows."""
    manifest = load_version(folder).manifest
    for entry in manifest.files:
        if entry.path == PROFILE_NAME:
            with open(folder / PROFILE_NAME, "rb") as file:
                raw = file.read(_MAX_PROFILE_BYTES)
            if hashlib.sha256(raw).hexdigest() != entry.sha256:
                raise ProfileError(f"{folder / PROFILE_NAME} is not the file that the manifest hashed")
            return decode_profile(raw)
    return None
