from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.drift.profile import build_profile, encode_profile
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.manifest import load_version
from gateway.repository.policy import PolicyError
from gateway.repository.redaction import redaction_of
from tests.repository.conftest import WriteVersion

SIGNATURE = msgspec.to_builtins(Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("age", "FP32", (-1, 1))), ()))


def test_names_are_inputs_and_columns(write_version: WriteVersion) -> None:
    version = load_version(write_version(changes={"signature": SIGNATURE}))
    assert redaction_of(version, ()) == ((), {})
    assert redaction_of(version, ("age", "x[1]")) == (("age",), {"x": {"x[1]": 1}})
    assert redaction_of(version, ("x", "x[1]")) == (("x",), {})


def test_a_slip_of_the_pen_is_refused_with_the_names_there_are(write_version: WriteVersion) -> None:
    version = load_version(write_version(changes={"signature": SIGNATURE}))
    with pytest.raises(
        PolicyError, match=r"logging.redact names 'agee', .* version 1; expected some of x\[0\], x\[1\]"
    ):
        redaction_of(version, ("agee",))


def test_a_name_that_another_version_has_is_no_slip(write_version: WriteVersion) -> None:
    old: dict[str, Any] = msgspec.to_builtins(Signature((TensorSpec("income", "FP32", (-1, 1)),), ()))
    write_version("1", changes={"signature": old})
    version = load_version(write_version("2", changes={"signature": SIGNATURE}))
    assert redaction_of(version, ("income",)) == ((), {})


def test_columns_have_the_names_of_the_profile(write_version: WriteVersion) -> None:
    rows = {"x": np.arange(40, dtype="f4").reshape(20, 2)}
    profile = build_profile(inputs=rows, outputs={}, columns={"x": ("income", "hour")})
    files = {"model.onnx": b"m", "profile.json": encode_profile(profile)}
    version = load_version(write_version(files=files, changes={"signature": SIGNATURE}))
    assert redaction_of(version, ("income",)) == ((), {"x": {"income": 0}})
    with pytest.raises(PolicyError, match="names 'x\\[0\\]'"):
        redaction_of(version, ("x[0]",))
