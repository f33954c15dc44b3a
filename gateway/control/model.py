"""One model under watch: its versions, the trial of its canary, and the decisions that follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from gateway.control.alarm import Alarm
from gateway.control.block import LoggedBlock
from gateway.control.decisions import (
    Comparison,
    Move,
    Situation,
    decide_alarm,
    decide_fault,
    decide_harm,
    decide_verdict,
    metric_alarm,
    needs_comparison,
)
from gateway.control.engines import Engines, SoundEngines
from gateway.control.history import TrialStart
from gateway.control.join import LabelledRow
from gateway.control.plans import plan_of
from gateway.control.trial import Trial, TrialState
from gateway.control.versions import Versions
from gateway.control.watch import VersionWatch, WatchState
from gateway.drift.profile import Profile
from gateway.events.records import Arm, PredictionRecord
from gateway.repository.policy import ModelPolicy
from gateway.rollout.errors import RolloutError
from gateway.rollout.judge import Verdict
from gateway.rollout.machine import RolloutState
from gateway.rollout.plan import Plan, check_plan
from gateway.routing.table import Route

__all__ = ("Findings", "Harm", "ModelState", "ModelWatch")

_DETECTOR_OF = {"inputs_out_of_range": "inputs", "outputs": "outputs"}
"""The judge's metrics that compare the arms in what a detector watches in each of them."""

_FAULT_SECONDS = 3.0
"""How long a canary's engine is out of service, and stable's in service, before that counts: a note may be older than
the engine's start, and what took both out need not let go of both at once."""

_RECENT_ROWS = 2_000
_RECENT_ALARMS = 20
_COMPARE_EACH_ROWS = 50
_LARGEST_PAYLOAD_BYTES = 16_384
"""A labelled row whose prediction is larger is looked up in the log when it is needed."""


class Harm(msgspec.Struct):
    """A harmed stable version, and labelled rows on which its previous one has still to be compared.

    `pairs` is what earlier rows came to; None when these are the first.
    """

    alarm: Alarm
    rows: list[LabelledRow]
    miss_above: float
    pairs: dict[str, int] | None = None


class Findings(msgspec.Struct, frozen=True):
    """What one flush came to."""

    alarms: list[Alarm]
    moves: list[Move]
    harms: list[Harm]
    notes: list[str] = []


class ModelState(msgspec.Struct):
    """What a checkpoint keeps of a model."""

    watches: dict[int, WatchState] = {}
    trial: TrialState | None = None
    reported: list[str] = []
    alarms: list[Alarm] = []
    recent: list[LabelledRow] = []
    harm: Harm | None = None


