"""The store, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psycopg
import pytest

from gateway.control.store import (
    AuditReport,
    Conflict,
    NotKnown,
    Refused,
    Snapshot,
    Store,
    StoreAway,
    StoreError,
    VersionState,
)
from gateway.events.addresses import parse_id
from gateway.events.records import DecisionRecord
from gateway.rollout.machine import EVENTS, TERMINAL, TRANSITIONS, Event
from tests.databases import PostgresServer, postgres_programs

STEPS = {"steps": [5, 20]}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Callable[[], str]]:
    given = os.environ.get("GATEWAY_TEST_POSTGRES", "")
    if given:
        yield lambda: _emptied(given)
        return
    programs = postgres_programs()
    if programs is None:
        reason = "PostgreSQL is not installed; install it, or set GATEWAY_TEST_POSTGRES to the URL of an empty database"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server.fresh
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state' / 'store.db'}"
    fresh: Callable[[], str] = request.getfixturevalue("postgres")
    return fresh()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url, clock=lambda: 1_330_560_000.25)
    store.create()
    yield store
    store.close()


def _emptied(url: str) -> str:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return url


def approved(store: Store, *versions: int) -> None:
    for version in versions:
        store.register("m", version, f"sha256:{version}")
        store.approve("m", version, actor="ada", reason="tests pass")


def everything(store: Store) -> tuple[Snapshot, list[DecisionRecord], list[Any]]:
    return store.snapshot(), store.decisions(limit=10_000), store.rollouts("m", 1000)


def refused(store: Store, change: Callable[[], object], *, match: str | None = None) -> None:
    """The change is refused, and nothing at all is different afterwards."""
    before = everything(store)
    with pytest.raises(Refused, match=match):
        change()
    assert everything(store) == before


def by_hand(url: str, *statements: str) -> None:
    """Run SQL past the store, as somebody with the database's password would."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        try:
            for statement in statements:
                connection.execute(statement)
            connection.commit()
        finally:
            connection.close()
        return
    with psycopg.connect(url.replace("+psycopg", "")) as connection_:
        for statement in statements:
            connection_.execute(statement)


def without_triggers(url: str) -> list[str]:
    if url.startswith("sqlite"):
        return ["DROP TRIGGER decisions_refuse_update", "DROP TRIGGER decisions_refuse_delete"]
    return ["ALTER TABLE decisions DISABLE TRIGGER ALL"]


def test_a_new_store_is_empty_and_creating_it_again_changes_nothing(store: Store) -> None:
    store.create()
    assert store.snapshot() == Snapshot(0, {}, {})
    assert store.revision() == 0
    assert store.audit() == AuditReport(0, None, "0" * 64)


