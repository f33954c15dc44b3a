"""The small parts of the monitor, each by itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.act import Actor
from gateway.control.alarm import Latch
from gateway.control.change import Status, VersionState
from gateway.control.checkpoint import CheckpointFile
from gateway.control.compare import FixedRerun, compare
from gateway.control.decisions import Move
from gateway.control.errors import Refused, StoreAway
from gateway.control.history import Trials
from gateway.control.join import LabelledRow
from gateway.control.moments import Moments
from gateway.control.reference import are_finite, out_of_reference, output_bins
from gateway.control.share import CallerShare
from gateway.control.versions import FolderVersions
from gateway.drift.profile import bin_indices, build_profile
from gateway.events.records import DecisionRecord, PredictionRecord, TensorRecord, Timings
from gateway.repository.manifest import load_version
from gateway.repository.policy import ModelPolicy, QualityPolicy, load_policy

CHECKOUT = Path(__file__).parents[2]


@given(st.lists(st.tuples(st.sampled_from(["loud", None]), st.integers(1, 300)), min_size=1, max_size=200))
def test_one_caller_never_has_more_than_its_share_of_what_others_sent(sent: list[Any]) -> None:
    share = CallerShare(free=8, share=0.02)
    loud = others = 0
    for caller, rows in sent:
        admitted = share.admit(caller, rows)
        assert 0 <= admitted <= rows
        if caller == "loud":
            loud += admitted
        else:
            others += rows
        assert loud <= max(8, 0.02 * others)


def test_a_flood_leaves_the_share_of_the_others_as_it_is() -> None:
    share = CallerShare()
    for _ in range(100_000):
        share.admit("loud", 1)
    assert sum(share.admit(f"caller-{number}", 1) for number in range(100)) == 100
    assert len(share.state.callers) <= 20_000


@pytest.mark.parametrize("noted", [5_000, 100_000, 300_000])
def test_the_time_of_what_is_long_past_is_told_to_a_hundredth_of_its_age(noted: int) -> None:
    moments = Moments()
    for number in range(1, noted + 1):
        moments.note(number, str(number), total=number // 10)
        assert len(moments.numbers) <= 4096
    for age in (0, 10, 1_000, 4_000, 15_000, 50_000, noted - 1):
        number = max(noted - age, 1)
        known = int(moments.time_of(number) or 0)
        assert number - age / 90 - 1 <= known <= number
        assert moments.known(number) == known
        assert moments.total_of(number) == known // 10


def test_an_alarm_is_reported_once_and_again_after_the_evidence_was_gone() -> None:
    latch = Latch(10.0, callers=3)
    latch.count(3, [None, None, "a"])
    assert [latch.settle(evidence) for evidence in (9.9, 10.0, 12.0)] == [False, True, False]
    assert not latch.settle(0.5)
    latch.count(7, ["a", "a", "b"])
    assert not latch.settle(50.0)
    latch.count(1, ["c"])
    assert latch.settle(50.0)


class Whole(msgspec.Struct):
    number: int


def test_a_checkpoint_is_read_back_or_set_aside(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "deep" / "checkpoint.msgpack", Whole)
    assert file.read() == (None, "")
    file.write(Whole(7))
    file.write(Whole(8))
    assert file.read() == (Whole(8), "")
    good = (tmp_path / "deep" / "checkpoint.msgpack").read_bytes()
    for bad in (b"", b"GWMON001", good[:-1], good[:-1] + b"x", b"GWMON999" + good[8:], b"x" * 100_000):
        (tmp_path / "deep" / "checkpoint.msgpack").write_bytes(bad)
        state, note = file.read()
        assert state is None
        assert "set aside" in note
        assert (tmp_path / "deep" / "checkpoint.msgpack.bad").read_bytes() == bad
        assert file.read() == (None, "")


def shipped_version(models_dir: Path) -> Path:
    folder = models_dir / "bike-demand" / "1"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "model.onnx", "profile.json", "card.md"):
        (folder / name).write_bytes((CHECKOUT / "models" / "bike-demand" / "1" / name).read_bytes())
    return folder


def test_profiles_are_those_the_manifest_hashed(tmp_path: Path) -> None:
    folder = shipped_version(tmp_path)
    states = [VersionState("bike-demand", 1, load_version(folder).digest, "approved")]
    versions = FolderVersions(tmp_path)
    versions.follow(states)
    profile = versions.profile("bike-demand", 1)
    assert profile is not None and profile.loss is not None
    spoiled = (folder / "profile.json").read_bytes().replace(b'"rows": 2', b'"rows": 3')
    (folder / "profile.json").write_bytes(spoiled)
    assert versions.profile("bike-demand", 1) == profile, "what was approved does not change"
    late = FolderVersions(tmp_path)
    late.follow(states)
    assert late.profile("bike-demand", 1) is None
    assert (
        late.notes("bike-demand") == late.news()
        and "not the file that the manifest hashed" in late.notes("bike-demand")[0]
    )
    assert versions.profile("../bike-demand", 1) is None
    assert versions.profile("nobody", 1) is None


@pytest.mark.promise("P15")
@pytest.mark.parametrize(("status", "digest"), [("registered", None), ("rejected", None), ("approved", "sha256:0")])
def test_a_profile_that_nobody_approved_is_not_given(tmp_path: Path, status: Status, digest: str | None) -> None:
    folder = shipped_version(tmp_path)
    versions = FolderVersions(tmp_path)
    assert versions.profile("bike-demand", 1) is None
    versions.follow([VersionState("bike-demand", 1, digest or load_version(folder).digest, status)])
    assert versions.profile("bike-demand", 1) is None
    versions.follow([VersionState("bike-demand", 1, load_version(folder).digest, "approved")])
    if digest is None:
        assert versions.profile("bike-demand", 1) is not None
    else:
        assert "but sha256:0 is approved" in versions.news()[0]


def test_a_profile_that_is_missing_is_said_once_and_looked_for_again(tmp_path: Path) -> None:
    now = [0.0]
    folder = shipped_version(tmp_path)
    versions = FolderVersions(tmp_path, monotonic=lambda: now[0])
    versions.follow([VersionState("bike-demand", 1, load_version(folder).digest, "approved")])
    (folder / "profile.json").rename(tmp_path / "aside")
    said = []
    for _ in range(20):
        now[0] += 1.0
        assert versions.profile("bike-demand", 1) is None
        said += versions.news()
    assert said == [
        "the profile of bike-demand/1 cannot be used, and its drift is not followed: profile.json is missing"
    ]
    assert versions.notes("bike-demand") == said
    (tmp_path / "aside").rename(folder / "profile.json")
    now[0] += 5.0
    assert versions.profile("bike-demand", 1) is not None
    assert versions.notes("bike-demand") == []


def test_nothing_is_kept_of_a_version_that_is_no_longer_approved(tmp_path: Path) -> None:
    folder = shipped_version(tmp_path)
    approved = VersionState("bike-demand", 1, load_version(folder).digest, "approved")
    versions = FolderVersions(tmp_path)
    versions.follow([approved, VersionState("bike-demand", 2, "sha256:2", "approved")])
    assert versions.profile("bike-demand", 1) is not None
    assert versions.profile("bike-demand", 2) is None
    assert len(versions.notes("bike-demand")) == 1
    versions.follow([])
    assert versions.notes("bike-demand") == []
    shutil.rmtree(folder)
    versions.follow([approved])
    assert versions.profile("bike-demand", 1) is None, "it is read again"


def test_the_last_good_policy_stays_while_its_file_is_broken_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "m" / "model.toml"
    path.parent.mkdir()
    path.write_text('[quality]\noutput = "count"\n')
    now = [0.0]
    versions = FolderVersions(tmp_path, monotonic=lambda: now[0])
    assert versions.policy("m").quality.output == "count"
    path.write_text("[qality]\n")
    assert versions.policy("m").quality.output == versions.policy("m").quality.output == "count"
    (said,) = versions.news()
    assert "qality" in said and said.endswith("; the last policy stays")
    path.unlink()
    for _ in range(20):
        now[0] += 1.0
        assert versions.policy("m").quality.output == "count"
    assert [f"{path} is gone; the last policy stays"] == versions.news() == versions.notes("m")
    path.write_text('[quality]\noutput = "other"\n')
    assert versions.policy("m").quality.output == "other"
    assert versions.notes("m") == []


def test_an_output_that_labels_cannot_speak_of_is_said_once_until_it_is_mended(tmp_path: Path) -> None:
    digest = load_version(shipped_version(tmp_path)).digest
    path = tmp_path / "bike-demand" / "model.toml"
    path.write_text('[quality]\noutput = "cuont"\n')
    versions = FolderVersions(tmp_path)
    assert versions.policy("bike-demand").quality.output == "cuont"
    assert versions.news() == [], "no version is approved yet that could have it"
    for _ in range(3):
        versions.follow([VersionState("bike-demand", 1, digest, "approved")])
        versions.policy("bike-demand")
    said = (
        f"{path}: quality.output names 'cuont', which is no output of an approved version, so no label can be used; "
        "expected some of count"
    )
    assert versions.news() == versions.notes("bike-demand") == [said]
    path.write_text('[quality]\noutput = "count"\n')
    versions.policy("bike-demand")
    assert versions.notes("bike-demand") == []


def test_a_policy_that_is_written_while_it_is_read_is_taken_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m" / "model.toml"
    path.parent.mkdir()
    path.write_text('[quality]\noutput = "count"\n')
    versions = FolderVersions(tmp_path)
    assert versions.policy("m").quality.output == "count"
    path.write_text("")

    def and_meanwhile(folder: Path) -> ModelPolicy:
        read = load_policy(folder)
        path.write_text('[quality]\noutput = "other"\n')
        return read

    monkeypatch.setattr("gateway.control.versions.load_policy", and_meanwhile)
    assert versions.policy("m").quality.output == "count", "half of it, as when an editor has emptied it"
    monkeypatch.undo()
    assert versions.policy("m").quality.output == "other"
    assert versions.news() == []


def test_a_policy_that_is_broken_from_the_start_is_said_once(tmp_path: Path) -> None:
    now = [0.0]
    path = tmp_path / "m" / "model.toml"
    path.parent.mkdir()
    path.write_text("[qality]\n")
    versions = FolderVersions(tmp_path, monotonic=lambda: now[0])
    said = []
    for _ in range(20):
        now[0] += 1.0
        assert versions.policy("m") == ModelPolicy()
        said += versions.news()
    assert len(said) == 1 and said[0].endswith("; the default policy holds")


def test_a_model_without_a_policy_has_the_default_one_and_no_note(tmp_path: Path) -> None:
    versions = FolderVersions(tmp_path)
    assert versions.policy("m") == versions.policy("m") == ModelPolicy()
    assert versions.news() == []


def decision(seq: int, kind: str, *, before: Any = None, after: Any = None, evidence: Any = None) -> DecisionRecord:
    named = {"before": before or {}, "after": after or {}, "evidence": evidence or {}}
    time = f"2026-01-01T00:00:{seq:02}.000Z"
    return DecisionRecord(seq, str(seq), time, "m", kind, "a", "r", prev_hash="", hash="", **named)


def test_a_trial_begins_with_its_canary_and_again_with_its_rollout() -> None:
    trials = Trials()
    trials.take(decision(1, "route_set", after={"trial": 1, "weight": 10.0}))
    trials.take(decision(2, "route_set", before={"weight": 10.0}, after={"trial": 1, "weight": 20.0}))
    assert trials.starts["m"].began == "2026-01-01T00:00:01.000Z"
    trials.take(decision(3, "rollout_started", after={"trial": 1, "rollout": {"id": "r3"}}))
    trials.take(decision(4, "rollout_paused", after={"trial": 1}, evidence={"metric": "outputs"}))
    trials.take(decision(5, "rollout_resumed", after={"trial": 1}))
    trials.take(decision(3, "rollout_started", after={"trial": 9, "rollout": {"id": "old"}}))
    start = trials.starts["m"]
    assert (start.trial, start.rollout, start.began) == (1, "r3", "2026-01-01T00:00:03.000Z")
    assert (start.resumed, start.looked_at) == ("2026-01-01T00:00:05.000Z", ["outputs"])
    trials.take(decision(6, "rollout_thawed", after={"trial": 1}))
    start = trials.starts["m"]
    assert (start.rollout, start.began, start.resumed) == ("r3", *["2026-01-01T00:00:06.000Z"] * 2)
    trials.take(decision(7, "route_set", after={"trial": 2, "weight": 5.0}))
    assert trials.starts["m"].began == "2026-01-01T00:00:07.000Z"


def test_a_trial_begins_again_when_its_canary_is_held_against_another_version() -> None:
    trials = Trials()
    route = {"trial": 1, "stable": 1, "canary": 3, "weight": 10.0}
    trials.take(decision(1, "route_set", after=route))
    trials.take(decision(2, "route_set", before=route, after={**route, "stable": 2}))
    assert trials.starts["m"].began == "2026-01-01T00:00:02.000Z"
    trials.take(decision(3, "route_set", before={**route, "stable": 2}, after={**route, "stable": 2, "weight": 20.0}))
    assert trials.starts["m"].began == "2026-01-01T00:00:02.000Z"
    trials.take(decision(4, "route_set", before={**route, "stable": 2}, after={**route, "weight": 0.0}))
    assert trials.starts["m"].began == "2026-01-01T00:00:02.000Z"


class MoodyStore:
    """Refuses, is away or records, as it is told."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.done: list[str] = []

    def decide(self, model: str, *, kind: str, **_: Any) -> DecisionRecord:
        return self._record(kind)

    def move_rollout(self, rollout_id: str, event: Any, **_: Any) -> DecisionRecord:
        return self._record(event)

    def rollback(self, model: str, **_: Any) -> DecisionRecord:
        return self._record("rollback")

    def _record(self, kind: str) -> DecisionRecord:
        if self.fault is not None:
            raise self.fault
        self.done.append(kind)
        return decision(len(self.done), kind)


