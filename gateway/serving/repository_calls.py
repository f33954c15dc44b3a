"""The model repository extension, as far as it has a meaning where only approved versions are served.

What is loaded follows from approvals: an engine runs for every approved version. So `load` approves nothing, it waits
until the engines are up or says why they are not; `unload` takes back the approvals of a model that no route leads to.
Both need the admin token. Source: Triton's `extension_model_repository`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import msgspec

from gateway.control.errors import NotKnown, Refused, StoreAway, StoreError
from gateway.control.store import Snapshot, VersionState
from gateway.protocol.mistakes import told_mistake
from gateway.serving.front import Front

__all__ = ("ACTOR", "REPOSITORY", "CallRefused", "RepositoryCalls", "VersionStore", "authorize")

ACTOR = "repository API"
"""Who rejected a version, in the decision trail, when it was unloaded."""
REPOSITORY = "models"
"""The name of the one repository."""

POLL_SECONDS = 0.02
FOLLOW_SECONDS = 2.0


class CallRefused(Exception):
    """Raised when a call is not carried out; `status` is the HTTP status it is answered with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class VersionStore(Protocol):
    """What the calls ask of the store; `gateway.control.store.Store` is one."""

    def snapshot(self) -> Snapshot:
        """Routes and versions of one moment."""

    def reject(self, model: str, version: int, *, actor: str, reason: str) -> VersionState:
        """Bar a version from traffic."""


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _ModelRequest(msgspec.Struct):
    parameters: dict[str, bool | int | float | str] = {}


_Request = TypeVar("_Request", _IndexRequest, _ModelRequest)


class RepositoryCalls:
    """Index, load and unload.

    Parameters
    ----------
    front : Front
        Tells which engines are up.
    store : VersionStore
        Asked from a thread only.
    """

    def __init__(self, front: Front, store: VersionStore) -> None:
        self._front = front
        self._store = store

    def __repr__(self) -> str:
        return f"<RepositoryCalls over {self._store!r}>"

    async def index(self, body: bytes, *, repository: str = "") -> list[dict[str, str]]:
        """Every version that is known, with its state; those that are ready only, if the body asks for it.

        Raises
        ------
        CallRefused
        """
        _check_repository(repository)
        asked = _read(body, _IndexRequest)
        snapshot = await self._snapshot()
        entries = [self._entry(snapshot.versions[key]) for key in sorted(snapshot.versions)]
        return [entry for entry in entries if entry["state"] == "READY" or not asked.ready]

    async def load(self, model: str, body: bytes, *, repository: str = "") -> None:
        """Wait until an engine of each approved version is up.

        Raises
        ------
        CallRefused
            With "failed to load" and why.
        """
        _check_repository(repository)
        given = _read(body, _ModelRequest).parameters
        if given:
            raise CallRefused(
                400, f"failed to load '{model}', {_shown(given)}: a version is served as it was approved, no other way"
            )
        states = _versions_of(await self._snapshot(), model)
        if not states:
            raise CallRefused(404, f"failed to load '{model}', failed to poll from model repository")
        approved = [state for state in states if state.status == "approved"]
        if not approved:
            last = states[-1]
            raise CallRefused(409, f"failed to load '{model}', version {last.version} is {last.status}, not approved")
        deadline = asyncio.get_running_loop().time() + self._front.settings.engine.start_timeout_seconds
        for state in approved:
            while not self._up(state):
                if self._refusing(state) or asyncio.get_running_loop().time() > deadline:
                    raise CallRefused(503, f"failed to load '{model}', version {state.version} has no engine that runs")
                await asyncio.sleep(POLL_SECONDS)

    async def unload(self, model: str, body: bytes, *, repository: str = "") -> None:
        """Take back the approvals of a model that carries no traffic; its engines end soon after.

        Raises
        ------
        CallRefused
            With "failed to unload" and why.
        """
        _check_repository(repository)
        given = dict(_read(body, _ModelRequest).parameters)
        dependents = given.pop("unload_dependents", False)  # no model here depends on another one
        if given or not isinstance(dependents, bool):
            raise CallRefused(
                400, f"failed to unload '{model}', parameters: expected unload_dependents, true or false, or nothing"
            )
        snapshot = await self._snapshot()
        states = _versions_of(snapshot, model)
        if not states:
            raise CallRefused(404, f"failed to unload '{model}', there is no such model")
        route = snapshot.routes.get(model)
        if route is not None:
            raise CallRefused(
                409,
                f"failed to unload '{model}', version {route.stable} carries its traffic; "
                f"`gateway route remove {model}` takes its traffic away",
            )
        for state in states:
            if state.status == "approved":
                await self._reject(state)
        deadline = asyncio.get_running_loop().time() + FOLLOW_SECONDS
        while any((model, state.version) in self._front.versions for state in states):
            if asyncio.get_running_loop().time() > deadline:
                return  # the others follow the store too, in their own time
            await asyncio.sleep(POLL_SECONDS)

    async def _reject(self, state: VersionState) -> None:
        try:
            await asyncio.to_thread(
                self._store.reject, state.model, state.version, actor=ACTOR, reason="unloaded by its caller"
            )
        except (Refused, NotKnown) as error:
            raise CallRefused(409, f"failed to unload '{state.model}', {error}") from None
        except StoreError as error:
            raise _away(error) from None

    async def _snapshot(self) -> Snapshot:
        try:
            return await asyncio.to_thread(self._store.snapshot)
        except StoreError as error:
            raise _away(error) from None

    def _entry(self, state: VersionState) -> dict[str, str]:
        if state.status != "approved":
            shown, reason = "UNAVAILABLE", f"{state.status}, not approved"
        elif self._up(state):
            shown, reason = "READY", ""
        elif self._refusing(state):
            shown, reason = "UNAVAILABLE", "its engine could not be started"
        else:
            shown, reason = "LOADING", "its engine is being started"
        return {"name": state.model, "version": str(state.version), "state": shown, "reason": reason}

    def _up(self, state: VersionState) -> bool:
        served = self._front.versions.get((state.model, state.version))
        return served is not None and served.lane.ready

    def _refusing(self, state: VersionState) -> bool:
        served = self._front.versions.get((state.model, state.version))
        return served is not None and not served.lane.ready and served.lane.refusing is not None


