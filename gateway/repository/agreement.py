"""Whether `model.toml` agrees with the versions beside it: what it names must be there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.repository.labels import read_labels
from gateway.repository.manifest import ModelVersion
from gateway.repository.policy import ModelPolicy, PolicyError, RoutePolicy
from gateway.repository.redaction import input_names, redaction_of

__all__ = ("output_names", "policy_doubts", "policy_faults")

_SHOWN_NAMES = 20


def policy_faults(
    folder: Path, policy: ModelPolicy, versions: Sequence[ModelVersion], *, providers: Sequence[str]
) -> Iterator[str]:
    """Say in a sentence each what a policy asks for that is not there; the file stands first.

    Parameters
    ----------
    folder : Path
        The model's.
    policy : ModelPolicy
        As `load_policy` read it there.
    versions : sequence of ModelVersion
        All that the model has, at least one.
    providers : sequence of str
        The execution providers that onnxruntime has here.
    """
    for fault in (*_unknown_versions(policy, versions), *_unknown_names(policy, versions)):
        yield f"{folder / 'model.toml'}: {fault}"
    if set(providers).isdisjoint(policy.engine.providers):
        asked, there = list(policy.engine.providers), ", ".join(providers)
        yield f"{folder / 'model.toml'}: engine.providers = {asked}: onnxruntime has none of them here; it has {there}"
    for output, name in policy.labels.items():
        try:
            read_labels(folder, {output: name})
        except PolicyError as error:
            yield str(error)


def policy_doubts(
    folder: Path, policy: ModelPolicy, versions: Sequence[ModelVersion], *, providers: Sequence[str]
) -> Iterator[str]:
    """Say in a sentence each what becomes otherwise than one may think by a policy that is in order."""
    for version in versions:
        with contextlib.suppress(PolicyError):
            for doubt in redaction_of(version, policy.logging.redact).doubts:
                yield f"{folder / 'model.toml'}: {doubt}"
    missing = [name for name in policy.engine.providers if name not in providers]
    if missing and len(missing) < len(policy.engine.providers):
        yield f"{folder / 'model.toml'}: engine.providers: onnxruntime has no {' and no '.join(missing)} here"


def output_names(versions: Sequence[ModelVersion]) -> list[str]:
    """The outputs of all the versions."""
    return list(dict.fromkeys(spec.name for version in versions for spec in version.manifest.signature.outputs))


def _unknown_versions(policy: ModelPolicy, versions: Sequence[ModelVersion]) -> Iterator[str]:
    digests = {str(version.version): version.digest for version in versions}
    for number, digest in policy.approvals.items():
        if digests.get(number) != digest:
            found = f"version {number} has {digests[number]}" if number in digests else "there is no such version"
            yield f"approvals.{number} = {digest!r}: {found}"
    # What a file does not say is no slip: version 1 may be gone, and the store has the route since long.
    if policy.route != RoutePolicy():
        for key, wanted in (("stable", policy.route.stable), ("canary", policy.route.canary)):
            if wanted is not None and str(wanted) not in digests:
                yield f"route.{key} = {wanted}: there is no such version"


def _unknown_names(policy: ModelPolicy, versions: Sequence[ModelVersion]) -> Iterator[str]:
    outputs = output_names(versions)
    spoken_of = [("quality.output", policy.quality.output)] if policy.quality.output else []
    spoken_of += [("labels", output) for output in policy.labels]
    for key, name in spoken_of:
        if name not in outputs:
            yield f"{key} names {name!r}, which is no output of any version; expected {_some_of(outputs)}"
    inputs = list(dict.fromkeys(name for version in versions for name in input_names(version)))
    for name in policy.drift.ignore:
        if name not in inputs:
            yield (
                f"drift.ignore names {name!r}, which is no input and no column of any version; "
                f"expected {_some_of(inputs)}"
            )
    try:
        for version in versions:
            redaction_of(version, policy.logging.redact)
    except PolicyError as error:
        yield str(error)


def _some_of(names: Sequence[str]) -> str:
    return f"some of {', '.join(names[:_SHOWN_NAMES])}"
