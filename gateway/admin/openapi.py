"""`/openapi.json`, from the same table as the routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway import __version__
from gateway.admin.endpoints import PREFIX, Endpoint, Query
from gateway.rollout.plan import MAX_STEPS, METRICS, Plan

__all__ = ("describe",)

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}

_ANSWERS = {"application/json": {"type": "object"}, "application/x-ndjson": {"type": "string"}}
_SHARE = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
_FROM_ONE = {"minimum": 1}
_PLAN_BOUNDS: dict[str, dict[str, Any]] = {
    "steps": {
        "minItems": 1,
        "maxItems": MAX_STEPS,
        "items": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100},
        "description": "Rising.",
    },
    **dict.fromkeys(("false_rollback", "bad_promotion", "error_floor", "input_tolerance"), _SHARE),
    **dict.fromkeys(("harm_ratio", "minimum_units", "minimum_labels", "remembered_units"), _FROM_ONE),
    "worse_ratio": {"exclusiveMinimum": 1},
    **dict.fromkeys(("output_tolerance", "max_hours"), {"exclusiveMinimum": 0}),
    "require": {"minItems": 1},
    "actions": {"propertyNames": {"enum": list(METRICS)}},
}
"""What `check_plan` asks of each field beyond its type."""
_SEGMENTS = {
    "version": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
    "prediction": {"type": "string", "pattern": "^[0-9a-f]{14}-[0-9a-f]{10}$"},
}


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the admin API."""
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    _, schemas = msgspec.json.schema_components([*bodies, Plan], ref_template="#/components/schemas/{name}")
    schemas["Plan"] |= {"additionalProperties": False}
    for field, bounds in _PLAN_BOUNDS.items():
        schemas["Plan"]["properties"][field] |= bounds
    if "RolloutRequest" in schemas:
        schemas["RolloutRequest"]["properties"]["plan"] = {"$ref": "#/components/schemas/Plan"}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(PREFIX + endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Inference gateway, admin API", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    words = re.findall(r"[a-z]+", endpoint.path)
    operation: dict[str, Any] = {
        "operationId": "_".join([endpoint.method.lower(), *words]),
        "summary": endpoint.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _SEGMENTS.get(name, {"type": "string"})}
            for name in re.findall(r"{(\w+)}", endpoint.path)
        ]
        + [_parameter(query) for query in endpoint.query],
        "responses": {
            "200": {
                "description": "Done.",
                "content": {endpoint.media_type: {"schema": _ANSWERS[endpoint.media_type]}},
            },
            "default": {
                "description": "Not done; the text says why.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if endpoint.body is not None:
        reference = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if endpoint.is_open:
        operation["security"] = [{}]
    return operation


def _parameter(query: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": query.type}
    if query.highest is not None:
        schema |= {"minimum": 0, "maximum": query.highest}
    if query.choices:
        schema = {"enum": list(query.choices)}
    if query.pattern:
        schema["pattern"] = f"^{query.pattern}$"
    if query.or_time:
        schema = {"anyOf": [schema, {"type": "string", "format": "date-time"}]}
    return {"name": query.name, "in": "query", "description": query.meaning, "schema": schema}