def test_moves_are_kept_while_the_store_is_away_and_given_up_when_it_refuses() -> None:
    store, notes = MoodyStore(), []
    actor = Actor(store, note=notes.append)
    back = Move("m", "take_back", "rollback", "r", {}, version=2)
    store.fault = StoreAway("away")
    actor.add([back, Move("m", "record", "harm", "r", {})])
    actor.add([back])
    assert actor.act() == [] and actor.act() == []
    assert (len(actor.pending), len(notes)) == (2, 1)
    store.fault = None
    assert len(actor.act()) == 2
    assert store.done == ["rollback", "harm"]
    store.fault = Refused("somebody was faster")
    actor.add([back])
    assert actor.act() == [] and actor.pending == []
    assert "was refused" in notes[-1]


def test_a_pause_goes_before_the_step_that_waits_for_the_store() -> None:
    store = MoodyStore()
    store.fault = StoreAway("away")
    actor = Actor(store, note=[].append)
    step = Move("m", "rollout", "advance", "r", {}, event="advance", rollout="rollout-1", step=0)
    actor.add([Move("m", "record", "harm", "r", {}), step])
    actor.add([msgspec.structs.replace(step, event="pause", rollout=name) for name in ("rollout-1", "rollout-2")])
    store.fault = None
    actor.act()
    assert store.done == ["harm", "pause", "advance", "pause"]


