"""The metrics port: one ASGI app with one page."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .exposition import render

__all__ = ("create_metrics_app",)


def create_metrics_app(metrics_dir: Path) -> Starlette:
    """Return an app that shows the metrics of all processes at `/metrics`, summed from the files in `metrics_dir`."""

    # Not async: Starlette runs it in a thread, so a scrape never holds up what else the process serves.
    def metrics(request: Request) -> Response:
        page, content_type = render(metrics_dir, request.headers.get("accept"))
        return Response(page, headers={"content-type": content_type})

    return Starlette(
        routes=[Route("/metrics", metrics), Route("/", _root)],
        exception_handlers={HTTPException: _error},
    )


def _root(request: Request) -> Response:
    return PlainTextResponse("The metrics of all processes are at /metrics\n")


def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (Starlette calls us for nothing else)
    return JSONResponse({"error": f"{error.detail}: metrics are at GET /metrics"}, status_code=error.status_code)
