"""Finding the gateway, and what its answers become."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from gateway.cli.client import AdminClient, CommandError, NoGateway, inference_url, open_client, state_dir_here


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GATEWAY_URL", "GATEWAY_TOKEN", "GATEWAY_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


def running(state_dir: Path, **changes: object) -> None:
    note = {"pid": 1, "host": "127.0.0.1", "http_port": 18000, "admin_host": "127.0.0.1", "admin_port": 18003}
    (state_dir / "run").mkdir(parents=True)
    (state_dir / "run" / "gateway.json").write_text(json.dumps({**note, **changes}))


def answering(status: int, content: bytes) -> AdminClient:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(status, content=content))
    return AdminClient("http://127.0.0.1:8003", actor="ada", transport=transport)


def test_the_gateway_of_the_state_directory_here_is_found(tmp_path: Path) -> None:
    assert (open_client().url, inference_url()) == ("http://127.0.0.1:8003", "http://127.0.0.1:8000")
    running(tmp_path / ".gateway")
    assert (open_client().url, inference_url()) == ("http://127.0.0.1:18003", "http://127.0.0.1:18000")


def test_the_state_directory_of_the_settings_here_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gateway.toml").write_text("state_dir = 'elsewhere'\n")
    running(tmp_path / "elsewhere", admin_port=1234)
    assert open_client().url == "http://127.0.0.1:1234"
    monkeypatch.setenv("GATEWAY_STATE_DIR", "third")
    assert state_dir_here() == Path("third")


def test_a_state_directory_that_was_named_is_never_swapped_for_whoever_listens_on_the_default_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_STATE_DIR", "mine")
    for find in (open_client, inference_url):
        with pytest.raises(NoGateway, match="no gateway runs on mine"):
            find()


def test_an_address_beyond_reach_of_a_client_is_made_one_within(tmp_path: Path) -> None:
    running(tmp_path / ".gateway", host="0.0.0.0", admin_host="::1")
    assert (open_client().url, inference_url()) == ("http://[::1]:18003", "http://127.0.0.1:18000")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"admin_port": 1}'])
def test_a_note_that_cannot_be_read_is_passed_over(tmp_path: Path, text: str) -> None:
    running(tmp_path / ".gateway")
    (tmp_path / ".gateway" / "run" / "gateway.json").write_text(text)
    assert open_client().url == "http://127.0.0.1:8003"


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(tmp_path / ".gateway")
    monkeypatch.setenv("GATEWAY_URL", "https://gateway.example/")
    assert open_client().url == "https://gateway.example"


def test_token_and_actor_travel_with_every_call() -> None:
    seen: list[httpx2.Headers] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers)
        return httpx2.Response(200, json={})

    client = AdminClient("http://h", token="t0", actor="Zoë", transport=httpx2.MockTransport(answer))
    client.get("/models", {"model": None})
    client.put("/routes/m", {}, revision=7)
    AdminClient("http://h", token="tökén\udcff", transport=httpx2.MockTransport(answer)).get("/models")
    assert [headers["authorization"] for headers in seen[:2]] == ["Bearer t0"] * 2
    assert dict(seen[2].raw)[b"authorization"] == "Bearer tökén".encode() + b"\xff", "the bytes of the environment"
    assert seen[0]["gateway-actor"] == "Zo%C3%AB"
    assert seen[1]["if-match"] == '"7"'


@pytest.mark.parametrize(
    ("status", "content", "text"),
    [
        (409, b'{"error": "no\\nway"}', "no way"),
        (502, b"<html>bad gateway</html>", "answered 502"),
        (200, b"<html>hello</html>", "no gateway's admin API"),
        (500, b'{"detail": 1}', "answered 500"),
    ],
)
def test_an_answer_that_is_no_success_is_one_line(status: int, content: bytes, text: str) -> None:
    with pytest.raises(CommandError, match=text) as caught:
        answering(status, content).get("/models")
    assert "\n" not in str(caught.value)