def test_while_the_store_stays_away_records_are_given_up_and_moves_of_traffic_never() -> None:
    store, notes = MoodyStore(), []
    store.fault = StoreAway("away")
    actor = Actor(store, note=notes.append)
    actor.add([Move("m", "take_back", "rollback", "r", {}, version=2)])
    actor.add([Move("m", "record", f"kind-{number}", "r", {}) for number in range(1_500)])
    assert (len(actor.pending), actor.lost) == (1_000, 501)
    assert actor.pending[0].kind == "rollback"
    assert len([note for note in notes if "given up" in note]) == 501


def labelled(number: int, *, rows: int = 2, row: int = 1) -> LabelledRow:
    values = [0.0] * (rows - 1) + [float(number)]
    record = PredictionRecord(
        id=str(number),
        time="2026-01-01T00:00:00Z",
        gateway="g",
        seq=1,
        model="m",
        version=2,
        digest="",
        arm="stable",
        weight=0.0,
        reason="",
        status=200,
        rows=rows,
        timings=Timings(),
        inputs=[TensorRecord("x", "INT32", (rows, 1), [int(value) for value in values])],
        outputs=[],
        parameters={},
    )
    payload = msgspec.json.encode(record)
    return LabelledRow("m", 2, "stable", 0.0, None, str(number), row, (0.0,), float(number), "", "", 0.0, payload)


