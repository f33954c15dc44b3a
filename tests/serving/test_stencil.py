from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.job import Run
from gateway.engine.wire import Hello
from gateway.events.blocks import BlockError
from gateway.predictions.reader import SpoolReader
from gateway.predictions.spool import SpoolWriter
from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.protocol.encode import can_encode_rows, encode_flat, encode_rows
from gateway.protocol.limits import Limits
from gateway.routing.table import Choice, Route
from gateway.serving import stencil
from gateway.serving.delivery import Delivery
from gateway.serving.inference import Inference
from gateway.serving.records import Kept
from gateway.serving.room import Room
from gateway.serving.version import ServedVersion
from gateway.settings import load_settings
from gateway.telemetry.cells import CellFile

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12) | st.sampled_from(
    ["%b", "%%", "%d"]
)


class _Front:
    """Just enough of a served version for a delivery: what it learns from an engine's greeting."""

    def __init__(self, folder: Path, signature: Signature) -> None:
        settings = load_settings(overrides={"state_dir": folder})
        self.cells = CellFile(folder / "front.cells")
        self.spool = SpoolWriter(folder / "spool" / "front-0", slot=0, settings=settings.spool)
        side: Any = SimpleNamespace()
        self.delivery = Delivery(
            self.spool,
            self.cells,
            side=side,
            answers=Room(2**20, full=""),
            commit=None,
            blocks=True,
            kept=Kept(1000),
        )
        self.served = ServedVersion(
            "m%d", 2, digest="sha256:00", gateway="g%1", cells=self.cells, limits=Limits(), max_logged_bytes=1000
        )
        assert self.served.greeted(Hello(signature, pid=1, model="m%d", version=2, digest="sha256:00", batchable=True))

    def answers(self, batch: list[Inference]) -> list[bytes]:
        """Deliver a batch; what its callers get."""
        self.delivery.deliver(batch)
        return [inference.answer for inference in batch]

    def records(self) -> list[bytes]:
        reader = SpoolReader(self.spool.directory.parent)
        records = [record.payload for record in reader.read(1000)]
        reader.close()
        return records

    def close(self) -> None:
        self.spool.close()
        self.cells.close()


def batch_of(front: _Front, keys: Sequence[str | None], rows: Sequence[int], *, alike: bool) -> list[Inference]:
    """Answered requests of one run; those that are not `alike` are written down one by one."""
    total = sum(rows)
    inputs, outputs = np.arange(2 * total, dtype="f4").reshape(total, 2) / 3, np.arange(total, dtype="f4")[:, None] / 7
    run = Run([], total, sent_at=2.0, inputs=[inputs])
    run.results, run.inference_ns = [outputs], 1_500_000
    route, choice = Route("m%d", stable=1, canary=2, weight=12.5, salt="s"), Choice(2, "canary", "weight")
    batch = []
    for key, count in zip(keys, rows, strict=True):
        inference = Inference(SimpleNamespace(answered=lambda _: None), "m%d")  # type: ignore[arg-type]
        inference.route, inference.choice, inference.served = route, choice, front.served
        inference.run, inference.row, inference.rows, inference.key = run, sum(i.rows for i in batch), count, key
        inference.inputs = [inputs[inference.row : inference.row + count]]
        inference.fragments = [None]
        inference.arrived, inference.queued_at, inference.plain = 1.0, 1.25, alike
        batch.append(inference)
    return batch


@given(NAMES, NAMES, st.lists(st.tuples(st.none() | st.text(max_size=3), st.integers(1, 3)), min_size=1, max_size=9))
def test_what_is_written_together_is_what_is_written_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, input_name: str, output_name: str, requests: list[tuple[str | None, int]]
) -> None:
    signature = Signature((TensorSpec(input_name, "FP32", (-1, 2)),), (TensorSpec(output_name, "FP32", (-1, 1)),))
    keys, rows = [key for key, _ in requests], [count for _, count in requests]
    seen = []
    for alike in (True, False):
        front = _Front(tmp_path_factory.mktemp("front"), signature)
        answers = front.answers(batch_of(front, keys, rows, alike=alike))
        records, boot = front.records(), front.spool.boot.encode()
        front.close()
        hidden = [
            re.sub(rb'"(time|total_us)":("[^"]+"|[0-9]+)', b"", text.replace(boot, b"boot"))
            for text in answers + records
        ]
        seen.append(hidden)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2 * len(requests)


@pytest.mark.parametrize("fault", [BlockError("too large"), OverflowError("too late")])
def test_what_makes_no_block_is_logged_one_by_one_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fails(*given: Any) -> bytes:
        raise fault

    monkeypatch.setattr(stencil, "encode_block", fails)
    front = _Front(tmp_path, Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),)))
    answers = front.answers(batch_of(front, [None, "rider-7", None], [1, 2, 1], alike=True))
    answers += front.answers(batch_of(front, [None], [3], alike=True))
    records = [orjson.loads(record) for record in front.records()]
    front.close()
    assert [record["rows"] for record in records] == [1, 2, 1, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "predictions of model 'm%d' version 2 cannot be written down together, only one by one"
    ]
    assert all(record["id"].encode() in answer for record, answer in zip(records, answers, strict=True))


@given(
    st.sampled_from([name for name, dtype in NUMPY_OF.items() if dtype.kind in "fiub"]), st.integers(0, 4), st.data()
)
def test_rows_are_the_elements_one_by_one_or_nothing(datatype: str, rows: int, data: st.DataObject) -> None:
    dtype = NUMPY_OF[datatype]
    shape = (rows, *data.draw(st.lists(st.integers(0, 3), max_size=3)))
    raw = data.draw(
        st.binary(min_size=int(np.prod(shape)) * dtype.itemsize, max_size=int(np.prod(shape)) * dtype.itemsize)
    )
    array = np.frombuffer(raw, dtype).reshape(shape)
    if dtype.kind == "b":
        array = np.frombuffer(raw, "u1").reshape(shape) > 127

    written = encode_rows(array)
    assert can_encode_rows(array) == (written is not None)

    if written is None:
        finite = dtype.kind != "f" or np.isfinite(array).all()
        assert not array.size or datatype == "FP16" or not finite
    else:
        assert [orjson.loads(b"[%b]" % row) for row in written] == [orjson.loads(encode_flat(row)) for row in array]