def test_a_store_of_another_schema_version_is_refused(store: Store, url: str) -> None:
    by_hand(url, "UPDATE head SET schema_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        store.create()


def test_registering_twice_changes_nothing(store: Store) -> None:
    first = store.register("m", 1, "sha256:1")
    before = everything(store)
    assert store.register("m", 1, "sha256:1") == first == VersionState("m", 1, "sha256:1", "registered")
    assert everything(store) == before


def test_changed_files_of_a_version_not_yet_approved_are_registered_anew(store: Store) -> None:
    store.register("m", 1, "sha256:1")
    store.reject("m", 1, actor="ada", reason="no card")
    assert store.register("m", 1, "sha256:2").status == "registered"


@pytest.mark.promise("P15")
def test_changed_files_of_an_approved_version_are_refused_and_recorded_once(store: Store) -> None:
    approved(store, 1)
    for _ in range(3):
        with pytest.raises(Refused, match="approved with sha256:1"):
            store.register("m", 1, "sha256:2")
    recorded = [decision for decision in store.decisions() if decision.kind == "digest_refused"]
    assert [decision.evidence for decision in recorded] == [{"version": 1, "digest": "sha256:2"}]
    assert store.snapshot().versions["m", 1] == VersionState("m", 1, "sha256:1", "approved")


def test_approving_another_digest_than_the_one_looked_at_is_a_conflict(store: Store) -> None:
    store.register("m", 1, "sha256:1")
    refused(store, lambda: store.approve("m", 1, actor="ada", reason="", digest="sha256:0"), match="look at it again")


def test_approving_what_is_not_known_is_refused(store: Store) -> None:
    refused(store, lambda: store.approve("m", 1, actor="ada", reason=""), match="no registered version 1")


def test_every_change_raises_the_revision(store: Store) -> None:
    seen = [store.revision()]
    for change in (
        lambda: store.register("m", 1, "sha256:1"),
        lambda: store.approve("m", 1, actor="ada", reason=""),
        lambda: approved(store, 2),
        lambda: store.set_route("m", stable=1, actor="ada", reason=""),
        lambda: store.start_rollout("m", 2, plan=STEPS, actor="ada", reason=""),
        lambda: store.move_rollout(store.rollouts("m")[0].id, "advance", actor="judge", reason=""),
        lambda: store.rollback("m", actor="ada", reason=""),
    ):
        change()
        seen.append(store.revision())
    assert seen == sorted(set(seen))
    assert store.snapshot().routes["m"].revision == seen[-1]


def test_a_decision_that_changes_nothing_leaves_the_revision(store: Store) -> None:
    before = store.revision()
    evidence = {"e": np.float64(4.5), "bins": np.arange(3), "bad": float("nan")}
    store.decide("m", kind="drift_alarm", actor="monitor", reason="x", before={}, after={}, evidence=evidence)
    assert store.revision() == before
    (kept,) = store.decisions()
    assert kept.evidence == {"e": 4.5, "bins": [0, 1, 2], "bad": None}
    assert kept.time == "2012-03-01T00:00:00.250Z"
    assert parse_id(kept.id)[1] == kept.seq
    assert store.audit().first_bad is None


@pytest.mark.parametrize("reason", ["x" * 2001, "a\x00b", "a\x1b[31m", "\ud800"])
def test_a_reason_that_is_no_honest_text_is_refused(store: Store, reason: str) -> None:
    approved(store, 1)
    refused(store, lambda: store.set_route("m", stable=1, actor="ada", reason=reason), match="reason")


def test_a_reason_keeps_its_letters(store: Store) -> None:
    approved(store, 1)
    reason = "<script>alert('ü')</script>\n\"quoted\" \u202e %s {}"
    assert store.set_route("m", stable=1, actor="ada", reason=reason).reason == reason
    assert store.decisions()[-1].reason == reason
    assert store.audit().first_bad is None


def test_a_route_needs_approved_versions(store: Store) -> None:
    approved(store, 1)
    store.register("m", 2, "sha256:2")
    refused(store, lambda: store.set_route("m", stable=2, actor="ada", reason=""), match="registered, not approved")
    refused(
        store, lambda: store.set_route("m", stable=1, canary=2, weight=5, actor="a", reason=""), match="not approved"
    )
    refused(store, lambda: store.set_route("m", stable=3, actor="ada", reason=""), match="no registered version 3")


@pytest.mark.parametrize("weight", [-1, 100.5, float("nan"), float("inf")])
def test_a_weight_that_is_no_percentage_is_refused(store: Store, weight: float) -> None:
    approved(store, 1, 2)
    refused(store, lambda: store.set_route("m", stable=1, canary=2, weight=weight, actor="a", reason=""))


def test_a_weight_without_a_canary_and_a_canary_that_is_stable_are_refused(store: Store) -> None:
    approved(store, 1)
    refused(store, lambda: store.set_route("m", stable=1, weight=5, actor="ada", reason=""), match="no canary")
    refused(store, lambda: store.set_route("m", stable=1, canary=1, weight=5, actor="ada", reason=""))


def test_salt_and_trial_change_only_with_the_canary(store: Store) -> None:
    approved(store, 1, 2, 3)

    def route(canary: int | None, weight: float = 0.0) -> tuple[str, int]:
        store.set_route("m", stable=1, canary=canary, weight=weight, actor="ada", reason="")
        found = store.snapshot().routes["m"]
        return found.salt, found.trial

    first = route(2, 5)
    assert route(2, 50) == first
    assert route(2, 0) == first
    other = route(3, 5)
    assert other[0] != first[0] and other[1] == first[1] + 1
    assert route(None) == other
    again = route(3, 5)
    assert again[0] != other[0] and again[1] == other[1] + 1


def test_previous_keeps_the_last_stable_version(store: Store) -> None:
    approved(store, 1, 2, 3)
    for stable, previous in ((1, None), (2, 1), (2, 1), (3, 2)):
        store.set_route("m", stable=stable, actor="ada", reason="")
        assert store.snapshot().routes["m"].previous == previous


def test_a_stale_revision_is_a_conflict(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="", expected_revision=0)
    seen = store.snapshot().routes["m"].revision
    store.set_route("m", stable=2, actor="bob", reason="", expected_revision=seen)
    before = everything(store)
    with pytest.raises(Conflict):
        store.set_route("m", stable=1, actor="ada", reason="", expected_revision=seen)
    assert everything(store) == before


def test_a_version_with_traffic_cannot_be_rejected(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="")
    refused(store, lambda: store.reject("m", 1, actor="ada", reason=""), match="stable")
    refused(store, lambda: store.reject("m", 2, actor="ada", reason=""), match="canary at 5 %")


def test_a_canary_without_traffic_is_taken_off_the_route_when_it_is_rejected(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, canary=2, weight=0, actor="ada", reason="")
    store.reject("m", 2, actor="ada", reason="")
    assert store.snapshot().routes["m"].canary is None


def test_a_rollout_starts_at_its_first_step_and_promotes_the_canary(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    started = store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="better")
    rollout = store.rollout("m")
    assert rollout is not None and rollout.phase == "running"
    assert rollout.id == f"rollout-{started.seq}"
    assert store.plan(rollout.id).steps == (5.0, 20.0)
    assert store.snapshot().routes["m"].weight == 5

    moved = store.move_rollout(rollout.id, "advance", actor="judge", reason="good", evidence={"e": 3.5})
    assert (moved.kind, moved.evidence) == ("rollout_advanced", {"e": 3.5})
    assert (moved.before["weight"], moved.after["weight"]) == (5, 20)
    assert store.snapshot().routes["m"].weight == 20

    store.move_rollout(rollout.id, "promote", actor="judge", reason="as good")
    route = store.snapshot().routes["m"]
    assert (route.stable, route.canary, route.weight, route.previous) == (2, None, 0, 1)
    assert store.rollout("m") is None
    assert store.rollout_by_id(rollout.id).phase == "promoted"


@pytest.mark.parametrize("event", ["rollback", "abort"])
def test_a_rollout_that_ends_badly_takes_the_canary_off_the_route(store: Store, event: Event) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    trial = store.snapshot().routes["m"].trial
    store.move_rollout(store.rollouts("m")[0].id, event, actor="judge", reason="")
    route = store.snapshot().routes["m"]
    assert (route.stable, route.canary, route.weight, route.trial) == (1, None, 0, trial)
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="once more")
    assert store.snapshot().routes["m"].trial == trial + 1