def run_compare(rerun: FixedRerun, rows: list[LabelledRow], **changes: Any) -> Any:
    named: dict[str, Any] = {
        "model": "m",
        "version": 1,
        "policy": QualityPolicy(),
        "miss_above": 0.5,
        "false_rollback": 0.01,
        "lookup": lambda prediction_id: None,
        "in_time": lambda: True,
    }
    return compare(rows, rerun, **(named | changes))


def test_each_row_runs_alone_with_its_own_type_and_shape() -> None:
    seen = []

    def version_1(inputs: Any) -> Any:
        seen.append((inputs["x"].dtype, inputs["x"].shape))
        return {"y": inputs["x"]}

    comparison = run_compare(FixedRerun({("m", 1): version_1}), [labelled(number) for number in range(1, 41)])
    assert (comparison.better, comparison.rows) == (True, 40)
    assert set(seen) == {(np.dtype("i4"), (1, 1))}


def test_a_comparison_goes_on_where_an_earlier_one_ended() -> None:
    rerun = FixedRerun({("m", 1): lambda inputs: {"y": inputs["x"]}})
    first = run_compare(rerun, [labelled(number) for number in range(1, 6)])
    assert (first.better, first.rows) == (False, 5)
    second = run_compare(rerun, [labelled(number) for number in range(6, 21)], earlier=first.pairs)
    assert (second.better, second.rows) == (True, 20)


