"""`gateway serve`, `gateway check`, and the processes that `serve` starts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.settings import Settings, SettingsError, load_settings

__all__ = ("admin_process", "check", "front", "monitor", "serve", "ship")

Config = Annotated[Path | None, typer.Option(help="Settings file; gateway.toml here is taken when there is one.")]
Models = Annotated[Path | None, typer.Option(help="Folder of model folders.", show_default="models")]
StateDir = Annotated[Path | None, typer.Option(help="Spool, store and sockets.", show_default=".gateway")]
Resolved = Annotated[Path | None, typer.Option(hidden=True)]


def serve(
    config: Config = None,
    models: Models = None,
    state_dir: StateDir = None,
    host: Annotated[str | None, typer.Option(help="Address of the inference port.", show_default="127.0.0.1")] = None,
    http_port: Annotated[int | None, typer.Option(help="Inference; 0 picks a free port.", show_default="8000")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Inference over gRPC; 0 picks a free port.", show_default="8001")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus metrics.", show_default="8002")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Admin API.", show_default="8003")] = None,
    fronts: Annotated[int | None, typer.Option(help="Front processes.", show_default="2")] = None,
) -> None:
    """Run the gateway: fronts, an engine for each approved version, monitor, admin API, and the shipper with Kafka."""
    server = {
        "host": host,
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "admin_port": admin_port,
        "fronts": fronts,
    }
    settings = _load(config, models=models, state_dir=state_dir, server=server)
    from gateway.supervisor import StartFailed, Supervisor, hold_state_dir
    from gateway.telemetry.log import ProcessLog

    log = ProcessLog("gateway", json=settings.log.json_lines, stream=sys.stderr)

    async def run() -> None:
        await Supervisor(settings, log=log).run()

    try:
        with hold_state_dir(settings.state_dir):
            asyncio.run(run())
    except StartFailed as error:
        _fail(str(error))


def check(config: Config = None, models: Models = None, state_dir: StateDir = None) -> None:
    """Check settings, policies and model folders without starting anything."""
    settings = _load(config, models=models, state_dir=state_dir, server={})
    from gateway.engine.providers import providers_here
    from gateway.repository.agreement import policy_doubts, policy_faults
    from gateway.repository.errors import RepositoryError
    from gateway.repository.manifest import scan, verify
    from gateway.repository.policy import PolicyError, load_policy
    from gateway.start import modelless, start_faults

    faults = 0
    for fault in start_faults(settings):
        faults += 1
        typer.echo(fault)
    try:
        versions, refused = scan(settings.models) if settings.models.is_dir() else ([], [])
    except RepositoryError as error:
        _fail(str(error))
    for path, reason in refused:
        faults += 1
        typer.echo(f"{path}: {reason}")
    for name in sorted({version.model for version in versions}):
        folder, own = settings.models / name, [version for version in versions if version.model == name]
        try:
            policy = load_policy(folder)
        except PolicyError as error:
            faults += 1
            typer.echo(str(error))
            continue
        providers = providers_here(policy.engine.providers)
        for doubt in policy_doubts(folder, policy, own, providers=providers):
            typer.echo(doubt)
        for fault in policy_faults(folder, policy, own, providers=providers):
            faults += 1
            typer.echo(fault)
    for version in versions:
        try:
            verify(version)
        except RepositoryError as error:
            faults += 1
            typer.echo(f"{version.folder}: {error}")
        else:
            typer.echo(f"{version.model} version {version.version}: {version.digest}")
    if faults:
        _fail(f"{faults} fault(s) found")
    for doubt in modelless(settings.models):
        typer.echo(doubt)
    typer.echo("settings, policies and model folders are in order")


def front(
    slot: Annotated[
        int, typer.Option(min=0, max=200, help="Number of this front; its spool stream is front-<slot>.")
    ] = 0,
    resolved: Resolved = None,
    config: Config = None,
    models: Models = None,
    state_dir: StateDir = None,
) -> None:
    """Run one front by itself; engines are found under the state directory."""
    from gateway.app import run_front

    settings = _child_settings(resolved, config, models, state_dir)
    if resolved is None:
        _refuse_alone(settings)
    run_front(settings, slot=slot)


def monitor(
    resolved: Resolved = None, config: Config = None, models: Models = None, state_dir: StateDir = None
) -> None:
    """Run the monitor by itself: it reads the log and turns evidence into decisions."""
    from gateway.app import run_monitor

    settings = _child_settings(resolved, config, models, state_dir)
    if resolved is None:
        _refuse_alone(settings)
    run_monitor(settings)


def archive(
    resolved: Resolved = None,
    config: Config = None,
    models: Models = None,
    state_dir: StateDir = None,
    once: Annotated[bool, typer.Option("--once", help="Move what is due now, and end.")] = False,
    older_than_hours: Annotated[
        float | None, typer.Option(min=0, help="With --once: due is what is older.", show_default="spool.max_age_hours")
    ] = None,
) -> None:
    """Run the archiver by itself: it moves what is due from the spool to spool.archive_url, as Parquet."""
    settings = _child_settings(resolved, config, models, state_dir)
    if not settings.spool.archive_url:
        _fail("spool.archive_url is empty; set it, or GATEWAY_SPOOL__ARCHIVE_URL")
    if not once:
        from gateway.app import run_archiver

        run_archiver(settings)
        return
    from gateway.predictions.archive import Archive, ArchiveError
    from gateway.predictions.archiver import Archiver, ArchiverBusy
    from gateway.predictions.arrow import NeedsArchiveExtra

    age = None if older_than_hours is None else older_than_hours * 3600
    try:
        archiver = Archiver(settings, Archive(settings.spool.archive_url), note=lambda text: None)
        moved = archiver.move_due(max_age_seconds=age)
    except (NeedsArchiveExtra, ArchiveError, ArchiverBusy) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{settings.spool_dir} cannot be archived: {error.strerror}")
    typer.echo(f"{moved} segments with {archiver.archived} records moved to {settings.spool.archive_url}")
    if archiver.fault:
        _fail(archiver.fault)
    if archiver.corrupt:
        _fail(f"{archiver.corrupt} places did not check; their segments are *.damaged in {settings.spool_dir}")


def ship(resolved: Resolved = None, config: Config = None, models: Models = None, state_dir: StateDir = None) -> None:
    """Run the shipper by itself: it brings the spool to Kafka."""
    settings = _child_settings(resolved, config, models, state_dir)
    if not settings.kafka.bootstrap_servers:
        _fail("kafka.bootstrap_servers is empty; set it, or GATEWAY_KAFKA__BOOTSTRAP_SERVERS")
    from gateway.app import run_shipper
    from gateway.predictions.shipper import ShipperBusy

    try:
        run_shipper(settings)
    except ShipperBusy as error:
        _fail(str(error))


def admin_process(
    resolved: Resolved = None, config: Config = None, models: Models = None, state_dir: StateDir = None
) -> None:
    """Run the admin API and the metrics page by themselves."""
    from gateway.app import run_admin

    settings = _child_settings(resolved, config, models, state_dir)
    if resolved is None:
        _refuse_alone(settings, admin=True)
    run_admin(settings)


def _load(config: Path | None, *, models: Path | None, state_dir: Path | None, server: dict[str, Any]) -> Settings:
    overrides: dict[str, Any] = {"server": {key: value for key, value in server.items() if value is not None}}
    if models is not None:
        overrides["models"] = models
    if state_dir is not None:
        overrides["state_dir"] = state_dir
    try:
        return load_settings(config, overrides=overrides)
    except SettingsError as error:
        typer.echo(f"gateway: {error}", err=True)
        raise typer.Exit(2) from None


def _child_settings(
    resolved: Path | None, config: Path | None, models: Path | None, state_dir: Path | None
) -> Settings:
    if resolved is None:
        return _load(config, models=models, state_dir=state_dir, server={})
    return Settings.model_validate_json(resolved.read_bytes())


def _refuse_alone(settings: Settings, *, admin: bool = False) -> None:
    # What the supervisor looks at before it starts a part of the gateway.
    from gateway.start import admin_faults, store_faults

    for fault in (*(admin_faults(settings) if admin else ()), *store_faults(settings)):
        _fail(fault)


def _fail(text: str) -> None:
    typer.echo(f"gateway: {text}", err=True)
    raise typer.Exit(1)
