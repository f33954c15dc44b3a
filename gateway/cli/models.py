"""`gateway models`: the versions in the repository."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from gateway.engine.oneshot import open_engine
from gateway.repository.add import add_version
from gateway.repository.errors import RepositoryError
from gateway.repository.lineage import Lineage, detect_source, read_lineage
from gateway.repository.manifest import ModelVersion, scan, verify
from gateway.repository.policy import PolicyError, load_policy

__all__ = ("app",)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Add, list, approve and verify model versions.")

ModelsDir = Annotated[Path, typer.Option("--models", help="The folder of all models.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The model.")],
    file: Annotated[Path, typer.Argument(help="The ONNX file; external weights lie beside it.")],
    version: Annotated[int | None, typer.Option(min=1, help="Left out: one more than the highest.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Reference rows: .csv, .npz or .parquet.")] = None,
    lineage: Annotated[Path | None, typer.Option(help="Where the version comes from: .toml or .json.")] = None,
    models: ModelsDir = Path("models"),
    as_json: AsJson = False,
) -> None:
    """Copy an ONNX file into the repository as a new version, with manifest, reference profile and card."""
    console = Console(stderr=True, highlight=False)
    try:
        with console.status(f"{name}: adding") as status:
            added = add_version(
                models,
                name,
                file,
                open_runner=open_engine,
                policy=load_policy(models / name),
                lineage=_lineage(lineage),
                version=version,
                reference=reference,
                report=lambda step: status.update(f"{name}: {step}"),
            )
    except (RepositoryError, PolicyError) as error:
        console.print(f"not added: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        _print_json({**_facts(added), "batching": added.manifest.batching, "signature": added.manifest.signature})
    else:
        _print_added(added)


@app.command(name="verify")
def verify_versions(
    name: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    version: Annotated[int | None, typer.Argument(help="Only this version.", min=1)] = None,
    models: ModelsDir = Path("models"),
    as_json: AsJson = False,
) -> None:
    """Hash every file and compare with the manifests; fails when a version is not as it was added."""
    try:
        found, refused = scan(models)
    except RepositoryError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
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
    try:
        verify(version)
    except RepositoryError as error:
        return str(error)
    return None


def _print_json(content: Any) -> None:
    print(msgspec.json.encode(content).decode())


def _print_added(added: ModelVersion) -> None:
    manifest = added.manifest
    size = sum(entry.size for entry in manifest.files)
    console = Console(highlight=False)
    console.print(f"added {added.model}/{added.version} in {added.folder}", markup=False, soft_wrap=True)
    console.print(f"  digest    {added.digest}", markup=False, soft_wrap=True)
    console.print(f"  files     {len(manifest.files)}, {size} bytes", markup=False, soft_wrap=True)
    console.print(f"  batching  {manifest.batching.verdict}: {manifest.batching.reason}", markup=False, soft_wrap=True)
    rows = manifest.lineage.reference
    profile = f"{rows.rows} reference rows" if rows else "none: drift of this version cannot be told"
    console.print(f"  profile   {profile}", markup=False, soft_wrap=True)
    console.print(f"next: gateway models approve {added.model} {added.version} --reason TEXT", markup=False)


def _print_checks(checks: list[dict[str, Any]]) -> None:
    console = Console(highlight=False)
    for check in checks:
        if check["error"]:
            console.print(f"refused  {check['folder']}: {check['error']}", style="red", markup=False, soft_wrap=True)
        else:
            console.print(
                f"ok       {check['model']}/{check['version']}  {check['digest']}", markup=False, soft_wrap=True
            )
