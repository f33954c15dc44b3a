"""What the store says, followed by its revision and by its decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.control.act import Acts
from gateway.control.errors import StoreError
from gateway.control.gauges import Metrics
from gateway.control.history import Trials
from gateway.control.store import Snapshot
from gateway.events.records import DecisionRecord
from gateway.rollout.machine import RolloutState
from gateway.rollout.plan import Plan

__all__ = ("ControlStore", "StoreView")

_PAGE = 500


class ControlStore(Acts, Protocol):
    """What the monitor reads of the store and does to it; `gateway.control.store.Store` is one."""

    def revision(self) -> int: ...

    def snapshot(self) -> Snapshot: ...

    def rollout(self, model: str) -> RolloutState | None: ...

    def plan(self, rollout_id: str) -> Plan: ...

    def decisions(self, *, after_seq: int = 0, model: str | None = None, limit: int = 100) -> list[DecisionRecord]: ...


class StoreView:
    """The last that was read of the store; it stays as it is while the store is away.

    Attributes
    ----------
    snapshot : Snapshot or None
        None until the store was read for the first time.
    rollouts, plans : dict
        Of the models with an open rollout.
    trials : Trials
        When each trial began; a checkpoint keeps it.
    """

    def __init__(self, store: ControlStore, *, metrics: Metrics, note: Callable[[str], None]) -> None:
        self._store = store
        self._metrics = metrics
        self._note = note
        self.away = False
        self.snapshot: Snapshot | None = None
        self.rollouts: dict[str, RolloutState | None] = {}
        self.plans: dict[str, Plan] = {}
        self.trials = Trials()

    def __repr__(self) -> str:
        revision = self.snapshot.revision if self.snapshot is not None else None
        return f"<StoreView revision={revision} decisions={self.trials.seq}{' away' if self.away else ''}>"

    def read(self) -> bool:
        """Read what is new; False when the store is away. Blocks for as long as the store does, at most seconds."""
        try:
            self._read()
        except StoreError as error:
            if not self.away:
                self._note(f"the store does not answer, the last routes stay: {error}")
            self.away = True
            return False
        self.away = False
        return True

    def knows(self, model: str, version: int) -> bool:
        return self.snapshot is not None and (model, version) in self.snapshot.versions

    def approved(self, model: str, version: int) -> bool:
        state = self.snapshot.versions.get((model, version)) if self.snapshot is not None else None
        return state is not None and state.status == "approved"

    def _read(self) -> None:
        if self.snapshot is None:
            self._forget_another()
        revision = self._store.revision()
        self._read_decisions()
        if self.snapshot is not None and self.snapshot.revision == revision:
            return
        snapshot = self._store.snapshot()
        rollouts = {name: self._store.rollout(name) for name in snapshot.routes}
        plans = {name: self._store.plan(rollout.id) for name, rollout in rollouts.items() if rollout is not None}
        # The decisions behind the routes just read may have come after those read above.
        self._read_decisions()
        self.snapshot, self.rollouts, self.plans = snapshot, rollouts, plans

    def _forget_another(self) -> None:
        """Follow the decisions from the first one where the last that a checkpoint knew is none of this store's."""
        seq = self.trials.seq
        if seq and [each.hash for each in self._store.decisions(after_seq=seq - 1, limit=1)] != [self.trials.hash]:
            self._note(f"decision {seq}, the last one known, is none of the store's, whose own are read from the first")
            self.trials = Trials()

    def _read_decisions(self) -> None:
        while True:
            page = self._store.decisions(after_seq=self.trials.seq, limit=_PAGE)
            for decision in page:
                self.trials.take(decision)
                self._metrics.decision(decision)
            if len(page) < _PAGE:
                return
