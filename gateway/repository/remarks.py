"""What is seen of a model while it is added that whoever approves it should know."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.engine.errors import EngineError
from gateway.protocol.datatypes import FREE, Signature
from gateway.repository.errors import ManifestError
from gateway.repository.manifest import ModelVersion, load_version, parse_version
from gateway.repository.runner import Array, Runner

__all__ = ("Witness", "told_beside")

_SHOWN_CHARACTERS = 500


class Witness:
    """A runner that remembers why the model failed, and which outputs were not as they are declared.

    Parameters
    ----------
    runner : Runner
    model_file : Path
        Of the same model: what it declares. onnxruntime has a free axis wherever that contradicts the graph.
    """

    def __init__(self, runner: Runner, model_file: Path) -> None:
        self.signature = runner.signature
        self.omitted = runner.omitted
        self._runner = runner
        self._declared = _declared_shapes(model_file)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._failure = ""
        self._has_run = False

    def __repr__(self) -> str:
        return f"<Witness of {self._runner!r}, {len(list(self.remarks()))} remarks>"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            answers = self._runner.run(inputs)
        except EngineError as error:
            self._failure = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
            raise
        self._has_run = True
        for name, answer in answers.items():
            if not _fits(answer.shape, self._declared.get(name)):
                self._shapes.setdefault(name, answer.shape)
        return answers

    def remarks(self) -> Iterator[str]:
        """What was seen, a sentence each."""
        for name, kind in self.omitted.items():
            yield f"output {name!r} is never answered: it is {kind}, which is no tensor"
        for name, shape in self._shapes.items():
            yield f"output {name!r} is declared with shape {list(self._declared[name])}, but had shape {list(shape)}"
        if self._failure and not self._has_run:
            yield f"the model failed on every row that was tried: {self._failure}"


def told_beside(folder: Path, version: int, signature: Signature) -> Iterator[str]:
    """Say whether a version takes and gives what the newest of the others in the model's folder does."""
    other = _newest(folder, version)
    if other is None:
        return
    for side in signature.sides_unlike(other.manifest.signature):
        yield f"version {other.version} has other {side}: a canary beside it needs --allow-signature-change"


def _newest(folder: Path, version: int) -> ModelVersion | None:
    numbers = sorted((parse_version(name) or 0 for name in os.listdir(folder)), reverse=True)
    for number in numbers:
        if number not in (0, version):
            try:
                return load_version(folder / str(number))
            except ManifestError:
                continue
    return None


def _declared_shapes(model_file: Path) -> dict[str, tuple[int, ...]]:
    """The outputs that the file gives a shape, with that; -1 is a free axis."""
    import onnx  # slow to import, and needed only here

    outputs = onnx.load_model(os.fspath(model_file), format="protobuf", load_external_data=False).graph.output
    return {
        each.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else FREE for axis in each.type.tensor_type.shape.dim
        )
        for each in outputs
        if each.type.tensor_type.HasField("shape")
    }


def _fits(shape: tuple[int, ...], declared: tuple[int, ...] | None) -> bool:
    if declared is None or len(shape) != len(declared):
        return declared is None
    return all(size in (FREE, had) for had, size in zip(shape, declared, strict=True))
