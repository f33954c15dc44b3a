"""Moves into the store: each once, kept and tried again while the store is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from gateway.control.change import MAX_WORDS
from gateway.control.decisions import Move
from gateway.control.errors import Refused, StoreAway, StoreError
from gateway.events.records import DecisionRecord
from gateway.rollout.machine import Event, Phase

__all__ = ("Actor", "Acts")

ACTOR = "gateway monitor"
_KEPT_MOVES = 1_000


class Acts(Protocol):
    """What the monitor may do to the store; `gateway.control.store.Store` is one."""

    def decide(
        self,
        model: str,
        *,
        kind: str,
        actor: str,
        reason: str,
        before: dict[str, Any],
        after: dict[str, Any],
        evidence: dict[str, Any],
    ) -> DecisionRecord: ...

    def move_rollout(
        self,
        rollout_id: str,
        event: Event,
        *,
        actor: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        expected_step: int | None = None,
        expected_phase: Phase | None = None,
    ) -> DecisionRecord: ...

    def rollback(
        self,
        model: str,
        *,
        actor: str,
        reason: str,
        evidence: dict[str, Any] | None = None,
        version: int | None = None,
        expected_trial: int | None = None,
        expected_rollout: str | None = None,
    ) -> DecisionRecord: ...


class Actor:
    """Carries moves out in their order.

    A move that the store refuses is given up: things stand differently by now, and the evidence will speak again if
    they should not. While the store is away, moves wait, at most 1,000; beyond that the oldest records are given up
    first and counted in `lost`, never a move of traffic.

    A reason may hold what others worded, such as an engine's failure or the names of features. What the store would
    not take is written as an escape or cut, and the evidence then has the whole of it under `whole_reason`.

    Parameters
    ----------
    store : Acts
    note : callable
        Takes one sentence on what could not be done.
    """

    def __init__(self, store: Acts, *, note: Callable[[str], None]) -> None:
        self._store = store
        self._note = note
        self._away = False
        self.pending: list[Move] = []
        self.lost = 0

    def __repr__(self) -> str:
        return f"<Actor pending={len(self.pending)} lost={self.lost}{' away' if self._away else ''}>"

    def add(self, moves: list[Move]) -> None:
        """Queue moves; one that waits already is not queued twice, and a pause goes before a step that waits.

        Behind the step it would come too late, and behind a promotion it would be refused.
        """
        waiting = {_identity(move) for move in self.pending}
        for move in moves:
            if move.do == "record" or _identity(move) not in waiting:
                self.pending.insert(self._place_of(move), move)
                waiting.add(_identity(move))
        while len(self.pending) > _KEPT_MOVES:
            oldest = next((index for index, move in enumerate(self.pending) if move.do == "record"), 0)
            lost = self.pending.pop(oldest)
            self.lost += 1
            self._note(f"a decision was given up as the store is away for too long: {lost.kind} of {lost.model}")

    def act(self) -> list[DecisionRecord]:
        """Try all that waits; returns what the store has recorded. Blocks while the store does, at most seconds."""
        done: list[DecisionRecord] = []
        while self.pending:
            try:
                done.append(self._carry_out(self.pending[0]))
            except StoreAway as error:
                if not self._away:
                    self._note(f"{len(self.pending)} decisions wait for the store: {error}")
                self._away = True
                return done
            except (Refused, StoreError) as error:
                move = self.pending[0]
                self._note(f"{move.kind} of {move.model} was refused by the store: {error}")
            self._away = False
            self.pending.pop(0)
        return done

    def _place_of(self, move: Move) -> int:
        last = len(self.pending)
        if move.event != "pause":
            return last
        steps = (index for index, each in enumerate(self.pending) if each.event in ("advance", "promote"))
        return next((index for index in steps if self.pending[index].rollout == move.rollout), last)

    def _carry_out(self, move: Move) -> DecisionRecord:
        reason, evidence = _worded(move.reason), _finite(move.evidence)
        if reason != move.reason:
            evidence["whole_reason"] = move.reason
        if move.do == "rollout" and move.event is not None and move.rollout is not None:
            return self._store.move_rollout(
                move.rollout,
                move.event,
                actor=ACTOR,
                reason=reason,
                evidence=evidence,
                expected_step=move.step,
                expected_phase=move.phase,
            )
        if move.do == "take_back":
            return self._store.rollback(
                move.model,
                actor=ACTOR,
                reason=reason,
                evidence=evidence,
                version=move.version,
                expected_trial=move.trial,
                expected_rollout=move.rollout,
            )
        return self._store.decide(
            move.model, kind=move.kind, actor=ACTOR, reason=reason, before={}, after={}, evidence=evidence
        )


def _identity(move: Move) -> tuple[str | int | None, ...]:
    return move.model, move.do, move.event or move.kind, move.rollout, move.version, move.trial, move.step


def _worded(reason: str) -> str:
    """The reason in characters and in a length that the store takes."""
    if not reason.isprintable():
        reason = "".join(_escaped(letter) for letter in reason)
    return reason if len(reason) <= MAX_WORDS else reason[: MAX_WORDS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()


def _finite(evidence: dict[str, Any]) -> dict[str, Any]:
    """Evidence as JSON holds it: what is not finite becomes null."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(evidence))
    return plain
