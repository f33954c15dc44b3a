"""`gateway models`: the versions in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.client import APPROVE_SECONDS, CommandError, open_client
from gateway.cli.group import Commands
from gateway.cli.screen import AsJson, clean, flat, print_facts, print_json, print_table
from gateway.cli.window import settings_of

if TYPE_CHECKING:
    from gateway.repository.lineage import Lineage
    from gateway.repository.manifest import ModelVersion

__all__ = ("app",)

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help="Add, list, approve and verify model versions."
)

ModelsDir = Annotated[
    Path | None, typer.Option("--models", help="The folder of all models.", show_default="as the settings have it")
]
Name = Annotated[str, typer.Argument(help="The model.")]
Number = Annotated[int, typer.Argument(min=1, help="The version.")]
Why = Annotated[str, typer.Option("--reason", help="Why; it goes into the audit trail.")]


@app.command(name="list")
def list_models(as_json: AsJson = False) -> None:
    """List what the gateway knows: versions, approval, engine, traffic."""
    body = open_client().get("/models")
    if as_json:
        print_json(body)
        return
    _print_versions([version for model in body["models"] for version in model["versions"]])


@app.command()
def show(
    name: Name,
    version: Annotated[int | None, typer.Argument(min=1, help="The version; left out: all in short.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model, or all that is known of one version: digest, lineage, inputs, outputs, reference."""
    path = f"/models/{quote(name, safe='')}"
    body = open_client().get(path if version is None else f"{path}/versions/{version}")
    if as_json:
        print_json(body)
    elif version is None:
        _print_versions(body["versions"])
    else:
        print_facts(_known(body))


