"""The life of a rollout as one table.

Everything that decides which move is allowed lives in this file. The table reads: in this phase, on this event, the
rollout is in that phase. What is not in the table is refused and changes nothing. The diagram in `docs/rollouts.md`
is drawn from it by `docs/draw_rollouts.py`.

Phases

- running: the canary has the weight of the present step and is judged.
- paused: the weight stays, evidence is still read, and only a person takes the rollout forward.
- frozen: the arms were not drawn at their weights, so no evidence counts until a person has looked.
- promoted, rolled_back, aborted: over; the canary became stable, was taken back on evidence, or by a person.
- superseded: over; somebody set the route by hand, and the rollout no longer speaks for it.

Events

- advance: the evidence allows the next step.
- pause, resume, abort: a person's word; a metric whose action is pause gives the first of them too.
- freeze: the evidence says that the arms are not what the route says; thaw: a person says that this is mended.
- promote: every required metric has been shown, or a person takes the responsibility.
- rollback: the evidence of harm reached its threshold, or a guard fired.
- supersede: the route was set by hand. expire: the time of the trial is over without a verdict.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from gateway.rollout.errors import IllegalMove, PlanError
from gateway.rollout.plan import check_steps

__all__ = ("EVENTS", "TERMINAL", "TRANSITIONS", "Event", "Phase", "RolloutState", "advance", "begin", "move")

Phase = Literal["running", "paused", "frozen", "promoted", "rolled_back", "aborted", "superseded"]
Event = Literal["advance", "pause", "resume", "freeze", "thaw", "promote", "rollback", "abort", "supersede", "expire"]

TRANSITIONS: dict[Phase, dict[Event, Phase]] = {
    "running": {
        "advance": "running",
        "pause": "paused",
        "expire": "paused",
        "freeze": "frozen",
        "promote": "promoted",
        "rollback": "rolled_back",
        "abort": "aborted",
        "supersede": "superseded",
    },
    "paused": {
        "resume": "running",
        "freeze": "frozen",
        "promote": "promoted",
        "rollback": "rolled_back",
        "abort": "aborted",
        "supersede": "superseded",
    },
    "frozen": {
        "thaw": "paused",
        "rollback": "rolled_back",
        "abort": "aborted",
        "supersede": "superseded",
    },
    "promoted": {},
    "rolled_back": {},
    "aborted": {},
    "superseded": {},
}

EVENTS: tuple[Event, ...] = get_args(Event)

TERMINAL: frozenset[Phase] = frozenset(phase for phase, moves in TRANSITIONS.items() if not moves)


class RolloutState(msgspec.Struct, frozen=True):
    """Where one rollout stands.

    Parameters
    ----------
    id, model : str
    stable, canary : int
        Versions.
    steps : tuple of float
        The canary's weights, percent, rising.
    step : int
        Index of the present step.
    """

    id: str
    model: str
    stable: int
    canary: int
    steps: tuple[float, ...]
    step: int = 0
    phase: Phase = "running"

    @property
    def weight(self) -> float:
        """Return the canary's weight, percent: that of the step while it is judged, 100 promoted, 0 otherwise over."""
        if self.phase == "promoted":
            return 100.0
        return 0.0 if self.over else self.steps[self.step]

    @property
    def over(self) -> bool:
        """Return whether no event can move the rollout any more."""
        return self.phase in TERMINAL

    @property
    def last_step(self) -> bool:
        """Return whether the present step is the last before promotion."""
        return self.step == len(self.steps) - 1


def begin(id: str, model: str, *, stable: int, canary: int, steps: tuple[float, ...]) -> RolloutState:
    """Begin a rollout at its first step.

    Raises
    ------
    PlanError
        When the versions are one and the same or the steps do not rise.
    """
    check_steps(steps)
    if stable < 1 or canary < 1 or stable == canary:
        raise PlanError(f"stable is {stable} and canary is {canary}: expected two different positive versions")
    return RolloutState(id=id, model=model, stable=stable, canary=canary, steps=steps)


def advance(phase: Phase, event: Event) -> Phase:
    """Look up the phase that follows.

    Raises
    ------
    IllegalMove
        When the table does not have the pair.

    >>> advance("running", "rollback")
    'rolled_back'
    """
    try:
        return TRANSITIONS[phase][event]
    except KeyError:
        over = ": it is over" if phase in TERMINAL else ""
        raise IllegalMove(f"a rollout that is {phase} takes no {event}{over}") from None


def move(state: RolloutState, event: Event) -> RolloutState:
    """Decide the state that follows; the caller persists it before any route changes.

    Raises
    ------
    IllegalMove
        When the table does not have the pair, or there is no step left to advance to.
    """
    phase = advance(state.phase, event)
    if event != "advance":
        return msgspec.structs.replace(state, phase=phase)
    if state.last_step:
        raise IllegalMove(
            f"a rollout that is {state.phase} at its last step ({state.weight:g} %) cannot advance; promote comes next"
        )
    return msgspec.structs.replace(state, phase=phase, step=state.step + 1)
