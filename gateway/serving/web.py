"""Everything a front serves beside inference: health, metadata, feedback. An ASGI app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path

from gateway import __version__
from gateway.events.addresses import AddressError, parse_id
from gateway.events.records import KIND_FEEDBACK
from gateway.predictions.spool import SpoolError
from gateway.protocol.errors import CallerError, GatewayError, LogUnavailable
from gateway.serving.answers import status_of
from gateway.serving.front import Front, path_pin
from gateway.serving.records import feedback_record, record_time

__all__ = ("MAX_FEEDBACK", "create_web")

MAX_FEEDBACK = 10_000
MAX_NAME = 64


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    prediction_id: str
    label: float | bool
    row: int = 0


class _FeedbackBatch(msgspec.Struct, forbid_unknown_fields=True):
    feedback: list[_Feedback]


def create_web(front: Front, *, clock: Callable[[], float]) -> Starlette:
    """The ASGI app of one front.

    Parameters
    ----------
    clock : callable
        Seconds since 1970, for the time of feedback records.
    """
    web = _Web(front, clock)
    model = "/v2/models/{model}"
    version = model + "/versions/{version}"
    return Starlette(
        routes=[
            Path("/v2", web.server, methods=["GET"]),
            Path("/v2/", web.server, methods=["GET"]),
            Path("/v2/health/live", web.live, methods=["GET"]),
            Path("/v2/health/ready", web.ready, methods=["GET"]),
            Path("/v2/models", web.models, methods=["GET"]),
            Path(model, web.model, methods=["GET"]),
            Path(version, web.model, methods=["GET"]),
            Path(model + "/ready", web.model_ready, methods=["GET"]),
            Path(version + "/ready", web.model_ready, methods=["GET"]),
            Path(model + "/feedback", web.feedback, methods=["POST"]),
            # Inference itself is answered in the protocol class; what comes here is malformed.
            Path(model + "/infer", web.infer, methods=["POST"]),
            Path(version + "/infer", web.infer, methods=["POST"]),
        ],
        exception_handlers={
            HTTPException: _http_error,
            GatewayError: _gateway_error,
            Exception: _unforeseen,
        },
        max_body_size=front.settings.limits.max_body_bytes,
    )


class _Web:
    def __init__(self, front: Front, clock: Callable[[], float]) -> None:
        self._front = front
        self._clock = clock
        self._one = msgspec.json.Decoder(_Feedback)
        self._batch = msgspec.json.Decoder(_FeedbackBatch)

    async def server(self, request: Request) -> Response:
        return _json({"name": self._front.name, "version": __version__, "extensions": []})

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        reason = self._front.not_ready
        if reason is None:
            return _json({"ready": True, "live": True})
        return _json({"ready": False, "live": True, "error": reason}, status=503)

    async def models(self, request: Request) -> Response:
        return _json({"models": sorted({model for model, _ in self._front.versions})})

    async def model(self, request: Request) -> Response:
        model, pinned = _asked(request)
        served = self._front.version(model, pinned)
        versions = sorted(version for name, version in self._front.versions if name == model)
        if served.signature is None:
            raise CallerError(f"Request for unknown model: '{model}' version {served.version} is not at ready state")
        return _json(served.metadata([str(version) for version in versions]))

    async def model_ready(self, request: Request) -> Response:
        model, pinned = _asked(request)
        served = self._front.version(model, pinned)
        if served.lane.ready:
            return _json({"name": model, "ready": True})
        return _json({"name": model, "ready": False, "error": "Model version not ready"}, status=503)

    async def infer(self, request: Request) -> Response:
        model, pinned = _asked(request)
        self._front.version(model, pinned)
        raise CallerError("the request target is not a valid inference path")

    async def feedback(self, request: Request) -> Response:
        model, _ = _asked(request)
        self._front.version(model, None)
        items = self._read_feedback(await request.body())
        front = self._front
        now = record_time(self._clock())
        records = []
        for sequence, item in enumerate(items, front.spool.next_sequence):
            record = feedback_record(
                event_id=f"{front.spool.boot}-{sequence:010x}",
                time=now,
                gateway=front.name,
                sequence=sequence,
                model=model,
                prediction_id=item.prediction_id,
                row=item.row,
                label=float(item.label),
            )
            records.append((KIND_FEEDBACK, record))
        try:
            front.spool.append(records)
        except SpoolError:
            raise LogUnavailable("the feedback could not be logged; send it again later") from None
        front.count_feedback(model, len(records))
        return _json({"accepted": len(records)})

    def _read_feedback(self, body: bytes) -> list[_Feedback]:
        try:
            items = self._batch.decode(body).feedback if b'"feedback"' in body else [self._one.decode(body)]
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CallerError(
                f'feedback must be {{"prediction_id", "row", "label"}} or {{"feedback": [...]}} of those: {error}'
            ) from None
        if len(items) > MAX_FEEDBACK:
            raise CallerError(f"{len(items)} labels in one request, more than {MAX_FEEDBACK}")
        for item in items:
            try:
                parse_id(item.prediction_id)
            except AddressError as error:
                raise CallerError(str(error)) from None
            if not 0 <= item.row < 2**31:
                raise CallerError(f"row {item.row} is no row of a prediction")
        return items


def _asked(request: Request) -> tuple[str, int | None]:
    version = request.path_params.get("version")
    model = request.path_params["model"][:MAX_NAME]
    return model, None if version is None else path_pin(model, version.encode("utf-8", "replace"))


def _json(content: Any, *, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: "Not Found", 405: "Method Not Allowed"}.get(status, str(getattr(error, "detail", "")))
    return _json({"error": text}, status=status)


async def _gateway_error(request: Request, error: Exception) -> Response:
    status = status_of(error) if isinstance(error, GatewayError) else 500
    return _json({"error": str(error)}, status=status)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return _json({"error": "the gateway failed on this request"}, status=500)