@pytest.mark.promise("P9")
def test_moves_that_the_table_does_not_have_change_nothing(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    ways: dict[str, list[Event]] = {
        "running": [],
        "paused": ["pause"],
        "frozen": ["freeze"],
        "promoted": ["promote"],
        "rolled_back": ["rollback"],
        "aborted": ["abort"],
        "superseded": ["supersede"],
    }
    assert set(ways) == set(TRANSITIONS)
    for phase, events in ways.items():
        store.set_route("m", stable=1, actor="ada", reason="")
        store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
        rollout = store.rollouts("m")[0].id
        for event in events:
            store.move_rollout(rollout, event, actor="ada", reason="")
        for event in EVENTS:
            if event not in TRANSITIONS[phase]:  # type: ignore[index]
                refused(store, lambda: store.move_rollout(rollout, event, actor="a", reason=""), match="takes no")  # noqa: B023
        if phase not in TERMINAL:
            store.move_rollout(rollout, "abort", actor="ada", reason="")


def test_a_last_step_does_not_advance(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan={"steps": [5]}, actor="ada", reason="")
    rollout = store.rollouts("m")[0].id
    refused(store, lambda: store.move_rollout(rollout, "advance", actor="a", reason=""), match="last step")


def test_only_one_rollout_of_a_model_is_open(store: Store) -> None:
    approved(store, 1, 2, 3)
    refused(store, lambda: store.start_rollout("m", 2, plan=STEPS, actor="a", reason=""), match="no route")
    store.set_route("m", stable=1, actor="ada", reason="")
    refused(store, lambda: store.start_rollout("m", 1, plan=STEPS, actor="a", reason=""))
    refused(store, lambda: store.start_rollout("m", 2, plan={"steps": [50, 5]}, actor="a", reason=""), match="rise")
    refused(store, lambda: store.start_rollout("m", 2, plan={"steps": "x"}, actor="a", reason=""), match="plan")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    refused(store, lambda: store.start_rollout("m", 3, plan=STEPS, actor="a", reason=""), match="open already")
    refused(store, lambda: store.reject("m", 2, actor="a", reason=""), match="rollout")


def test_a_rollout_does_not_push_a_canary_aside_that_was_set_by_hand(store: Store) -> None:
    approved(store, 1, 2, 3)
    store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="")
    refused(store, lambda: store.start_rollout("m", 3, plan=STEPS, actor="a", reason=""), match="version 2")
    before = store.snapshot().routes["m"]
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    after = store.snapshot().routes["m"]
    assert (after.salt, after.trial) == (before.salt, before.trial)


