"""The process log is one line for each event, whatever a caller sent."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.log import ProcessLog, take_loggers


def written(text: str, fields: dict[str, object], *, json: bool) -> str:
    stream = io.StringIO()
    ProcessLog("front 0", json=json, stream=stream, clock=lambda: 1.5).note(text, fields)
    return stream.getvalue()


def test_a_line_for_people():
    line = written("listening", {"port": 8000, "address": "127.0.0.1", "text": 'a "b" c'}, json=False)
    assert line == '1970-01-01T00:00:01.500Z front 0: listening port=8000 address=127.0.0.1 text="a \\"b\\" c"\n'


def test_a_line_for_machines():
    line = written("listening", {"port": 8000, "share": float("nan")}, json=True)
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "note",
        "process": "front 0",
        "text": "listening",
        "fields": {"port": 8000, "share": "nan"},
    }


@given(text=st.text(st.characters()), value=st.text(st.characters()), as_json=st.booleans())
def test_nothing_a_caller_sends_makes_a_second_line_or_moves_a_terminal(text, value, as_json):
    line = written(text, {"id": value}, json=as_json)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_value_cannot_pass_for_another_field():
    assert written("refused", {"id": "x status=200"}, json=False).endswith('refused id="x status=200"\n')


def test_a_long_value_is_cut():
    line = written("refused", {"id": "x" * 100_000}, json=False)
    assert len(line) < 5_000
    assert "(100000 characters)" in line


def test_a_stream_that_is_gone_is_borne():
    stream = io.StringIO()
    stream.close()
    ProcessLog("front 0", json=False, stream=stream).warn("nobody reads this")


def test_a_stream_of_another_encoding_gets_every_line():
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    ProcessLog("front 0", json=False, stream=stream).note("größer")
    assert b"gr\\xf6\\xdfer\n" in buffer.getvalue()


@pytest.fixture
def loggers_as_before():
    loggers = [logging.getLogger(name) for name in ("gateway", "uvicorn", "aiokafka", "asyncio")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, state in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, logger.level = state


def test_what_our_own_modules_warn_of_goes_through_the_log(loggers_as_before, capsys):
    stream = io.StringIO()
    take_loggers(ProcessLog("front 0", json=False, stream=stream, clock=lambda: 0.0))
    logging.getLogger("gateway.engine.lane").warning("the model said %s", "no\n2026-01-01 front 0: all is well")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("front 0: warning: the model said no\\n2026-01-01 front 0: all is well")
    assert capsys.readouterr().err == ""


def test_what_libraries_warn_of_goes_through_the_log(loggers_as_before, capsys):
    uvicorn_logger = logging.getLogger("uvicorn.error")
    stream = io.StringIO()
    take_loggers(ProcessLog("front 0", json=True, stream=stream))
    try:
        raise ValueError("no such\nthing")
    except ValueError:
        uvicorn_logger.warning("request %s failed", 7, exc_info=True)
    uvicorn_logger.info("started")
    uvicorn_logger.error("%d", "not a number")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["text"] == "request 7 failed"
    assert first["fields"]["library"] == "uvicorn.error"
    assert "ValueError: no such\nthing" in first["fields"]["trace"]
    assert second["text"] == "%d"
    assert capsys.readouterr().err == ""
