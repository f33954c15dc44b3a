"""The admin API as the command line calls it."""

from __future__ import annotations

import getpass
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import httpx2

__all__ = (
    "AdminClient",
    "CommandError",
    "NoGateway",
    "error_text",
    "inference_url",
    "is_url",
    "open_client",
    "state_dir_here",
)

ANSWER_SECONDS = 15.0
APPROVE_SECONDS = 150.0
DEFAULT_ADMIN_URL = "http://127.0.0.1:8003"
DEFAULT_INFERENCE_URL = "http://127.0.0.1:8000"
DEFAULT_STATE_DIR = Path(".gateway")


class CommandError(Exception):
    """A command was refused or failed; the text is one line that says what to do."""


class NoGateway(CommandError):
    """Nothing answers where the gateway should be."""


class AdminClient:
    """Calls one admin API.

    Parameters
    ----------
    url : str
        Where it listens.
    token : str
        Bearer token; empty where none is needed.
    actor : str
        Who acts, for the audit trail.
    transport : httpx2.BaseTransport, optional
        In place of the network.
    """

    def __init__(
        self, url: str, *, token: str = "", actor: str = "", transport: httpx2.BaseTransport | None = None
    ) -> None:
        import httpx2

        self.url = url.rstrip("/")
        if not is_url(self.url):
            raise CommandError(f"GATEWAY_URL is {url!r}; expected a URL such as {DEFAULT_ADMIN_URL}")
        headers = {b"gateway-actor": quote(actor or _user()).encode()}
        if token:
            # What the environment holds, byte for byte; the admin API compares UTF-8.
            headers[b"authorization"] = b"Bearer " + token.encode("utf-8", "surrogateescape")
        # A proxy from the environment is meant for the internet, not for a gateway on this machine.
        self._http = httpx2.Client(
            headers=headers, timeout=ANSWER_SECONDS, transport=transport, trust_env=not _is_loopback(self.url)
        )

    def __repr__(self) -> str:
        return f"<AdminClient {self.url}>"

    def get(self, path: str, query: dict[str, Any] | None = None) -> Any:
        """What a read answers.

        Raises
        ------
        NoGateway
            Nothing answers.
        CommandError
            The API refused; the text is its own.
        """
        return self._call("GET", path, query=query)

    def post(
        self,
        path: str,
        body: dict[str, Any],
        *,
        revision: int | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> Any:
        return self._call("POST", path, body=body, headers=_if_match(revision), timeout_seconds=timeout_seconds)

    def put(self, path: str, body: dict[str, Any], *, revision: int | None = None) -> Any:
        return self._call("PUT", path, body=body, headers=_if_match(revision))

    def lines(self, path: str, query: dict[str, Any]) -> Iterator[str]:
        """The lines of an answer, as they come; waits for the next one as long as it takes."""
        import httpx2

        try:
            with self._http.stream(
                "GET", f"{self.url}/api/v1{path}", params=query, timeout=httpx2.Timeout(ANSWER_SECONDS, read=None)
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    raise CommandError(error_text(response))
                yield from response.iter_lines()
        except httpx2.ConnectError:
            raise self._away() from None
        except httpx2.HTTPError as error:
            raise CommandError(f"the gateway at {self.url} went away: {error}") from None
        except (httpx2.InvalidURL, ValueError) as error:
            raise CommandError(f"the gateway at {self.url} cannot be asked this: {error}") from None

    def check_model(self, name: str) -> None:
        """Ask for a model only to hear that there is none.

        Raises
        ------
        CommandError
        """
        self.get(f"/models/{quote(name, safe='')}")

    def close(self) -> None:
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> Any:
        import httpx2

        present = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            response = self._http.request(
                method, f"{self.url}/api/v1{path}", params=present, json=body, headers=headers, timeout=timeout_seconds
            )
        except httpx2.ConnectError:
            raise self._away() from None
        except httpx2.TimeoutException:
            raise CommandError(f"the gateway at {self.url} did not answer within {timeout_seconds:g} s") from None
        except httpx2.HTTPError as error:
            raise CommandError(f"the gateway at {self.url} did not answer: {error}") from None
        except (httpx2.InvalidURL, ValueError) as error:
            raise CommandError(f"the gateway at {self.url} cannot be asked this: {error}") from None
        if response.status_code >= 400:
            raise CommandError(error_text(response))
        try:
            return response.json()
        except ValueError:
            raise CommandError(f"what answers at {self.url} is no gateway's admin API; set GATEWAY_URL") from None

    def _away(self) -> NoGateway:
        return NoGateway(f"no gateway answers at {self.url}; start one with `gateway serve`, or set GATEWAY_URL")


def open_client() -> AdminClient:
    """A client for the gateway that is meant: GATEWAY_URL, else the one that runs on the state directory here.

    Raises
    ------
    NoGateway
        A state directory was named and no gateway runs on it. The default port is no answer then: another gateway
        may listen there.
    """
    url = os.environ.get("GATEWAY_URL") or _url_here(host="admin_host", port="admin_port", default=DEFAULT_ADMIN_URL)
    return AdminClient(url, token=os.environ.get("GATEWAY_TOKEN", ""))


def inference_url() -> str:
    """Where the gateway on the state directory here answers predictions.

    Raises
    ------
    NoGateway
        A state directory was named and no gateway runs on it.
    """
    return _url_here(host="host", port="http_port", default=DEFAULT_INFERENCE_URL)


def state_dir_here() -> Path:
    """The state directory as the settings here have it."""
    return _named_state_dir() or DEFAULT_STATE_DIR


def _named_state_dir() -> Path | None:
    if found := os.environ.get("GATEWAY_STATE_DIR"):
        return Path(found)
    try:
        settings = tomllib.loads(Path("gateway.toml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return None
    return Path(str(settings["state_dir"])) if "state_dir" in settings else None


def _url_here(*, host: str, port: str, default: str) -> str:
    named = _named_state_dir()
    url = _url_of(named or DEFAULT_STATE_DIR, host=host, port=port)
    if not url and named is not None:
        raise NoGateway(f"no gateway runs on {named}; start one with `gateway serve`, or set GATEWAY_URL")
    return url or default


def _url_of(state_dir: Path, *, host: str, port: str) -> str:
    note = state_dir / "run" / "gateway.json"
    try:
        running = json.loads(note.read_bytes())
        name, number = str(running[host]), int(running[port])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # noqa: S104  (read, not bound)
    return f"http://{everywhere.get(name, f'[{name}]' if ':' in name else name)}:{number}"


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"if-match": f'"{revision}"'}


def is_url(url: str) -> bool:
    """Whether something may listen there.

    >>> is_url("http://127.0.0.1:8003"), is_url("http://[::1"), is_url("http://h:x"), is_url("gopher://h")
    (True, False, False, False)
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_loopback(url: str) -> bool:
    return (urlsplit(url).hostname or "") in ("localhost", "127.0.0.1", "::1")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def error_text(response: httpx2.Response) -> str:
    """Why a call was refused, in one line."""
    try:
        text = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = f"{response.url} answered {response.status_code}"
    return " ".join(text.split())
