from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.protocol.errors import CallerError
from gateway.serving.feedback import read_feedback


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"{}", "prediction_id is missing"),
        (b'{"prediction_id"', "it ends too early"),
        (b'{"prediction_id": "x", "label": "y"}', "label: expected a number or true or false"),
        (b'{"feedback": [{"prediction_id": "x", "rows": 1}]}', "feedback[0].rows: no such key; expected one of "),
    ],
)
def test_a_body_that_is_no_feedback_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(
        CallerError, match=r'^feedback must be \{"prediction_id", "row", "label"\} or .* of those: '
    ) as raised:
        read_feedback(body)
    assert why in str(raised.value)


def test_the_bodies_that_the_documentation_shows_are_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text()
    one, several = (read_feedback(body.encode()) for body in re.findall(r"```json\n(.*?)```", page, re.S))
    assert [(item.row, item.label) for item in one + several] == [(0, 395.0), (0, 395.0), (17, 402.5)]
