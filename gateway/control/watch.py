"""One version under watch: its inputs and outputs against its reference profile, its losses against the reference's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

import msgspec

from gateway.control.alarm import Alarm, Latch, LatchState
from gateway.control.block import LoggedBlock
from gateway.control.join import LabelledRow, event_time_of
from gateway.control.moments import Moments
from gateway.control.quality import QualityCounts, loss_of, miss_above
from gateway.control.rows import RowBuffer
from gateway.control.share import CallerShare, ShareState
from gateway.drift.ecusum import BinnedECusum, threshold
from gateway.drift.profile import FeatureProfile, Profile
from gateway.drift.risk import RiskECusum
from gateway.drift.streams import RiverDetector
from gateway.events.records import PredictionRecord
from gateway.repository.policy import Action, DetectorPolicy, ModelPolicy

__all__ = ("VersionWatch", "WatchState")

_DAY_SECONDS = 86_400.0


class WatchState(msgspec.Struct):
    """What a checkpoint keeps of a watch; detectors in the form that their own `state` gives."""

    inputs: dict[str, Any] | None
    outputs: dict[str, Any] | None
    risk: dict[str, Any] | None
    streams: list[dict[str, Any]]
    latches: dict[str, LatchState]
    moments: dict[str, Moments]
    shares: dict[str, ShareState]
    quality: QualityCounts
    until: str
    label_until: str


class VersionWatch:
    """Feeds what the log says of one version to its detectors, once per flush.

    Evidence is traffic that the gateway itself routed: requests that pin a version come from testers and are left
    out, so are shadow answers, failed requests and rows beyond one caller's share.

    Parameters
    ----------
    profile : Profile or None
        None for a version that was added without reference rows: only its losses are followed then.
    flush_seconds : float
        Time between two flushes; with `policy.drift.false_alarm_days` it sets the line of an alarm.
    """

    def __init__(
        self, model: str, version: int, *, policy: ModelPolicy, profile: Profile | None, flush_seconds: float
    ) -> None:
        self.model = model
        self.version = version
        self.policy = policy
        self.profile = profile
        self.line = threshold(policy.drift.false_alarm_days * _DAY_SECONDS, flush_seconds)
        self.quality = QualityCounts()
        columns = profile.columns if profile is not None else {}
        unwatched = policy.drift.ignore + policy.logging.redact
        self._bins = {
            "inputs": _Bins(profile.features if profile else {}, columns, policy, ignore=unwatched),
            "outputs": _Bins(profile.outputs if profile else {}, columns, policy, ignore=()),
        }
        loss = profile.loss if profile is not None else None
        self.miss_above = miss_above(policy.quality, loss.miss_above if loss is not None else None)
        self._risk = _risk_of(profile, policy, self.miss_above)
        self._streams = [(RiverDetector(rule.name, rule.parameters), rule) for rule in policy.detectors]
        self._latches = {name: Latch(self.line) for name in ("inputs", "outputs", "quality")}
        self._shares = {"rows": CallerShare(), "labels": CallerShare()}
        self._label_moments = Moments()
        self._label_rows = self._label_misses = 0
        self._warnings: list[Alarm] = []
        self._sent: list[Sequence[str | None]] = []
        self._rows = 0
        self._began = self._until = self._label_until = ""

    def __repr__(self) -> str:
        shown = " ".join(f"{name}={evidence:.2f}" for name, evidence in self.evidence().items())
        return f"<VersionWatch {self.model}/{self.version} {shown} line={self.line:.2f} labels={self.quality.rows}>"

    def add_prediction(self, record: PredictionRecord) -> None:
        """Take one answered request; what is no evidence changes nothing."""
        if record.status != 200 or record.arm not in ("stable", "canary"):
            return
        rows = self._shares["rows"].admit(record.key, record.rows)
        if rows:
            self._bins["inputs"].rows.add(record.inputs, rows)
            self._bins["outputs"].rows.add(record.outputs, rows)
            self._note_sent((record.key,), rows, event_time_of(record))

    def add_block(self, block: LoggedBlock) -> None:
        """Take the requests of a block, as `add_prediction` takes them one by one."""
        if block.head.arm not in ("stable", "canary"):
            return
        rows = self._shares["rows"].admit_each(block.keys, block.rows)
        if not any(rows):
            return
        self._bins["inputs"].rows.add_column(block.inputs, block.rows, rows)
        self._bins["outputs"].rows.add_column(block.outputs, block.rows, rows)
        keys = block.keys or repeat(None)
        self._note_sent([key for key, each in zip(keys, rows, strict=False) if each], sum(rows), block.time)

    def add_label(self, row: LabelledRow) -> tuple[float, bool] | None:
        """Take one labelled row; returns its loss and whether it is a miss, or None when it is no evidence."""
        if row.arm not in ("stable", "canary") or not self._shares["labels"].admit(row.key or row.prediction_id, 1):
            return None
        loss = loss_of(self.policy.quality, row.outputs, row.label)
        missed = self.miss_above is not None and loss > self.miss_above
        self._label_until = row.event_time
        self._label_moments.note(self.quality.rows + 1, row.event_time, self.quality.misses)
        self.quality.add(loss, missed)
        self._latches["quality"].count(1, (row.key or row.prediction_id,))
        self._label_rows += 1
        self._label_misses += missed
        for detector, rule in self._streams:
            # Misses where they are known: bounded, so that no single loss can raise or blind a detector.
            detector.update(float(missed) if self.miss_above is not None or detector.binary else loss)
            if detector.detected:
                self._warnings.append(self._warning(detector, rule))
        return loss, missed

    def flush(self) -> list[Alarm]:
        """Count what came since the last flush; returns the alarms that it raises."""
        alarms, self._warnings = self._warnings, []
        sent, self._sent = self._sent, []
        rows, self._rows = self._rows, 0
        if sent:
            for name, bins in self._bins.items():
                self._latches[name].count(rows, chain.from_iterable(sent))
                if bins.flush(self._began) and self._latches[name].settle(bins.evidence):
                    alarms.append(self._drift_alarm(name, bins))
        if self._risk is not None and self._label_rows:
            self._risk.update_batch(self._label_rows, self._label_misses)
            if self._latches["quality"].settle(self._risk.evidence):
                alarms.append(self._quality_alarm(self._risk))
        self._label_rows = self._label_misses = 0
        return alarms

    @property
    def miss_rate(self) -> float | None:
        """Share of labelled rows that missed; None where there are none, or nothing says what a miss is."""
        known = self.quality.rows > 0 and self.miss_above is not None
        return self.quality.misses / self.quality.rows if known else None

    def evidence(self) -> dict[str, float]:
        """Evidence of each detector, natural logarithm; `line` is where it alarms."""
        shown = {name: bins.evidence for name, bins in self._bins.items() if bins.detector is not None}
        return shown if self._risk is None else shown | {"quality": self._risk.evidence}

    def feature_evidence(self) -> dict[str, float]:
        """Evidence of each input and output column."""
        return {
            feature: evidence
            for bins in self._bins.values()
            if bins.detector is not None
            for feature, evidence in bins.detector.feature_evidence.items()
        }

    def rearm(self) -> None:
        """Let the same alarms be reported again, as when the version has taken another place on the route."""
        for latch in self._latches.values():
            latch.state.fired = False

    @property
    def skipped(self) -> int:
        """Tensors that were no evidence because they were summarised, redacted or not of their size."""
        return sum(bins.rows.skipped for bins in self._bins.values())

    def state(self) -> WatchState:
        return WatchState(
            self._bins["inputs"].state(),
            self._bins["outputs"].state(),
            self._risk.state() if self._risk is not None else None,
            [detector.state() for detector, _ in self._streams],
            {name: latch.state for name, latch in self._latches.items()},
            {name: bins.moments for name, bins in self._bins.items()} | {"labels": self._label_moments},
            {name: share.state for name, share in self._shares.items()},
            self.quality,
            self._until,
            self._label_until,
        )

    def restore(self, state: WatchState) -> None:
        """Go on from a checkpoint, right after a flush.

        Raises
        ------
        ValueError
            The state is of another profile or policy; the watch must be made anew.
        """
        self._bins["inputs"].restore(state.inputs)
        self._bins["outputs"].restore(state.outputs)
        if (self._risk is None) != (state.risk is None) or len(self._streams) != len(state.streams):
            raise ValueError("the state is of another policy")
        if self._risk is not None and state.risk is not None:
            self._risk.restore(state.risk)
        for (detector, _), kept in zip(self._streams, state.streams, strict=True):
            detector.restore(kept)
        for name, latch in self._latches.items():
            latch.state = state.latches[name]
        for name, bins in self._bins.items():
            bins.moments = state.moments[name]
        self._label_moments = state.moments["labels"]
        for name, share in self._shares.items():
            share.state = state.shares[name]
        self.quality = state.quality
        self._until, self._label_until = state.until, state.label_until

    def _note_sent(self, callers: Sequence[str | None], rows: int, time: str) -> None:
        if not self._sent:
            self._began = time
        self._until = time
        self._sent.append(callers)
        self._rows += rows

    def _drift_alarm(self, name: str, bins: _Bins) -> Alarm:
        assert bins.detector is not None  # noqa: S101  (only such bins flush)
        by_feature = bins.detector.feature_evidence
        named = bins.detector.drifted(self.line) or [max(by_feature, key=by_feature.__getitem__)]
        action: Action = self.policy.drift.inputs if name == "inputs" else self.policy.drift.outputs
        return Alarm(
            self.model,
            self.version,
            name,
            "page",
            action,
            bins.evidence,
            self.line,
            {feature: by_feature[feature] for feature in named},
            bins.since(named) or self._until,
            self._until,
            self._latches[name].state.rows,
            self._latches[name].callers,
        )

    def _quality_alarm(self, risk: RiskECusum) -> Alarm:
        first = self._label_moments.known(risk.since or 1)
        since, rows = self._label_moments.time_of(first), risk.rows - first + 1
        misses = risk.misses - self._label_moments.total_of(first)
        return Alarm(
            self.model,
            self.version,
            "quality",
            "page",
            self.policy.quality.action,
            risk.evidence,
            self.line,
            {},
            since or self._label_until,
            self._label_until,
            rows,
            self._latches["quality"].callers,
            self._quality_numbers() | {"allowed_miss_rate": risk.bound, "miss_rate_since": misses / rows},
        )

    def _warning(self, detector: RiverDetector, rule: DetectorPolicy) -> Alarm:
        offset = self.quality.rows - detector.rows
        since = self._label_moments.time_of(detector.since + offset) if detector.since is not None else None
        return Alarm(
            self.model,
            self.version,
            detector.name,
            "warn",
            rule.action,
            0.0,
            0.0,
            {},
            since or self._label_until,
            self._label_until,
            detector.rows,
            self._latches["quality"].callers,
            self._quality_numbers(),
        )

    def _quality_numbers(self) -> dict[str, float]:
        quality = self.quality
        numbers = {"labelled_rows": float(quality.rows), "misses": float(quality.misses)}
        if quality.rows:
            numbers["mean_loss"] = quality.loss_sum / quality.rows
        if self.miss_rate is not None:
            numbers["miss_rate"] = self.miss_rate
        if self.profile is not None and self.profile.loss is not None:
            loss = self.profile.loss
            numbers |= {"reference_miss_rate": loss.misses / loss.rows, "reference_mean_loss": loss.mean}
        if self.miss_above is not None:
            numbers["miss_above"] = self.miss_above
        return numbers


class _Bins:
    """The binned detector of one side (inputs or outputs), with the times of its batches."""

    def __init__(
        self,
        features: dict[str, FeatureProfile],
        columns: dict[str, tuple[str, ...]],
        policy: ModelPolicy,
        *,
        ignore: Iterable[str],
    ) -> None:
        self.rows = RowBuffer(features, columns, ignore=ignore)
        self.detector = (
            BinnedECusum(self.rows.features, tolerance=policy.drift.tolerance) if self.rows.features else None
        )
        self.moments = Moments()

    @property
    def evidence(self) -> float:
        return self.detector.evidence if self.detector is not None else 0.0

    def flush(self, began: str) -> bool:
        """Count what came, of which the first speaks of the time `began`; whether there was anything."""
        if self.detector is None:
            return False
        before = self.detector.batches
        self.detector.update(self.rows.take())
        if self.detector.batches > before:
            self.moments.note(self.detector.batches, began)
        return self.detector.batches > before

    def since(self, features: list[str]) -> str | None:
        """When the evidence of the first of these features began to grow."""
        began = self.detector.since if self.detector is not None else {}
        batches = [began[feature] for feature in features if feature in began]
        return self.moments.time_of(batches[0]) if batches else None

    def state(self) -> dict[str, Any] | None:
        return self.detector.state() if self.detector is not None else None

    def restore(self, state: dict[str, Any] | None) -> None:
        if (self.detector is None) != (state is None):
            raise ValueError("the state is of another profile")
        if self.detector is not None and state is not None:
            self.detector.restore(state)


def _risk_of(profile: Profile | None, policy: ModelPolicy, limit: float | None) -> RiskECusum | None:
    """The detector of risk, where the reference's risk was measured with the same idea of a miss."""
    if profile is None or profile.loss is None or profile.loss.loss != policy.quality.loss:
        return None
    if limit != profile.loss.miss_above and policy.quality.loss != "zero_one":
        return None
    return RiskECusum(
        reference_rows=profile.loss.rows,
        reference_misses=profile.loss.misses,
        tolerance=policy.quality.tolerance,
    )
