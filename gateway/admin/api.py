"""The admin API and console as one ASGI app, built from the table of endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import anyio
import anyio.to_thread
import msgspec
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.admin import endpoints
from gateway.admin.console import STYLE, page
from gateway.admin.endpoints import ENDPOINTS, MODEL_QUERY, PREFIX, Call, Endpoint, Query
from gateway.admin.engines import EngineState
from gateway.admin.errors import OURS, BadRequest, Busy, NotFound, TooLarge, status_of
from gateway.admin.guard import actor_of, authorize, check_json, check_origin
from gateway.admin.openapi import describe
from gateway.admin.operations import Operations
from gateway.admin.requests import ApproveRequest
from gateway.admin.tail import Tail, open_tail, parse_start
from gateway.control.store import Store
from gateway.events.records import Arm
from gateway.predictions.archive import Archive
from gateway.protocol.mistakes import told_mistake
from gateway.repository.manifest import is_model_name
from gateway.settings import Settings

__all__ = ("create_admin",)

MAX_BODY_BYTES = 2**20
BODY_SECONDS = 10.0
THREADS = 8
MAX_WAITING = 64
MAX_TAILS = 16
POLL_SECONDS = 0.1
SETTLE_SECONDS = 1.0  # by then the supervisor has seen what was decided, and taken away the note of what must end
REACH_SECONDS = 0.2  # by then every front has reached an engine that is ready

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; img-src data:"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Result = TypeVar("Result")
Handler = Callable[[Request], Awaitable[Response]]

_APPROVE = Endpoint(
    "POST",
    "/models/{model}/versions/{version}/approve",
    "Approve a version by its digest, and wait until its engine is ready or has failed.",
    lambda operations, call: {},
    body=ApproveRequest,
)
_TAIL = Endpoint(
    "GET",
    "/predictions",
    "Predictions as NDJSON, one record a line; with follow=true the answer goes on as they are made.",
    lambda operations, call: {},
    query=(
        MODEL_QUERY,
        Query("arm", "Only what this arm answered.", choices=get_args(Arm)),
        Query("from", "start, now, or an ISO 8601 time.", choices=("start", "now"), or_time=True),
        Query("follow", "true or false.", "boolean"),
    ),
    media_type="application/x-ndjson",
)


class _Admin:
    """The app's state: threads that may touch the store, and how many wait for them."""

    def __init__(self, operations: Operations, *, token: str, approve_wait_seconds: float) -> None:
        self._operations = operations
        self._token = token
        self._approve_wait_seconds = approve_wait_seconds
        self._limiter: anyio.CapacityLimiter | None = None
        self._waiting = 0
        self._tails = 0

    def __repr__(self) -> str:
        return f"<Admin waiting={self._waiting} tails={self._tails} {self._operations!r}>"

    def handler(self, endpoint: Endpoint, answer: Callable[[Call], Awaitable[Response]] | None = None) -> Handler:
        """What Starlette calls for one line of the table."""

        async def plain(call: Call) -> Response:
            return _json(await self._in_thread(partial(endpoint.run, self._operations, call)))

        async def handle(request: Request) -> Response:
            headers = request.scope["headers"]
            check_origin(headers, method=request.method, token=self._token)
            if not endpoint.is_open:
                authorize(headers, token=self._token)
            call = Call(
                path=_path(request),
                query=_query(request, endpoint),
                body=await _body(request, endpoint.body),
                actor=actor_of(headers),
                if_match=request.headers.get("if-match"),
            )
            return await (answer or plain)(call)

        return handle

    async def approve(self, call: Call) -> Response:
        """Approve, then wait for the engine: 200 when it is ready or has failed, 202 while it is still loading."""
        model, version = call.path["model"], endpoints.version_in(call)
        noted = self._operations.engine_note_time(model, version)
        is_new = await self._in_thread(
            lambda: self._operations.approve(
                model, version, reason=call.body.reason, digest=call.body.digest, actor=call.actor
            )
        )
        # What was noted before a new approval speaks of an engine of the past.
        engine = await self._engine_after(model, version, stale=noted if is_new else 0)
        body = await self._in_thread(partial(self._operations.version, model, version))
        body["engine"] = msgspec.to_builtins(engine)
        return _json(body, status=200 if engine.state in ("ready", "failed", "circuit_open") else 202)

    async def tail(self, call: Call) -> Response:
        follow = endpoints.is_true(call, "follow", default=False)
        try:
            start = parse_start(call.query.get("from", "now" if follow else "start"))
        except ValueError as error:
            raise BadRequest(f"from: {error}") from None
        arm = call.query.get("arm")
        if arm is not None and arm not in get_args(Arm):
            raise BadRequest(f"arm is {arm[:32]!r}; expected one of {', '.join(get_args(Arm))}")
        if self._tails >= MAX_TAILS:
            raise Busy(f"{MAX_TAILS} others follow the predictions already; try again later")
        tail = await self._in_thread(
            lambda: open_tail(
                self._operations.spool_dir,
                model=call.query.get("model"),
                arm=arm,
                start=start,
                follow=follow,
            )
        )
        return StreamingResponse(self._lines(tail, follow=follow), media_type="application/x-ndjson", headers=_HEADERS)

    async def console(self, request: Request) -> Response:
        check_origin(request.scope["headers"], method=request.method, token=self._token)
        authorize(request.scope["headers"], token=self._token)
        models = await self._in_thread(self._operations.models)
        rollouts = await self._in_thread(lambda: self._operations.rollouts(model=None, limit=10))
        decisions = await self._in_thread(lambda: self._operations.decisions(model=None, after=None, limit=30))
        try:
            seen = (await self._in_thread(lambda: self._operations.drift(None))).get("models", {})
        except NotFound:
            seen = {}
        text = page(models["models"], rollouts["rollouts"], decisions["decisions"], seen=seen)
        return Response(text, media_type="text/html", headers=_HEADERS)

    async def _lines(self, tail: Tail, *, follow: bool) -> AsyncIterator[bytes]:
        self._tails += 1
        try:
            while True:
                lines = await self._in_thread(tail.read)
                if lines:
                    yield b"\n".join(lines) + b"\n"
                if tail.at_end:
                    if not follow:
                        return
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            self._tails -= 1
            tail.close()

    async def _engine_after(self, model: str, version: int, *, stale: int) -> EngineState:
        began = time.monotonic()
        while True:
            # An engine that ends loses its note first, and answers until the fronts have let go of it.
            noted = self._operations.engine_note_time(model, version)
            engine = self._operations.engine(model, version)
            if noted not in (0, stale) and engine.state in ("ready", "failed", "circuit_open"):
                if engine.state == "ready":
                    await asyncio.sleep(REACH_SECONDS)
                return engine
            waited = time.monotonic() - began
            # One of the past that is ready may be about to end, unless it was approved again before anybody saw.
            settled = engine.state == "ready" and noted == stale and waited >= SETTLE_SECONDS
            if settled or waited >= self._approve_wait_seconds:
                return engine
            await asyncio.sleep(POLL_SECONDS)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        if self._waiting >= MAX_WAITING:
            raise Busy(f"{MAX_WAITING} requests wait already; try again later")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._waiting -= 1


