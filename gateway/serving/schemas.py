"""JSON schemas of what the inference port reads and answers. Source: Open Inference Protocol V2 and its extensions."""

from __future__ import annotations

import math
from typing import Any

from gateway.protocol.datatypes import FREE, NUMPY_OF, Signature, TensorSpec
from gateway.serving.feedback import MAX_FEEDBACK
from gateway.serving.logging_settings import LOGGING

__all__ = ("EXAMPLES", "SCHEMAS", "Schema", "infer_answer", "infer_example", "infer_request", "reference")

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_VALUE: Schema = {"type": ["string", "number", "boolean"]}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": _VALUE}
_DIMENSION: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_DATATYPE: Schema = {"type": "string", "enum": [*NUMPY_OF, "BF16"]}
_JSON_TYPES = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "O": "string"}


def reference(name: str) -> Schema:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _infer_request(inputs: Schema, output_names: Schema) -> Schema:
    output = _object({"name": output_names, "parameters": _PARAMETERS}, optional=("parameters",))
    return _object(
        {
            "id": {"type": "string", "maxLength": 128},
            "parameters": _PARAMETERS,
            "inputs": inputs,
            "outputs": _array(output),
        },
        optional=("id", "parameters", "outputs"),
    )


def _infer_answer(outputs: Schema) -> Schema:
    return _object(
        {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "parameters": _PARAMETERS, "outputs": outputs},
        optional=("id", "parameters"),
    )


def infer_request(signature: Signature) -> Schema:
    """The request body of a model with this signature, in JSON."""
    names = [{"contains": _object({"name": {"const": spec.name}})} for spec in signature.inputs]
    count = len(signature.inputs)
    inputs = {
        "type": "array",
        "minItems": count,
        "maxItems": count,
        "items": {"oneOf": [_tensor(spec) for spec in signature.inputs]},
        **({"allOf": names} if count > 1 else {}),
    }
    return _infer_request(inputs, {"type": "string", "enum": [spec.name for spec in signature.outputs]})


def infer_answer(signature: Signature) -> Schema:
    """The answer of a model with this signature, in JSON."""
    return _infer_answer(_array({"oneOf": [_tensor(spec) for spec in signature.outputs]}))


def infer_example(signature: Signature) -> dict[str, Any]:
    """A request body that a model with this signature takes: one row of zeros.

    >>> infer_example(Signature((TensorSpec("x", "FP32", (-1, 2)),), ()))
    {'inputs': [{'name': 'x', 'shape': [1, 2], 'datatype': 'FP32', 'data': [0, 0]}]}
    """
    inputs = []
    for spec in signature.inputs:
        shape = [1 if axis == FREE else axis for axis in spec.shape]
        value = {"BYTES": "", "BOOL": False}.get(spec.datatype, 0)
        data = [value] * math.prod(shape)
        inputs.append({"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": data})
    return {"inputs": inputs}


def _tensor(spec: TensorSpec) -> Schema:
    rank = len(spec.shape)
    # Axis by axis it would be `prefixItems`, which generators of clients and of requests stumble over.
    shape: Schema = {"const": list(spec.shape)}
    if FREE in spec.shape:
        shape = {**_array(_DIMENSION), "minItems": rank, "maxItems": rank}
        shape["description"] = f"{list(spec.shape)}; {FREE} stands for any size."
    return _object(
        {
            "name": {"const": spec.name},
            "shape": shape,
            "datatype": {"const": spec.datatype},
            "parameters": _PARAMETERS,
            "data": {
                "type": "array",
                "items": {"anyOf": [_element(spec.datatype), {"type": "array"}]},
                "description": "Row-major, flat or nested.",
            },
        },
        optional=("parameters",),
    )