class ModelWatch:
    """Collects evidence on one model and says what to do about it.

    Parameters
    ----------
    route : Route
    policy : ModelPolicy
    versions : Versions
        Where reference profiles come from.
    flush_seconds : float
        Time between two flushes.
    engines : Engines, optional
        Tells which versions are out of service.

    Raises
    ------
    PlanError
        No canary could be judged by the policy.
    """

    def __init__(
        self,
        route: Route,
        *,
        policy: ModelPolicy,
        versions: Versions,
        flush_seconds: float,
        engines: Engines | None = None,
    ) -> None:
        check_plan(plan_of(policy))
        self.route = route
        self.policy = policy
        self.rollout: RolloutState | None = None
        self.trial: Trial | None = None
        self.watches: dict[int, VersionWatch] = {}
        self.alarms: deque[Alarm] = deque(maxlen=_RECENT_ALARMS)
        self.verdict: Verdict | None = None
        self.without_profile: set[int] = set()
        self._versions = versions
        self._flush_seconds = flush_seconds
        self._engines = engines or SoundEngines()
        self._recent: deque[LabelledRow] = deque(maxlen=_RECENT_ROWS)
        self._reported: set[str] = set()
        self._harm: Harm | None = None

    def __repr__(self) -> str:
        return f"<ModelWatch {self.route.model} versions={sorted(self.watches)} trial={self.trial!r}>"

    def follow(
        self,
        route: Route,
        *,
        rollout: RolloutState | None,
        start: TrialStart | None,
        plan: Plan | None,
        approved: Callable[[int], bool],
    ) -> None:
        """Take over what the store says; a trial that is another one begins without evidence.

        Parameters
        ----------
        start : TrialStart or None
            Of the route's trial; None while the decision that began it has not been read.
        plan : Plan or None
            Of the open rollout.
        approved : callable
            Whether a version is; one that is not, and is not on the route either, is watched no longer.
        """
        if route.stable != self.route.stable:
            self._harm = None
        before = {self.route.stable, self.route.canary}
        if route.trial != self.route.trial:
            before.discard(route.canary)
        for version in {route.stable, route.canary} - before:
            if version in self.watches:
                self.watches[version].rearm()
        self.route, self.rollout = route, rollout
        for version in self.watches.keys() | self.without_profile:
            if not (self._on_route(version) or approved(version)):
                self.watches.pop(version, None)
                self.without_profile.discard(version)
        on_trial = route.canary is not None and route.weight > 0 and start is not None and start.trial == route.trial
        if not on_trial or route.canary is None or start is None:
            self.trial = None
        elif self.trial is None or self._is_another(self.trial, route, start):
            self._begin(route.canary, start, plan or plan_of(self.policy))
        else:
            self.trial.start = start
        if self.trial is None:
            self.verdict = None
            self._reported.clear()

    def add_prediction(self, record: PredictionRecord) -> None:
        """Take one prediction of this model, of a version the store knows."""
        watch = self._watch_of(record.version, record.arm)
        if watch is not None:
            watch.add_prediction(record)
        if self.trial is not None and not self._is_frozen:
            self.trial.add_prediction(record)

    def add_block(self, block: LoggedBlock) -> None:
        """Take the predictions of a block, as `add_prediction` takes them one by one."""
        watch = self._watch_of(block.head.version, block.head.arm)
        if watch is not None:
            watch.add_block(block)
        if self.trial is not None and not self._is_frozen:
            self.trial.add_block(block)

    def add_label(self, row: LabelledRow) -> None:
        """Take one labelled row of this model."""
        watch = self._watch_of(row.version, row.arm)
        counted = watch.add_label(row) if watch is not None else None
        if counted is not None and row.version == self.route.stable:
            large = row.payload is not None and len(row.payload) > _LARGEST_PAYLOAD_BYTES
            kept = msgspec.structs.replace(row, payload=None) if large else row
            self._recent.append(kept)
            if self._harm is not None:
                self._harm.rows.append(kept)
        if self.trial is not None and not self._is_frozen:
            self.trial.add_label(row)

    def flush(self, hours_of: Callable[[str], float], *, previous: int | None) -> Findings:
        """Count what came; returns the alarms, the moves they ask for, and harms that need a comparison first.

        Such a harm is returned again until `decide_compared` has been told of it.

        Parameters
        ----------
        hours_of : callable
            From an ISO 8601 time to the hours since.
        previous : int or None
            The version before the stable one, where it is approved.
        """
        alarms = [alarm for watch in self.watches.values() for alarm in watch.flush()]
        self.alarms.extend(alarms)
        situation = self._situation(previous)
        moves: list[Move] = []
        harms: list[Harm] = []
        for alarm in alarms:
            if needs_comparison(alarm, situation):
                self._harm = self._harm_of(alarm)
                harms.append(self._harm)
            else:
                moves += decide_alarm(alarm, situation)
        harm = self._harm
        if not harms and harm is not None and (harm.pairs is None or len(harm.rows) >= _COMPARE_EACH_ROWS):
            harms.append(harm)
        notes: list[str] = []
        trial = self.trial
        if trial is not None and not self._is_frozen:
            with self._spared(trial, notes):
                trial.flush()
            with self._spared(trial, notes):
                moves += self._guarded(trial, situation)
                moves += self._judged(trial, situation, hours_of)
        return Findings(alarms, moves, harms, notes)

    def decide_compared(self, harm: Harm, comparison: Comparison, *, rows: int, previous: int | None) -> list[Move]:
        """Moves for a harm whose first `rows` rows were compared; until 2,000, the comparison goes on with new ones."""
        first, done = harm.pairs is None, comparison.better or comparison.rows >= _RECENT_ROWS
        harm.pairs, harm.rows = comparison.pairs or harm.pairs or {}, harm.rows[rows:]
        if self._harm is harm and (done or previous is None):
            self._harm = None
        if not first and not comparison.better:
            return []
        return decide_harm(harm.alarm, self._situation(previous), comparison)

    def state(self) -> ModelState:
        return ModelState(
            {version: watch.state() for version, watch in self.watches.items()},
            self.trial.state() if self.trial is not None else None,
            sorted(self._reported),
            list(self.alarms),
            [msgspec.structs.replace(row, payload=None) for row in self._recent],
            self._harm,
        )

    def restore(self, state: ModelState, *, approved: Callable[[int], bool]) -> list[str]:
        """Go on from a checkpoint; returns notes on what could not be taken over and begins anew."""
        notes = []
        for version, kept in state.watches.items():
            if not (self._on_route(version) or approved(version)):
                continue
            try:
                self._watch(version).restore(kept)
            except (ValueError, KeyError) as error:
                self.watches.pop(version, None)
                notes.append(f"{self.route.model}/{version} is watched anew: {error}")
        self.alarms.extend(state.alarms)
        self._recent.extend(state.recent)
        self._harm = state.harm
        trial = state.trial
        if trial is not None and trial.canary == self.route.canary and trial.stable == self.route.stable:
            try:
                self._begin(trial.canary, trial.start, trial.plan).restore(trial)
                self._reported = set(state.reported)
            except RolloutError as error:
                notes.append(f"the trial of {self.route.model}/{trial.canary} is judged anew: {error}")
        return notes

    @property
    def _is_frozen(self) -> bool:
        return self.rollout is not None and self.rollout.phase == "frozen"

    def _on_route(self, version: int) -> bool:
        return version in (self.route.stable, self.route.canary, self.route.previous)

    def _watch_of(self, version: int, arm: Arm) -> VersionWatch | None:
        """The watch that takes what was served on this arm; who pins a version does not have it watched."""
        routed = arm in ("stable", "canary")
        return self._watch(version) if routed or self._on_route(version) else self.watches.get(version)

    def _watch(self, version: int) -> VersionWatch:
        watch = self.watches.get(version)
        if watch is None:
            watch = self.watches[version] = VersionWatch(
                self.route.model,
                version,
                policy=self.policy,
                profile=self._profile(version),
                flush_seconds=self._flush_seconds,
            )
        return watch

    def _profile(self, version: int) -> Profile | None:
        profile = self._versions.profile(self.route.model, version)
        if profile is None:
            self.without_profile.add(version)
        return profile

    def _is_another(self, trial: Trial, route: Route, start: TrialStart) -> bool:
        known = (trial.stable, trial.canary, trial.start.trial, trial.start.began)
        return known != (route.stable, route.canary, start.trial, start.began)

    def _begin(self, canary: int, start: TrialStart, plan: Plan) -> Trial:
        stable = self.route.stable
        # Whatever becomes of the new one, the old one no longer speaks for the route.
        self.trial = None
        self._reported.clear()
        self.trial = Trial(
            self.route.model,
            stable=stable,
            canary=canary,
            start=start,
            plan=plan,
            policy=self.policy,
            profiles={version: self._profile(version) for version in (stable, canary)},
        )
        return self.trial

    @contextmanager
    def _spared(self, trial: Trial, notes: list[str]) -> Iterator[None]:
        """What is wrong with a trial must not cost what is known of the versions; it is noted once a trial."""
        try:
            yield
        except Exception as error:
            name = f"trouble:{type(error).__name__}"
            if name not in self._reported:
                self._reported.add(name)
                notes.append(f"the trial of {self.route.model}/{trial.canary} misses evidence: {error!r}")

    def _guarded(self, trial: Trial, situation: Situation) -> list[Move]:
        """Tell the judge that the canary is out of service while stable serves; there is no better place otherwise."""
        model = self.route.model
        fault = self._engines.fault(model, trial.canary, beside=trial.stable, lasting_seconds=_FAULT_SECONDS)
        if fault is None:
            return []
        action = trial.plan.actions.get("errors", "alert")
        if action == "rollback":
            trial.guard(fault.guard, fault.reason)
            return []
        name = f"alarm:{fault.guard}"
        if name in self._reported:
            return []
        self._reported.add(name)
        return decide_fault(fault.guard, fault.reason, situation, action=action)

    def _judged(self, trial: Trial, situation: Situation, hours_of: Callable[[str], float]) -> list[Move]:
        step = self.rollout.step if self.rollout is not None else None
        self.verdict = verdict = trial.verdict(step=step, hours=hours_of(trial.start.resumed))
        moves = decide_verdict(verdict, situation, trial.certificate()) if verdict.kind != "hold" else []
        for reading in trial.readings():
            name = f"alarm:{reading.metric}"
            alerts = reading.direction == "harm" and reading.action in ("alert", "retrain")
            if alerts and reading.log_evidence >= reading.threshold and name not in self._reported:
                self._reported.add(name)
                window = {"start": trial.start.began, "end": trial.until}
                moves += metric_alarm(reading, situation, trial.certificate(), window=window)
        return [move for move in moves if self._is_new(move)]

    def _is_new(self, move: Move) -> bool:
        """A recorded verdict is reported once a trial; what moves traffic is tried until the store has done it."""
        if move.do != "record" or move.kind == "drift_alarm":
            return True
        new = move.kind not in self._reported
        self._reported.add(move.kind)
        return new

    def _situation(self, previous: int | None) -> Situation:
        drifted = {
            detector: frozenset(
                version
                for version, watch in self.watches.items()
                if watch.evidence().get(detector, 0.0) >= watch.line / 2
            )
            for detector in ("inputs", "outputs")
        }
        return Situation(self.route, self.rollout, drifted, previous, self._differing())

    def _differing(self) -> frozenset[str]:
        if self.trial is None:
            return frozenset()
        return frozenset(
            _DETECTOR_OF[reading.metric]
            for reading in self.trial.readings()
            if reading.direction == "harm"
            and reading.metric in _DETECTOR_OF
            and reading.log_evidence >= reading.threshold / 2
        )

    def _harm_of(self, alarm: Alarm) -> Harm:
        """The rows since the harm began: before, the version did well, and that is no longer the question."""
        rows = [row for row in self._recent if row.version == alarm.version]
        limit = self.watches[alarm.version].miss_above
        return Harm(alarm, rows[-alarm.rows :], limit if limit is not None else 0.0)
