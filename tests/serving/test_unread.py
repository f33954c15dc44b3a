"""Large bodies that wait to be read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gateway.protocol.errors import Overloaded
from gateway.serving.inference import Inference
from gateway.serving.unread import FIRST_SECONDS, UnreadLine


def asked(*, deadline: float = math.inf) -> Inference:
    inference = Inference(None, "m")  # type: ignore[arg-type]
    inference.deadline = deadline
    return inference


def put(line: UnreadLine, *inferences: Inference) -> None:
    for inference in inferences:
        line.put(inference, None, lambda done: None)


def taken(line: UnreadLine) -> list[Inference]:
    found = []
    while (each := line.take()) is not None:
        found.append(each.inference)
    return found


def test_who_comes_first_is_read_first() -> None:
    line, inferences = UnreadLine(max_wait_seconds=1), [asked() for _ in range(3)]
    put(line, *inferences)
    assert taken(line) == inferences and len(line) == 0


def test_the_late_are_told_and_those_who_have_gone_are_not() -> None:
    line = UnreadLine(max_wait_seconds=1)
    late, gone, early = asked(deadline=1), asked(deadline=1), asked(deadline=3)
    put(line, late, gone, early)
    gone.abandoned = True
    assert line.expire(2) == [late]
    assert taken(line) == [early]


def test_the_line_is_as_long_as_what_waits_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    line = UnreadLine(max_wait_seconds=2)
    put(line, *[asked() for _ in range(8)])
    for _ in range(6):  # of which each takes a second
        each: Any = line.take()
        now += 1
        line.learn(each)
    assert FIRST_SECONDS < line.seconds < 1
    put(line, asked())
    with pytest.raises(Overloaded, match="3 large requests"):
        put(line, asked())


def test_one_is_let_in_however_long_the_last_took() -> None:
    line = UnreadLine(max_wait_seconds=1)
    line.seconds = 100
    put(line, asked())
    with pytest.raises(Overloaded):
        put(line, asked())


def test_those_who_have_gone_keep_nobody_out() -> None:
    line = UnreadLine(max_wait_seconds=2 * FIRST_SECONDS)
    inferences = [asked() for _ in range(3)]
    put(line, *inferences)
    inferences[0].abandoned = True
    put(line, asked())
    with pytest.raises(Overloaded):
        put(line, asked())