def authorize(authorizations: Iterable[str], token: str) -> None:
    """Let a call pass that carries the admin token; compared in a time that tells nothing.

    Parameters
    ----------
    authorizations : iterable of str
        Values of the request's Authorization headers.
    token : str
        `admin.token`; empty: nothing passes.

    Raises
    ------
    CallRefused
    """
    if not token:
        raise CallRefused(403, "this call changes what is served: it is off until admin.token is set")
    given = list(authorizations)
    scheme, _, credential = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    expected = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
    same = hmac.compare_digest(hashlib.sha256(credential.strip().encode("utf-8", "surrogatepass")).digest(), expected)
    if not (same and scheme.lower() == "bearer"):
        raise CallRefused(401, "this call needs the admin token: send 'Authorization: Bearer <token>'")


def _read(body: bytes, kind: type[_Request]) -> _Request:
    if not body.strip():
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallRefused(400, f"the body is not as expected: {told_mistake(error, kind)}") from None


def _check_repository(name: str) -> None:
    if name not in ("", REPOSITORY):
        raise CallRefused(404, f"there is no repository '{name[:64]}'; this gateway has one, '{REPOSITORY}'")


def _versions_of(snapshot: Snapshot, model: str) -> list[VersionState]:
    return [snapshot.versions[key] for key in sorted(snapshot.versions) if key[0] == model]


def _shown(parameters: dict[str, Any]) -> str:
    return "parameters " + ", ".join(f"'{name[:64]}'" for name in sorted(parameters)[:4])


def _away(error: StoreError) -> CallRefused:
    if isinstance(error, StoreAway):
        return CallRefused(503, "the store does not answer; try again later")
    return CallRefused(500, "the store cannot be used")
