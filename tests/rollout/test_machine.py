from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.errors import IllegalMove, PlanError
from gateway.rollout.machine import EVENTS, TERMINAL, TRANSITIONS, Event, Phase, RolloutState, advance, begin, move

PHASES: tuple[Phase, ...] = get_args(Phase)
LEGAL = {(phase, event) for phase, moves in TRANSITIONS.items() for event in moves}
ILLEGAL = sorted(set(product(PHASES, EVENTS)) - LEGAL)


def state_in(phase: Phase, step: int = 0) -> RolloutState:
    return RolloutState("r-1", "bike-demand", stable=1, canary=2, steps=(10.0, 50.0), step=step, phase=phase)


def test_the_table_lists_every_phase_and_only_known_ones() -> None:
    assert set(TRANSITIONS) == set(PHASES)
    assert {target for moves in TRANSITIONS.values() for target in moves.values()} <= set(PHASES)
    assert TERMINAL == {"promoted", "rolled_back", "aborted", "superseded"}


@pytest.mark.promise("P9")
@pytest.mark.parametrize(("phase", "event"), ILLEGAL)
def test_an_illegal_move_names_phase_and_event_and_changes_nothing(phase: Phase, event: Event) -> None:
    state = state_in(phase)
    before = msgspec.json.encode(state)
    with pytest.raises(IllegalMove, match=f"{phase} takes no {event}"):
        move(state, event)
    assert msgspec.json.encode(state) == before


@pytest.mark.promise("P9")
@pytest.mark.parametrize(("phase", "event"), sorted(LEGAL))
def test_a_legal_move_leads_where_the_table_says(phase: Phase, event: Event) -> None:
    moved = move(state_in(phase), event)
    assert moved.phase == advance(phase, event) == TRANSITIONS[phase][event]
    assert moved.step == (1 if event == "advance" else 0)


def test_an_unknown_event_is_refused_like_an_illegal_one() -> None:
    with pytest.raises(IllegalMove, match="takes no explode"):
        advance("running", "explode")  # type: ignore[arg-type]


def test_there_is_no_step_after_the_last() -> None:
    last = state_in("running", step=1)
    with pytest.raises(IllegalMove, match="last step"):
        move(last, "advance")
    assert move(last, "promote").phase == "promoted"


def test_the_weight_is_the_steps_until_the_rollout_is_over() -> None:
    assert [state_in(phase, step=1).weight for phase in PHASES] == [50.0, 50.0, 50.0, 100.0, 0.0, 0.0, 0.0]


def test_a_second_promotion_is_refused() -> None:
    promoted = move(state_in("running", step=1), "promote")
    with pytest.raises(IllegalMove, match="promoted takes no promote: it is over"):
        move(promoted, "promote")


@settings(deadline=None)
@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_whatever_happens_the_weight_never_falls_while_the_rollout_lives(events: list[Event]) -> None:
    state = begin("r-1", "bike-demand", stable=1, canary=2, steps=(1.0, 5.0, 25.0))
    for event in events:
        before = state
        try:
            state = move(state, event)
        except IllegalMove:
            assert state is before
            continue
        assert not before.over
        assert state.over or state.weight >= before.weight
        assert 0.0 <= state.weight <= 100.0


@pytest.mark.parametrize(("stable", "canary"), [(1, 1), (0, 2), (1, -2)])
def test_a_rollout_needs_two_versions(stable: int, canary: int) -> None:
    with pytest.raises(PlanError, match="two different positive versions"):
        begin("r-1", "bike-demand", stable=stable, canary=canary, steps=(10.0,))


def test_the_page_shows_the_table_as_it_is() -> None:
    drawing = load_script(Path(__file__).parents[2] / "docs" / "draw_rollouts.py")
    page = drawing.PAGE.read_text("utf-8")
    assert drawing.redrawn(page) == page, "run docs/draw_rollouts.py"
    for phase, event in LEGAL:
        assert event in next(line for line in page.splitlines() if f"{phase} --> {TRANSITIONS[phase][event]}:" in line)


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
