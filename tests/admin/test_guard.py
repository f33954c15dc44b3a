"""Who may call the admin API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gateway.admin.errors import AdminError, BadRequest
from gateway.admin.guard import actor_of, authorize, check_origin
from tests.worlds import World

API = "/api/v1"
TOKEN = "s3cret-tökén"
RIGHT = b"Bearer " + TOKEN.encode()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[TestClient]:
    world = World(tmp_path, token=TOKEN)
    with TestClient(world.app(), base_url="http://gateway.example:8003") as client:
        yield client
    world.close()


def test_the_token_opens_everything(guarded: TestClient) -> None:
    for path in (f"{API}/models", "/"):
        assert guarded.get(path, headers={b"authorization": RIGHT}).status_code == 200
        assert guarded.get(path, headers={b"authorization": b"bEARER " + TOKEN.encode()}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Basic " + TOKEN.encode(),
        TOKEN.encode(),
        b"Bearer " + TOKEN.encode()[:-1],
        b"Bearer \xe9\xff",
        b"Bearer " + b"x" * 2**20,
        b"Bearer " + TOKEN.encode() + b", Bearer x",
    ],
)
def test_any_other_token_is_401(guarded: TestClient, value: bytes | None) -> None:
    headers = {} if value is None else {b"authorization": value}
    for path in (f"{API}/models", f"{API}/routes/m", "/", f"{API}/predictions"):
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert list(response.json()) == ["error"]


def test_a_token_that_is_another_is_told_from_one_that_is_missing(guarded: TestClient) -> None:
    for headers, said in (
        ({}, "a bearer token is needed"),
        ({"authorization": "Bearer "}, "a bearer token is needed"),
        ({"authorization": "Bearer wrong"}, "the bearer token is not the one of this gateway (admin.token)"),
    ):
        assert guarded.get(f"{API}/models", headers=headers).json()["error"].startswith(said)


def test_two_tokens_and_a_token_in_the_query_are_401(guarded: TestClient) -> None:
    assert guarded.get(f"{API}/models", headers=[(b"authorization", RIGHT)] * 2).status_code == 401
    assert guarded.get(f"{API}/models", params={"token": TOKEN, "access_token": TOKEN}).status_code == 401


def test_a_write_without_a_token_is_401_before_its_body_is_read(guarded: TestClient) -> None:
    assert guarded.put(f"{API}/routes/m", content=b"{" * 10).status_code == 401


def test_health_needs_no_token(guarded: TestClient) -> None:
    assert guarded.get(f"{API}/health").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "gateway.example:8003", "127.0.0.1.evil.example", "", "[::1", "a@b"])
def test_without_a_token_only_addresses_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    for path in (f"{API}/models", f"{API}/health", "/", "/openapi.json"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 403
        assert "Host" in response.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8003", "localhost:8003", "[::1]:8003", "LOCALHOST"])
def test_addresses_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get(f"{API}/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"origin": "http://[::1"},
        {"origin": "http://[v1.x]:8003"},
        {"origin": "http://127.0.0.1:8003", "sec-fetch-site": "cross-site"},
    ],
)
def test_a_page_of_another_site_cannot_write(client: TestClient, world: World, headers: dict[str, str]) -> None:
    world.serve(1)
    response = client.put(f"{API}/routes/m", json={"stable": 1}, headers=headers)
    assert response.status_code == 403
    assert world.store.snapshot().routes == {}


def test_a_page_of_our_own_may_write(client: TestClient, world: World) -> None:
    world.serve(1)
    headers = {"origin": "http://127.0.0.1:8003", "sec-fetch-site": "same-origin"}
    assert client.put(f"{API}/routes/m", json={"stable": 1}, headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_that_is_not_json_by_its_type_is_415(client: TestClient, kind: str) -> None:
    response = client.put(f"{API}/routes/m", content=b'{"stable": 1}', headers={"content-type": kind})
    assert response.status_code == 415


@pytest.mark.parametrize(("size", "status"), [(2**20, 400), (2**20 + 1, 413)])
def test_a_body_beyond_the_limit_is_413(client: TestClient, size: int, status: int) -> None:
    response = client.put(
        f"{API}/routes/m", content=b" " * size, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert response.status_code == status
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("actor", ["", "%00", "a%0Ab", "x" * 201, "%1B%5B31m"])
def test_an_actor_that_is_no_honest_text_is_400(client: TestClient, actor: str) -> None:
    response = client.put(f"{API}/routes/m", json={"stable": 1}, headers={"gateway-actor": actor})
    assert response.status_code == 400
    assert "Gateway-Actor" in response.json()["error"]


def test_answers_are_never_kept_or_framed(client: TestClient) -> None:
    for path in ("/", f"{API}/models", f"{API}/nope", f"{API}/predictions"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'; frame-ancestors 'none'")


BYTES = st.binary(max_size=40)


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"host", b"origin", b"gateway-actor"]), BYTES)))
def test_no_header_ends_in_another_error_than_ours(headers: list[tuple[bytes, bytes]]) -> None:
    checks: list[Any] = [
        lambda: authorize(headers, token=TOKEN),
        lambda: check_origin(headers, method="POST", token=""),
        lambda: actor_of(headers),
    ]
    for check in checks:
        try:
            check()
        except AdminError as error:
            assert error.status in (400, 401, 403)


def test_an_actor_keeps_his_letters() -> None:
    assert actor_of([(b"gateway-actor", b"Zo%C3%AB%20%3Cops%3E")]) == "Zoë <ops>"
    with pytest.raises(BadRequest):
        actor_of([(b"gateway-actor", b"%20" * 201)])