def test_a_route_set_by_hand_supersedes_the_open_rollout(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    store.set_route("m", stable=1, canary=2, weight=50, actor="bob", reason="I know better")
    assert store.rollout("m") is None
    assert store.rollouts("m")[0].phase == "superseded"
    assert [decision.kind for decision in store.decisions()[-2:]] == ["rollout_superseded", "route_set"]
    assert store.snapshot().routes["m"].weight == 50


def test_a_route_that_is_removed_leaves_versions_that_can_be_rejected(store: Store) -> None:
    approved(store, 1, 2)
    refused(store, lambda: store.remove_route("m", actor="ada", reason=""), match="no route")
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    before = store.snapshot()
    revision = before.routes["m"].revision
    refused(
        store,
        lambda: store.remove_route("m", actor="ada", reason="", expected_revision=revision - 1),
        match=f"at revision {revision}",
    )
    decision = store.remove_route("m", actor="bob", reason="retired", expected_revision=revision)
    after = store.snapshot()
    assert (after.routes, after.versions) == ({}, before.versions)
    assert after.revision > before.revision, "fronts follow it"
    assert (decision.kind, decision.before["stable"], decision.after) == ("route_removed", 1, {})
    assert store.route_decisions("m")[0] == decision
    assert [one.kind for one in store.decisions()[-2:]] == ["rollout_superseded", "route_removed"]
    assert store.rollout("m") is None
    assert store.reject("m", 1, actor="bob", reason="retired").status == "rejected"


def test_trials_count_on_when_a_route_was_removed_in_between(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="")
    before = store.snapshot().routes["m"]
    store.remove_route("m", actor="ada", reason="")
    store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="")
    after = store.snapshot().routes["m"]
    assert after.trial == before.trial + 1
    assert after.previous is None


def test_a_rollback_takes_the_canary_first_and_then_the_stable_version_once(store: Store) -> None:
    approved(store, 1, 2, 3)
    refused(store, lambda: store.rollback("m", actor="a", reason=""), match="no route")
    store.set_route("m", stable=1, actor="ada", reason="")
    store.set_route("m", stable=2, canary=3, weight=5, actor="ada", reason="")

    decision = store.rollback("m", actor="ada", reason="bad", evidence={"e": 1})
    assert (decision.kind, decision.before["canary"], decision.after["canary"]) == ("rollback", 3, None)
    store.rollback("m", actor="ada", reason="bad")
    route = store.snapshot().routes["m"]
    assert (route.stable, route.previous, route.canary) == (1, None, None)
    refused(store, lambda: store.rollback("m", actor="a", reason=""), match="no previous")


