"""Which of the execution providers a model asks for are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.engine.errors import EngineStartFailed

__all__ = ("CPU", "Provider", "choose_providers", "providers_here")

CPU = "CPUExecutionProvider"


class Provider(NamedTuple):
    """One of onnxruntime's execution providers with its options, as onnxruntime takes them."""

    name: str
    options: dict[str, str]


def choose_providers(
    asked: Sequence[str], *, options: Mapping[str, Mapping[str, str]], installed: Sequence[str]
) -> tuple[list[Provider], str]:
    """The providers to load a model with, in the order of preference, and a few words on those that are not there.

    Raises
    ------
    EngineStartFailed
        None of those asked for is installed.

    >>> choose_providers(["CUDAExecutionProvider", CPU], options={}, installed=[CPU])[1]
    'CUDAExecutionProvider was asked for but is not installed'
    """
    missing = [name for name in asked if name not in installed]
    chosen = [Provider(name, dict(options.get(name, {}))) for name in asked if name in installed]
    if not chosen:
        raise EngineStartFailed(
            f"model.toml asks for {', '.join(asked)}, of which onnxruntime has none here: it has {', '.join(installed)}"
        )
    if not missing:
        return chosen, ""
    verbs = ("were", "are") if len(missing) > 1 else ("was", "is")
    return chosen, f"{' and '.join(missing)} {verbs[0]} asked for but {verbs[1]} not installed"


def providers_here(asked: Sequence[str]) -> list[str]:
    """The execution providers here; onnxruntime, which is slow to import, is asked only where it may lack some."""
    if set(asked) == {CPU}:
        return [CPU]
    from gateway.engine.session import ModelSession

    return ModelSession.installed_providers()
