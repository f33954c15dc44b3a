"""The trial of one canary: what both arms did, told to its judge in the order of the log."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.control.block import LoggedBlock
from gateway.control.history import TrialStart
from gateway.control.join import LabelledRow
from gateway.control.quality import loss_of, miss_above
from gateway.control.reference import is_finite, out_of_reference, output_bins
from gateway.drift.profile import Profile
from gateway.events.encoding import RecordError, seconds_of
from gateway.events.records import PredictionRecord
from gateway.repository.policy import ModelPolicy
from gateway.rollout.judge import Judge, Reading, Verdict
from gateway.rollout.plan import Plan

__all__ = ("Trial", "TrialState")

_SETTLE_SECONDS = 1.0
"""A route reaches every front within a second (P11); what was served in that time may belong to the trial before."""


class TrialState(msgspec.Struct):
    """What a checkpoint keeps of a trial."""

    stable: int
    canary: int
    start: TrialStart
    plan: Plan
    judge: dict[str, Any]
    until: str = ""


class Trial:
    """Feeds one judge with the requests whose arm was drawn since the trial began.

    What is older is no evidence, whenever it is read; nor is what pins a version, and nor are requests that the
    caller got wrong (4xx). The unit is the caller that a routing key names, else the request.

    Parameters
    ----------
    profiles : dict
        Version to profile; a version without one has no range and no bins.
    """

    def __init__(
        self,
        model: str,
        *,
        stable: int,
        canary: int,
        start: TrialStart,
        plan: Plan,
        policy: ModelPolicy,
        profiles: dict[int, Profile | None],
    ) -> None:
        self.model = model
        self.stable = stable
        self.canary = canary
        self.start = start
        self.plan = plan
        self.until = start.began
        self._policy = policy
        self._profiles = profiles
        self._judge = Judge(plan)
        self._began = _seconds_of(start.began) + _SETTLE_SECONDS
        self._looked_at: set[str] = set()
        self._waiting: list[PredictionRecord] = []
        self._miss_above = miss_above(policy.quality, _reference_miss(profiles.get(stable), profiles.get(canary)))

    def __repr__(self) -> str:
        return f"<Trial {self.model} {self.stable} against {self.canary} since {self.start.began} {self._judge!r}>"

    def add_prediction(self, record: PredictionRecord) -> None:
        """Keep one request until the next flush, if it is of this trial."""
        if self._concerns(record) and (record.status == 200 or record.status >= 500):
            self._waiting.append(record)
            self.until = record.time

    def add_block(self, block: LoggedBlock) -> None:
        """Keep the requests of a block until the next flush, if they are of this trial."""
        if self._concerns(block.prediction(0)):
            self._waiting += [block.prediction(place) for place in range(block.count)]
            self.until = block.time

    def add_label(self, row: LabelledRow) -> None:
        """Tell the judge of a label; both arms' misses are measured by the stable version's limit."""
        if self._miss_above is None or not self._concerns(row):
            return
        loss = loss_of(self._policy.quality, row.outputs, row.label)
        self._judge.label(
            loss > self._miss_above,
            row.arm == "canary",
            weight=row.weight,
            unit_key=row.key or row.prediction_id,
        )

    def guard(self, name: str, reason: str) -> None:
        """Tell the judge that the canary's engine is out of service."""
        self._judge.guard(name, reason)

    def flush(self) -> None:
        """Tell the judge of the requests since the last flush, in their order."""
        waiting, self._waiting = self._waiting, []
        strange, bins = self._against_references(waiting)
        for index, record in enumerate(waiting):
            self._tell(record, strange[index], [(name, values[index]) for name, values in bins.items()])
        for metric in self.start.looked_at:
            if metric not in self._looked_at:
                self._looked_at.add(metric)
                self._acknowledge(metric)

    def verdict(self, *, step: int | None, hours: float) -> Verdict:
        return self._judge.verdict(step=step, hours=hours)

    def readings(self) -> tuple[Reading, ...]:
        """What is known of each metric that is judged; durations are not yet, so nothing is shown of them."""
        return tuple(reading for reading in self._judge.readings() if reading.metric != "latency")

    def certificate(self) -> dict[str, Any]:
        """What a stranger needs to compute the judge's evidence again."""
        return self._judge.certificate() | {"trial": self.start.trial, "began": self.start.began}

    def state(self) -> TrialState:
        return TrialState(self.stable, self.canary, self.start, self.plan, self._judge.state(), self.until)

    def restore(self, state: TrialState) -> None:
        """Go on from a checkpoint, right after a flush.

        Raises
        ------
        EvidenceError
            The judge's state is damaged.
        """
        self._judge = Judge.restore(self.plan, state.judge)
        self.until = state.until or self.until

    def _concerns(self, record: PredictionRecord | LabelledRow) -> bool:
        if not 0.0 < record.weight < 100.0:
            return False
        served = self.stable if record.arm == "stable" else self.canary if record.arm == "canary" else None
        return record.version == served and _seconds_of(record.time) >= self._began

    def _against_references(self, records: list[PredictionRecord]) -> tuple[list[bool], dict[str, list[int]]]:
        strange = [False] * len(records)
        bins: dict[str, list[int]] = {}
        comparable = self._comparable_outputs()
        for version in (self.stable, self.canary):
            profile = self._profiles.get(version)
            places = [index for index, record in enumerate(records) if record.version == version]
            served = [records[index] for index in places]
            served_well = [record for record in served if record.status == 200]
            if profile is None or not served_well:
                continue
            of_version = iter(out_of_reference(served, profile, ignore=self._policy.drift.ignore))
            for index in places:
                strange[index] = next(of_version)
            for name, values in output_bins(served, profile).items():
                if name in comparable:
                    column = bins.setdefault(name, [-1] * len(records))
                    for index, value in zip(places, values, strict=True):
                        column[index] = value
        return strange, bins

    def _comparable_outputs(self) -> frozenset[str]:
        """Outputs whose references were cut into as many quantiles on both versions."""
        stable, canary = self._profiles.get(self.stable), self._profiles.get(self.canary)
        if stable is None or canary is None:
            return frozenset()
        return frozenset(
            name
            for name, feature in stable.outputs.items()
            if name in canary.outputs and len(canary.outputs[name].edges) == len(feature.edges)
        )

    def _tell(self, record: PredictionRecord, strange: bool, bins: list[tuple[str, int]]) -> None:
        judge, on_canary, weight, key = self._judge, record.arm == "canary", record.weight, record.key
        judge.at(record.id)
        judge.unit(on_canary, weight, unit_key=key)
        if record.status >= 500:
            judge.event("errors", on_canary, weight=weight, unit_key=key)
            return
        if strange:
            judge.event("inputs_out_of_range", on_canary, weight=weight, unit_key=key)
        if not is_finite(record.outputs):
            judge.event("invalid_outputs", on_canary, weight=weight, unit_key=key)
        for name, index in bins:
            if index >= 0:
                judge.output_bin(name, index, on_canary=on_canary, weight=weight, unit_key=key)

    def _acknowledge(self, metric: str) -> None:
        if metric in self.plan.actions:
            self._judge.acknowledge(metric)


def _seconds_of(time: str) -> float:
    """Seconds since 1970; a time that cannot be read counts as old."""
    try:
        return seconds_of(time)
    except RecordError:
        return 0.0


def _reference_miss(stable: Profile | None, canary: Profile | None) -> float | None:
    for profile in (stable, canary):
        if profile is not None and profile.loss is not None:
            return profile.loss.miss_above
    return None