def test_a_rollback_to_a_version_that_is_no_longer_approved_is_refused(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.set_route("m", stable=2, actor="ada", reason="")
    store.reject("m", 1, actor="ada", reason="")
    refused(store, lambda: store.rollback("m", actor="a", reason=""), match="rejected, not approved")


def test_a_rollback_ends_the_open_rollout(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    decision = store.rollback("m", actor="judge", reason="worse", version=2)
    assert decision.after["rollout"]["phase"] == "rolled_back"
    assert store.rollout("m") is None


def test_a_rollout_beside_another_canary_is_refused_with_the_way_on(store: Store) -> None:
    approved(store, 1, 2, 3)
    store.set_route("m", stable=1, canary=2, weight=20, actor="ada", reason="")
    refused(
        store,
        lambda: store.start_rollout("m", 3, plan={}, actor="ada", reason=""),
        match="2 as its canary at 20 %; `gateway route set m --stable 1` takes it off",
    )


def test_a_rollback_that_comes_twice_takes_nothing_else_back(store: Store) -> None:
    approved(store, 1, 2, 3)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.set_route("m", stable=2, canary=3, weight=5, actor="ada", reason="")
    store.rollback("m", actor="judge", reason="", version=3)
    refused(store, lambda: store.rollback("m", actor="judge", reason="", version=3), match="no traffic")
    store.rollback("m", actor="judge", reason="", version=2)
    refused(store, lambda: store.rollback("m", actor="judge", reason="", version=2), match="no traffic")


def test_a_rollback_that_was_decided_in_another_trial_is_refused(store: Store) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="")
    store.set_route("m", stable=1, actor="ada", reason="")
    store.set_route("m", stable=1, canary=2, weight=5, actor="ada", reason="")

    def back(trial: int, rollout: str | None = None) -> DecisionRecord:
        named: dict[str, Any] = {"expected_trial": trial, "expected_rollout": rollout}
        return store.rollback("m", actor="judge", reason="", version=2, **named)

    refused(store, lambda: back(1), match="in trial 2 by now")
    refused(store, lambda: back(2, "rollout-9"), match="no rollout open by now")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    rollout = store.rollouts("m")[0].id
    refused(store, lambda: back(2, ""), match=f"{rollout} open by now; this was decided with none")
    assert back(2, rollout).after["canary"] is None


def test_taking_the_stable_version_back_takes_an_open_rollout_with_it(store: Store) -> None:
    approved(store, 1, 2, 3)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.set_route("m", stable=2, actor="ada", reason="")
    store.start_rollout("m", 3, plan=STEPS, actor="ada", reason="")
    store.rollback("m", actor="judge", reason="harm", version=2)
    route = store.snapshot().routes["m"]
    assert (route.stable, route.canary, route.weight) == (1, None, 0)
    assert store.rollouts("m")[0].phase == "aborted"


def test_what_is_not_there_is_not_known(store: Store) -> None:
    for ask in (
        lambda: store.plan("rollout-9"),
        lambda: store.rollout_by_id("rollout-9"),
        lambda: store.move_rollout("rollout-9", "abort", actor="a", reason=""),
    ):
        with pytest.raises(NotKnown):
            ask()


def test_decisions_are_read_in_pages_by_model_and_from_the_end(store: Store) -> None:
    for number in range(5):
        store.decide(
            "m" if number % 2 else "n", kind="note", actor="a", reason=str(number), before={}, after={}, evidence={}
        )
    assert [one.seq for one in store.decisions(after_seq=2, limit=2)] == [3, 4]
    assert [one.reason for one in store.decisions(model="m")] == ["1", "3"]
    assert [one.seq for one in store.decisions(limit=2, newest=True)] == [4, 5]


def test_an_auditor_finds_approval_and_route_of_a_moment(url: str) -> None:
    now = [1_330_560_000.0]
    store = Store(url, clock=lambda: now[0])
    store.create()
    approved(store, 1, 2)
    for stable in (1, 2):
        now[0] += 60
        store.set_route("m", stable=stable, actor="ada", reason=f"to {stable}")
    assert [one.reason for one in store.route_decisions("m", until="2012-03-01T00:01:30.000Z")] == ["to 1"]
    assert [one.reason for one in store.route_decisions("m")] == ["to 2", "to 1"]
    approval = store.approval("m", 2, "sha256:2")
    assert approval is not None and approval.actor == "ada"
    assert store.approval("m", 2, "sha256:0") is None
    store.set_route("m", stable=1, actor="ada", reason="")
    store.reject("m", 2, actor="ada", reason="")
    store.approve("m", 2, actor="bob", reason="again")
    moments = {"2012-03-01T00:01:30.000Z": "ada", "2012-03-01T00:02:00.000Z": "bob", None: "bob", "2012": "ada"}
    for until, actor in moments.items():
        approval = store.approval("m", 2, "sha256:2", until=until)
        assert approval is not None and approval.actor == actor
    store.close()


def test_the_database_itself_refuses_to_change_a_decision(store: Store, url: str) -> None:
    approved(store, 1)
    for statement in ("UPDATE decisions SET reason = 'x'", "DELETE FROM decisions"):
        with pytest.raises((sqlite3.Error, psycopg.Error), match="append only"):
            by_hand(url, statement)


@pytest.mark.promise("P14")
@pytest.mark.parametrize(
    ("tampering", "first_bad"),
    [
        (["UPDATE decisions SET reason = 'fine' WHERE seq = 3"], 3),
        (["UPDATE decisions SET evidence = '{\"e\":1}' WHERE seq = 2"], 2),
        (["UPDATE decisions SET evidence = '{' WHERE seq = 2"], 2),
        (["UPDATE decisions SET evidence = ''", "UPDATE decisions SET time = ''"], 1),
        ([f"UPDATE decisions SET evidence = '{'[' * 2000}{']' * 2000}' WHERE seq = 3"], 3),
        ([f"UPDATE decisions SET evidence = '{'[' * 300}{']' * 300}' WHERE seq = 3"], 3),
        (["UPDATE decisions SET evidence = '[NaN]' WHERE seq = 6"], 6),
        (["DELETE FROM decisions WHERE seq = 4"], 4),
        (["DELETE FROM decisions WHERE seq > 4"], 5),
        (["DELETE FROM decisions"], 1),
        (
            [
                "UPDATE decisions SET seq = 100 WHERE seq = 2",
                "UPDATE decisions SET seq = 2 WHERE seq = 3",
                "UPDATE decisions SET seq = 3 WHERE seq = 100",
            ],
            2,
        ),
        (["UPDATE head SET last_hash = 'x'"], 6),
    ],
)
def test_the_audit_names_the_first_decision_that_was_tampered_with(
    store: Store, url: str, tampering: list[str], first_bad: int
) -> None:
    approved(store, 1, 2, 3)
    assert store.audit().first_bad is None
    by_hand(url, *without_triggers(url), *tampering)
    assert store.audit().first_bad == first_bad
    assert len(store.decisions()) <= 6, "and it can be looked at"


def without_checks(url: str) -> list[str]:
    """A store from before there was a check."""
    if url.startswith("sqlite"):
        return ["PRAGMA ignore_check_constraints = ON"]
    return ["ALTER TABLE decisions DROP CONSTRAINT decision_seq"]


def put_in(seq: int) -> str:
    columns = 'id, time, model, kind, actor, reason, "before", "after", evidence, prev_hash, hash, "schema"'
    return f"INSERT INTO decisions (seq, {columns}) SELECT {seq}, {columns} FROM decisions WHERE seq = 2"


@pytest.mark.promise("P14")
@pytest.mark.parametrize(("seq", "first_bad"), [(-7, -7), (0, 0), (7, 7), (2**40, 7)])
def test_the_audit_names_a_decision_that_was_put_in(store: Store, url: str, seq: int, first_bad: int) -> None:
    approved(store, 1, 2, 3)
    by_hand(url, *without_checks(url), put_in(seq))
    assert store.audit().first_bad == first_bad


@pytest.mark.parametrize("seq", [-7, 0])
def test_the_database_itself_refuses_a_decision_before_the_first(store: Store, url: str, seq: int) -> None:
    approved(store, 1)
    with pytest.raises((sqlite3.Error, psycopg.Error), match="decision_seq"):
        by_hand(url, put_in(seq))


@pytest.mark.promise("P14")
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time", "x'00ff'"),
        ("reason", "CAST(x'ff' AS TEXT)"),
        ("evidence", "CAST(x'22ff22' AS TEXT)"),
        ("hash", "x'00'"),
        ("schema", "'one'"),
        ("seq", "'three'"),
        ("seq", "2.5"),
    ],
)
def test_a_decision_that_sqlite_let_be_made_unreadable_is_named_and_ends_nothing(
    tmp_path: Path, column: str, value: str
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = Store(url)
    store.create()
    approved(store, 1, 2, 3)
    by_hand(url, *without_triggers(url), f'UPDATE decisions SET "{column}" = {value} WHERE seq = 3')
    assert store.audit().first_bad == 3
    shown = store.decisions()
    assert [one.seq for one in shown if one.hash] == [1, 2, 4, 5, 6]
    assert msgspec.json.encode(shown)
    store.close()


def test_a_store_that_nobody_touched_is_as_its_decisions_left_it(store: Store) -> None:
    def whole() -> None:
        report = store.audit()
        assert report.ok, report

    approved(store, 1, 2, 3)
    with pytest.raises(Refused):
        store.register("m", 1, "sha256:other")
    store.register("m", 4, "sha256:4")
    store.register("m", 4, "sha256:44")
    whole()
    store.set_route("m", stable=1, actor="ada", reason="")
    store.set_route("m", stable=1, canary=2, weight=12.5, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    store.move_rollout(store.rollouts("m")[0].id, "advance", actor="judge", reason="")
    whole()
    store.set_route("m", stable=1, canary=2, weight=0, actor="ada", reason="by hand")
    store.reject("m", 2, actor="ada", reason="its canary goes off the route with it")
    assert store.snapshot().routes["m"].canary is None
    whole()
    store.start_rollout("m", 3, plan=STEPS, actor="ada", reason="")
    store.move_rollout(store.rollouts("m")[0].id, "promote", actor="judge", reason="")
    store.rollback("m", actor="ada", reason="")
    whole()
    store.remove_route("m", actor="ada", reason="")
    store.reject("m", 1, actor="ada", reason="")
    whole()
    store.set_route("m", stable=3, actor="ada", reason="")
    store.decide("m", kind="drift_alarm", actor="a", reason="", before={}, after={}, evidence={})
    whole()
    for event in ("pause", "resume", "freeze", "thaw", "rollback", "abort", "supersede", "expire"):
        store.approve("m", 2, actor="ada", reason="")
        if store.rollout("m") is None:
            store.start_rollout("m", 2, plan=STEPS | {"require": ["errors"]}, actor="ada", reason="")
        store.move_rollout(store.rollouts("m")[0].id, event, actor="judge", reason="")
        whole()


@pytest.mark.promise("P14")
@pytest.mark.parametrize(
    ("tampering", "difference"),
    [
        ("INSERT INTO versions VALUES ('m', 9, 'sha256:9', 'approved')", "version m/9 is in the store, but no"),
        ("UPDATE versions SET status = 'approved' WHERE version = 3", "m/3: status is 'approved', but 'registered'"),
        ("UPDATE versions SET digest = 'sha256:0' WHERE version = 2", "m/2: digest is 'sha256:0', but 'sha256:2'"),
        ("DELETE FROM versions WHERE version = 3", "version m/3 is not in the store, but no"),
        ("UPDATE routes SET weight = 90", "the route of m: weight is 90.0, but 10.0 by its last decision"),
        ("UPDATE routes SET stable = 2, canary = 1", "the route of m: canary is 1, but 2 by its last decision"),
        ("DELETE FROM routes", "the route of m is not in the store, but no decision took it away"),
    ],
)
def test_the_audit_names_a_version_or_route_that_no_decision_made_so(
    store: Store, url: str, tampering: str, difference: str
) -> None:
    approved(store, 1, 2)
    store.register("m", 3, "sha256:3")
    store.set_route("m", stable=1, canary=2, weight=10, actor="ada", reason="")
    assert store.audit().ok
    by_hand(url, tampering)
    report = store.audit()
    assert (report.ok, report.first_bad) == (False, None)
    assert any(difference in text for text in report.differences), report.differences


def replaced(column: str, old: str, new: str) -> str:
    return f"UPDATE rollouts SET {column} = replace({column}, '{old}', '{new}')"


@pytest.mark.promise("P14")
@pytest.mark.parametrize(
    ("tampering", "difference"),
    [
        (replaced("state", '"step":0', '"step":1'), "rollout rollout-6: state is {"),
        (replaced("state", '"running"', '"promoted"'), "rollout rollout-6: state is {"),
        (replaced("state", "5.0", "99.0"), "rollout rollout-6: state is {"),
        (replaced("state", '"m"', '"n"'), "rollout rollout-6: state is {"),
        (replaced("state", "{", "["), "rollout rollout-6: state is '["),
        ("UPDATE rollouts SET state = '[]'", "rollout rollout-6: state is [], but {"),
        (replaced("plan", '"bad_promotion":0.05', '"bad_promotion":1.0'), "rollout rollout-6: plan is {"),
        (replaced("plan", "{", "["), "rollout rollout-6: plan is '["),
        ("UPDATE rollouts SET is_open = NOT is_open", "rollout rollout-6: is_open is "),
        ("UPDATE rollouts SET model = 'n'", "rollout rollout-6: model is 'n', but 'm' by its last decision"),
        ("UPDATE rollouts SET started_seq = 0", "rollout rollout-6: started_seq is 0, but 6 by its last decision"),
        ("UPDATE rollouts SET id = 'other'", "rollout other is in the store, but no decision put it there"),
        ("DELETE FROM rollouts", "rollout rollout-6 is not in the store, but no decision took it away"),
    ],
)
def test_the_audit_names_a_rollout_that_no_decision_made_so(
    store: Store, url: str, tampering: str, difference: str
) -> None:
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    assert store.audit().ok
    by_hand(url, tampering)
    report = store.audit()
    assert (report.ok, report.first_bad) == (False, None)
    assert any(text.startswith(difference) for text in report.differences), report.differences


@pytest.mark.promise("P14")
@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE routes SET model = x'ff'",
        "UPDATE versions SET model = x'ff' WHERE version = 3",
        "UPDATE rollouts SET id = x'ff'",
        "UPDATE rollouts SET is_open = 'yes'",
        "UPDATE rollouts SET state = CAST(x'ff' AS TEXT), plan = x'ff'",
        "UPDATE head SET last_hash = CAST(x'ff' AS TEXT)",
    ],
)
def test_what_sqlite_let_be_made_unreadable_beside_the_decisions_shows_and_ends_no_audit(
    tmp_path: Path, tampering: str
) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = Store(url)
    store.create()
    approved(store, 1, 2, 3)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    by_hand(url, tampering)
    report = store.audit()
    assert not report.ok
    assert msgspec.json.encode(report)
    store.close()


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE rollouts SET state = '['",
        "UPDATE rollouts SET state = '{}'",
        "UPDATE rollouts SET state = x'ff'",
        "UPDATE rollouts SET plan = '{\"steps\":5}'",
        "UPDATE head SET revision = 'one'",
        "UPDATE head SET last_seq = 'one'",
    ],
)
def test_what_sqlite_let_be_made_unreadable_is_an_error_of_the_store(tmp_path: Path, tampering: str) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    store = Store(url)
    store.create()
    approved(store, 1, 2)
    store.set_route("m", stable=1, actor="ada", reason="")
    store.start_rollout("m", 2, plan=STEPS, actor="ada", reason="")
    by_hand(url, tampering)
    with pytest.raises(StoreError, match="was changed past the gateway, .* cannot be read: .*; `gateway audit verify`"):
        store.rollouts()
        store.plan("rollout-6")
        store.revision()
        store.rollback("m", actor="ada", reason="")
    store.close()


