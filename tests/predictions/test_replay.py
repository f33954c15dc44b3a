from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.errors import RunFailed
from gateway.events.records import PredictionRecord, TensorRecord, Timings
from gateway.predictions.replay import ReplayReport, ReplayVersion, replay
from gateway.predictions.segments import LogRecord
from gateway.predictions.shift import Comparison
from gateway.protocol.datatypes import Signature, TensorSpec

Array = np.ndarray[Any, Any]
BOOT = "0196f0c5d2a100"
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))


class Model:
    """A version that is a Python function; notes the rows of each run."""

    signature = SIGNATURE
    inference_ns = 1000

    def __init__(self, answer: Callable[[Array], Array]) -> None:
        self.answer = answer
        self.runs: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows = inputs["x"]
        self.runs.append(len(rows))
        return {"y": self.answer(rows)}


def total(rows: Array) -> Array:
    return rows.sum(axis=1, keepdims=True, dtype="f4")


def logged(number: int, values: list[float], *, answer: Callable[[Array], Array] = total, **changes: Any) -> LogRecord:
    rows = np.array(values, "f4").reshape(-1, 2)
    fields: dict[str, Any] = {
        "id": f"{BOOT}-{number:010x}", "time": "2012-03-01T00:00:00Z", "gateway": "g", "seq": number, "model": "m",
        "version": 1, "digest": "", "arm": "stable", "weight": 0.0, "reason": "stable", "status": 200,
        "rows": len(rows), "timings": Timings(1, 7, 9), "parameters": {},
        "inputs": [TensorRecord("x", "FP32", rows.shape, rows.ravel().tolist())],
        "outputs": [TensorRecord("y", "FP32", (len(rows), 1), answer(rows).ravel().tolist())],
    }  # fmt: skip
    return LogRecord(1, BOOT, number, msgspec.json.encode(PredictionRecord(**(fields | changes))))


def ran(records: list[LogRecord], model: Model, *, rows: int = 8, **options: Any) -> ReplayReport:
    return replay(records, ReplayVersion(1, model, rows), model="m", **options)


