"""Everything a front serves beside inference: health, metadata, statistics, feedback. An ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import __version__
from gateway.events.records import KIND_FEEDBACK
from gateway.predictions.spool import SpoolError
from gateway.protocol.errors import CallerError, GatewayError, LogUnavailable, UnknownModel
from gateway.protocol.extensions import EXTENSIONS
from gateway.serving.answers import RETRY_AFTER_SECONDS, status_of
from gateway.serving.endpoints import Endpoint, routes, with_version
from gateway.serving.feedback import read_feedback
from gateway.serving.front import Front
from gateway.serving.inference import path_pin
from gateway.serving.logging_settings import LOGGING, keep_logging
from gateway.serving.model_config import model_config
from gateway.serving.openapi import describe, describe_model
from gateway.serving.records import feedback_record, record_time
from gateway.serving.repository_calls import CallRefused, RepositoryCalls, VersionStore, authorize
from gateway.serving.statistics import read_statistics
from gateway.serving.try_page import HEADERS, PAGE
from gateway.serving.version import ServedVersion

__all__ = ("SERVER_EXTENSIONS", "create_web", "endpoints_of")

MAX_NAME = 64
SERVER_EXTENSIONS = (*EXTENSIONS, "logging", "model_configuration", "model_repository", "statistics")
_ABSENT = (
    ("/v2/trace/", "tracing is not offered"),
    ("/v2/systemsharedmemory", "shared memory is not offered: send tensors in the body of the request"),
    ("/v2/cudasharedmemory", "shared memory is not offered: send tensors in the body of the request"),
)


def create_web(front: Front, *, clock: Callable[[], float], store: VersionStore) -> Starlette:
    """The ASGI app of one front.

    Parameters
    ----------
    clock : callable
        Seconds since 1970, for the time of feedback records.
    store : VersionStore
        For the repository calls only; asked from a thread.
    """
    return Starlette(
        routes=routes(endpoints_of(front, clock=clock, store=store)),
        exception_handlers={
            HTTPException: _http_error,
            GatewayError: _gateway_error,
            CallRefused: _call_refused,
            Exception: _unforeseen,
        },
        max_body_size=front.settings.limits.max_body_bytes,
    )


def endpoints_of(front: Front, *, clock: Callable[[], float], store: VersionStore) -> tuple[Endpoint, ...]:
    """The table of endpoints; the first path that matches a request answers it."""
    web = _Web(front, clock, RepositoryCalls(front, store))
    model = "/v2/models/{model}"
    calls = ("/v2/repository", "/v2/repository/{repository}")
    web.endpoints = (
        Endpoint("GET", "/v2", "server", "Name, version and extensions of the server.", web.server, "ServerMetadata"),
        Endpoint("GET", "/v2/", "server_slash", "The same.", web.server, "ServerMetadata"),
        Endpoint("GET", "/v2/health/live", "live", "Whether the server answers.", web.live, "Live"),
        Endpoint(
            "GET",
            "/v2/health/ready",
            "ready",
            "Whether requests may come: some model answers, and at first none is waited for.",
            web.ready,
            "Ready",
        ),
        Endpoint("GET", "/v2/models", "models", "Names of the models.", web.models, "Models"),
        Endpoint("GET", "/v2/models/stats", "statistics", "Statistics of all models.", web.statistics, "Statistics"),
        *with_version(
            Endpoint("GET", model, "model", "Inputs, outputs and versions of a model.", web.model, "ModelMetadata")
        ),
        *with_version(
            Endpoint(
                "GET", f"{model}/ready", "model_ready", "Whether a model can answer.", web.model_ready, "ModelReady"
            )
        ),
        *with_version(
            Endpoint("GET", f"{model}/config", "model_config", "A model's configuration.", web.config, "ModelConfig")
        ),
        *with_version(
            Endpoint(
                "GET", f"{model}/stats", "model_statistics", "Statistics of a model.", web.statistics, "Statistics"
            )
        ),
        *with_version(
            Endpoint(
                "GET", f"{model}/openapi.json", "model_openapi", "OpenAPI of a model.", web.model_openapi, "OpenAPI"
            )
        ),
        # Inference itself is answered in the protocol class; what comes to `infer` here is malformed.
        *with_version(
            Endpoint(
                "POST",
                f"{model}/infer",
                "infer",
                "Ask a model for a prediction.",
                web.infer,
                "InferAnswer",
                body="InferRequest",
                body_required=True,
            )
        ),
        Endpoint(
            "POST",
            f"{model}/feedback",
            "feedback",
            "Send labels of earlier predictions.",
            web.feedback,
            "FeedbackAccepted",
            body="FeedbackRequest",
            body_required=True,
        ),
        *[
            Endpoint(
                "POST",
                f"{prefix}/index",
                f"index{'_of_repository' * (prefix != calls[0])}",
                "Every known version and its state.",
                web.index,
                "Index",
                body="IndexRequest",
            )
            for prefix in calls
        ],
        *[
            Endpoint(
                "POST",
                f"{prefix}/models/{{model}}/{verb}",
                f"{verb}{'_in_repository' * (prefix != calls[0])}",
                summary,
                run,
                f"{verb.capitalize()}ed",
                body=f"{verb.capitalize()}Request",
                guarded=True,
            )
            for prefix in calls
            for verb, summary, run in (
                ("load", "Wait until the approved versions of a model are up.", web.load),
                ("unload", "Take back the approvals of a model without traffic.", web.unload),
            )
        ],
        Endpoint("GET", "/v2/logging", "logging", "Settings of the process log.", web.logging, "LogSettings"),
        Endpoint(
            "POST",
            "/v2/logging",
            "set_logging",
            "Confirm settings of the process log.",
            web.set_logging,
            "LogSettings",
            body="LogSettingsRequest",
            guarded=True,
        ),
        Endpoint("GET", "/openapi.json", "openapi", "This description.", web.openapi, "OpenAPI"),
        Endpoint("GET", "/v2/docs", "docs", "A page to try all this.", web.docs, "Page", media_type="text/html"),
    )
    return web.endpoints


class _Web:
    def __init__(self, front: Front, clock: Callable[[], float], calls: RepositoryCalls) -> None:
        self.endpoints: tuple[Endpoint, ...] = ()
        self._front = front
        self._clock = clock
        self._calls = calls

    async def server(self, request: Request) -> Response:
        name = self._front.settings.server.name
        return _json({"name": name, "version": __version__, "extensions": SERVER_EXTENSIONS})

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        reason = self._front.not_ready
        if reason is None:
            return _json({"ready": True, "live": True})
        return _json({"ready": False, "live": True, "error": reason}, status=503)

    async def models(self, request: Request) -> Response:
        return _json({"models": self._models()})

    async def model(self, request: Request) -> Response:
        served = self._served(request)
        _check_greeted(served)
        return _json(served.metadata([str(version) for version in self._versions(served.model)]))

    async def model_ready(self, request: Request) -> Response:
        served = self._served(request)
        if served.lane.ready:
            return _json({"name": served.model, "ready": True})
        return _json({"name": served.model, "ready": False, "error": "Model version not ready"}, status=503)

    async def config(self, request: Request) -> Response:
        served = self._served(request)
        _check_greeted(served)
        assert served.lane.hello is not None  # noqa: S101  (it is what the version was greeted with)
        return _json(model_config(served.model, self._versions(served.model), served.lane.hello))

    async def statistics(self, request: Request) -> Response:
        versions = list(self._front.versions)
        if "model" in request.path_params:
            served = self._served(request)
            pinned = "version" in request.path_params
            versions = [key for key in versions if key[0] == served.model and (not pinned or key[1] == served.version)]
        return _json(await asyncio.to_thread(read_statistics, self._front.cells.path.parent, versions))

    async def model_openapi(self, request: Request) -> Response:
        served = self._served(request)
        signature = _check_greeted(served)
        version = served.version if "version" in request.path_params else None
        return _json(describe_model(self.endpoints, served.model, version=version, signature=signature))

    async def openapi(self, request: Request) -> Response:
        return _json(describe(self.endpoints, models=self._models()))

    async def docs(self, request: Request) -> Response:
        return Response(PAGE, media_type="text/html", headers=HEADERS)

    async def infer(self, request: Request) -> Response:
        self._served(request)
        raise CallerError("the request target is not a valid inference path")

    async def feedback(self, request: Request) -> Response:
        model = self._served(request).model
        items = read_feedback(await request.body())
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
        dropped = front.spool.dropped
        try:
            front.spool.append(records)
        except SpoolError as error:
            front.delivery.count_feedback(model, error.written)
            raise LogUnavailable("the feedback could not be logged; send it again later") from None
        if lost := front.spool.dropped - dropped:
            front.delivery.count_dropped_feedback(model, lost)
            front.delivery.count_feedback(model, len(records) - lost)
            raise LogUnavailable("the log is full and drops what comes, so the feedback was not kept")
        front.delivery.count_feedback(model, len(records))
        await self._until_durable(len(records))
        return _json({"accepted": len(records)})

    async def _until_durable(self, records: int) -> None:
        front = self._front
        if front.commit is None:
            return
        try:
            await front.commit.durable()
        except SpoolError:
            if front.delivery.count_unsynced(records):
                raise LogUnavailable("the feedback may not survive in the log; send it again later") from None

    async def index(self, request: Request) -> Response:
        return _json(await self._calls.index(await request.body(), repository=_repository(request)))

    async def load(self, request: Request) -> Response:
        self._authorize(request)
        model = _model(request)
        await self._calls.load(model, await request.body(), repository=_repository(request))
        return _json({"name": model, "load": True})

    async def unload(self, request: Request) -> Response:
        self._authorize(request)
        model = _model(request)
        await self._calls.unload(model, await request.body(), repository=_repository(request))
        return _json({"name": model, "unload": True})

    async def logging(self, request: Request) -> Response:
        return _json(LOGGING)

    async def set_logging(self, request: Request) -> Response:
        self._authorize(request)
        return _json(keep_logging(await request.body()))

    def _authorize(self, request: Request) -> None:
        authorize(request.headers.getlist("authorization"), self._front.settings.admin.token)

    def _served(self, request: Request) -> ServedVersion:
        version = request.path_params.get("version")
        model = _model(request)
        pinned = None if version is None else path_pin(model, version.encode("utf-8", "replace"))
        return self._front.version(model, pinned)

    def _models(self) -> list[str]:
        return sorted({model for model, _ in self._front.versions})

    def _versions(self, model: str) -> list[int]:
        return sorted(version for name, version in self._front.versions if name == model)


def _check_greeted(served: ServedVersion) -> Any:
    if served.signature is None:
        raise CallerError(served.unready)
    return served.signature


def _model(request: Request) -> str:
    model: str = request.path_params["model"]
    if len(model) > MAX_NAME:
        raise UnknownModel(f"Request for unknown model: '{model[:MAX_NAME]}...' is not found")
    return model


def _repository(request: Request) -> str:
    return str(request.path_params.get("repository", ""))


def _json(content: Any, *, status: int = 200) -> Response:
    hints = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return Response(orjson.dumps(content), status_code=status, headers=hints, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: _absence(request.url.path), 405: "Method Not Allowed"}.get(status, str(getattr(error, "detail", "")))
    response = _json({"error": text}, status=status)
    response.headers.update(getattr(error, "headers", None) or {})
    return response


def _absence(path: str) -> str:
    if path.startswith("/v2/models/") and path.endswith("/trace/setting"):
        path = "/v2/trace/setting"
    return next((text for prefix, text in _ABSENT if path.startswith(prefix)), "Not Found; see /v2/docs")


async def _gateway_error(request: Request, error: Exception) -> Response:
    status = status_of(error) if isinstance(error, GatewayError) else 500
    return _json({"error": str(error)}, status=status)


async def _call_refused(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, CallRefused) else 500
    response = _json({"error": str(error)}, status=status)
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


async def _unforeseen(request: Request, error: Exception) -> Response:
    return _json({"error": "the gateway failed on this request"}, status=500)