def create_admin(
    *,
    store: Store,
    settings: Settings,
    models_dir: Path | None = None,
    spool_dir: Path | None = None,
    run_dir: Path | None = None,
    status_file: Path | None = None,
    approve_wait_seconds: float | None = None,
) -> Starlette:
    """The admin app.

    Parameters
    ----------
    store : Store
        Created already.
    settings : Settings
        `admin.token` guards everything but `/api/v1/health`.
    models_dir, spool_dir, run_dir, status_file : Path, optional
        Where the settings do not say it.
    approve_wait_seconds : float, optional
        How long an approval waits for the engine; the engine's start timeout where it is left out.
    """
    operations = Operations(
        store=store,
        models_dir=models_dir or settings.models,
        spool_dir=spool_dir or settings.spool_dir,
        run_dir=run_dir or settings.run_dir,
        status_file=status_file or settings.state_dir / "monitor" / "status.json",
        archive=Archive.of(settings.spool.archive_url),
    )
    wait = settings.engine.start_timeout_seconds if approve_wait_seconds is None else approve_wait_seconds
    admin = _Admin(operations, token=settings.admin.token, approve_wait_seconds=wait)
    table = (*ENDPOINTS, _APPROVE, _TAIL)
    description = orjson.dumps(describe(table))
    answers = {_APPROVE: admin.approve, _TAIL: admin.tail}

    async def openapi(request: Request) -> Response:
        check_origin(request.scope["headers"], method=request.method, token=settings.admin.token)
        return Response(description, media_type="application/json", headers=_HEADERS)

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css", headers={**_HEADERS, "cache-control": "max-age=3600"})

    handlers: dict[str, dict[str, Handler]] = {}
    for line in table:
        handlers.setdefault(PREFIX + line.path, {})[line.method] = admin.handler(line, answers.get(line))
    # One route for each path, so that a wrong method is told all that would be right.
    routes = [Route(path, _by_method(methods), methods=list(methods)) for path, methods in handlers.items()]
    return Starlette(
        routes=[*routes, Route("/", admin.console), Route("/openapi.json", openapi), Route("/console.css", style)],
        exception_handlers={HTTPException: _http_error, Exception: _error, **dict.fromkeys(OURS, _error)},
    )


