"""What refuses a start for the settings alone: `gateway serve` stops at it, and `gateway check` tells it.

And what a gateway that has started does not serve, and that there is no model.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.control.store import Snapshot, Store, StoreError
from gateway.predictions.archive import Archive, ArchiveError
from gateway.predictions.arrow import NeedsArchiveExtra
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import MANIFEST_NAME, scan
from gateway.settings import Settings

__all__ = ("admin_faults", "modelless", "start_faults", "store_faults", "unserved")

_EVERY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104


def start_faults(settings: Settings) -> Iterator[str]:
    """Say in a sentence each why no gateway starts with these settings. Opens no port and makes no file."""
    if not settings.models.is_dir():
        yield f"there is no folder of models at {settings.models}; name one with --models"
    yield from admin_faults(settings)
    try:
        Archive.of(settings.spool.archive_url)
    except (NeedsArchiveExtra, ArchiveError) as error:
        yield f"spool.archive_url = {settings.spool.archive_url!r}: {error}"
    yield from store_faults(settings)
    yield from _address_faults(settings)


def admin_faults(settings: Settings) -> Iterator[str]:
    """Say why the admin side does not listen with these settings."""
    admin = settings.admin
    if admin.host not in ("127.0.0.1", "::1", "localhost") and not admin.token:
        yield f"admin.host = {admin.host!r} is not loopback and admin.token is empty; set GATEWAY_ADMIN__TOKEN"


def store_faults(settings: Settings) -> Iterator[str]:
    """Say why no store can be asked with these settings."""
    try:
        Store(settings.store_url).close()
    except StoreError as error:
        yield f"the store cannot be used: {error}"


def _address_faults(settings: Settings) -> Iterator[str]:
    server, admin = settings.server, settings.admin
    for key, host in (("server.host", server.host), ("admin.host", admin.host)):
        try:
            socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM)
        except (OSError, ValueError):
            yield f"{key} = {host!r} is no address, and no name of one"
    ports = [("server.http_port", server.host, server.http_port)]
    if server.grpc:
        ports.append(("server.grpc_port", server.host, server.grpc_port))
    ports.append(("server.metrics_port", admin.host, server.metrics_port))
    ports.append(("server.admin_port", admin.host, server.admin_port))
    for (key, host, port), (other, beside, same) in itertools.combinations(ports, 2):
        if port == same != 0 and (host == beside or host in _EVERY_ADDRESS or beside in _EVERY_ADDRESS):
            yield f"{key} and {other} are both {port}; give each a port of its own"


def modelless(models: Path) -> Iterator[str]:
    """Say that there is no model, be it to be served or not; a gateway may start without one and get some later."""
    with contextlib.suppress(RepositoryError):
        if any(scan(models)):
            return
        told = f"there is no model in {models}: a model is a folder with folders 1, 2, ..., which `models add` makes"
        if any((folder / MANIFEST_NAME).exists() for folder in models.iterdir()):
            told += f"; this is one itself, and --models names the folder it is in, {models.resolve().parent}"
        yield told


def unserved(snapshot: Snapshot, refusal: Callable[[str, int], str | None]) -> Iterator[str]:
    """Say in a sentence each what does not answer now: models and canaries out of service, and models without a route,
    with what sets one; those of rejected versions may have none.

    Parameters
    ----------
    refusal : callable
        Why the engine of a version is out of service, or None.
    """
    for model, route in sorted(snapshot.routes.items()):
        if reason := refusal(model, route.stable):
            yield f"{model} is not served: its stable version {route.stable} is out of service: {reason}"
        if route.canary is not None and (reason := refusal(model, route.canary)):
            yield f"{model}: its canary version {route.canary} is out of service: {reason}"
    kept = [state for _, state in sorted(snapshot.versions.items()) if state.status != "rejected"]
    for model in sorted({state.model for state in kept} - snapshot.routes.keys()):
        approved = [state.version for state in kept if state.model == model and state.status == "approved"]
        if approved:
            command = f"gateway route set {model} --stable {approved[-1]}"
            yield f"{model} is not served: it has no route; `{command}` sets one"
        else:
            yield (
                f"{model} is not served: none of its versions is approved; "
                f"`gateway models approve {model} VERSION --reason TEXT` approves one"
            )
