"""Blocks taken whole come to what their predictions come to one by one: state, alarms, labels and decisions."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.control.block import BlockReader, LoggedBlock
from gateway.control.compare import FixedRerun
from gateway.control.join import LabelJoin, LabelledRow
from gateway.control.kept import KeptPredictions, kept_block
from gateway.control.monitor import Monitor
from gateway.control.rows import RowBuffer
from gateway.control.share import CallerShare
from gateway.control.store import Store
from gateway.control.versions import FixedVersions
from gateway.control.watch import VersionWatch
from gateway.drift.profile import Profile, build_loss, build_profile
from gateway.events.blocks import PredictionBlock, encode_block
from gateway.events.records import KIND_BLOCK, KIND_FEEDBACK, KIND_PREDICTION, FeedbackRecord, PredictionRecord
from gateway.predictions.segments import LogRecord, expanded
from gateway.predictions.source import ListSource
from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.encode import tensor_head
from gateway.repository.policy import ModelPolicy
from gateway.routing.table import hash_key
from gateway.serving.records import prediction_head, record_time
from gateway.settings import MonitorSettings

MODEL = "m"
BOOT = "01a00000000000"
LABEL_BOOT = "01a00000000001"
EPOCH = 1_767_225_600.0
VERSIONS = {"stable": 1, "canary": 2, "pinned": 2}
KEYS = [None, *(hash_key(f"caller {number}") for number in range(30))]


def profile(dtype: str = "f4") -> Profile:
    random = np.random.default_rng(1)
    inputs = random.normal(size=(800, 3)).astype(dtype)
    return build_profile(
        inputs={"x": inputs},
        outputs={"y": inputs[:, :1] * 2},
        columns={"x": ("a", "b", "c")},
        loss=build_loss(output="y", loss="absolute_error", losses=np.abs(random.normal(size=800))),
    )


def block(
    inputs: np.ndarray[Any, Any],
    outputs: np.ndarray[Any, Any],
    *,
    rows: list[int] | None = None,
    keys: list[str | None] | None = None,
    arm: Any = "stable",
    version: int | None = None,
    weight: float = 20.0,
    seconds: float = EPOCH,
    names: tuple[str, str] = ("x", "y"),
    datatypes: tuple[str, str] = ("FP32", "FP32"),
    model: str = MODEL,
    **changes: Any,
) -> bytes:
    """A payload of one row each, unless told."""
    rows = rows or [1] * len(inputs)
    fields: dict[str, Any] = {
        "head": prediction_head(
            gateway="g",
            model=model,
            version=VERSIONS[arm] if version is None else version,
            digest="sha256:0",
            arm=arm,
            weight=weight,
            reason="weight",
        ),
        "input_head": tensor_head(TensorSpec(names[0], datatypes[0], (-1, -1))),
        "output_head": tensor_head(TensorSpec(names[1], datatypes[1], (-1, -1))),
        "input_dtype": inputs.dtype.str,
        "output_dtype": outputs.dtype.str,
        "input_axes": inputs.shape[1:],
        "output_axes": outputs.shape[1:],
        "time": record_time(seconds),
        "inference_us": 20,
        "rows": b"" if set(rows) == {1} else np.array(rows, "<u4").tobytes(),
        "queue_us": np.arange(len(rows), dtype="<u4").tobytes(),
        "total_us": np.arange(len(rows), dtype="<u4").tobytes(),
        "keys": "".join(key or " " * 16 for key in keys).encode() if keys and any(keys) else b"",
        "inputs": inputs.tobytes(),
        "outputs": outputs.tobytes(),
    }
    return encode_block(PredictionBlock(**(fields | changes)), len(rows))


def logged(payload: bytes, first: int = 1) -> LoggedBlock:
    found = BlockReader().read(LogRecord(KIND_BLOCK, BOOT, first, payload))
    assert found is not None
    return found


class Log:
    """Records with blocks; the numbers go on from one to the next."""

    def __init__(self) -> None:
        self.whole: list[LogRecord] = []
        self.next = self.next_label = 1

    def add_block(self, payload: bytes) -> None:
        record = LogRecord(KIND_BLOCK, BOOT, self.next, payload)
        self.whole.append(record)
        self.next += record.numbers

    def add_single(self, payload: bytes) -> None:
        (record,) = expanded(LogRecord(KIND_BLOCK, BOOT, self.next, payload))
        self.whole.append(record)
        self.next += 1

    def label(self, number: int, row: int, value: float, *, seconds: float) -> None:
        record = FeedbackRecord(
            f"{LABEL_BOOT}-{self.next_label:010x}",
            record_time(seconds).decode(),
            "g",
            self.next_label,
            MODEL,
            f"{BOOT}-{number:010x}",
            row,
            value,
        )
        self.whole.append(LogRecord(KIND_FEEDBACK, LABEL_BOOT, self.next_label, msgspec.json.encode(record)))
        self.next_label += 1

    @property
    def single(self) -> list[LogRecord]:
        return one_by_one(self.whole)


def one_by_one(records: list[LogRecord]) -> list[LogRecord]:
    return [each for record in records for each in (expanded(record) if record.kind == KIND_BLOCK else [record])]


def monitor_in(folder: Path, *, policy: ModelPolicy, now: list[float]) -> Monitor:
    store = Store(f"sqlite:///{folder / 'store.db'}", clock=lambda: EPOCH - 100)
    store.create()
    for version in (1, 2):
        store.register(MODEL, version, f"sha256:{version:064x}")
        store.approve(MODEL, version, actor="tester", reason="it is a test")
    store.set_route(MODEL, stable=1, actor="tester", reason="it is a test")
    store.set_route(MODEL, stable=1, canary=2, weight=20.0, actor="tester", reason="it is a test")

    async def open_source(position: Any, start: str) -> ListSource:
        return ListSource([])

    return Monitor(
        open_source,
        store,
        source="list",
        versions=FixedVersions({MODEL: policy}, {(MODEL, version): profile() for version in (1, 2)}),
        state_dir=folder,
        settings=MonitorSettings(join_predictions=1000),
        rerun=FixedRerun({}),
        lookup=lambda prediction_id: None,
        note=lambda text: None,
        clock=lambda: now[0],
        monotonic=lambda: now[0],
    )


def flat(state: Any) -> Any:
    """What a checkpoint holds, with kept predictions one by one."""
    plain = msgspec.to_builtins(state)
    plain["join"]["kept"] = sorted(
        plain["join"]["kept"]
        + [
            (f"{each.boot}-{each.first + place:010x}", msgspec.to_builtins(each.kept(place)))
            for _, each in state.join.blocks
            for place in range(each.forgotten, each.count)
        ]
    )
    plain["join"]["blocks"] = plain["position"] = []
    return plain


def run(log: list[LogRecord], cuts: list[int], *, policy: ModelPolicy, whole: bool) -> tuple[Any, ...]:
    """Everything a monitor knows after it has read the log, flushing at the cuts."""

    async def read_all(folder: Path) -> tuple[Any, ...]:
        now = [EPOCH + 10]
        monitor = monitor_in(folder, policy=policy, now=now)
        await monitor.start(asyncio.Event())
        states = []
        for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
            part = log[start:end]
            monitor.take(part if whole else one_by_one(part))
            now[0] += 1.0
            await monitor.flush()
            monitor.checkpoint()
            state, note = monitor._checkpoints.read()
            assert state is not None, note
            state.trials.hash = ""  # each run has a store of its own
            states.append(flat(state))
        model = monitor.models[MODEL]
        alarms = [msgspec.to_builtins(alarm) for alarm in model.alarms]
        certificate = model.trial.certificate() if model.trial is not None else None
        skipped = {version: watch.skipped for version, watch in model.watches.items()}
        decisions = [
            (each.kind, each.reason, msgspec.to_builtins(each.evidence))
            for each in monitor._store.decisions(limit=1000)  # type: ignore[attr-defined]
            if each.actor == "gateway monitor"
        ]
        recent = [msgspec.to_builtins(row) for row in model._recent]
        rest = (alarms, certificate, skipped, monitor.skipped, monitor.read, decisions, recent)
        await monitor.close()
        return states, *rest

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(read_all(Path(folder)))


EDGES = [edge for feature in profile().features.values() for edge in feature.edges]
numbers = st.one_of(
    st.floats(-3, 3, width=32),
    st.sampled_from([*EDGES, float("nan"), float("inf"), float("-inf"), 0.1, 1e30]),
)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[LogRecord], list[int]]:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    log = Log()
    odd = draw(st.lists(numbers, max_size=6))
    for turn in range(draw(st.integers(1, 12))):
        seconds = EPOCH + draw(st.sampled_from([-200.0, 0.5, 2.0, 3.0])) + turn
        what = draw(st.sampled_from(["block", "block", "block", "single", "labels"]))
        if what == "labels":
            for _ in range(draw(st.integers(1, 8))):
                number = draw(st.integers(1, log.next + 40))
                log.label(number, draw(st.integers(0, 2)), draw(st.sampled_from([0.0, 0.1, 5.0])), seconds=seconds)
            continue
        count = 1 if what == "single" else draw(st.sampled_from([1, 2, 30, 32, 100]))
        rows = draw(
            st.sampled_from([[1] * count, [3] * count, [9] * count])
            | st.lists(st.sampled_from([1, 2, 8, 9, 400]), min_size=count, max_size=count)
        )
        if sum(rows) > 2000:
            rows = [1] * count
        inputs = random.normal(draw(st.sampled_from([0.0, 0.0, 3.0])), size=(sum(rows), 3)).astype("f4")
        if odd:
            inputs.flat[: len(odd)] = odd[: inputs.size]
        outputs = inputs[:, :1] * 2
        with_keys = draw(st.sampled_from(["none", "one", "some"]))
        keys = [KEYS[1]] * count if with_keys == "one" else [KEYS[each] for each in random.integers(0, 31, count)]
        payload = block(
            inputs,
            outputs,
            rows=rows,
            keys=None if with_keys == "none" else keys,
            arm=draw(st.sampled_from(["stable", "stable", "canary", "pinned"])),
            weight=draw(st.sampled_from([20.0, 20.0, 0.0])),
            seconds=seconds,
            model=draw(st.sampled_from([MODEL] * 9 + ["unknown"])),
        )
        log.add_single(payload) if what == "single" else log.add_block(payload)
    cuts = sorted(draw(st.lists(st.integers(0, len(log.whole)), max_size=3)))
    return log.whole, cuts


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(logs())
def test_a_monitor_of_blocks_knows_what_one_of_single_predictions_knows(log: tuple[list[LogRecord], list[int]]) -> None:
    records, cuts = log
    policy = ModelPolicy()
    np.testing.assert_equal(
        run(records, cuts, policy=policy, whole=True), run(records, cuts, policy=policy, whole=False)
    )


def test_drift_in_blocks_is_found_and_told_as_in_single_predictions() -> None:
    log, random = Log(), np.random.default_rng(3)
    for turn in range(40):
        inputs = random.normal(3.0 if turn > 20 else 0.0, size=(32, 3)).astype("f4")
        for arm, part in (("stable", inputs[:26]), ("canary", inputs[26:])):
            log.add_block(block(part, part[:, :1] * 2, arm=arm, seconds=EPOCH + turn))
        for number in range(log.next - 32, log.next, 4):
            log.label(number, 0, 0.0, seconds=EPOCH + turn)
    cuts = list(range(5, len(log.whole), 5))
    ours, theirs = (run(log.whole, cuts, policy=ModelPolicy(), whole=whole) for whole in (True, False))
    np.testing.assert_equal(ours, theirs)
    assert {alarm["detector"] for alarm in ours[1]} >= {"inputs", "outputs"}
    assert any(reason for kind, reason, _ in ours[6])
    assert ours[2]["counts"]["units"]


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 8), min_size=1, max_size=40)
            | st.lists(st.integers(0, 40) | st.just(700), min_size=1, max_size=40),
            st.none() | st.integers(1, 3),
        ),
        max_size=40,
    ),
    st.integers(1, 400) | st.integers(1, 3000),
)
def test_many_requests_are_admitted_as_they_are_one_by_one(
    sent: list[tuple[list[int], int | None]], window: int
) -> None:
    many, single = CallerShare(window=window), CallerShare(window=window)
    for rows, callers in sent:
        keys = None if callers is None else [f"{each % callers}" if each % 2 else None for each in range(len(rows))]
        expected = [single.admit(keys[place] if keys else None, each) for place, each in enumerate(rows)]
        assert list(many.admit_each(keys, rows)) == expected
        assert many.state == single.state


def test_an_output_of_fp32_is_compared_with_its_label_as_the_reference_was() -> None:
    payload = block(np.zeros((1, 3), "f4"), np.array([[0.1]], "f4"))
    label = FeedbackRecord("x", "2026-01-01T00:00:00Z", "g", 1, MODEL, f"{BOOT}-{1:010x}", 0, 0.1)
    joined = []
    for whole in (True, False):
        join = LabelJoin(lambda model: "y")
        if whole:
            join.add_block(logged(payload))
        else:
            join.add_prediction(logged(payload).prediction(0))
        joined.append(join.add_feedback(label, 0.0))
    assert joined[0] is not None
    assert joined[1] is not None
    assert joined[0].outputs == joined[1].outputs == (float(np.float32(0.1)),)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT64", "INT8", "BOOL"])
@pytest.mark.parametrize("axes", [(3,), (1,), (), (2, 2), (300,)])
def test_every_datatype_and_shape_counts_as_in_single_records(datatype: str, axes: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    given = random.normal(scale=3, size=(40, *axes)).astype(NUMPY_OF[datatype])
    if datatype == "INT64":
        given.flat[:2] = [2**63 - 1, -(2**53) - 1]
    answered = given.reshape(40, -1)[:, :1]
    reference = build_profile(inputs={"x": given[:20]}, outputs={"y": answered[:20]}, columns={})
    whole, single = (
        VersionWatch(MODEL, 1, policy=ModelPolicy(), profile=reference, flush_seconds=0.25) for _ in range(2)
    )
    for rows in ([1] * 40, [10] * 4, [9, 31]):
        read = logged(block(given, answered, rows=rows, datatypes=(datatype, datatype)))
        whole.add_block(read)
        for place in range(read.count):
            single.add_prediction(read.prediction(place))
        assert whole.flush() == single.flush()
        assert msgspec.to_builtins(whole.state()) == msgspec.to_builtins(single.state())
        assert (whole.skipped, single.skipped) == (0, 0)
    assert whole.state().inputs is not None


@pytest.mark.parametrize("axes", [(3,), (2, 2)])
def test_infinities_are_missing_as_they_are_in_single_records(axes: tuple[int, ...]) -> None:
    given = np.zeros((3, *axes), "f4")
    given.flat[:3] = [np.inf, -np.inf, np.nan]
    reference = build_profile(inputs={"x": np.zeros((5, *axes), "f4")}, outputs={"y": np.zeros((5, 1))}, columns={})
    whole, single = (RowBuffer(reference.features, reference.columns) for _ in range(2))
    read = logged(block(given, np.zeros((3, 1), "f4")))
    whole.add_column(read.inputs, read.rows, read.rows)
    for place in range(read.count):
        single.add(read.prediction(place).inputs, 1)
    counts = whole.take()
    assert np.array_equal(counts, single.take())
    assert counts[0].tolist()[-1] == 1


def test_an_output_that_the_reference_does_not_know_is_no_evidence_in_a_trial() -> None:
    log = Log()
    for name in ("y", "z", "y"):
        log.add_block(block(np.zeros((4, 3), "f4"), np.zeros((4, 1), "f4"), names=("x", name), seconds=EPOCH))
    ours, theirs = (run(log.whole, [], policy=ModelPolicy(), whole=whole) for whole in (True, False))
    np.testing.assert_equal(ours, theirs)
    assert ours[2]["counts"]["units"] == [[0.2, 12, 0]]
    assert [counts for _, counts in ours[2]["counts"]["shifts"]["outputs"]["y"]] == [[[0.2, 8, 0]]]


def test_what_overlaps_a_block_that_is_kept_is_a_repetition_and_what_lies_between_is_none() -> None:
    kept = KeptPredictions(10, payload_bytes=1 << 20)
    ones = np.ones((5, 1), "f4")

    def add(first: int, count: int) -> bool:
        return kept.add_block(kept_block(logged(block(ones[:count], ones[:count]), first), with_outputs=True))

    assert [add(1, 3), add(20, 2), add(10, 3)] == [True] * 3
    assert [add(9, 2), add(12, 1), add(10, 3), add(18, 3), add(21, 5)] == [False] * 5
    assert [add(13, 2), len(kept)] == [True, 10]
    # The oldest are forgotten in the order in which they came, wherever their numbers stand.
    assert [add(5, 5), len(kept)] == [True, 10]
    assert [kept.find(f"{BOOT}-{number:010x}") is not None for number in (1, 3, 5, 9, 10, 12, 13, 14, 20, 21)] == [
        *(False, False, True, True, True, True, True, True, False, False)
    ]


def test_the_newest_of_what_is_kept_are_so_many_predictions_also_within_a_block() -> None:
    kept = KeptPredictions(100, payload_bytes=1 << 20)
    for first, count in ((1, 5), (6, 4)):
        values = np.arange(first, first + count, dtype="f4")[:, None]
        kept.add_block(kept_block(logged(block(values, values), first), with_outputs=True))
    kept.add(f"{BOOT}-{10:010x}", kept_block(logged(block(values, values), 10), with_outputs=True).kept(0))
    singles, blocks = kept.newest(7)
    assert [prediction_id for prediction_id, _ in singles] == [f"{BOOT}-{10:010x}"]
    assert [(before, each.first, each.forgotten, each.columns) for before, each in blocks] == [
        (0, 1, 3, None),
        (0, 6, 0, None),
    ]
    again = KeptPredictions(100, payload_bytes=1 << 20)
    again.restore(singles, blocks)
    assert len(again) == 7
    assert [again.find(f"{BOOT}-{number:010x}") is not None for number in range(1, 12)] == [False] * 3 + [True] * 7 + [
        False
    ]
    assert [again.find(prediction_id) is None for prediction_id in ("", "nothing", f"{LABEL_BOOT}-{5:010x}")] == [
        True
    ] * 3


def test_a_tensor_of_another_shape_than_the_references_is_no_evidence() -> None:
    reference = profile()
    watch = VersionWatch(MODEL, 1, policy=ModelPolicy(), profile=reference, flush_seconds=0.25)
    watch.add_block(logged(block(np.zeros((2, 4), "f4"), np.zeros((2, 1), "f4"))))
    watch.flush()
    assert watch.skipped == 1


def reads_of(**changes: Any) -> tuple[LoggedBlock | None, list[PredictionRecord | None]]:
    payload = block(np.ones((2, 3), "f4"), np.ones((2, 1), "f4"), **changes)
    record = LogRecord(KIND_BLOCK, BOOT, 1, payload)
    return BlockReader().read(record), [None for _ in expanded(record)]


@pytest.mark.parametrize(
    "changes",
    [
        {"head": b"no JSON"},
        {"head": b'{"schema":1'},
        {"head": b'{"schema":1,"gateway":"g","model":"m","version":1,"digest":"","arm":"stable","weight":1,"reason":"'},
        {"input_head": b'{"name":"x","datatype":"FP64","shape":['},
        {"input_head": b'{"name":"x","datatype":"FP16","shape":['},
        {"input_head": b'{"name":"x","datatype":"none","shape":['},
        {"input_head": b'{"name":"x","datatype":"FP32","shape":[9,'},
        {"input_head": b'{"name":"z","datatype":"FP32","shape":[1]},{"name":"x","datatype":"FP32","shape":['},
        {"output_head": b"\xff"},
        {"time": b'2026","status":500,"x":"'},
        {"time": b""},
        {"rows": [0, 2]},
    ],
    ids=str,
)
def test_a_block_whose_records_say_anything_else_is_taken_one_by_one(changes: dict[str, Any]) -> None:
    found, records = reads_of(**changes)
    assert found is None
    assert len(records) == 2


def test_a_head_that_brings_a_key_of_its_own_is_taken_one_by_one() -> None:
    head = prediction_head(gateway="g", model=MODEL, version=1, digest="", arm="stable", weight=0.0, reason="weight")
    for more in (b',"key":"abc"', b',"request_id":"r"', b',"error":"e"', b',"sampled":false'):
        assert reads_of(head=head + more)[0] is None
    assert reads_of(head=head + b',"later":{"key":1}')[0] is not None


def test_blocks_that_no_front_writes_are_counted_record_by_record_and_end_nothing(tmp_path: Path) -> None:
    async def take_all() -> Monitor:
        monitor = monitor_in(tmp_path, policy=ModelPolicy(), now=[EPOCH])
        await monitor.start(asyncio.Event())
        good = block(np.ones((4, 3), "f4"), np.ones((4, 1), "f4"))
        monitor.take([LogRecord(KIND_BLOCK, BOOT, 1, good)])
        spoiled = block(np.ones((3, 3), "f4"), np.ones((3, 1), "f4"), head=b"no JSON")
        monitor.take([LogRecord(KIND_BLOCK, BOOT, 5, spoiled)])
        monitor.take([LogRecord(KIND_BLOCK, BOOT, 8, good[:50])])
        monitor.take([LogRecord(KIND_BLOCK, BOOT, 12, b"")])
        monitor.take([LogRecord(KIND_PREDICTION, BOOT, 13, b"")])
        unknown = block(np.ones((2, 3), "f4"), np.ones((2, 1), "f4"), version=9)
        monitor.take([LogRecord(KIND_BLOCK, BOOT, 14, unknown)])
        await monitor.close()
        return monitor

    monitor = asyncio.run(take_all())
    assert monitor.skipped == {"not a record": 3 + 4 + 1 + 1, "unknown version": 2}
    assert monitor.read == 4 + 3 + 4 + 1 + 1 + 2
    assert len(monitor._join._kept) == 4


@settings(deadline=None)
@given(st.data())
def test_labels_join_the_same_rows_of_blocks_and_of_single_predictions_within_the_same_bounds(
    data: st.DataObject,
) -> None:
    limit = data.draw(st.integers(1, 40))
    whole, single = (LabelJoin(lambda model: "y", max_predictions=limit) for _ in range(2))
    joined: tuple[list[LabelledRow], list[LabelledRow]] = ([], [])
    first = 1
    gaps: list[tuple[int, int]] = []  # a model in another partition of a topic: its numbers come later
    for _ in range(data.draw(st.integers(1, 15))):
        if data.draw(st.booleans()):
            rows = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=20))
            if gaps and data.draw(st.booleans()):
                begin, count = gaps.pop(data.draw(st.integers(0, len(gaps) - 1)))
                rows = rows[:count]
                if len(rows) < count:
                    gaps.append((begin + len(rows), count - len(rows)))
            else:
                begin = first + data.draw(st.integers(0, 5))
                if begin > first:
                    gaps.append((first, begin - first))
                first = begin + len(rows)
            values = np.arange(begin, begin + sum(rows), dtype="f4")[:, None]
            keys = [KEYS[place % 3] for place in range(len(rows))]
            read = logged(block(values, values / 3, rows=rows, keys=keys), begin)
            if len(rows) > 1 or data.draw(st.booleans()):
                joined[0].extend(whole.add_block(read))
            else:
                joined[0].extend(whole.add_prediction(read.prediction(0), read.payload(0)))
            for place in range(read.count):
                joined[1].extend(single.add_prediction(read.prediction(place), read.payload(place)))
        else:
            number, row = data.draw(st.integers(1, first + 5)), data.draw(st.integers(0, 2))
            feedback = FeedbackRecord(
                "x", record_time(EPOCH).decode(), "g", 1, MODEL, f"{BOOT}-{number:010x}", row, float(number)
            )
            for found, join in zip(joined, (whole, single), strict=True):
                if (label := join.add_feedback(feedback, 0.0)) is not None:
                    found.append(label)
        if data.draw(st.integers(0, 5)) == 0:
            states = [msgspec.msgpack.encode(join.state()) for join in (whole, single)]
            restored = [LabelJoin(lambda model: "y", max_predictions=limit) for _ in range(2)]
            for join, state in zip(restored, states, strict=True):
                join.restore(msgspec.msgpack.decode(state, type=type(whole.state())), 0.0)
            whole, single = restored
        assert len(whole._kept) == len(single._kept) <= limit
        assert whole._kept._payload_bytes <= 1024 * limit
    # One by one, a payload may no longer fit where columns still do.
    bare = [[msgspec.structs.replace(row, payload=None) for row in rows] for rows in joined]
    assert bare[0] == bare[1]
    assert whole.counts == single.counts
    for ours, theirs in zip(*joined, strict=True):
        assert None in (ours.payload, theirs.payload) or ours.payload == theirs.payload