@pytest.mark.parametrize(
    ("version_1", "note"),
    [
        (lambda inputs: {}, "has no output"),
        (lambda inputs: {"y": np.array([np.nan])}, "is not finite"),
        (lambda inputs: {"y": np.array(["text"])}, "is not a number"),
        (lambda inputs: {"y": np.array([])}, "is not finite"),
    ],
)
def test_a_version_that_gives_no_number_is_not_compared(version_1: Any, note: str) -> None:
    comparison = run_compare(FixedRerun({("m", 1): version_1}), [labelled(number) for number in range(10)])
    assert comparison.better is None
    assert note in comparison.note


def test_rows_that_were_not_logged_whole_are_left_out() -> None:
    gone = msgspec.structs.replace(labelled(1), payload=None)
    comparison = run_compare(FixedRerun({("m", 1): lambda inputs: {"y": inputs["x"]}}), [gone])
    assert comparison.better is None
    assert "no longer in the log" in comparison.note


def test_a_comparison_ends_in_time() -> None:
    rerun = FixedRerun({("m", 1): lambda inputs: {"y": inputs["x"]}})
    comparison = run_compare(rerun, [labelled(1)] * 100, in_time=iter([True] * 3 + [False]).__next__)
    assert (comparison.rows, comparison.note) == (3, "the time for it was over")


@given(st.lists(st.lists(st.one_of(st.floats(-100, 100), st.none()), min_size=1, max_size=3), min_size=1, max_size=6))
def test_a_request_is_out_of_its_reference_when_one_of_its_rows_is(sent: list[list[float | None]]) -> None:
    values = np.linspace(-50.0, 50.0, 101)
    profile = build_profile(inputs={"x": values}, outputs={"y": values}, columns={})
    records = []
    for rows in sent:
        tensors = [TensorRecord("x", "FP64", (len(rows), 1), list(rows))]
        outputs = [TensorRecord("y", "FP64", (len(rows), 1), list(rows))]
        records.append(msgspec.structs.replace(blank(), rows=len(rows), inputs=tensors, outputs=outputs))
    strange = out_of_reference(records, profile, ignore=())
    assert strange == [any(value is None or not -55.0 <= value <= 55.0 for value in rows) for rows in sent]
    assert out_of_reference(records, profile, ignore=("x",)) == [False] * len(sent)
    firsts = np.array([np.nan if rows[0] is None else rows[0] for rows in sent])
    assert output_bins(records, profile)["y"] == bin_indices(profile.outputs["y"], firsts).tolist()
    assert [are_finite(record) for record in records] == [[None not in rows] for rows in sent]


def test_rows_of_another_width_cost_the_others_nothing() -> None:
    values = np.linspace(-50.0, 50.0, 202).reshape(-1, 2)
    profile = build_profile(inputs={"x": values}, outputs={"y": values}, columns={})
    records = []
    for width in (3, 2, 1, 2, 2):
        inputs = [TensorRecord("x", "FP64", (1, width), [99.0] * width)]
        outputs = [TensorRecord("y", "FP64", (1, width), [0.0] * width)]
        records.append(msgspec.structs.replace(blank(), inputs=inputs, outputs=outputs))
    fits = [False, True, False, True, True]
    assert out_of_reference(records, profile, ignore=()) == fits
    assert {name: [each >= 0 for each in bins] for name, bins in output_bins(records, profile).items()} == {
        "y[0]": fits,
        "y[1]": fits,
    }


def blank() -> PredictionRecord:
    payload = labelled(1).payload
    assert payload is not None
    return msgspec.json.decode(payload, type=PredictionRecord)
