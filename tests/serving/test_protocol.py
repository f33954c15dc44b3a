from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.routing.table import Route
from tests.serving.fronts import ROW, door, get, post, read_answer, run

CLOSE = "Connection: close\r\n"
DOUBLED = [2.0, 4.0, 6.0]


def test_an_inference_is_answered_with_its_version_arm_and_id_and_is_in_the_log(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            [(status, headers, body)] = await d.send(post(), read=1)
            assert status == 200 and body["outputs"][0]["data"] == DOUBLED
            assert (headers["gateway-model-version"], headers["gateway-arm"]) == ("1", "stable")
            [record] = d.log()
            assert record["id"] == headers["gateway-prediction-id"] == body["parameters"]["prediction_id"]
            assert record["outputs"][0]["data"] == DOUBLED and record["inputs"][0]["data"] == ROW["data"]

    run(test)


@pytest.mark.parametrize("cut", [1, 7, 40, 100])
def test_a_request_may_come_in_any_pieces(tmp_path: Path, cut: int) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            raw = post()
            pieces = [raw[start : start + cut] for start in range(0, len(raw), cut)]
            [(status, _, _)] = await d.send(*pieces, read=1)
            assert status == 200

    run(test)


def test_a_chunked_body_is_a_body(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            assert (await d.send(post(chunked=True), read=1))[0][0] == 200

    run(test)


def test_pipelined_answers_leave_in_the_order_of_their_requests_whoever_answers_them(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            live, models = get("/v2/health/live"), get("/v2/models")
            mixed = [post(), live, post(), post(), models, live, post({"inputs": []}), post()]
            answers = await d.send(b"".join(mixed), read=len(mixed))
            kinds = ["outputs" if "outputs" in body else next(iter(body)) for _, _, body in answers]
            assert kinds == ["outputs", "live", "outputs", "outputs", "models", "live", "error", "outputs"]

    run(test)


def test_a_slow_engine_does_not_let_a_later_request_overtake(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            sending = asyncio.create_task(d.send(post() + get("/v2/health/live") + post(), read=3))
            await asyncio.sleep(0.2)
            assert not sending.done()
            d.engine.hold.set()
            assert ["live" in body for _, _, body in await sending] == [False, True, False]

    run(test)


def test_keep_alive_and_close_are_kept_as_the_client_asks(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            for _ in range(3):
                writer.write(post())
                assert (await read_answer(reader))[0] == 200
            writer.write(post(headers=CLOSE))
            status, headers, _ = await read_answer(reader)
            assert (status, headers["connection"]) == (200, "close")
            assert await reader.read() == b""
            writer.close()
            assert len(await d.send(post(version="1.0"))) == 1

    run(test)


def test_a_pin_by_path_or_header_names_the_arm_and_a_contradiction_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            by_path = post(path="/v2/models/m/versions/1/infer")
            by_header = post(headers="Gateway-Version: 1\r\n")
            both = post(path="/v2/models/m/versions/1/infer", headers="Gateway-Version: 2\r\n")
            answers = await d.send(by_path + by_header + both, read=3)
            assert [headers.get("gateway-arm") for _, headers, _ in answers] == ["pinned", "pinned", "pinned"]
            assert [status for status, _, _ in answers] == [200, 200, 400]

    run(test)


def test_a_model_without_a_route_answers_who_names_a_version_and_tells_others_that_it_has_none(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.front.follow(2, {}, {("m", 1): "sha256:01"})
            ready = get("/v2/models/m/ready")
            answers = await d.send(post() + ready + post(path="/v2/models/m/versions/1/infer"), read=3)
            assert [status for status, _, _ in answers] == [404, 404, 200]
            said = "'m' has no available versions: it has no route, and only requests that name a version are answered"
            assert [body["error"] for _, _, body in answers[:2]] == 2 * [f"Request for unknown model: {said}"]

    run(test)


@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        (post(path="/v2/models/other/infer"), 404, "unknown model: 'other'"),
        (post(path="/v2/models/m/versions/9/infer"), 404, "version 9 is not found"),
        (post(path="/v2/models/m/versions/01/infer"), 404, "version 01 is not found"),
        (post(path="/v2/models/m/versions/x/infer"), 404, "version x is not found"),
        (post(path="/v2/models/../infer"), 404, ""),
        (post(path="/v2/models/a%2fb/infer"), 404, "Not Found"),
        (post(path="/nothing"), 404, "Not Found; see /v2/docs"),
        (get("/v2/models/m/infer"), 405, "Method Not Allowed"),
        (post({}), 400, "has no 'inputs'"),
        (post(headers="Gateway-Timeout-Ms: 0\r\n"), 400, "Gateway-Timeout-Ms"),
        (post(headers="Gateway-Timeout-Ms: 1_0\r\n"), 400, "Gateway-Timeout-Ms"),
        (post(headers="Gateway-Version: 1.0\r\n"), 400, "positive whole number"),
        (post(headers="Content-Encoding: br\r\n"), 415, "content-encoding"),
        (post(headers="Inference-Header-Content-Length: x\r\n"), 400, "Unable to parse Inference-Header"),
        (post(headers=f"Gateway-Routing-Key: {'k' * 2000}\r\n"), 400, "Gateway-Routing-Key"),
    ],
    ids=lambda value: value[:48].decode() if isinstance(value, bytes) else None,
)
def test_a_request_that_cannot_be_served_gets_a_clear_error_and_the_connection_lives(
    tmp_path: Path, raw: bytes, status: int, text: str
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            (got, _, body), (after, _, _) = await d.send(raw + post(), read=2)
            assert got == status and text in body["error"] and after == 200

    run(test)


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000000000\r\n\r\n", 413),
        (b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (get("/v2", headers=f"X: {'a' * 20_000}\r\n"), 431),
        (get("/v2", headers="X: a\r\n" * 101), 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"X: " + b"a" * 100_000, 431),
        (post(b"x" * 3000, headers="Expect: 100-continue\r\n"), 413),
        (post(b"x" * 3000, chunked=True), 413),
    ],
    ids=lambda value: value[:48].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_bytes_that_cannot_be_understood_are_refused_and_the_connection_is_closed(
    tmp_path: Path, raw: bytes, status: int
) -> None:
    async def test() -> None:
        async with door(tmp_path, limits={"max_body_bytes": 2048}) as d:
            [(got, headers, body)] = await d.send(raw)
            assert got == status and headers["connection"] == "close" and body["error"]
            assert (await d.send(post(), read=1))[0][0] == 200

    run(test)


def test_what_was_asked_before_the_nonsense_is_still_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            answers = await d.send(post() + b"nonsense\r\n\r\n")
            assert [status for status, _, _ in answers] == [200, 400]

    run(test)


def test_a_client_that_waits_for_100_continue_gets_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            head, _, content = post(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            assert (await read_answer(reader))[0] == 100
            writer.write(content)
            assert (await read_answer(reader))[0] == 200
            writer.close()

    run(test)


@pytest.mark.parametrize(
    ("field", "status"),
    [("Gateway-Version: x", 400), ("Content-Encoding: br", 415)],
)
def test_a_client_that_waits_for_100_continue_is_told_at_once_what_is_refused(
    tmp_path: Path, field: str, status: int
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            for headers in (f"Expect: 100-continue\r\n{field}\r\n", f"{field}\r\nExpect: 100-continue\r\n"):
                head, _, _ = post(headers=headers).partition(b"\r\n\r\n")
                [(got, answered, _)] = await asyncio.wait_for(d.send(head + b"\r\n\r\n"), 5)
                assert (got, answered["connection"]) == (status, "close")

    run(test)


@pytest.mark.parametrize(
    "raw",
    [b"", b"GET /v2 HTTP/1.1\r\nHo", b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"],
    ids=["silent", "half a head", "half a body"],
)
def test_a_client_that_stops_sending_is_closed_and_costs_nobody_else_anything(tmp_path: Path, raw: bytes) -> None:
    async def test() -> None:
        async with door(tmp_path, limits={"head_timeout_seconds": 0.3, "body_timeout_seconds": 0.3}) as d:
            slow = asyncio.create_task(d.send(raw))
            assert (await d.send(post(), read=1))[0][0] == 200
            [(status, _, _)] = await slow
            assert status == 408

    run(test)


def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, limits={"keep_alive_seconds": 0.2}) as d:
            assert len(await d.send(post())) == 1

    run(test)


def test_a_trailer_is_never_a_header(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            raw = post(chunked=True).replace(b"0\r\n\r\n", b"0\r\nGateway-Version: 9\r\n\r\n")
            [(status, headers, _)] = await d.send(raw, read=1)
            assert (status, headers["gateway-arm"]) == (200, "stable")

    run(test)


def test_a_client_that_goes_away_while_waiting_is_not_run_and_hurts_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            others = []
            for _ in range(2):  # one frame each, and no third is let in flight
                others.append(asyncio.create_task(d.send(post(), read=1)))
                await asyncio.sleep(0.1)
            _, writer = await d.connect()
            writer.write(post())
            await asyncio.sleep(0.1)
            writer.transport.abort()
            await asyncio.sleep(0.1)
            d.engine.hold.set()
            assert [(await other)[0][0] for other in others] == [200, 200]
            assert (await d.send(post(), read=1))[0][0] == 200
            assert len(d.log()) == 3

    run(test)


def test_a_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            _, writer = await d.connect()
            large = post({"inputs": [ROW | {"shape": [2000, 3], "data": [1.0, 2.0, 3.0] * 2000}]})
            for _ in range(1000):
                writer.write(large)
            await asyncio.sleep(0.5)
            assert writer.transport.get_write_buffer_size() > 0
            assert (await d.send(post(), read=1))[0][0] == 200
            writer.transport.abort()

    run(test)


@pytest.mark.promise("P13")
def test_a_stop_answers_what_was_read_and_closes_what_is_idle(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            idle_reader, idle_writer = await d.connect()
            d.engine.hold.clear()
            waiting = asyncio.create_task(d.send(post()))
            await asyncio.sleep(0.1)
            d.server.should_exit = True
            assert await asyncio.wait_for(idle_reader.read(), 5) == b""
            d.engine.hold.set()
            [(status, headers, _)] = await waiting
            assert (status, headers["connection"]) == (200, "close")
            idle_writer.close()

    run(test)


def test_a_full_log_refuses_predictions_and_says_not_ready(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:

            def refuse(records: Any) -> None:
                from gateway.predictions.spool import SpoolFull

                d.front.spool.full = True
                raise SpoolFull("no space left")

            d.front.spool.append = refuse  # type: ignore[method-assign]
            first, second = await d.send(post() + post(), read=2)
            assert (first[0], second[0]) == (503, 503) and "log" in first[2]["error"]
            ready = (await d.send(get("/v2/health/ready"), read=1))[0]
            assert ready[0] == 503 and "log takes no records" in ready[2]["error"]

    run(test)


def test_a_dead_engine_fails_what_it_was_running_with_500_and_ready_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            waiting = asyncio.create_task(d.send(post(), read=1))
            await asyncio.sleep(0.1)
            d.engine.die()
            [(status, _, body)] = await waiting
            assert status == 500 and "ended while running" in body["error"]
            assert (await d.send(get("/v2/health/ready"), read=1))[0][0] == 503
            [record] = d.log()
            assert record["status"] == 500 and record["error"] == body["error"]

    run(test)


def test_an_answer_that_does_not_come_is_a_504_in_the_time_the_client_gave(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            [(status, _, body)] = await d.send(post(headers="Gateway-Timeout-Ms: 100\r\n"), read=1)
            assert status == 504 and "in time" in body["error"]

    run(test)


def test_the_canary_gets_its_share_and_a_key_keeps_its_arm(tmp_path: Path) -> None:
    async def test() -> None:
        route = Route("m", stable=9, canary=1, weight=100.0, salt="s", trial=1)
        async with door(tmp_path, route=route) as d:
            [(_, headers, _)] = await d.send(post(headers="Gateway-Routing-Key: rider-7\r\n"), read=1)
            assert headers["gateway-arm"] == "canary"
            [record] = d.log()
            assert record["reason"] == "sticky" and record["key"] == "11bd6c4ba5e96373" and record["weight"] == 100.0

    run(test)


def test_feedback_is_logged_and_nonsense_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            [(_, headers, _)] = await d.send(post(), read=1)
            one = {"prediction_id": headers["gateway-prediction-id"], "label": 12}
            path = "/v2/models/m/feedback"
            good, batch, bad, worse, unknown = await d.send(
                post(one, path=path)
                + post({"feedback": [one, one | {"row": 3}]}, path=path)
                + post({"prediction_id": "x", "label": 1}, path=path)
                + post({"label": "tall"}, path=path)
                + post(one, path="/v2/models/none/feedback"),
                read=5,
            )
            assert (good[0], good[2]) == (200, {"accepted": 1}) and batch[2] == {"accepted": 2}
            assert (bad[0], worse[0], unknown[0]) == (400, 400, 404)
            assert [r["row"] for r in d.log() if "prediction_id" in r] == [0, 0, 3]

    run(test)


def test_one_models_dead_engine_does_not_take_the_other_models_out_of_service(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            while d.front.not_ready is not None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            both = {"m": Route("m", stable=1), "n": Route("n", stable=1)}
            d.front.follow(2, both, {("m", 1): "sha256:01", ("n", 1): "sha256:02"})
            assert d.front.not_ready is None
            ready, other = await d.send(get("/v2/health/ready") + get("/v2/models/n/ready"), read=2)
            assert (ready[0], other[0]) == (200, 503)
            d.engine.die()
            while d.front.versions["m", 1].lane.ready:
                await asyncio.sleep(0.01)
            assert (await d.send(get("/v2/health/ready"), read=1))[0][0] == 503

    run(test)


def test_a_front_that_is_not_ready_names_a_model_that_is_waited_for_or_why_none_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            routes = {model: Route(model, stable=2) for model in ("a", "b")}
            d.front.follow(2, routes, {(model, 2): f"sha256:{model}" for model in routes})
            away = [d.front.versions[model, 2].lane for model in routes]
            away[0].refuse_waiting("its folder is gone")
            assert d.front.not_ready == "model 'b' version 2 is not ready"
            away[1].refuse_waiting("its circuit is open")
            [(status, _, told)] = await d.send(get("/v2/health/ready"), read=1)
            assert (status, told["error"]) == (503, "model 'a' version 2 is not ready: its folder is gone")

    run(test)


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "extra",
    [
        '"parameters":{"x":"\\ud800"}',
        '"parameters":{"x":10000000000000000000000}',
        '"id":"\\ud800"',
        '"outputs":[{"name":"\\ud800"}]',
    ],
)
def test_what_only_the_slower_parser_would_let_through_is_refused_and_hurts_nobody(tmp_path: Path, extra: str) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            bad = f'{{"inputs":[{{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,NaN]}}],{extra}}}'.encode()
            first, second = await d.send(post(bad) + post(), read=2)
            assert (first[0], second[0]) == (400, 200)
            assert d.front.versions["m", 1].lane.ready

    run(test)


@pytest.mark.promise("P16")
@pytest.mark.parametrize("decoy", ['["a]"]', "[9,9,9]"])
def test_the_log_holds_what_the_model_saw_and_not_what_a_decoy_says(tmp_path: Path, decoy: str) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            tensor = f'{{"name":"x","y":"data","z":{decoy},"shape":[1,3],"datatype":"FP32","d\\u0061ta":[1,2,3]}}'
            [(status, _, body)] = await d.send(post(f'{{"inputs":[{tensor}]}}'.encode()), read=1)
            assert status == 200 and body["outputs"][0]["data"] == [2.0, 4.0, 6.0]
            [record] = d.log()
            assert record["inputs"][0]["data"] == [1.0, 2.0, 3.0]

    run(test)


def test_a_canary_that_was_never_reached_costs_no_request_and_is_no_evidence(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            route = Route("m", stable=1, canary=2, weight=100.0, salt="s", trial=1)
            d.front.follow(2, {"m": route}, {("m", 1): "sha256:01", ("m", 2): "sha256:02"})
            [(status, headers, _)] = await d.send(post(), read=1)
            assert (status, headers["gateway-arm"]) == (200, "stable")
            [record] = d.log()
            assert (record["weight"], record["reason"]) == (0.0, "canary_not_ready")

    run(test)


@pytest.mark.promise("P15")
def test_an_engine_that_serves_other_bytes_than_those_approved_is_not_asked(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.front.follow(2, {"m": Route("m", stable=1)}, {("m", 1): "sha256:99"})
            await d.front.versions["m", 1].lane.connect()
            await asyncio.sleep(0.1)
            assert not d.front.versions["m", 1].lane.ready

    run(test)


def test_what_a_version_that_is_taken_away_has_not_answered_when_the_front_ends_is_told_and_logged(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            waiting = asyncio.create_task(d.send(post(), read=1))
            await asyncio.sleep(0.1)
            d.front.follow(2, {}, {})
            d.front.close()
            [(status, _, told)] = await waiting
            assert (status, told["error"]) == (503, "model 'm' version 1 is not available: it is being unloaded")
            [record] = d.log()
            assert record["status"] == 503

    run(test)


def test_a_version_that_is_taken_away_still_answers_what_it_has_taken(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            waiting = asyncio.create_task(d.send(post(), read=1))
            await asyncio.sleep(0.1)
            d.front.follow(2, {}, {})
            d.engine.hold.set()
            assert (await waiting)[0][0] == 200

    run(test)


async def test_a_version_whose_engine_never_came_says_why(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        d.front.follow(2, {"m": Route("m", stable=1)}, {("m", 1): "sha256:01", ("m", 2): "sha256:02"})
        pinned = post(headers="Gateway-Version: 2\r\n")
        metadata = get("/v2/models/m/versions/2")
        told = "Request for unknown model: 'm' version 2 is not at ready state"
        assert [(status, body["error"]) for status, _, body in await d.send(pinned + metadata, read=2)] == [
            (503, told),
            (400, told),
        ]
        d.front.versions["m", 2].lane.refuse_waiting("its engine ended 5 times")
        assert [body["error"] for _, _, body in await d.send(pinned + metadata, read=2)] == [
            f"{told}: its engine ended 5 times"
        ] * 2
