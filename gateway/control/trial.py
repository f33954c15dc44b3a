"""The trial of one canary: what both arms did, told to its judge in the order of the log."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, islice
from typing import Any

import msgspec

from gateway.control.block import LoggedBlock
from gateway.control.history import TrialStart
from gateway.control.join import LabelledRow
from gateway.control.quality import NO_MISS, NO_MISS_NEEDS, loss_of, miss_above, reference_miss
from gateway.control.reference import Request, are_finite, count_of, out_of_reference, output_bins
from gateway.drift.profile import Profile
from gateway.events.encoding import RecordError, seconds_of
from gateway.events.records import Arm, PredictionRecord
from gateway.repository.policy import ModelPolicy
from gateway.rollout.judge import MAX_NAMES, Judge, Reading, Verdict
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
        Version to profile. Ranges and bins are compared where both versions have one: what only one arm can show would
        always speak against that arm.
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
        self._waiting: list[Request] = []
        self._miss_above = miss_above(policy.quality, reference_miss(profiles.get(stable), profiles.get(canary)))

    def __repr__(self) -> str:
        return f"<Trial {self.model} {self.stable} against {self.canary} since {self.start.began} {self._judge!r}>"

    def add_prediction(self, record: PredictionRecord) -> None:
        """Keep one request until the next flush, if it is of this trial."""
        concerns = self._concerns(record.arm, record.version, record.weight, record.time)
        if concerns and (record.status == 200 or record.status >= 500):
            self._waiting.append(record)
            self.until = record.time

    def add_block(self, block: LoggedBlock) -> None:
        """Keep the requests of a block until the next flush, if they are of this trial."""
        head = block.head
        if self._concerns(head.arm, head.version, head.weight, block.time):
            self._waiting.append(block)
            self.until = block.time

    def add_label(self, row: LabelledRow) -> None:
        """Tell the judge of a label; both arms' misses are measured by the stable version's limit."""
        if self._miss_above is None or not self._concerns(row.arm, row.version, row.weight, row.time):
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
        start = 0
        for request in waiting:
            end = start + count_of(request)
            of_request = {name: values[start:end] for name, values in bins.items()}
            if isinstance(request, LoggedBlock):
                self._tell_block(request, strange[start:end], of_request)
            else:
                self._tell(request, strange[start], of_request)
            start = end
        for metric in self.start.looked_at:
            if metric not in self._looked_at:
                self._looked_at.add(metric)
                self._acknowledge(metric)

    def verdict(self, *, step: int | None, hours: float) -> Verdict:
        verdict = self._judge.verdict(step=step, hours=hours)
        if verdict.kind == "hold" and self._miss_above is None and "quality" in self.plan.require:
            return msgspec.structs.replace(verdict, metric="quality", reason=NO_MISS, needs=NO_MISS_NEEDS)
        return verdict

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

    def _concerns(self, arm: Arm, version: int, weight: float, time: str) -> bool:
        if not 0.0 < weight < 100.0:
            return False
        served = self.stable if arm == "stable" else self.canary if arm == "canary" else None
        return version == served and _seconds_of(time) >= self._began

    def _against_references(self, requests: list[Request]) -> tuple[list[bool], dict[str, list[int]]]:
        counts = [count_of(request) for request in requests]
        starts = [end - count for end, count in zip(accumulate(counts), counts, strict=True)]
        strange = [False] * sum(counts)
        bins: dict[str, list[int]] = {}
        stable, canary = self._profiles.get(self.stable), self._profiles.get(self.canary)
        if stable is None or canary is None:
            return strange, bins
        comparable = _comparable_outputs(stable, canary)
        ignore = (*self._policy.drift.ignore, *(_named_apart(stable, canary) if self._policy.logging.redact else ()))
        for version, profile in ((self.stable, stable), (self.canary, canary)):
            places = [place for place, request in enumerate(requests) if _version_of(request) == version]
            served = [requests[place] for place in places]
            served_well = [each for each in served if isinstance(each, LoggedBlock) or each.status == 200]
            if not served_well:
                continue
            found: list[tuple[list[Any], list[Any]]] = [(strange, out_of_reference(served, profile, ignore=ignore))]
            found += [
                (bins.setdefault(name, [-1] * len(strange)), values)
                for name, values in output_bins(served, profile).items()
                if name in comparable
            ]
            for column, values in found:
                taken = 0
                for place in places:
                    start, count = starts[place], counts[place]
                    column[start : start + count] = values[taken : taken + count]
                    taken += count
        return strange, bins

    def _tell(self, record: PredictionRecord, strange: bool, bins: dict[str, list[int]]) -> None:
        judge, on_canary, weight, key = self._judge, record.arm == "canary", record.weight, record.key
        judge.at(record.id)
        judge.unit(on_canary, weight, unit_key=key)
        if record.status >= 500:
            judge.event("errors", on_canary, weight=weight, unit_key=key)
            return
        self._tell_answer(on_canary, weight, key, strange, are_finite(record)[0], bins, 0)

    def _tell_block(self, block: LoggedBlock, strange: list[bool], bins: dict[str, list[int]]) -> None:
        judge, on_canary, weight = self._judge, block.head.arm == "canary", block.head.weight
        finite = are_finite(block)
        for end in block.ids:
            judge.at(end)
        if block.keys is not None:
            for place, key in enumerate(block.keys):
                judge.unit(on_canary, weight, unit_key=key)
                self._tell_answer(on_canary, weight, key, strange[place], finite[place], bins, place)
            return
        judge.requests(
            block.count,
            on_canary,
            weight=weight,
            events={"inputs_out_of_range": sum(strange), "invalid_outputs": finite.count(False)},
            bins={name: _counted(indices) for name, indices in bins.items()},
        )

    def _tell_answer(
        self,
        on_canary: bool,
        weight: float,
        key: str | None,
        strange: bool,
        finite: bool,
        bins: dict[str, list[int]],
        place: int,
    ) -> None:
        judge = self._judge
        if strange:
            judge.event("inputs_out_of_range", on_canary, weight=weight, unit_key=key)
        if not finite:
            judge.event("invalid_outputs", on_canary, weight=weight, unit_key=key)
        for name, indices in bins.items():
            if indices[place] >= 0:
                judge.output_bin(name, indices[place], on_canary=on_canary, weight=weight, unit_key=key)

    def _acknowledge(self, metric: str) -> None:
        if metric in self.plan.actions:
            self._judge.acknowledge(metric)


def _comparable_outputs(stable: Profile, canary: Profile) -> frozenset[str]:
    """Numeric outputs whose references were cut into as many quantiles on both versions.

    Of many, those that come first in the stable version's profile: as many as the judge tells apart.
    """
    comparable = (
        name
        for name, feature in stable.outputs.items()
        if name in canary.outputs
        and feature.kind == canary.outputs[name].kind == "numeric"
        and len(canary.outputs[name].edges) == len(feature.edges)
    )
    return frozenset(islice(comparable, MAX_NAMES))


def _named_apart(stable: Profile, canary: Profile) -> set[str]:
    """Tensors whose columns the versions name differently: redaction may leave more to see of them on one arm."""
    tensors = stable.columns.keys() | canary.columns.keys()
    return {name for name in tensors if stable.columns.get(name) != canary.columns.get(name)}


def _counted(indices: list[int]) -> dict[int, int]:
    counts = Counter(indices)
    counts.pop(-1, None)
    return counts


def _version_of(request: Request) -> int:
    return request.head.version if isinstance(request, LoggedBlock) else request.version


def _seconds_of(time: str) -> float:
    """Seconds since 1970; a time that cannot be read counts as old."""
    try:
        return seconds_of(time)
    except RecordError:
        return 0.0
