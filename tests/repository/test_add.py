"""A version is added as a whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from gateway.control.quality import loss_of
from gateway.drift.profile import decode_profile
from gateway.engine.errors import EngineGone, EngineStartFailed, RunFailed
from gateway.engine.oneshot import open_engine
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.add import add_version, next_version
from gateway.repository.errors import (
    IntegrityError,
    ModelFileError,
    ReferenceFileError,
    RepositoryError,
    VersionExistsError,
)
from gateway.repository.lineage import Lineage, Source
from gateway.repository.manifest import ModelVersion, load_version, scan, verify
from gateway.repository.policy import BatchingPolicy, ModelPolicy, QualityPolicy
from gateway.repository.profiling import losses_of
from gateway.repository.runner import Runner

Array = np.ndarray[Any, np.dtype[Any]]
OnnxModel = Callable[..., Path]
LABELLED = ModelPolicy(quality=QualityPolicy(output="y", miss_above=1.5))


class SumRunner:
    """`y` is the sum of two features."""

    omitted: Mapping[str, str] = {}
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": inputs["x"].sum(axis=1, keepdims=True)}


@contextmanager
def open_sum(model_file: Path) -> Iterator[Runner]:
    assert model_file.read_bytes()
    yield SumRunner()


@pytest.fixture
def model_file(onnx_model: OnnxModel) -> Path:
    ones = np.ones((2, 1), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "ones"], ["y"])]
    return onnx_model(nodes, inputs=[("x", ["n", 2])], outputs=[("y", ["n", 1])], constants={"ones": ones})


def add(models: Path, model_file: Path, **changes: Any) -> ModelVersion:
    arguments: dict[str, Any] = {"open_runner": open_sum, "policy": LABELLED, "lineage": Lineage()} | changes
    return add_version(models, "m", model_file, **arguments)


def reference_file(folder: Path, text: str = "a,b,y\n1,2,3\n3,4,9\n5,6,11\n") -> Path:
    (folder / "rows.csv").write_text(text)
    return folder / "rows.csv"


@pytest.mark.parametrize(("wanted", "tried"), [(8, 256), (1024, 1024), (2000, 2000)])
def test_the_manifest_says_how_many_rows_were_run_together(
    tmp_path: Path, model_file: Path, wanted: int, tried: int
) -> None:
    policy = ModelPolicy(batching=BatchingPolicy(max_rows=wanted), quality=LABELLED.quality)
    for models, reference in ((tmp_path / "made-up", None), (tmp_path / "models", reference_file(tmp_path))):
        added = add(models, model_file, policy=policy, reference=reference, open_runner=open_engine)
        assert load_version(added.folder).manifest.batching.most_rows == tried


def test_a_model_that_ends_its_engine_with_more_rows_than_all_are_tried_with_is_added(
    tmp_path: Path, model_file: Path
) -> None:
    opened = []

    @contextmanager
    def small(model_file: Path) -> Iterator[Runner]:
        class Small(SumRunner):
            def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
                if len(inputs["x"]) > 256:
                    raise EngineGone("the engine ended")
                return super().run(inputs)

        opened.append(model_file)
        yield Small()

    added = add(tmp_path, model_file, open_runner=small, reference=reference_file(tmp_path))
    assert added.manifest.batching.verdict == "equal" and added.manifest.batching.most_rows == 256
    assert len(opened) == 2


def test_a_model_that_ends_its_engine_is_not_tried_again_where_no_more_rows_were_wanted(
    tmp_path: Path, model_file: Path
) -> None:
    opened = []

    @contextmanager
    def ending(model_file: Path) -> Iterator[Runner]:
        opened.append(model_file)
        raise EngineGone("the engine ended")
        yield SumRunner()

    with pytest.raises(ModelFileError, match="the engine ended"):
        add(tmp_path, model_file, open_runner=ending, policy=ModelPolicy(batching=BatchingPolicy(max_rows=256)))
    assert len(opened) == 1


def test_an_added_version_has_manifest_profile_and_card(tmp_path: Path, model_file: Path) -> None:
    steps: list[str] = []
    added = add(
        tmp_path / "models",
        model_file,
        open_runner=open_engine,
        reference=reference_file(tmp_path),
        lineage=Lineage(source=Source("c0ffee", dirty=True), metrics={"mae": 0.5}, parent=7, author="A | B"),
        report=steps.append,
    )
    assert (added.model, added.version) == ("m", 1)
    assert sorted(os.listdir(added.folder)) == ["card.md", "manifest.json", "model.onnx", "profile.json"]
    verify(added)
    assert scan(tmp_path / "models") == ([added], [])
    assert added.manifest.signature == SumRunner.signature
    assert added.manifest.batching.verdict == "equal"
    reference = added.manifest.lineage.reference
    assert reference is not None and (reference.name, reference.rows) == ("rows.csv", 3)
    profile = decode_profile((added.folder / "profile.json").read_bytes())
    assert profile.rows == 3
    assert set(profile.features) == {"a", "b"}
    assert set(profile.outputs) == {"y"}
    assert profile.loss is not None
    assert (profile.loss.rows, profile.loss.misses, profile.loss.miss_above) == (3, 1, 1.5)
    card = (added.folder / "card.md").read_text()
    assert "c0ffee (dirty)" in card and "| mae | 0.5 |" in card and "version 7" in card and "A \\| B" in card
    assert steps


def test_the_folder_can_be_read_by_others(tmp_path: Path, model_file: Path) -> None:
    added = add(tmp_path / "models", model_file)
    assert added.folder.stat().st_mode & 0o777 == 0o755
    assert (added.folder / "model.onnx").stat().st_mode & 0o444


def test_without_reference_rows_there_is_no_profile(tmp_path: Path, model_file: Path) -> None:
    added = add(tmp_path / "models", model_file)
    assert sorted(os.listdir(added.folder)) == ["card.md", "manifest.json", "model.onnx"]
    assert added.manifest.lineage.reference is None


def test_without_labels_there_is_a_profile_without_loss(tmp_path: Path, model_file: Path) -> None:
    added = add(tmp_path / "models", model_file, reference=reference_file(tmp_path, "a,b\n1,2\n3,4\n"))
    assert decode_profile((added.folder / "profile.json").read_bytes()).loss is None


def test_a_card_beside_the_model_is_taken(tmp_path: Path, model_file: Path) -> None:
    model_file.with_name("card.md").write_text("# By hand\n")
    assert (add(tmp_path / "models", model_file).folder / "card.md").read_text() == "# By hand\n"


def test_versions_count_up_from_the_highest_served_or_not(tmp_path: Path, model_file: Path) -> None:
    models = tmp_path / "models"
    assert next_version(models, "m") == 1
    assert [add(models, model_file).version for _ in range(2)] == [1, 2]
    assert add(models, model_file, version=40).version == 40
    (models / "m" / "50").mkdir()
    assert add(models, model_file).version == 51


def test_adding_a_version_twice_leaves_the_first_as_it_is(tmp_path: Path, model_file: Path) -> None:
    models = tmp_path / "models"
    first = add(models, model_file, version=1)
    with pytest.raises(VersionExistsError, match="m/1 is already there; versions are never overwritten"):
        add(models, model_file, version=1)
    verify(first)
    assert scan(models) == ([first], [])


def test_two_that_add_one_version_at_once_do_not_overwrite_each_other(tmp_path: Path, model_file: Path) -> None:
    models = tmp_path / "models"
    first: list[ModelVersion] = []

    @contextmanager
    def overtaken(path: Path) -> Iterator[Runner]:
        first.append(add(models, model_file, version=1, lineage=Lineage(author="the first")))
        yield SumRunner()

    with pytest.raises(VersionExistsError, match="m/1 was added meanwhile"):
        add(models, model_file, version=1, open_runner=overtaken)
    assert scan(models) == (first, [])


@pytest.mark.parametrize("error", [EngineStartFailed("no such operator"), EngineGone("ended"), RunFailed("failed")])
def test_a_model_that_does_not_run_is_refused_and_nothing_stays(
    tmp_path: Path, model_file: Path, error: Exception
) -> None:
    @contextmanager
    def broken(path: Path) -> Iterator[Runner]:
        raise error
        yield SumRunner()

    with pytest.raises(ModelFileError, match=f"the model cannot be used: {error}"):
        add(tmp_path / "models", model_file, open_runner=broken)
    assert os.listdir(tmp_path / "models") == []


def test_a_row_on_which_the_model_fails_is_named(tmp_path: Path, model_file: Path) -> None:
    class Picky(SumRunner):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            if 33.0 in inputs["x"][:, 0]:
                raise RunFailed("index out of range")
            return super().run(inputs)

    @contextmanager
    def open_picky(path: Path) -> Iterator[Runner]:
        yield Picky()

    rows = "a,b\n" + "".join(f"{number},0\n" for number in range(300))
    with pytest.raises(ModelFileError, match="fails on reference rows 1 to 256: index out of range"):
        add(tmp_path / "models", model_file, open_runner=open_picky, reference=reference_file(tmp_path, rows))
    assert os.listdir(tmp_path / "models") == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a b", "x" * 65, "é"])
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path: Path, model_file: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="is not a model name"):
        add_version(tmp_path / "models", name, model_file, open_runner=open_sum, policy=LABELLED, lineage=Lineage())
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("version", [0, -1, 10**9])
def test_a_number_that_is_no_version_is_refused(tmp_path: Path, model_file: Path, version: int) -> None:
    with pytest.raises(RepositoryError, match="is not a version"):
        add(tmp_path / "models", model_file, version=version)


def test_a_missing_model_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="nothing.onnx cannot be opened"):
        add(tmp_path / "models", tmp_path / "nothing.onnx")
    with pytest.raises(IntegrityError, match="is not a regular file"):
        add(tmp_path / "models", tmp_path)
    assert os.listdir(tmp_path / "models") == []


def test_a_file_that_is_no_model_is_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import onnx\n")
    with pytest.raises(ModelFileError, match=r"^train\.py is not an ONNX file"):
        add(tmp_path / "models", tmp_path / "train.py")


def test_labels_for_an_output_without_numbers_are_refused(tmp_path: Path, model_file: Path) -> None:
    policy = ModelPolicy(quality=QualityPolicy(output="z"))
    rows = reference_file(tmp_path, "a,b,z\n1,2,3\n")
    with pytest.raises(ReferenceFileError, match="quality.output = 'z' of model.toml"):
        add(tmp_path / "models", model_file, policy=policy, reference=rows)


@pytest.mark.parametrize("loss", ["absolute_error", "zero_one"])
@pytest.mark.parametrize("width", [1, 3])
def test_the_loss_of_the_reference_is_the_loss_of_the_monitor(loss: Any, width: int) -> None:
    generator = np.random.default_rng(3)
    outputs = generator.integers(-3, 4, size=(50, width)) / 2
    labels = generator.integers(3, size=50).astype(float)
    policy = QualityPolicy(output="y", loss=loss)
    expected = [loss_of(policy, tuple(row), label) for row, label in zip(outputs.tolist(), labels, strict=True)]
    assert losses_of(policy, outputs, labels).tolist() == expected


def with_external_weights(model_file: Path) -> Path:
    """The same model with its constant of 8 bytes in `weights.bin`."""
    model = onnx.load_model(model_file)
    onnx.save_model(
        model, model_file, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True
    )
    return model_file


def test_external_weights_come_along_and_the_copy_runs(tmp_path: Path, model_file: Path) -> None:
    added = add(tmp_path / "models", with_external_weights(model_file), open_runner=open_engine)
    assert [entry.path for entry in added.manifest.files] == ["card.md", "model.onnx", "weights.bin"]
    verify(added)
    with open_engine(added.folder / "model.onnx") as engine:
        assert engine.run({"x": np.array([[1, 2]], np.float32)})["y"].tolist() == [[3.0]]


def _missing(weights: Path) -> None:
    weights.unlink()


def _short(weights: Path) -> None:
    weights.write_bytes(b"1234")


def _symbolic_link(weights: Path) -> None:
    weights.rename(weights.with_name("other"))
    weights.symlink_to(weights.with_name("other"))


def _hard_link(weights: Path) -> None:
    os.link(weights, weights.with_name("other"))


def _fifo(weights: Path) -> None:
    weights.unlink()
    os.mkfifo(weights)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_missing, "weights.bin cannot be opened: No such file"),
        (_short, "weights.bin has 4 bytes: the model names weights up to byte 8"),
        (_symbolic_link, "weights.bin cannot be opened"),
        (_hard_link, "weights.bin has 2 hard links"),
        (_fifo, "weights.bin is not a regular file"),
    ],
)
def test_weights_that_are_not_plainly_there_are_refused(
    tmp_path: Path, model_file: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    with_external_weights(model_file)
    spoil(model_file.with_name("weights.bin"))
    with pytest.raises(RepositoryError, match=reason):
        add(tmp_path / "models", model_file)
    assert os.listdir(tmp_path / "models") == []


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from gateway.repository.add import add_version
from gateway.repository.lineage import Lineage
from gateway.repository.policy import ModelPolicy

@contextmanager
def killed(path):
    os.kill(os.getpid(), signal.SIGKILL)
    yield

add_version(Path(sys.argv[1]), "m", Path(sys.argv[2]), open_runner=killed, policy=ModelPolicy(), lineage=Lineage())
"""


def test_an_addition_killed_in_the_middle_leaves_nothing_that_is_served(tmp_path: Path, model_file: Path) -> None:
    models = tmp_path / "models"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(models), str(model_file)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert len(list((models / "m").iterdir())) == 1
    assert scan(models) == ([], []), "nor told of: it may be one that is still going on"
    assert add(models, model_file).version == 1
