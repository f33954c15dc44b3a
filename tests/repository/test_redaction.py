from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.drift.profile import build_profile, encode_profile
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.manifest import load_version
from gateway.repository.policy import PolicyError
from gateway.repository.redaction import Redaction, redaction_of
from tests.repository.conftest import WriteVersion

SIGNATURE = msgspec.to_builtins(Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("age", "FP32", (-1, 1))), ()))


def named(*columns: str) -> dict[str, bytes]:
    """The files of a version whose reference names the columns of `x`, or does not."""
    rows = {"x": np.arange(40, dtype="f4").reshape(20, 2)}
    profile = build_profile(inputs=rows, outputs={}, columns={"x": columns} if columns else {})
    return {"model.onnx": b"m", "profile.json": encode_profile(profile)}


def test_names_are_inputs_and_columns(write_version: WriteVersion) -> None:
    version = load_version(write_version(changes={"signature": SIGNATURE}))
    assert redaction_of(version, ()) == Redaction((), {})
    assert redaction_of(version, ("age", "x[1]")) == Redaction(("age",), {"x": {"x[1]": 1}})
    assert redaction_of(version, ("x", "x[1]")) == Redaction(("x",), {})


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
    inputs, columns, [doubt] = redaction_of(version, ("income",))
    assert (inputs, columns) == ((), {})
    assert doubt == (
        "nothing is redacted for 'income', which logging.redact names: version 2 has no such input or column, and no "
        "names for the columns of 'x'"
    )


def test_columns_have_the_names_of_the_profile(write_version: WriteVersion) -> None:
    version = load_version(write_version(files=named("income", "hour"), changes={"signature": SIGNATURE}))
    assert redaction_of(version, ("income",)) == Redaction((), {"x": {"income": 0}})
    with pytest.raises(PolicyError, match="names 'x\\[0\\]'"):
        redaction_of(version, ("x[0]",))


@pytest.mark.parametrize("shape", [(-1, 2), (-1, -1), (-1, 3), (-1,), (-1, 2, 2)])
def test_a_column_that_an_earlier_version_names_is_never_logged_by_the_next_one_that_names_none(
    write_version: WriteVersion, shape: tuple[int, ...]
) -> None:
    write_version("1", files=named("income", "hour"), changes={"signature": SIGNATURE})
    inputs = (TensorSpec("x", "FP32", shape), TensorSpec("age", "FP32", (-1, 1)))
    signature: dict[str, Any] = msgspec.to_builtins(Signature(inputs, ()))
    version = load_version(write_version("2", changes={"signature": signature}))
    assert redaction_of(version, ("income",)) == Redaction(
        ("x",),
        {},
        (
            "all of input 'x' is redacted: version 1 has 'income' in it, which logging.redact names, and version 2 "
            "does not tell which column that is",
        ),
    )


def test_a_reference_without_names_tells_no_column_either(write_version: WriteVersion) -> None:
    write_version("1", files=named("income", "hour"), changes={"signature": SIGNATURE})
    version = load_version(write_version("2", files=named(), changes={"signature": SIGNATURE}))
    assert redaction_of(version, ("hour", "x[0]")).inputs == ("x",)


def test_a_version_that_names_all_its_columns_and_not_this_one_has_it_not(write_version: WriteVersion) -> None:
    write_version("1", files=named("income", "hour"), changes={"signature": SIGNATURE})
    version = load_version(write_version("2", files=named("month", "hour"), changes={"signature": SIGNATURE}))
    assert redaction_of(version, ("income", "hour")) == Redaction((), {"x": {"hour": 1}})


def test_a_column_that_was_named_by_its_place_may_be_any_of_those_that_have_names(write_version: WriteVersion) -> None:
    write_version("1", changes={"signature": SIGNATURE})
    version = load_version(write_version("2", files=named("month", "hour"), changes={"signature": SIGNATURE}))
    assert redaction_of(version, ("x[1]",)).inputs == ("x",)


def test_check_tells_what_is_redacted_on_suspicion(write_version: WriteVersion) -> None:
    write_version("1", files=named("income", "hour"), changes={"signature": SIGNATURE})
    folder = write_version("2", changes={"signature": SIGNATURE}).parent
    (folder / "model.toml").write_text('[logging]\nredact = ["income"]\n')
    result = CliRunner().invoke(app, ["check", "--models", str(folder.parent)])
    assert result.exit_code == 0, result.output
    assert f"{folder / 'model.toml'}: all of input 'x' is redacted: version 1 has 'income' in it" in result.output