@given(
    requests=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=8).filter(lambda v: len(v) % 2 == 0)
    ),
    rows=st.integers(1, 9),
)
def test_what_was_answered_is_answered_again_bit_for_bit_however_it_is_batched(
    requests: list[list[float]], rows: int
) -> None:
    model = Model(total)
    report = ran([logged(number, values) for number, values in enumerate(requests, 1)], model, rows=rows)
    assert report.replayed == report.read == len(requests) and report.is_bit_identical
    assert report.rows == sum(model.runs) == sum(len(values) // 2 for values in requests)
    assert all(run <= max(rows, 4) for run in model.runs)
    assert sum(side.equal for side in report.compared) == len(requests)


def test_a_difference_is_found_in_the_prediction_that_has_it_and_nowhere_else() -> None:
    records = [logged(number, [number, 1.0, 2.0, 3.0]) for number in range(1, 21)]
    off = Model(lambda rows: total(rows) + (rows[:, :1] == 7).astype("f4"))
    [side] = ran(records, off).compared
    assert (side.predictions, side.equal, side.within, side.beyond) == (20, 19, 0, 1)
    assert side.first_different == [f"{BOOT}-{7:010x}"] and side.against == "log of version 1"
    assert side.outputs["y"].largest_difference == 1.0


def test_small_differences_are_within_tolerance_and_no_bits() -> None:
    near = Model(lambda rows: np.nextafter(total(rows), np.float32(np.inf)))
    [side] = ran([logged(1, [1.0, 2.0])], near).compared
    assert (side.equal, side.within, side.beyond) == (0, 1, 0)
    [side] = ran([logged(1, [1.0, 2.0])], near, tolerance=0.0).compared
    assert (side.equal, side.within, side.beyond) == (0, 0, 1)


def test_not_a_number_is_the_null_that_was_logged() -> None:
    records = [logged(1, [1.0, 2.0], outputs=[TensorRecord("y", "FP32", (1, 1), [None])])]
    assert ran(records, Model(lambda rows: total(rows) * np.float32("nan"))).is_bit_identical
    assert not ran(records, Model(total)).is_bit_identical


def test_what_cannot_be_run_again_is_counted_by_its_reason() -> None:
    tensor = TensorRecord("x", "FP32", (1, 2))
    records = [
        logged(1, [1.0, 2.0]),
        logged(2, [1.0, 2.0], sampled=False, inputs=[], outputs=[]),
        logged(3, [1.0, 2.0], inputs=[msgspec.structs.replace(tensor, redacted=True)]),
        logged(4, [1.0, 2.0], inputs=[msgspec.structs.replace(tensor, data=[1.0, None], redacted_columns={"b": 1})]),
        logged(5, [1.0, 2.0], inputs=[msgspec.structs.replace(tensor, digest="blake3:00", summary={})]),
        logged(6, [1.0, 2.0], status=400, error="no", inputs=[], outputs=[]),
        logged(7, [1.0, 2.0], inputs=[TensorRecord("x", "FP32", (1, 2), [1.0])]),
        logged(8, [1.0, 2.0], model="other"),
        LogRecord(1, BOOT, 9, b"no record"),
        logged(10, [1.0, 2.0], inputs=[msgspec.structs.replace(tensor, sha256="00", summary={})]),
    ]
    report = ran(records, Model(total))
    assert (report.read, report.replayed) == (8, 1)
    assert report.not_replayed == {"sampled_out": 1, "redacted": 2, "summarised": 2, "failed": 1, "unreadable": 2}


def test_a_row_that_fails_now_fails_alone() -> None:
    def fragile(rows: Array) -> Array:
        if (rows == 13).any():
            raise RunFailed("thirteen")
        return total(rows)

    report = ran([logged(number, [number, 0.0]) for number in range(10, 17)], Model(fragile))
    assert (report.failed, report.replayed) == (1, 6) and not report.is_bit_identical
    assert report.errors == [f"{BOOT}-{13:010x}: thirteen"]


def test_another_version_takes_the_place_of_the_log_and_failed_requests_are_run_too() -> None:
    records = [logged(1, [1.0, 2.0]), logged(2, [3.0, 4.0], status=500, error="gone", outputs=[])]
    other = ReplayVersion(2, Model(lambda rows: total(rows) * 2), 8)
    report = ran(records, Model(total), against=other)
    [side] = report.compared
    assert (side.against, side.predictions, side.beyond) == ("version 2", 2, 2)
    assert (side.outputs["y"].mean_left, side.outputs["y"].mean_right) == (10.0, 5.0)
    assert set(report.latency) == {"version 1", "version 2"}
    assert ran(records, Model(total)).not_replayed == {"failed": 1}


def test_answers_of_each_version_in_the_log_are_held_apart() -> None:
    records = [logged(1, [1.0, 2.0]), logged(2, [1.0, 2.0], version=2, answer=lambda rows: total(rows) + 5)]
    compared = {side.against: side.equal for side in ran(records, Model(total)).compared}
    assert compared == {"log of version 1": 1, "log of version 2": 0}


def test_a_version_with_other_inputs_or_outputs_is_said_to_be_so() -> None:
    report = ran([logged(1, [1.0, 2.0], inputs=[TensorRecord("z", "FP32", (1, 1), [1.0])])], Model(total))
    assert report.failed == 1 and "needs the input 'x'" in report.errors[0]
    [side] = ran([logged(1, [1.0, 2.0], outputs=[TensorRecord("z", "FP32", (1, 1), [3.0])])], Model(total)).compared
    assert (side.predictions, side.beyond, side.unlike) == (1, 1, 1)
    assert side.first_unlike == f"{BOOT}-{1:010x}: z FP32 [1, 1] there, y FP32 [1, 1] here"
    [side] = ran(
        [logged(1, [1.0, 2.0]), logged(2, [3.0, 4.0], answer=lambda rows: total(rows) + 1)], Model(total)
    ).compared
    assert (side.beyond, side.unlike, side.first_unlike) == (1, 0, "")


def test_the_same_error_is_told_once() -> None:
    def refusing(rows: Array) -> Array:
        raise RunFailed("thirteen" if (rows == 13).any() else "no input 'x'")

    report = ran([logged(number, [number, 0.0]) for number in range(10, 17)], Model(refusing))
    assert report.errors == [f"{BOOT}-{10:010x}: no input 'x' (6 times)", f"{BOOT}-{13:010x}: thirteen"]


def test_a_limit_ends_the_replay() -> None:
    assert ran([logged(number, [1.0, 2.0]) for number in range(1, 9)], Model(total), limit=3).replayed == 3


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u8", "?"])
def test_every_datatype_is_compared(dtype: str) -> None:
    one = np.array([[0], [1], [1]], dtype)
    other = np.array([[0], [1], [0]], dtype)
    comparison = Comparison(tolerance=1e-6)
    assert comparison.add({"y": one}, {"y": other}, np.arange(3)).tolist() == [False, False, True]
    assert (comparison.equal, comparison.beyond) == (2, 1)


def test_memory_of_a_comparison_is_bounded_and_its_distributions_stay_true() -> None:
    comparison = Comparison(tolerance=1e-6)
    draw = np.random.default_rng(1)
    for _ in range(300):
        left = draw.normal(size=(1000, 1))
        comparison.add({"y": left}, {"y": left + 1.0}, np.arange(1000))
    column = comparison._columns["y"]
    assert column._held <= 41_000
    shift = comparison.outputs()["y"]
    assert shift.mean_right - shift.mean_left == pytest.approx(1.0)
    assert shift.ks == pytest.approx(0.383, abs=0.02)
    assert shift.psi == pytest.approx(1.0, abs=0.25)