WRITER = """
import sys
from gateway.control.store import Store
store = Store(sys.argv[1])
name = sys.argv[2]
for number in range(200):
    if number % 2:
        store.set_route("m", stable=1, canary=2, weight=number % 100, actor=name, reason=str(number))
    else:
        store.decide("m", kind="note", actor=name, reason=str(number), before={}, after={}, evidence={"n": number})
"""


def test_two_processes_that_write_at_once_keep_the_chain_and_the_revision(store: Store, url: str) -> None:
    approved(store, 1, 2)
    revision = store.revision()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, name]) for name in ("admin", "monitor")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert store.revision() == revision + 200
    assert store.audit().first_bad is None
    written = [one for one in store.decisions(limit=1000) if one.actor in ("admin", "monitor")]
    assert len(written) == 400
    for name in ("admin", "monitor"):
        assert [one.reason for one in written if one.actor == name] == [str(number) for number in range(200)]


def test_a_writer_that_dies_halfway_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    approved(store, 1)
    before = everything(store)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gateway.control.change.Change.finish", fail)
    with pytest.raises(KeyboardInterrupt):
        store.set_route("m", stable=1, actor="ada", reason="")
    monkeypatch.undo()
    assert everything(store) == before


def test_a_store_that_is_locked_for_too_long_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.control.database.LOCK_WAIT_SECONDS", 0)
    path = tmp_path / "store.db"
    store = Store(f"sqlite:///{path}")
    store.create()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreAway, match="does not answer"):
        store.register("m", 1, "sha256:1")
    assert store.revision() == 0, "readers do not wait for a writer"
    blocker.execute("ROLLBACK")
    blocker.close()
    store.register("m", 1, "sha256:1")
    store.close()


def test_a_server_that_comes_back_is_used_again() -> None:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(programs)
    try:
        server.start()
        store = Store(server.fresh())
        store.create()
        store.register("m", 1, "sha256:1")
        server.stop()
        with pytest.raises(StoreAway):
            store.revision()
        server.start()
        assert store.revision() == 1
        store.close()
    finally:
        server.remove()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:", "postgresql://h/d"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url"):
        Store(url)


def test_a_password_is_not_shown() -> None:
    assert "hunter2" not in repr(Store("postgresql+psycopg://gateway:hunter2@127.0.0.1:1/d"))