@app.command()
def approve(
    name: Name,
    version: Number,
    reason: Why,
    digest: Annotated[str | None, typer.Option(help="Only if this is still the version's digest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Approve a version by its digest, and wait until it is ready to serve."""
    client, path = open_client(), f"/models/{quote(name, safe='')}"
    body = client.post(
        f"{path}/versions/{version}/approve",
        {"reason": reason, "digest": digest},
        timeout_seconds=APPROVE_SECONDS,
    )
    engine = body["engine"]
    if as_json:
        print_json(body)
    if engine["state"] != "ready":
        why = f": {engine['reason']}" if engine["reason"] else ""
        raise CommandError(f"{name} version {version} is approved, but its engine is {engine['state']}{why}")
    if as_json:
        return
    typer.echo(f"{clean(name)} version {version} is approved and ready ({body['digest']})")
    if not any(known["arm"] for known in client.get(path)["versions"]):
        typer.echo(f"next: gateway route set {clean(name)} --stable {version}")


@app.command()
def reject(name: Name, version: Number, reason: Why, as_json: AsJson = False) -> None:
    """Bar a version from traffic; refused while it carries some."""
    body = open_client().post(f"/models/{quote(name, safe='')}/versions/{version}/reject", {"reason": reason})
    if as_json:
        print_json(body)
    else:
        typer.echo(f"{clean(name)} version {version} is rejected")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The model.")],
    file: Annotated[Path, typer.Argument(help="The ONNX file; external weights lie beside it.")],
    version: Annotated[int | None, typer.Option(min=1, help="Left out: one more than the highest.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Reference rows: .csv, .npz or .parquet.")] = None,
    lineage: Annotated[Path | None, typer.Option(help="Where the version comes from: .toml or .json.")] = None,
    models: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy an ONNX file into the repository as a new version, with manifest, reference profile and card."""
    from rich.console import Console

    from gateway.engine.oneshot import open_engine
    from gateway.engine.providers import providers_here
    from gateway.repository.add import add_version
    from gateway.repository.agreement import policy_faults
    from gateway.repository.errors import RepositoryError
    from gateway.repository.manifest import scan
    from gateway.repository.policy import PolicyError, load_policy

    console = Console(stderr=True, highlight=False)
    settings = settings_of(None, None)
    models = models or settings.models
    try:
        policy = load_policy(models / name)
        with console.status(f"{name}: adding") as status:
            added = add_version(
                models,
                name,
                file,
                open_runner=partial(open_engine, allowed_bytes=settings.engine.max_resident_bytes),
                policy=policy,
                lineage=_lineage(lineage),
                version=version,
                reference=reference,
                report=lambda step: status.update(f"{name}: {step}"),
            )
        versions = [version for version in scan(models)[0] if version.model == name]
        providers = providers_here(policy.engine.providers)
        faults = list(policy_faults(models / name, policy, versions, providers=providers))
    except (RepositoryError, PolicyError) as error:
        raise CommandError(f"not added: {error}") from None
    if as_json:
        manifest = added.manifest
        seen = {"batching": manifest.batching, "signature": manifest.signature, "remarks": manifest.remarks}
        _print_json({**_facts(added), **seen, "faults": faults})
    else:
        _print_added(added, faults)


@app.command(name="verify")
def verify_versions(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    version: Annotated[int | None, typer.Argument(help="Only this version.", min=1)] = None,
    models: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file and compare with the manifests; fails when a version is not as it was added."""
    from gateway.repository.errors import RepositoryError
    from gateway.repository.manifest import scan

    models = models or settings_of(None, None).models
    try:
        found, refused = scan(models)
    except RepositoryError as error:
        raise CommandError(str(error)) from None
    wanted = Path(models, *([name] if name else []), *([str(version)] if version else []))
    checks = [
        {**_facts(checked), "error": _failure(checked)}
        for checked in found
        if name in (None, checked.model) and version in (None, checked.version)
    ]
    checks += [{"folder": str(path), "error": reason} for path, reason in refused if path.is_relative_to(wanted)]
    if not checks:
        checks = [{"folder": str(wanted), "error": "no version here"}]
    if as_json:
        _print_json(checks)
    else:
        _print_checks(checks)
    if any(check["error"] for check in checks):
        raise typer.Exit(1)


def _lineage(path: Path | None) -> Lineage:
    """The lineage as given; the commit checked out here and the present time where it says nothing of them."""
    import msgspec

    from gateway.repository.lineage import Lineage, detect_source, read_lineage

    lineage = read_lineage(path) if path else Lineage()
    source = lineage.source if lineage.source.commit else detect_source(Path.cwd())
    created = lineage.created or datetime.now(UTC).isoformat(timespec="seconds")
    return msgspec.structs.replace(lineage, source=source, created=created)


def _facts(version: ModelVersion) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.version,
        "folder": str(version.folder),
        "digest": version.digest,
    }


def _failure(version: ModelVersion) -> str | None:
    from gateway.repository.errors import RepositoryError
    from gateway.repository.manifest import verify

    try:
        verify(version)
    except RepositoryError as error:
        return str(error)
    return None


def _print_json(content: Any) -> None:
    import msgspec

    typer.echo(msgspec.json.encode(content).decode())


def _print_added(added: ModelVersion, faults: list[str]) -> None:
    import msgspec
    from rich.console import Console

    manifest = added.manifest
    size = sum(entry.size for entry in manifest.files)
    console = Console(highlight=False)
    console.print(f"added {added.model}/{added.version} in {added.folder}", markup=False, soft_wrap=True)
    console.print(f"  digest    {added.digest}", markup=False, soft_wrap=True)
    console.print(f"  files     {len(manifest.files)}, {size} bytes", markup=False, soft_wrap=True)
    batching = _batching_of(msgspec.structs.asdict(manifest.batching))
    console.print(f"  batching  {batching}", markup=False, soft_wrap=True)
    rows = manifest.lineage.reference
    profile = f"{rows.rows} reference rows" if rows else "none: drift of this version cannot be told"
    console.print(f"  profile   {profile}", markup=False, soft_wrap=True)
    for remark in (*manifest.remarks, *faults):
        console.print(f"  remark    {clean(remark)}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"next: gateway models approve {added.model} {added.version} --reason TEXT", markup=False)


def _print_checks(checks: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for check in checks:
        if check["error"]:
            console.print(f"refused  {check['folder']}: {check['error']}", style="red", markup=False, soft_wrap=True)
        else:
            console.print(
                f"ok       {check['model']}/{check['version']}  {check['digest']}", markup=False, soft_wrap=True
            )


def _print_versions(versions: list[dict[str, Any]]) -> None:
    print_table(("model", "version", "status", "engine", "arm", "traffic %", "sha256"), map(_row, versions))
    for version in versions:
        if reason := version["engine"]["reason"]:
            typer.echo(f"{clean(version['model'])} version {version['version']}: {clean(reason)}")


def _row(version: dict[str, Any]) -> list[object]:
    engine = version["engine"]["state"].replace("_", " ")
    traffic = version["weight"] if version["arm"] else None
    return [
        version["model"],
        version["version"],
        version["status"],
        engine,
        version["arm"],
        traffic,
        version["digest"].removeprefix("sha256:")[:12],
    ]


def _known(body: dict[str, Any]) -> list[tuple[str, object]]:
    engine, manifest, profile = body["engine"], body["manifest"], body["profile"]
    facts: list[tuple[str, object]] = [
        ("model", f"{body['model']} version {body['version']}"),
        ("status", body["status"]),
        ("digest", body["digest"]),
        ("engine", f"{engine['state']}{': ' if engine['reason'] else ''}{engine['reason']}"),
        ("traffic", f"{body['arm']}, {body['weight']:g} %" if body["arm"] else "none"),
    ]
    if body.get("problem", engine["reason"]) != engine["reason"]:
        facts.append(("problem", body["problem"]))
    if manifest is not None:
        for side in ("inputs", "outputs"):
            facts += [
                (side[:-1], f"{spec['name']} {spec['datatype']} {spec['shape']}")
                for spec in manifest["signature"][side]
            ]
        facts.append(("batching", _batching_of(manifest["batching"])))
        facts += [("remark", remark) for remark in manifest.get("remarks", ())]
        facts += [(name, shown) for name, value in manifest["lineage"].items() if (shown := flat(value))]
    if profile is not None:
        facts.append(("profile", f"{profile['rows']} rows, {len(profile['features'])} features"))
    return facts


def _batching_of(batching: Mapping[str, Any]) -> str:
    """What a manifest says of batching, in a line."""
    from gateway.repository.manifest import TRIED_ROWS

    said = f"{batching['verdict']}: {batching['reason']}"
    if batching["verdict"] not in ("equal", "within"):
        return said
    return f"{said}; tried with up to {batching.get('most_rows', TRIED_ROWS)} rows"
