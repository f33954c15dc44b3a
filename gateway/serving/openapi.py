"""`/openapi.json` of the inference port, from the same table as the routes and from the models that are served."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gateway import __version__
from gateway.protocol.datatypes import Signature
from gateway.serving.endpoints import Endpoint
from gateway.serving.repository_calls import REPOSITORY
from gateway.serving.schemas import EXAMPLES, SCHEMAS, infer_answer, infer_example, infer_request, reference

__all__ = ("describe", "describe_model")

_MODEL = "/v2/models/{model}"
_LINKS: dict[str, dict[str, Any]] = {
    "models": {"first": {"operationId": "model", "parameters": {"model": "$response.body#/models/0"}}},
    "index": {
        "first": {
            "operationId": "model_version",
            "parameters": {"model": "$response.body#/0/name", "version": "$response.body#/0/version"},
        }
    },
    "infer": {
        "label": {
            "operationId": "feedback",
            "parameters": {"model": "$request.path.model"},
            "requestBody": {"prediction_id": "$response.body#/parameters/prediction_id", "label": 1},
        }
    },
}
"""By operation, where its answer leads to."""


def describe(endpoints: Sequence[Endpoint], *, models: Sequence[str]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the whole port.

    Parameters
    ----------
    models : sequence of str
        Names of the models that are served.
    """
    values = {"model": sorted(models), "repository": [REPOSITORY]}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, values)
    return _document("Inference gateway", paths, SCHEMAS)


def describe_model(
    endpoints: Sequence[Endpoint], model: str, *, version: int | None, signature: Signature
) -> dict[str, Any]:
    """The OpenAPI 3.1 description of one model: the same endpoints, with its tensors by name, shape and datatype.

    Parameters
    ----------
    version : int, optional
        The one the paths name; None: they name none, and the route decides.
    """
    prefix = _MODEL if version is None else f"{_MODEL}/versions/{{version}}"
    own = {"InferRequest": infer_request(signature), "InferAnswer": infer_answer(signature)}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        rest = endpoint.path.removeprefix(prefix)
        if endpoint.path.startswith(prefix) and "{" not in rest:
            path = f"{prefix}{rest}".replace("{model}", model).replace("{version}", str(version))
            operation = paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, None)
            if endpoint.body == "InferRequest":
                operation["requestBody"]["content"]["application/json"]["example"] = infer_example(signature)
    return _document(model if version is None else f"{model} version {version}", paths, SCHEMAS | own)


def _document(title: str, paths: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, values: dict[str, list[str]] | None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "Done.", "content": {endpoint.media_type: {"schema": reference(endpoint.answer)}}},
            "default": {
                "description": "Not done; the text says why.",
                "content": {"application/json": {"schema": reference("Error")}},
            },
        },
    }
    if values is not None:
        if endpoint.name in _LINKS:
            operation["responses"]["200"]["links"] = _LINKS[endpoint.name]
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _segment(values.get(name))}
            for name in re.findall(r"{(\w+)}", endpoint.path)
        ]
    if endpoint.body:
        operation["requestBody"] = {
            "required": endpoint.body_required,
            "content": {"application/json": {"schema": reference(endpoint.body)}},
        }
        if endpoint.body in EXAMPLES:
            operation["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[endpoint.body]
    if endpoint.guarded:
        operation["security"] = [{"token": []}]
    return operation


def _segment(values: list[str] | None) -> dict[str, Any]:
    if values is None:
        return {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"}
    return {"type": "string", "enum": values} if values else {"type": "string"}
