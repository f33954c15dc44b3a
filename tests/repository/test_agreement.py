from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.drift.profile import build_profile, encode_profile
from gateway.protocol.datatypes import Signature, TensorSpec
from tests.repository.conftest import WriteVersion

INPUT = TensorSpec("x", "FP32", (-1, 2))
ONE: dict[str, Any] = msgspec.to_builtins(Signature((INPUT,), (TensorSpec("y", "FP32", (-1, 1)),)))
OTHER: dict[str, Any] = msgspec.to_builtins(
    Signature((INPUT, TensorSpec("image", "FP32", (-1, 3, 3))), (TensorSpec("z", "FP32", (-1, 3)),))
)


@pytest.fixture
def folder(write_version: WriteVersion) -> Path:
    """A model of two versions: `x`, the columns of which are `hour` and `wind`, gives `y`; `x` and `image` give `z`."""
    rows = {"x": np.arange(40, dtype="f4").reshape(20, 2)}
    profile = build_profile(inputs=rows, outputs={}, columns={"x": ("hour", "wind")})
    write_version("1", files={"model.onnx": b"m", "profile.json": encode_profile(profile)}, changes={"signature": ONE})
    images = build_profile(inputs={"image": np.arange(180, dtype="f4").reshape(20, 3, 3)}, outputs={}, columns={})
    files = {"model.onnx": b"m", "profile.json": encode_profile(images)}
    return write_version("2", files=files, changes={"signature": OTHER}).parent


def check(folder: Path, policy: str) -> tuple[int, list[str]]:
    (folder / "model.toml").write_text(policy)
    told = CliRunner().invoke(app, ["check", "--models", str(folder.parent)])
    return told.exit_code, [line for line in told.stdout.splitlines() if not line.startswith("m version ")]


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        ('[quality]\noutput = "lable"\n', "quality.output names 'lable', which is no output of any version; expected "),
        ('[labels]\nprobs = "names.txt"\n', "labels names 'probs', which is no output of any version; expected some "),
        ('[drift]\nignore = ["hour", "wint"]\n', "drift.ignore names 'wint', which is no input and no column of any "),
        ('[logging]\nredact = ["petal"]\n', "logging.redact names 'petal', which is no input and no column of version"),
        ("[route]\nstable = 77\n", "route.stable = 77: there is no such version"),
        ("[route]\ncanary = 3\nweight = 10\n", "route.canary = 3: there is no such version"),
        ('[engine]\nproviders = ["GPU"]\n', "engine.providers = ['GPU']: onnxruntime has none of them here; it has "),
    ],
)
def test_check_tells_what_a_policy_asks_for_and_nothing_is(folder: Path, policy: str, fault: str) -> None:
    (folder / "names.txt").write_text("cat\ndog\n")
    status, told = check(folder, policy)
    assert status == 1
    [line] = told
    assert line.startswith(f"{folder / 'model.toml'}: {fault}")


def test_check_tells_a_file_of_labels_that_is_not_there(folder: Path) -> None:
    told = f"cannot read {folder / 'nofile.txt'}: No such file or directory"
    assert check(folder, '[labels]\ny = "nofile.txt"\n') == (1, [told])


def test_each_fault_is_told_and_counted(folder: Path) -> None:
    policy = '[quality]\noutput = "a"\n[drift]\nignore = ["b", "c"]\n[labels]\ny = "d.txt"\nz = "e.txt"\n'
    status, told = check(folder, policy)
    assert (status, len(told)) == (1, 5)


def test_a_policy_may_name_what_one_of_the_versions_has(folder: Path) -> None:
    (folder / "names.txt").write_text("cat\ndog\n")
    policy = (
        '[quality]\noutput = "y"\n[labels]\nz = "names.txt"\n[drift]\nignore = ["hour", "image", "image.mean", "x"]\n'
        '[route]\nstable = 1\ncanary = 2\nweight = 10\n[logging]\nredact = ["wind", "image"]\n'
    )
    assert check(folder, policy)[0] == 0


def test_what_a_policy_does_not_say_may_be_missing(write_version: WriteVersion) -> None:
    folder = write_version("5").parent
    assert check(folder, 'description = "version 1 is gone"\n')[0] == 0


def test_a_provider_that_is_passed_over_is_told_and_is_no_fault(folder: Path) -> None:
    policy = '[engine]\nproviders = ["NoSuchExecutionProvider", "CPUExecutionProvider"]\n'
    status, told = check(folder, policy)
    assert status == 0
    assert told[0] == f"{folder / 'model.toml'}: engine.providers: onnxruntime has no NoSuchExecutionProvider here"