def _element(datatype: str) -> Schema:
    dtype = NUMPY_OF[datatype]
    element: Schema = {"type": _JSON_TYPES[dtype.kind]}
    if dtype.kind in "iu":
        low = -(2 ** (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0
        element |= {"minimum": low, "maximum": low + 2 ** (8 * dtype.itemsize) - 1}
    return element


_GIVEN = _object(
    {
        "name": _TEXT,
        "shape": {**_array(_DIMENSION), "maxItems": 8},
        "datatype": _DATATYPE,
        "parameters": _PARAMETERS,
        "data": {"type": "array", "description": "Row-major, flat or nested; absent where the tensor is binary."},
    },
    optional=("parameters", "data"),
)
_SPEC = _object({"name": _TEXT, "datatype": _DATATYPE, "shape": _array({"type": "integer", "minimum": FREE})})
_DURATION = _object({"count": _COUNT, "ns": _COUNT})
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
_CONFIG_TENSOR = _object({"name": _TEXT, "data_type": _TEXT, "dims": _array({"type": "integer"})})
_FEEDBACK = {
    **_object(
        {
            "prediction_id": {"type": "string", "pattern": "^[0-9a-f]{14}-[0-9a-f]{10}$"},
            "label": {"type": ["number", "boolean"]},
            "row": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        },
        optional=("row",),
    ),
    "additionalProperties": False,
}
_LOGGING = {name: {"const": value} for name, value in LOGGING.items()}

EXAMPLES: dict[str, Any] = {
    "FeedbackRequest": {"prediction_id": "01a20748a07801-0000000001", "row": 0, "label": 1},
}
"""By schema, a body to begin with, where every model takes the same."""

SCHEMAS: dict[str, Schema] = {
    "Error": _object({"error": _TEXT}),
    "OpenAPI": {"type": "object"},
    "Page": _TEXT,
    "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}),
    "Live": _object({"live": _FLAG}),
    "Ready": _object({"ready": _FLAG, "live": _FLAG}),
    "Models": _object({"models": _array(_TEXT)}),
    "ModelReady": _object({"name": _TEXT, "ready": _FLAG}),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _array(_TEXT),
            "platform": _TEXT,
            "inputs": _array(_SPEC),
            "outputs": _array(_SPEC),
        }
    ),
    "ModelConfig": _object(
        {
            "name": _TEXT,
            "platform": _TEXT,
            "backend": _TEXT,
            "version_policy": {"type": "object"},
            "max_batch_size": _COUNT,
            "input": _array(_CONFIG_TENSOR),
            "output": _array(_CONFIG_TENSOR),
            "instance_group": _array({"type": "object"}),
        }
    ),
    "Statistics": _object(
        {
            "model_stats": _array(
                _object(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": _object(dict.fromkeys(_DURATIONS, _DURATION)),
                        "response_stats": {"type": "object"},
                        "batch_stats": _array(
                            _object(
                                {
                                    "batch_size": {"type": "integer", "minimum": 1},
                                    "compute_input": _DURATION,
                                    "compute_infer": _DURATION,
                                    "compute_output": _DURATION,
                                }
                            )
                        ),
                        "memory_usage": _array(_object({"type": _TEXT, "id": _COUNT, "byte_size": _COUNT})),
                    }
                )
            )
        }
    ),
    "InferRequest": _infer_request({**_array(_GIVEN), "minItems": 1, "maxItems": 64}, _TEXT),
    "InferAnswer": _infer_answer(_array(_GIVEN)),
    "FeedbackRequest": {
        "anyOf": [
            _FEEDBACK,
            {
                **_object({"feedback": {**_array(_FEEDBACK), "maxItems": MAX_FEEDBACK}}),
                "additionalProperties": False,
            },
        ]
    },
    "FeedbackAccepted": _object({"accepted": _COUNT}),
    "IndexRequest": _object({"ready": _FLAG}, optional=("ready",)),
    "Index": _array(
        _object(
            {
                "name": _TEXT,
                "version": _TEXT,
                "state": {"enum": ["READY", "UNAVAILABLE", "LOADING"]},
                "reason": _TEXT,
            }
        )
    ),
    "LoadRequest": _object({"parameters": {"type": "object", "maxProperties": 0}}, optional=("parameters",)),
    "UnloadRequest": _object(
        {
            "parameters": {
                "type": "object",
                "properties": {"unload_dependents": _FLAG},
                "additionalProperties": False,
            }
        },
        optional=("parameters",),
    ),
    "Loaded": _object({"name": _TEXT, "load": _FLAG}),
    "Unloaded": _object({"name": _TEXT, "unload": _FLAG}),
    "LogSettings": _object(_LOGGING),
    "LogSettingsRequest": {**_object(_LOGGING, optional=tuple(_LOGGING)), "additionalProperties": False},
}
"""By the names that `gateway/serving/web.py` uses in its table."""
