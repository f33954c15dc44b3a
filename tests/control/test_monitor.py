"""Evidence becomes decisions: what rolls back, what does not, and that nothing counts twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.control.errors import StoreAway
from gateway.control.gauges import CellMetrics
from gateway.control.history import TrialStart
from gateway.control.model import ModelWatch
from gateway.control.trial import Trial
from gateway.control.versions import FixedVersions, FolderVersions
from gateway.drift.profile import Profile, build_profile
from gateway.events.records import KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION, TensorRecord
from gateway.predictions.segments import LogRecord
from gateway.repository.policy import DriftPolicy, LoggingPolicy, ModelPolicy, RolloutPolicy
from gateway.rollout.errors import EvidenceError, PlanError
from gateway.rollout.plan import Plan
from gateway.routing.table import Route
from gateway.telemetry.cells import CellFile


def send(world: Any, requests: int, *, labels: bool = True, error: float = 1.0, start: int = 0, **changes: Any) -> None:
    """Requests on the stable version, one an hour, each labelled with an error of this size."""
    for hour in range(start, start + requests):
        found = world.predict(1, event_hour=hour, **changes)
        if labels:
            world.label(found, world.answer_of(found) + world.random.normal(0.0, error))


def send_on_arms(world: Any, requests: int, *, weight: float = 50.0, canary: Any = None, stable: Any = None) -> None:
    """Requests drawn between version 1 and version 2; `canary` and `stable` take the world and make one request."""
    for _ in range(requests):
        on_canary = world.random.random() < weight / 100.0
        (canary if on_canary else stable)(world, 2 if on_canary else 1, "canary" if on_canary else "stable", weight)


def good(world: Any, version: int, arm: str, weight: float) -> None:
    found = world.predict(version, arm=arm, weight=weight)
    world.label(found, world.answer_of(found) + world.random.normal(0.0, 1.0))


def start_trial(world: Any, *, weight: float = 50.0) -> None:
    world.store.set_route("m", stable=1, canary=2, weight=weight, actor="tester", reason="a trial")
    world.now[0] += 2.0


def test_quiet_traffic_decides_nothing(make_world: Any) -> None:
    world = make_world()
    send(world, 3_000)
    monitor = world.run()
    assert world.kinds() == []
    assert monitor.models["m"].watches[1].quality.rows == 3_000
    assert monitor.skipped == {}


def test_labels_without_an_idea_of_a_miss_have_no_miss_rate_and_the_trial_says_what_is_missing(
    make_world: Any, make_profile: Any
) -> None:
    unlabelled = msgspec.structs.replace(make_profile(), loss=None)
    world = make_world({1: unlabelled, 2: unlabelled})
    world.store.start_rollout("m", 2, plan={"steps": [50]}, actor="tester", reason="a rollout")
    world.now[0] += 2.0
    send_on_arms(world, 400, canary=good, stable=good)
    world.run().write_status()
    seen = json.loads((world.folder / "monitor" / "status.json").read_text())["models"]["m"]
    assert seen["feedback"] == {"joined": 400, "repeated": 0, "corrected": 0, "orphan": 0, "invalid": 0}
    quality = seen["versions"]["1"]["quality"]
    assert quality["rows"] > 100 and quality["mean_loss"] > 0
    assert (quality["misses"], quality["miss_rate"]) == (0, None)
    verdict = seen["trial"]["verdict"]
    assert (verdict["kind"], verdict["metric"]) == ("hold", "quality")
    assert "what a miss is" in verdict["reason"] and "miss_above" in verdict["needs"]


def test_decay_of_the_stable_version_is_reported_once_with_the_week_it_began(make_world: Any) -> None:
    world = make_world()
    send(world, 1_500)
    send(world, 1_500, error=2.5, start=1_500)
    world.run()
    harm, retrain = [decision for decision in world.decisions() if decision.kind != "warning"]
    assert (harm.kind, retrain.kind) == ("harm", "retrain_requested")
    # Hour 1,500 of 2012 is 3 March 2012, in the week of 27 February.
    assert harm.evidence["since_week"] in ("2012-02-27", "2012-03-05")
    assert "there is no previous approved version" in harm.reason
    assert retrain.evidence["window"]["start"] == harm.evidence["since"]
    assert world.store.snapshot().routes["m"].stable == 1


def test_with_labels_withheld_decay_is_seen_in_the_inputs_and_nothing_is_rolled_back(make_world: Any) -> None:
    world = make_world()
    send(world, 1_000, labels=False)
    for hour in range(1_000, 2_000):
        world.predict(1, temp=float(world.random.normal(1.0, 1.0)), event_hour=hour)
    world.run()
    assert "world_changed" in world.kinds()
    assert not {"rollback", "harm", "retrain_requested"} & set(world.kinds())
    changed = next(decision for decision in world.decisions() if decision.kind == "world_changed")
    assert list(changed.evidence["features"]) == ["temp"]
    # Hour 1,000 is 11 February 2012, in the week of 6 February.
    assert changed.evidence["since_week"] == "2012-02-06"


def test_drift_in_the_outputs_of_both_arms_alike_rolls_nothing_back(make_world: Any, make_profile: Any) -> None:
    world = make_world(policy=ModelPolicy(drift=DriftPolicy(outputs="rollback")))
    start_trial(world)
    for _ in range(1_500):
        on_canary = bool(world.random.random() < 0.5)
        shifted = float(world.random.normal(3.0, 1.0))
        world.predict(2 if on_canary else 1, arm="canary" if on_canary else "stable", weight=50.0, x=shifted)
    world.run()
    assert "world_changed" in world.kinds()
    assert "rollback" not in world.kinds()
    assert world.store.snapshot().routes["m"].canary == 2


def test_a_canary_whose_inputs_lie_outside_its_own_reference_is_taken_back(make_world: Any, make_profile: Any) -> None:
    world = make_world({1: make_profile(), 2: make_profile(shift=40.0)})
    start_trial(world)
    send_on_arms(world, 400, canary=good, stable=good)
    world.run()
    assert "rollback" in world.kinds()
    rollback = next(decision for decision in world.decisions() if decision.kind == "rollback")
    assert rollback.evidence["metric"] == "inputs_out_of_range"
    assert rollback.evidence["certificate"]["counts"]["harm"]["inputs_out_of_range"]
    route = world.store.snapshot().routes["m"]
    assert (route.stable, route.canary, route.weight) == (1, None, 0.0)


def test_a_canary_that_misses_more_labels_is_taken_back(make_world: Any) -> None:
    def bad(world: Any, version: int, arm: str, weight: float) -> None:
        found = world.predict(version, arm=arm, weight=weight)
        world.label(found, world.answer_of(found) + world.random.normal(0.0, 4.0))

    world = make_world()
    start_trial(world)
    send_on_arms(world, 800, canary=bad, stable=good)
    world.run()
    rollback = next(decision for decision in world.decisions() if decision.kind == "rollback")
    assert rollback.evidence["metric"] == "quality"
    assert (rollback.before["canary"], rollback.after["canary"]) == (2, None)


def test_a_metric_of_the_judge_may_ask_for_retraining(make_world: Any, make_profile: Any) -> None:
    policy = ModelPolicy(rollout=RolloutPolicy(inputs="retrain"))
    world = make_world({1: make_profile(), 2: make_profile(shift=40.0)}, policy=policy)
    start_trial(world)
    began = world.store.decisions(limit=100)[-1].time
    for _ in range(4):
        send_on_arms(world, 100, canary=good, stable=good)
        world.now[0] += 10.0
    last = list(world.predictions.values())[-1].time
    world.run(flush_every=10_000)
    assert "rollback" not in world.kinds()
    [wish] = [decision for decision in world.decisions() if decision.kind == "retrain_requested"]
    assert wish.evidence["metric"] == "inputs_out_of_range"
    assert wish.evidence["window"] == {"start": began, "end": last}


def test_a_rollout_goes_step_by_step_to_promotion_on_labels(make_world: Any) -> None:
    world = make_world()
    plan = {"steps": [10.0, 50.0], "worse_ratio": 2.0}
    world.store.start_rollout("m", 2, plan=plan, actor="tester", reason="a rollout")
    world.now[0] += 2.0

    def better(world: Any, version: int, arm: str, weight: float) -> None:
        found = world.predict(version, arm=arm, weight=weight)
        world.label(found, world.answer_of(found) + world.random.normal(0.0, 0.5))

    def worse(world: Any, version: int, arm: str, weight: float) -> None:
        found = world.predict(version, arm=arm, weight=weight)
        world.label(found, world.answer_of(found) + world.random.normal(0.0, 2.0))

    send_on_arms(world, 3_000, weight=10.0, canary=better, stable=worse)
    world.run()
    assert world.kinds().count("rollout_advanced") == 1
    world.now[0] += 2.0
    send_on_arms(world, 1_000, weight=50.0, canary=better, stable=worse)
    world.run()
    assert world.kinds()[-1] == "rollout_promoted" or "rollout_promoted" in world.kinds()
    assert world.store.snapshot().routes["m"].stable == 2


def test_without_a_rollout_the_judge_never_promotes(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    send_on_arms(world, 3_000, canary=good, stable=good)
    world.run()
    assert world.kinds() == []


def test_a_rollout_without_labels_is_never_promoted_and_paused_when_its_time_is_over(make_world: Any) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={"max_hours": 1.0}, actor="tester", reason="a rollout")
    world.now[0] += 2.0
    send_on_arms(
        world,
        1_000,
        weight=10.0,
        canary=lambda world, version, arm, weight: world.predict(version, arm=arm, weight=weight),
        stable=lambda world, version, arm, weight: world.predict(version, arm=arm, weight=weight),
    )
    world.run()
    assert world.kinds() == []
    world.now[0] += 3_600.0
    world.run()
    assert world.kinds() == ["rollout_expired"]
    assert world.store.rollout("m").phase == "paused"
    assert "until a person decides" in world.decisions()[0].reason


def test_a_previous_version_that_shows_itself_better_only_later_is_gone_back_to_then(make_world: Any) -> None:
    world = make_world()
    world.store.set_route("m", stable=2, actor="tester", reason="version 1 is the previous one")
    asked = []

    def version_1(inputs: Any) -> Any:
        asked.append(inputs)
        return {"y": inputs["x"] + inputs["temp"] + (3.0 if len(asked) > 200 else 0.0)}

    world.rerun = type(world.rerun)({("m", 1): version_1})
    for _ in range(1_000):
        found = world.predict(2)
        world.label(found, world.answer_of(found) + 3.0)
    world.run()
    assert [kind for kind in world.kinds() if kind != "warning"] == ["harm", "retrain_requested", "rollback"]
    assert world.store.snapshot().routes["m"].stable == 1


@pytest.mark.parametrize(("previous_error", "goes_back"), [(0.0, True), (3.0, False)])
def test_proven_harm_goes_back_only_to_a_previous_version_that_does_better(
    make_world: Any, previous_error: float, goes_back: bool
) -> None:
    world = make_world()
    world.store.set_route("m", stable=2, actor="tester", reason="version 1 is the previous one")
    # The truth moves by 3 and version 1, unlike version 2, knows it (or is as wrong).
    known = lambda inputs: {"y": inputs["x"] + inputs["temp"] + 3.0 - previous_error}  # noqa: E731
    world.rerun = type(world.rerun)({("m", 1): known})
    for hour in range(1_200):
        found = world.predict(2, event_hour=hour)
        world.label(found, world.answer_of(found) + (3.0 if hour > 600 else 0.0) + world.random.normal(0.0, 0.5))
    world.run()
    assert world.store.snapshot().routes["m"].stable == (1 if goes_back else 2)
    decision = next(each for each in world.decisions() if each.kind == ("rollback" if goes_back else "harm"))
    assert decision.evidence["comparison"]["better"] is goes_back
    assert decision.evidence["comparison"]["rows"] >= 30
    assert ("retrain_requested" in world.kinds()) is not goes_back


def test_harm_with_a_previous_version_that_does_not_run_rolls_nothing_back(make_world: Any) -> None:
    world = make_world()
    world.store.set_route("m", stable=2, actor="tester", reason="version 1 is the previous one")
    for _ in range(600):
        found = world.predict(2)
        world.label(found, world.answer_of(found) + 5.0)
    world.run()
    harm = next(decision for decision in world.decisions() if decision.kind == "harm")
    assert "could not be compared: m version 1 does not run" in harm.reason
    assert world.store.snapshot().routes["m"].stable == 2


def test_a_previous_version_that_is_no_longer_approved_is_never_gone_back_to(make_world: Any) -> None:
    world = make_world()
    world.store.set_route("m", stable=2, actor="tester", reason="version 1 is the previous one")
    world.store.reject("m", 1, actor="tester", reason="it is bad")
    for _ in range(600):
        found = world.predict(2)
        world.label(found, world.answer_of(found) + 5.0)
    world.run()
    assert "rollback" not in world.kinds()


@pytest.mark.promise("P12")
def test_one_client_that_floods_errors_takes_no_canary_back(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    send_on_arms(world, 300, canary=good, stable=good)
    for _ in range(2_000):
        world.predict(2, arm="canary", weight=50.0, key="feedfacefeedface", status=500, outputs=[])
    send_on_arms(world, 300, canary=good, stable=good)
    world.run()
    assert world.kinds() == []
    assert world.store.snapshot().routes["m"].canary == 2


@pytest.mark.promise("P12")
def test_one_client_neither_raises_nor_silences_an_alarm_of_harm(make_world: Any) -> None:
    world = make_world()
    send(world, 500)
    for _ in range(2_000):
        found = world.predict(1, key="feedfacefeedface")
        world.label(found, 1e6)
    send(world, 500)
    world.run()
    assert not {"harm", "rollback"} & set(world.kinds())
    # The same client sends perfect labels in a flood while everybody else is harmed.
    for hour in range(600):
        for _ in range(4):
            found = world.predict(1, key="feedfacefeedface")
            world.label(found, world.answer_of(found))
        send(world, 1, error=4.0, start=hour)
    world.run()
    assert "harm" in world.kinds()


@pytest.mark.promise("P12")
def test_no_caller_silences_an_alarm_with_the_time_it_gives(make_world: Any) -> None:
    world = make_world()
    for hour in range(1_000):
        changes = {"parameters": {"event_time": f"2012-01-{1 + hour // 40:02}\x1b10:00:00"}}
        found = world.predict(1, **changes)
        world.label(found, world.answer_of(found) + world.random.normal(0.0, 4.0))
    world.run()
    harm = next(decision for decision in world.decisions() if decision.kind == "harm")
    assert "since 2012-01-01T10:00 (week of 2011-12-26)" in harm.reason
    assert not any("refused" in note for note in world.notes)


@pytest.mark.promise("P12")
def test_one_request_with_many_rows_raises_no_alarm(make_world: Any) -> None:
    world = make_world()
    send(world, 500)
    found = world.predict(1, rows=5_000, x=80.0, temp=80.0)
    for row in range(5_000):
        world.label(found, 1e6, row=row)
    send(world, 500)
    world.run()
    assert world.kinds() == []


@pytest.mark.promise("P12")
def test_pinned_requests_are_no_evidence(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    for _ in range(1_000):
        found = world.predict(2, arm="pinned", weight=50.0, x=80.0)
        world.label(found, 1e6)
        world.predict(2, arm="pinned", weight=50.0, status=500, outputs=[])
    send_on_arms(world, 300, canary=good, stable=good)
    monitor = world.run()
    assert world.kinds() == []
    assert monitor.models["m"].watches[2].quality.rows < 300


def test_who_pins_a_version_does_not_have_it_watched(make_world: Any) -> None:
    world = make_world()
    for version in (2, 3):
        found = world.predict(version, arm="pinned")
        world.label(found, 0.0)
    world.predict(1, arm="pinned")
    assert set(world.run().models["m"].watches) == {1}


def test_a_version_that_is_off_the_route_and_not_approved_is_watched_no_longer(make_world: Any, tmp_path: Any) -> None:
    world = make_world()
    cells = CellFile(tmp_path / "monitor.cells")
    world.metrics = CellMetrics(cells)
    start_trial(world)
    send_on_arms(world, 200, canary=good, stable=good)
    world.store.set_route("m", stable=3, actor="tester", reason="another one")
    world.predict(3)

    def seen(monitor: Any) -> tuple[set[int], set[str]]:
        shown = {dict(series)["version"] for name, series in world.metrics._shown if name == "gateway_drift_evidence"}
        return set(monitor.models["m"].watches), shown

    async def all_of_it() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        await world.feed(monitor)
        monitor.write_status()
        assert seen(monitor) == ({1, 2, 3}, {"1", "2", "3"})
        for version in (1, 2):
            world.store.reject("m", version, actor="tester", reason="retired")
        await monitor.flush()
        monitor.write_status()
        # Version 1 is the previous one.
        assert seen(monitor) == ({1, 3}, {"1", "3"})
        gone = {"model": "m", "version": "2", "feature": "temp"}
        assert np.isnan(cells.gauge("gateway_drift_evidence", gone).value)
        await monitor.close()

    asyncio.run(all_of_it())
    cells.close()


def test_a_version_that_was_retired_while_the_monitor_was_down_is_not_taken_up_again(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    send_on_arms(world, 200, canary=good, stable=good)
    state = world.run().models["m"].state()
    assert set(state.watches) == {1, 2}
    again = ModelWatch(Route("m", stable=1), policy=ModelPolicy(), versions=world.versions, flush_seconds=0.25)
    assert again.restore(state, approved=lambda version: False) == []
    assert set(again.watches) == {1}


def test_records_from_before_the_trial_are_no_evidence_in_it(make_world: Any) -> None:
    world = make_world()
    for _ in range(500):
        world.predict(2, arm="canary", weight=50.0, status=500, outputs=[])
        world.predict(1, arm="stable", weight=50.0)
    world.now[0] += 10.0
    start_trial(world)
    send_on_arms(world, 300, canary=good, stable=good)
    world.run()
    assert world.kinds() == []


def wide(columns: int) -> Profile:
    """A reference of x and temp, and of one output with so many columns, all N(0, 1)."""
    random = np.random.default_rng(0)
    inputs = {name: random.normal(size=(2_000, 1)) for name in ("x", "temp")}
    return build_profile(inputs=inputs, outputs={"y": random.normal(size=(2_000, columns))}, columns={})


def test_a_canary_with_many_outputs_is_judged_by_the_first_of_them(make_world: Any) -> None:
    def answer(world: Any, version: int, arm: str, weight: float) -> None:
        values = world.random.normal(2.0 if arm == "canary" else 0.0, 1.0, 80).tolist()
        world.predict(version, arm=arm, weight=weight, outputs=[TensorRecord("y", "FP64", (1, 80), values)])

    profile = wide(80)
    world = make_world({1: profile, 2: profile}, policy=ModelPolicy(rollout=RolloutPolicy(outputs="rollback")))
    start_trial(world)
    send_on_arms(world, 400, canary=answer, stable=answer)
    world.run()
    rollback = next(decision for decision in world.decisions() if decision.kind == "rollback")
    assert rollback.evidence["metric"] == "outputs"
    assert set(rollback.evidence["certificate"]["counts"]["shifts"]["outputs"]) == {f"y[{n}]" for n in range(64)}
    assert not any("anew" in note for note in world.notes)


def test_outputs_that_are_names_take_no_place_among_the_outputs_that_are_judged(make_world: Any) -> None:
    def answer(world: Any, version: int, arm: str, weight: float) -> None:
        value = world.random.normal(2.0 if arm == "canary" else 0.0, 1.0)
        outputs = [TensorRecord("names", "BYTES", (1, 64), ["a"] * 64), TensorRecord("y", "FP64", (1, 1), [value])]
        world.predict(version, arm=arm, weight=weight, outputs=outputs)

    random = np.random.default_rng(0)
    inputs = {name: random.normal(size=(2_000, 1)) for name in ("x", "temp")}
    outputs = {"names": np.full((2_000, 64), "a", dtype=object), "y": random.normal(size=(2_000, 1))}
    profile = build_profile(inputs=inputs, outputs=outputs, columns={})
    world = make_world({1: profile, 2: profile}, policy=ModelPolicy(rollout=RolloutPolicy(outputs="rollback")))
    start_trial(world)
    send_on_arms(world, 400, canary=answer, stable=answer)
    world.run()
    rollback = next(decision for decision in world.decisions() if decision.kind == "rollback")
    assert set(rollback.evidence["certificate"]["counts"]["shifts"]["outputs"]) == {"y"}


def test_a_trial_that_fails_costs_nothing_that_is_known_of_the_versions(make_world: Any, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise EvidenceError("one too many")

    world = make_world()
    start_trial(world)
    send_on_arms(world, 300, canary=good, stable=good)
    monkeypatch.setattr(Trial, "flush", fail)
    monitor = world.run()
    assert sum(watch.quality.rows for watch in monitor.models["m"].watches.values()) == 300
    assert monitor.models["m"].trial is not None
    assert [note for note in world.notes if "m/2 misses evidence" in note and "one too many" in note] == world.notes
    assert len(world.notes) == 1


def test_failing_requests_of_the_canary_take_it_back(make_world: Any) -> None:
    def failing(world: Any, version: int, arm: str, weight: float) -> None:
        world.predict(version, arm=arm, weight=weight, status=500, outputs=[], error="the model failed")

    world = make_world()
    start_trial(world, weight=10.0)
    send_on_arms(world, 400, weight=10.0, canary=failing, stable=good)
    world.run()
    rollback = next(decision for decision in world.decisions() if decision.kind == "rollback")
    assert rollback.evidence["metric"] == "errors"


def test_when_both_arms_fail_nothing_is_rolled_back(make_world: Any) -> None:
    def failing(world: Any, version: int, arm: str, weight: float) -> None:
        world.predict(version, arm=arm, weight=weight, status=500, outputs=[], error="the model failed")

    world = make_world()
    start_trial(world)
    send_on_arms(world, 1_000, canary=failing, stable=failing)
    world.run()
    assert world.kinds() == []


def test_what_cannot_be_used_of_the_files_is_in_the_log_once_and_in_the_status(make_world: Any, tmp_path: Any) -> None:
    world = make_world()
    world.versions = FolderVersions(tmp_path / "models", monotonic=lambda: world.now[0])
    policy = tmp_path / "models" / "m" / "model.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text("[qality]\n")
    send(world, 300, labels=False)
    world.run()
    about = [note for note in world.notes if "qality" in note or "the profile of m/1" in note]
    assert len(about) == 2
    status = msgspec.json.decode((world.folder / "monitor" / "status.json").read_bytes())
    assert sorted(status["models"]["m"]["notes"]) == sorted(about)


def test_a_profile_that_was_missing_is_taken_up_once_it_is_there(make_world: Any, make_profile: Any) -> None:
    late: dict[Any, Any] = {}
    world = make_world()
    world.versions = FixedVersions({}, late)

    async def scenario() -> Any:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        send(world, 100, labels=False)
        await world.feed(monitor)
        assert monitor.models["m"].watches[1].profile is None
        late["m", 1] = make_profile()
        await monitor.flush()
        send(world, 100, labels=False)
        await world.feed(monitor)
        await monitor.close()
        return monitor

    monitor = asyncio.run(scenario())
    assert monitor.models["m"].watches[1].profile is not None
    assert len([note for note in world.notes if "a profile of m that was missing is there" in note]) == 1


@pytest.mark.promise("P12")
@pytest.mark.parametrize("known", [(1, 2), (1,), (2,), ()])
def test_inputs_outside_one_arms_reference_are_no_harm_where_the_other_has_none(
    make_world: Any, make_profile: Any, known: tuple[int, ...]
) -> None:
    def far(world: Any, version: int, arm: str, weight: float) -> None:
        world.predict(version, arm=arm, weight=weight, x=30.0)

    world = make_world()
    world.versions = FixedVersions({}, {("m", version): make_profile() for version in known})
    start_trial(world)
    send_on_arms(world, 400, canary=far, stable=far)
    world.run()
    assert "rollback" not in world.kinds()


@pytest.mark.promise("P12")
@pytest.mark.parametrize(("redact", "kinds"), [(("age",), set()), ((), {"rollback"})])
def test_inputs_that_are_redacted_whole_on_one_arm_are_no_harm_on_the_other(
    make_world: Any, redact: tuple[str, ...], kinds: set[str]
) -> None:
    def far(world: Any, version: int, arm: str, weight: float) -> None:
        logged = None if arm == "stable" else [None, 30.0]
        inputs = [TensorRecord("f", "FP64", (1, 2), logged)]
        world.predict(version, arm=arm, weight=weight, inputs=inputs, outputs=[])

    def named(**columns: tuple[str, ...]) -> Any:
        rows = np.random.default_rng(0).normal(size=(2_000, 2))
        return build_profile(inputs={"f": rows}, outputs={}, columns=columns)

    policy = ModelPolicy(logging=LoggingPolicy(redact=redact))
    world = make_world({1: named(), 2: named(f=("age", "temp"))}, policy=policy)
    start_trial(world)
    send_on_arms(world, 400, canary=far, stable=far)
    world.run()
    assert set(world.kinds()) & {"rollback"} == kinds


@pytest.mark.parametrize("served", [True, False])
def test_a_version_that_comes_back_with_its_profile_costs_the_others_nothing(
    make_world: Any, make_profile: Any, served: bool
) -> None:
    profiles = {("m", 1): make_profile()}
    world = make_world()
    world.versions = FixedVersions({}, profiles)

    async def scenario() -> Any:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        send(world, 100)
        world.store.set_route("m", stable=1, canary=3, weight=10.0, actor="tester", reason="a trial")
        if served:
            world.predict(3, arm="canary", weight=10.0)
        await world.feed(monitor, flush_every=1000)
        world.store.set_route("m", stable=1, actor="tester", reason="it was a trial")
        world.store.reject("m", 3, actor="tester", reason="its files are gone")
        await monitor.flush()
        assert sorted(monitor.models["m"].watches) == [1]
        profiles["m", 3] = make_profile()
        world.store.approve("m", 3, actor="tester", reason="its files are back")
        await monitor.flush()
        await monitor.close()
        return monitor

    monitor = asyncio.run(scenario())
    assert monitor.models["m"].watches[1].quality.rows == 100
    assert world.notes == []


def test_another_stable_version_beside_a_canary_leaves_its_arms_drawn_at_their_weights(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    send_on_arms(world, 600, canary=good, stable=good)
    world.now[0] += 2.0
    world.store.set_route("m", stable=3, canary=2, weight=50.0, actor="tester", reason="a mended stable version")
    world.now[0] += 2.0
    send_on_arms(world, 600, canary=good, stable=lambda world, _, arm, weight: good(world, 3, arm, weight))
    world.run()
    assert world.kinds() == []


def test_arms_that_are_not_drawn_at_their_weights_freeze_the_rollout(make_world: Any) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={}, actor="tester", reason="a rollout")
    world.now[0] += 2.0
    for number in range(600):
        on_canary = number % 2 == 0
        good(world, 2 if on_canary else 1, "canary" if on_canary else "stable", 10.0)
    world.run()
    assert world.kinds() == ["rollout_frozen"]


def test_a_thawed_rollout_is_judged_by_what_comes_after_the_thaw(make_world: Any) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={}, actor="tester", reason="a rollout")
    rollout = world.store.rollout("m").id
    world.now[0] += 2.0
    for number in range(600):
        on_canary = number % 2 == 0
        good(world, 2 if on_canary else 1, "canary" if on_canary else "stable", 10.0)
    world.run()
    world.now[0] += 60.0
    for event in ("thaw", "resume"):
        world.store.move_rollout(rollout, event, actor="tester", reason="the arms are mended")
    world.now[0] += 2.0
    send_on_arms(world, 600, weight=10.0, canary=good, stable=good)
    monitor = world.run()
    assert world.kinds() == ["rollout_frozen"]
    units = next(reading for reading in monitor.models["m"].trial.readings() if reading.metric == "units")
    assert units.stable + units.canary == 600


def test_records_that_are_none_are_counted_and_passed_over(make_world: Any) -> None:
    world = make_world()
    send(world, 10)
    valid = world.records[0].payload
    poison = [
        (KIND_PREDICTION, b"not json"),
        (KIND_PREDICTION, b"[]"),
        (KIND_PREDICTION, b"{}"),
        (KIND_PREDICTION, b"\xff\xfe"),
        (KIND_PREDICTION, b"[" * 100_000),
        (KIND_PREDICTION, valid.replace(b'"schema":1', b'"schema":99')),
        (KIND_PREDICTION, valid.replace(b'"model":"m"', b'"model":"nobody"')),
        (KIND_PREDICTION, valid.replace(b'"version":1', b'"version":77')),
        (KIND_PREDICTION, valid.replace(b'"data":[', b'"data":[1e999,')),
        (KIND_PREDICTION, valid.replace(b'"data":[', b'"data":["text",')),
        (KIND_PREDICTION, valid.replace(b'"rows":1', b'"rows":-1')),
        (KIND_PREDICTION, valid.replace(b'"time":"', b'"time":"not a time')),
        (KIND_PREDICTION, valid.replace(b'"time":"2026', b'"time":"2099')),
        (KIND_FEEDBACK, b'{"id":"a","label":NaN}'),
        (KIND_FEEDBACK, valid),
        (77, valid),
        (KIND_DECISION, b"not looked at"),
    ]
    for number, (kind, payload) in enumerate(poison):
        world.records.append(LogRecord(kind, "01a000000000ff", number + 1, payload))
    send(world, 10)
    monitor = world.run()
    assert monitor.models["m"].watches[1].quality.rows == 20
    assert monitor.skipped["schema of a later version"] == 1
    assert monitor.skipped["unknown model"] == 1
    assert monitor.skipped["unknown version"] == 1
    assert monitor.skipped["not a record"] >= 7
    assert all(np.isfinite(list(monitor.models["m"].watches[1].evidence().values())))
    assert world.kinds() == []


def test_a_restart_from_a_checkpoint_equals_no_restart(make_world: Any, tmp_path: Any) -> None:
    world = make_world()
    send(world, 700)
    start_trial(world)
    send_on_arms(world, 700, canary=good, stable=good)
    send(world, 300, error=1.4)
    whole = world.run()
    kept = whole.models["m"]
    expected = (kept.watches[1].evidence(), kept.watches[1].quality, kept.trial.readings(), whole._join.counts)
    (tmp_path / "monitor" / "checkpoint.msgpack").unlink()
    everything, world.records = world.records, []
    for cut in (300, 900, 1_700, len(everything)):
        world.records = everything[:cut]
        parted = world.run()
    model = parted.models["m"]
    assert (
        model.watches[1].evidence(),
        model.watches[1].quality,
        model.trial.readings(),
        parted._join.counts,
    ) == expected


def test_a_monitor_that_never_reached_the_store_forgets_nothing(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    send_on_arms(world, 300, canary=good, stable=good)
    before = world.run().models["m"]

    async def stopped_at_once() -> None:
        stop, monitor = asyncio.Event(), world.monitor()
        stop.set()
        await monitor.start(stop)
        assert monitor.models == {}
        await monitor.close()

    def away() -> int:
        raise StoreAway("the disk is gone")

    world.store.revision = away
    for _ in range(2):
        asyncio.run(stopped_at_once())
    del world.store.revision
    after = world.run().models["m"]
    assert after.state() == before.state()
    assert after.watches[1].quality.rows + after.watches[2].quality.rows == 300


def test_a_crash_right_after_a_decision_does_not_repeat_it(make_world: Any) -> None:
    world = make_world()
    send(world, 1_000, error=4.0)

    async def crash() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        await world.feed(monitor)

    asyncio.run(crash())
    decided = world.kinds()
    assert "harm" in decided
    world.run()
    assert world.kinds() == decided


def test_a_damaged_checkpoint_is_set_aside_and_reading_starts_at_the_latest(make_world: Any, tmp_path: Any) -> None:
    world = make_world()
    send(world, 100)
    world.run()
    checkpoint = tmp_path / "monitor" / "checkpoint.msgpack"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10] + b"0123456789")
    monitor = world.run()
    assert monitor.read == 0
    assert checkpoint.with_suffix(".msgpack.bad").exists()
    assert any("set aside" in note for note in world.notes)


def test_decisions_wait_while_the_store_is_away_and_none_is_lost(make_world: Any) -> None:
    world = make_world()
    real, away = world.store.decide, [True]

    def decide(*arguments: Any, **named: Any) -> Any:
        if away[0]:
            raise StoreAway("the disk is gone")
        return real(*arguments, **named)

    world.store.decide = decide
    send(world, 1_000, error=4.0)
    monitor = world.run()
    assert world.kinds() == []
    assert len(monitor._actor.pending) >= 2
    assert any("wait for the store" in note for note in world.notes)
    away[0] = False
    world.run()
    assert {"harm", "retrain_requested"} <= set(world.kinds())


WITHOUT_END = ModelPolicy(rollout=RolloutPolicy(steps=(10.0, 50.0, 100.0)))
"""A policy whose plan no judge takes; `load_policy` refuses it."""


@pytest.mark.promise("P12")
def test_a_policy_that_no_judge_takes_leaves_the_other_models_watched(make_world: Any) -> None:
    world = make_world(policy=WITHOUT_END)
    world.store.register("n", 1, "sha256:1")
    world.store.approve("n", 1, actor="tester", reason="it is a test")
    world.store.set_route("n", stable=1, actor="tester", reason="it is a test")
    start_trial(world)
    for _ in range(100):
        world.predict(1)
        world.predict(1, model="n")
    for _ in range(2):
        monitor = world.run()
        assert set(monitor.models) == {"n"}
    assert monitor.skipped == {"unknown model": 100}
    assert sum("m cannot be followed" in note and "steps has 100.0" in note for note in world.notes) == 2


@pytest.mark.promise("P12")
def test_a_policy_that_cannot_be_followed_leaves_the_one_before_and_its_evidence(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    send_on_arms(world, 200, canary=good, stable=good)

    async def change() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        await world.feed(monitor)
        before = monitor.models["m"]
        world.versions._policies["m"] = WITHOUT_END
        send_on_arms(world, 100, canary=good, stable=good)
        await world.feed(monitor, flush_every=10)
        assert monitor.models["m"] is before
        assert before.policy == ModelPolicy()
        assert sum(watch.quality.rows for watch in before.watches.values()) == 300
        world.store.set_route("m", stable=1, canary=3, weight=50.0, actor="tester", reason="the route is followed")
        await monitor.flush()
        assert monitor.models["m"] is before
        assert before.trial.canary == 3
        await monitor.close()

    asyncio.run(change())
    assert sum("cannot be followed" in note for note in world.notes) == 1


def test_a_trial_that_cannot_begin_leaves_the_one_before_without_a_say(make_world: Any) -> None:
    world = make_world()
    start_trial(world)
    model = world.run().models["m"]
    assert model.trial is not None
    route = msgspec.structs.replace(model.route, canary=3, trial=2)
    start = TrialStart(2, "", model.trial.start.began, model.trial.start.began)
    with pytest.raises(PlanError):
        model.follow(route, rollout=None, start=start, plan=Plan(steps=()), approved=lambda version: True)
    assert model.trial is None


def test_what_was_known_of_a_model_goes_with_its_route(make_world: Any) -> None:
    world = make_world()
    send(world, 100)
    world.run()
    world.versions._policies["m"] = WITHOUT_END
    world.run()
    world.store.remove_route("m", actor="tester", reason="retired")
    world.run()
    world.versions._policies["m"] = ModelPolicy()
    world.store.set_route("m", stable=1, actor="tester", reason="it is back")
    assert world.run().models["m"].watches == {}


def test_a_rollback_that_waited_for_the_store_leaves_a_later_trial_alone(make_world: Any) -> None:
    def failing(world: Any, version: int, arm: str, weight: float) -> None:
        world.predict(version, arm=arm, weight=weight, status=500, outputs=[], error="the model failed")

    def away(*_: Any, **__: Any) -> None:
        raise StoreAway("the disk is gone")

    world = make_world()
    start_trial(world)
    send_on_arms(world, 400, canary=failing, stable=good)
    world.store.rollback = away
    assert [move.kind for move in world.run()._actor.pending] == ["rollback"]
    del world.store.rollback
    world.store.set_route("m", stable=1, actor="tester", reason="the canary is mended")
    start_trial(world)
    world.run()
    assert world.kinds() == []
    assert world.store.snapshot().routes["m"].canary == 2
    assert any("in trial 2 by now" in note for note in world.notes)
    send_on_arms(world, 400, canary=failing, stable=good)
    world.run()
    assert world.kinds() == ["rollback"]


def test_a_later_trial_of_a_canary_is_told_of_its_drift_again(make_world: Any) -> None:
    world = make_world(policy=ModelPolicy(drift=DriftPolicy(outputs="rollback")))
    start_trial(world)

    def plain(world: Any, version: int, arm: str, weight: float, **changes: Any) -> None:
        world.predict(version, arm=arm, weight=weight, **changes)

    def drifting(*arguments: Any) -> None:
        plain(*arguments, y=float(world.random.normal(30.0, 1.0)))

    real, away = world.store.rollback, [True]

    def rollback(*arguments: Any, **named: Any) -> Any:
        if away[0]:
            raise StoreAway("the disk is gone")
        return real(*arguments, **named)

    world.store.rollback = rollback
    send_on_arms(world, 400, canary=drifting, stable=plain)

    async def all_of_it() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        await world.feed(monitor)
        world.store.set_route("m", stable=1, actor="tester", reason="off the route")
        start_trial(world)
        away[0] = False
        await monitor.flush()
        assert world.kinds() == []
        send_on_arms(world, 100, canary=drifting, stable=plain)
        await world.feed(monitor)
        await monitor.close()

    asyncio.run(all_of_it())
    assert "rollback" in world.kinds()
    assert world.decisions()[0].before["trial"] == 2


def test_status_and_metrics_show_what_is_known(make_world: Any, tmp_path: Any) -> None:
    world = make_world()
    cells = CellFile(tmp_path / "monitor.cells")
    world.metrics = CellMetrics(cells)
    start_trial(world)
    send_on_arms(world, 200, canary=good, stable=good)
    send(world, 800, error=4.0)
    world.run()
    status = msgspec.json.decode((tmp_path / "monitor" / "status.json").read_bytes())
    model = status["models"]["m"]
    assert model["versions"]["1"]["quality"]["rows"] > 800
    assert set(model["versions"]["1"]["features"]) == {"x", "temp", "y"}
    assert model["trial"]["canary"] == 2
    assert "latency" not in {reading["metric"] for reading in model["trial"]["readings"]}
    assert model["alarms"][0]["detector"] in ("quality", "ADWIN")
    assert cells.gauge("gateway_route_weight", {"model": "m", "version": "2", "arm": "canary"}).value == 50.0
    assert cells.counter("gateway_feedback_total", {"model": "m", "state": "joined"}).value == 1_000
    assert cells.histogram("gateway_feedback_delay_seconds", {"model": "m"}).count == 1_000
    assert cells.counter("gateway_decisions_total", {"kind": "harm"}).value == 1
    alarms = cells.counter("gateway_drift_alarms_total", {"model": "m", "version": "1", "detector": "quality"})
    assert alarms.value == 1
    cells.close()