def _by_method(handlers: dict[str, Handler]) -> Handler:
    async def run(request: Request) -> Response:
        # HEAD comes along with GET.
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return run


def _path(request: Request) -> dict[str, str]:
    """What the path names; a model becomes part of file names, and PostgreSQL takes no NUL."""
    path: dict[str, str] = dict(request.path_params)
    if "model" in path and not is_model_name(path["model"]):
        raise NotFound(f"there is no model {path['model'][:64]!r}")
    if "\0" in path.get("rollout", ""):
        raise NotFound(f"there is no rollout {path['rollout'][:64]!r}")
    return path


def _query(request: Request, endpoint: Endpoint) -> dict[str, str]:
    found = dict(request.query_params)
    known = [query.name for query in endpoint.query]
    if unknown := sorted(set(found) - set(known)):
        raise BadRequest(
            f"{unknown[0][:64]!r} is no parameter of {endpoint.path}; there are: {', '.join(known) or 'none'}"
        )
    if "model" in found and not is_model_name(found["model"]):
        raise BadRequest(f"model={found['model'][:64]!r}: expected the name of a model")
    return found


async def _body(request: Request, kind: type[msgspec.Struct] | None) -> Any:
    if kind is None:
        return None
    check_json(request.scope["headers"])
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > MAX_BODY_BYTES:
                    raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
    except (TimeoutError, ClientDisconnect):
        raise BadRequest(f"the body did not arrive within {BODY_SECONDS:g} s") from None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"body: {told_mistake(error, kind)}") from None


def _json(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(body), status_code=status, media_type="application/json", headers={**_HEADERS, **(headers or {})}
    )


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (Starlette calls us for nothing else)
    return _json(
        {"error": f"{error.detail}: the API is described at /openapi.json"},
        status=error.status_code,
        headers=dict(error.headers or {}),
    )


def _error(request: Request, error: Exception) -> Response:
    status = status_of(error)
    if status is None:
        return _json({"error": "the admin API failed; its log says how"}, status=500)
    headers = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}, 503: {"retry-after": "1"}}
    return _json({"error": str(error)}, status=status, headers=headers.get(status))
