"""What one endpoint of the inference port is: routes and `/openapi.json` come from one table of these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ("Endpoint", "Handler", "routes", "with_version")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the table.

    Parameters
    ----------
    method, path : str
        A path is as in OpenAPI: `{model}` stands for one segment.
    name : str
        The operation's id.
    summary : str
    run : callable
        Answers a request.
    answer : str
        Name of the answer's schema.
    body : str
        Name of the request body's schema; empty: none is read.
    body_required : bool
    media_type : str
        Of the answer.
    guarded : bool
        Needs the admin token.
    """

    method: str
    path: str
    name: str
    summary: str
    run: Handler
    answer: str
    body: str = ""
    body_required: bool = False
    media_type: str = "application/json"
    guarded: bool = False


def with_version(endpoint: Endpoint) -> tuple[Endpoint, Endpoint]:
    """An endpoint below `/v2/models/{model}`, and the same of one version."""
    path = endpoint.path.replace("{model}", "{model}/versions/{version}")
    summary = endpoint.summary.removesuffix(".") + ", of one version."
    return endpoint, replace(endpoint, path=path, name=f"{endpoint.name}_version", summary=summary)


def routes(endpoints: Sequence[Endpoint]) -> list[Route]:
    """One route for each path, in the table's order, so that a wrong method is told all that would be right."""
    by_path: dict[str, dict[str, Handler]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint.run
    return [Route(path, _by_method(handlers), methods=list(handlers)) for path, handlers in by_path.items()]


def _by_method(handlers: dict[str, Handler]) -> Handler:
    async def run(request: Request) -> Response:
        # HEAD comes along with GET.
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return run
