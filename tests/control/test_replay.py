"""A decision that a crash lets be carried out again changes nothing the second time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.control.act import Actor
from gateway.control.decisions import Move, Situation, decide_verdict
from gateway.control.errors import StoreAway
from gateway.rollout.judge import Verdict


def decided(world: Any, kind: Any) -> list[Move]:
    """What the judge's word comes to as the store stands, as a checkpoint gives it back."""
    situation = Situation(world.store.snapshot().routes["m"], world.store.rollout("m"))
    verdict = Verdict(kind, "quality", 3.0, 2.0, "", "as good as stable")
    moves = decide_verdict(verdict, situation, {})
    return msgspec.msgpack.decode(msgspec.msgpack.encode(moves), type=list[Move])


def carry_out(world: Any, moves: list[Move]) -> list[str]:
    notes: list[str] = []
    actor = Actor(world.store, note=notes.append)
    actor.add(moves)
    actor.act()
    assert actor.pending == []
    return notes


@pytest.mark.promise("P9")
@pytest.mark.promise("P10")
def test_an_advance_that_is_replayed_takes_no_second_step(make_world: Any) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={"steps": [1.0, 10.0, 50.0]}, actor="tester", reason="a rollout")
    moves = decided(world, "advance")
    assert carry_out(world, moves) == []
    [note] = carry_out(world, moves)
    assert "running at step 1 by now; advance was decided when it was running at step 0" in note
    assert world.store.rollout("m").step == 1
    assert world.store.snapshot().routes["m"].weight == 10.0


def test_a_pause_holds_the_step_that_the_store_took_without_answering(make_world: Any, monkeypatch: Any) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={"steps": [1.0, 10.0, 50.0]}, actor="tester", reason="a rollout")
    advance, pause = decided(world, "advance"), decided(world, "pause")
    actor, moved = Actor(world.store, note=[].append), world.store.move_rollout

    def unanswered(*arguments: Any, **named: Any) -> Any:
        moved(*arguments, **named)
        raise StoreAway("the connection was lost")

    monkeypatch.setattr(world.store, "move_rollout", unanswered)
    actor.add(advance)
    actor.act()
    monkeypatch.undo()
    actor.add(pause)
    actor.act()
    assert actor.pending == []
    assert (world.store.rollout("m").phase, world.store.rollout("m").step) == ("paused", 1)


def test_a_freeze_that_was_decided_before_a_person_paused_waits_for_the_next_look(make_world: Any) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={}, actor="tester", reason="a rollout")
    moves = decided(world, "freeze")
    world.store.move_rollout(world.store.rollout("m").id, "pause", actor="tester", reason="let me look")
    assert len(carry_out(world, moves)) == 1
    assert world.store.rollout("m").phase == "paused"
    assert carry_out(world, decided(world, "freeze")) == []
    assert world.store.rollout("m").phase == "frozen"
