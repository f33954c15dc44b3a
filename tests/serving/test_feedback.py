from __future__ import annotations

import pytest

from gateway.protocol.errors import CallerError
from gateway.serving.feedback import read_feedback


@pytest.mark.parametrize(
    ("body", "why"), [(b"", "the body is empty"), (b" \n", "the body is empty"), (b"{}", "missing")]
)
def test_a_body_that_is_no_feedback_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(
        CallerError, match=r'^feedback must be \{"prediction_id", "row", "label"\} or .* of those: '
    ) as raised:
        read_feedback(body)
    assert why in str(raised.value)
