"""Weights that an ONNX file keeps in other files: which ones it names, found without reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.repository.errors import ModelFileError
from gateway.repository.files import is_safe_path
from gateway.repository.manifest import CARD_NAME, MANIFEST_NAME, MAX_FILE_BYTES, MODEL_FILE_NAME, PROFILE_NAME

__all__ = ("external_weights",)

_RESERVED = {CARD_NAME, MANIFEST_NAME, MODEL_FILE_NAME, PROFILE_NAME}


def external_weights(model_file: Path, *, name: str = MODEL_FILE_NAME) -> dict[str, int]:
    """The external weight files that a model names, with the bytes each must have at least.

    Parameters
    ----------
    model_file : Path
        ONNX.
    name : str
        By which a person knows the file.

    Returns
    -------
    dict of path to bytes
        Paths are relative to the model file's folder and do not leave it.

    Raises
    ------
    ModelFileError
        The file is not ONNX, or what it says of its weights cannot be followed.
    """
    import onnx  # slow to import, and needed only here
    from google.protobuf.message import DecodeError

    try:
        size = os.stat(model_file).st_size
        if size > MAX_FILE_BYTES:
            raise ModelFileError(f"{name} has {size} bytes: expected no more than {MAX_FILE_BYTES}")
        model = onnx.load_model(os.fspath(model_file), format="protobuf", load_external_data=False)
    except DecodeError:
        raise ModelFileError(f"{name} is not an ONNX file") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {model_file}: {error.strerror}") from None
    if not model.HasField("graph"):
        raise ModelFileError(f"{name} is not an ONNX file: it has no graph")
    needed: dict[str, int] = {}
    for tensor in _messages(model, onnx.TensorProto.DESCRIPTOR.full_name):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            path, end = _place(tensor)
            needed[path] = max(needed.get(path, 0), end)
    return needed


def _messages(message: Any, wanted: str) -> Iterator[Any]:
    """Every message of one kind anywhere inside another, so that no corner of the format is forgotten."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else (value,):
            if field.message_type.full_name == wanted:
                yield inner
            else:
                yield from _messages(inner, wanted)


def _place(tensor: Any) -> tuple[str, int]:
    places = {entry.key: entry.value for entry in tensor.external_data}
    location = places.get("location", "")
    path = location.removeprefix("./")
    if len(places) != len(tensor.external_data) or not is_safe_path(path):
        raise ModelFileError(
            f"weights of {tensor.name!r} lie in {location!r}: expected a plain relative path beside the model"
        )
    if path in _RESERVED:
        raise ModelFileError(f"weights of {tensor.name!r} lie in {path!r}: that name is taken in a version folder")
    try:
        offset, length = int(places.get("offset", 0)), int(places.get("length", 0))
    except ValueError:
        offset = length = -1
    if min(offset, length) < 0:
        raise ModelFileError(f"weights of {tensor.name!r} have no usable offset and length: {dict(places)}")
    return path, offset + length
