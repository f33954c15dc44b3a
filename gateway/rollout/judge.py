"""The judge of one trial: takes in what happened on both arms and keeps the evidence; `verdict.py` decides from it.

Nothing here acts. A metric that has no data says nothing, so no data is never success.

One randomisation unit counts once. A caller with a routing key is one unit however many requests it sends: the first
event of a unit in a metric counts, on whichever arm, and all later ones do not. (Were the first event on each arm
counted, a caller who fails everywhere and is moved into the canary by a growing weight would always count against the
canary.) A request without a key is its own unit; where one request gives several events of a metric, as one of many
rows does with its labels, pass something that names the request as the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from gateway.rollout.errors import EvidenceError
from gateway.rollout.evidence import (
    ArmBalance,
    BinShift,
    NonInferiority,
    OddsTest,
    RateRatio,
    log_mixture,
    log_rate_above,
    log_rate_below,
)
from gateway.rollout.guards import ErrorGuard, SeenUnits
from gateway.rollout.plan import METRICS, Action, Metric, Plan, check_plan
from gateway.rollout.verdict import FALSE_FREEZE, Sheet, Verdict, decide

__all__ = ("MAX_NAMES", "Judge", "Reading", "Verdict")

MAX_NAMES = 64
"""Different outputs, and different latencies, that one judge tells apart."""

_EVENTS: tuple[Metric, ...] = ("errors", "invalid_outputs", "inputs_out_of_range")
_GUARDS = ("crash_loop", "load_failure")


class Reading(msgspec.Struct, frozen=True):
    """One metric's evidence as it stands; `stable` and `canary` count its events, logarithms are natural."""

    metric: str
    direction: Literal["harm", "good", "balance"]
    log_evidence: float
    threshold: float
    action: Action | Literal["promote", "freeze"]
    stable: int
    canary: int


class Judge:
    """Evidence on one canary against one stable version, from the first request of the trial to its end.

    Weights are percent, as in the route and in the log.

    Parameters
    ----------
    plan : Plan

    Raises
    ------
    PlanError
        When the plan cannot be carried out.

    >>> judge = Judge(Plan())
    >>> for _ in range(8):
    ...     judge.event("errors", on_canary=True, weight=5.0)
    >>> judge.verdict().kind
    'rollback'
    """

    def __init__(self, plan: Plan) -> None:
        check_plan(plan)
        self.plan = plan
        self._harm: dict[Metric, RateRatio] = {name: RateRatio(plan.harm_ratio) for name in (*_EVENTS, "quality")}
        self._good = {name: NonInferiority(plan.worse_ratio - 1.0) for name in ("errors", "quality")}
        self._shifts: dict[Metric, dict[str, BinShift]] = {"outputs": {}, "latency": {}}
        self._units = ArmBalance()
        self._labels = ArmBalance()
        self._seen = SeenUnits(plan.remembered_units)
        self._error_guard = ErrorGuard()
        self._unit_is_new = False
        self._guards: dict[str, str] = {}
        self._acknowledged: set[str] = set()
        self._share = 0.0
        self._positions: list[str] = []

    def __repr__(self) -> str:
        verdict = self.verdict()
        seen = f"units={self._units.stable}+{self._units.canary} labels={self._labels.stable}+{self._labels.canary}"
        return f"<Judge {seen} {verdict.kind} {verdict.metric} {verdict.log_evidence:.2f}/{verdict.threshold:.2f}>"

    def at(self, position: str) -> None:
        """Note the log position of what comes next, for the certificate."""
        self._positions = [self._positions[0] if self._positions else position, position]

    def unit(self, on_canary: bool, weight: float, *, unit_key: str | None = None) -> None:
        """Take in one request whose arm was drawn; tell it before its events.

        Raises
        ------
        EvidenceError
            When the weight is not a percentage.
        """
        share = _share_of(weight)
        self._unit_is_new = self._is_new(share, unit_key, metric="units")
        if self._unit_is_new:
            self._share = share
            self._units.update(on_canary, share)
            self._error_guard.unit(on_canary)

    def event(self, metric: str, on_canary: bool, *, weight: float, unit_key: str | None = None) -> None:
        """Take in a harmful event: "errors", "invalid_outputs" or "inputs_out_of_range".

        Raises
        ------
        EvidenceError
            When the metric is unknown or the weight is not a percentage.
        """
        if metric not in _EVENTS:
            raise EvidenceError(f"metric is {metric!r}: expected one of {list(_EVENTS)}")
        share = _share_of(weight)
        if not self._is_new(share, unit_key, metric=metric):
            return
        self._harm[metric].update(on_canary, share)
        if metric == "errors":
            self._good[metric].update(on_canary, share)
            if self._unit_is_new:
                self._error_guard.fail(on_canary)
            if self._error_guard.fires:
                self._guards.setdefault("errors", self._error_guard.reason)

    def requests(
        self,
        count: int,
        on_canary: bool,
        *,
        weight: float,
        events: Mapping[Metric, int],
        bins: Mapping[str, Mapping[int, int]],
    ) -> None:
        """Take in many requests without a key at once, as `unit`, `event` and `output_bin` take them one by one.

        Parameters
        ----------
        events : mapping of metric to int
            How many of them had an "invalid_outputs" or "inputs_out_of_range".
        bins : mapping of output to mapping of bin to int
            How many values of each output fell in each bin.

        Raises
        ------
        EvidenceError
            When another metric is named, the weight is not a percentage, a bin is out of range or there are too many
            names.
        """
        share = _share_of(weight)
        self._unit_is_new = 0.0 < share < 1.0
        for metric, times in events.items():
            if metric not in _EVENTS or metric == "errors":
                raise EvidenceError(f"metric is {metric!r}: expected one of {[*_EVENTS][1:]}")
            if times and self._unit_is_new:
                self._harm[metric].update(on_canary, share, times=times)
        if self._unit_is_new:
            self._share = share
            self._units.update(on_canary, share, times=count)
            self._error_guard.units(on_canary, count)
        for name, counts in bins.items():
            test = self._shift_of("outputs", name) if counts else None
            if test is not None and self._unit_is_new:
                for index, times in counts.items():
                    test.update(index, on_canary, share=share, times=times)

    def label(self, miss: bool, on_canary: bool, *, weight: float, unit_key: str | None = None) -> None:
        """Take in a label: whether the prediction missed it, and the arm and weight of that prediction.

        Raises
        ------
        EvidenceError
            When the weight is not a percentage.
        """
        share = _share_of(weight)
        if not self._is_new(share, unit_key, metric="quality"):
            return
        self._labels.update(on_canary, share)
        if miss:
            self._harm["quality"].update(on_canary, share)
            self._good["quality"].update(on_canary, share)

    def output_bin(self, name: str, index: int, *, on_canary: bool, weight: float, unit_key: str | None = None) -> None:
        """Take in the bin that one output fell in; both arms number their bins alike.

        Raises
        ------
        EvidenceError
            When the weight is not a percentage, the bin is out of range or there are too many names.
        """
        self._shift("outputs", name, index, on_canary=on_canary, weight=weight, unit_key=unit_key)

    def latency_bin(
        self, name: str, index: int, *, on_canary: bool, weight: float, unit_key: str | None = None
    ) -> None:
        """Take in the bin of one duration; faster and slower are both a shift.

        Raises
        ------
        EvidenceError
            When the weight is not a percentage, the bin is out of range or there are too many names.
        """
        self._shift("latency", name, index, on_canary=on_canary, weight=weight, unit_key=unit_key)

    def guard(self, name: str, reason: str) -> None:
        """Take in what needs no statistics: the canary's "crash_loop" or "load_failure".

        Raises
        ------
        EvidenceError
            When the name is unknown.
        """
        if name not in _GUARDS:
            raise EvidenceError(f"guard is {name!r}: expected one of {list(_GUARDS)}")
        self._guards.setdefault(name, reason)

    def acknowledge(self, metric: str) -> None:
        """Note that a person has looked at a metric that paused the rollout and resumes: it does not pause again.

        Raises
        ------
        EvidenceError
            When the metric is unknown.
        """
        if metric not in METRICS:
            raise EvidenceError(f"metric is {metric!r}: expected one of {list(METRICS)}")
        self._acknowledged.add(metric)

    def verdict(self, *, step: int | None = None, hours: float = 0.0) -> Verdict:
        """Say what the evidence allows.

        Parameters
        ----------
        step : int, optional
            Index of the present step. Before the last one, "advance" takes the place of "promote", at a threshold
            that rises to the promised one evenly in the logarithm. Left out, the trial has no steps: "promote", on
            the data of any weight.
        hours : float
            Since the trial began, or since a person resumed it.

        Raises
        ------
        EvidenceError
            When the plan has no such step.
        """
        if step is not None and not 0 <= step < len(self.plan.steps):
            raise EvidenceError(f"step is {step}: expected 0 to {len(self.plan.steps) - 1}")
        last = len(self.plan.steps) - 1
        part = 1.0 if step is None else (step + 1) / (last + 1)
        return decide(
            self.plan,
            self._sheet(step),
            last_step=step is None or step == last,
            threshold=-math.log(self.plan.bad_promotion) * part,
            hours=hours,
        )

    def readings(self) -> tuple[Reading, ...]:
        """Return the evidence of every metric in every direction, for metrics and consoles."""
        plan = self.plan
        harmful = [
            Reading(name, "harm", self._harm_of(name), -math.log(plan.false_rollback), self._action_of(name), *counts)
            for name, counts in ((name, self._events_of(name)) for name in METRICS)
        ]
        good = [
            Reading(name, "good", self._good_of(name), -math.log(plan.bad_promotion), "promote", *_by_arm(test))
            for name, test in self._good.items()
        ]
        balance = [
            Reading(name, "balance", test.log_evidence, -math.log(FALSE_FREEZE), "freeze", *_by_arm(test))
            for name, test in (("units", self._units), ("labels", self._labels))
        ]
        return (*harmful, *good, *balance)

    def counts(self) -> dict[str, Any]:
        """Return all counts by metric, arm and weight, as plain values; every log evidence is a function of them."""
        return {
            "harm": {name: test.state() for name, test in self._harm.items()},
            "shifts": {
                metric: {name: test.state() for name, test in tests.items()} for metric, tests in self._shifts.items()
            },
            "units": self._units.state(),
            "labels": self._labels.state(),
        }

    def log_evidence(self) -> dict[str, float]:
        """Return every log evidence by "<direction>:<metric>"."""
        return {f"{each.direction}:{each.metric}": each.log_evidence for each in self.readings()}

    def certificate(self) -> dict[str, Any]:
        """Return what a stranger needs to compute the evidence again (`recompute`) or from the log (`replay`)."""
        return {
            "schema": 1,
            "plan": msgspec.to_builtins(self.plan),
            "counts": self.counts(),
            "log_evidence": self.log_evidence(),
            "thresholds": {
                "rollback": -math.log(self.plan.false_rollback),
                "promote": -math.log(self.plan.bad_promotion),
                "freeze": -math.log(FALSE_FREEZE),
            },
            "guards": dict(self._guards),
            "acknowledged": sorted(self._acknowledged),
            "first": self._positions[0] if self._positions else None,
            "last": self._positions[-1] if self._positions else None,
        }

    def state(self) -> dict[str, Any]:
        """Return everything that is remembered, as plain values."""
        return {
            "counts": self.counts(),
            "seen": self._seen.state(),
            "error_guard": self._error_guard.state(),
            "unit_is_new": self._unit_is_new,
            "guards": dict(self._guards),
            "acknowledged": sorted(self._acknowledged),
            "share": self._share,
            "positions": list(self._positions),
        }

    @classmethod
    def restore(cls, plan: Plan, state: dict[str, Any]) -> Judge:
        """Return the judge that gave this state.

        Raises
        ------
        EvidenceError
            When the state is not one that `state` gives.
        """
        judge = cls(plan)
        try:
            judge.restore_counts(state["counts"])
            judge._seen.restore(state["seen"])
            judge._error_guard.restore(state["error_guard"])
            judge._unit_is_new = bool(state["unit_is_new"])
            judge._guards = dict(state["guards"])
            judge._acknowledged = set(state["acknowledged"])
            judge._share = float(state["share"])
            judge._positions = list(state["positions"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvidenceError(f"state of a judge lacks or spoils {error}: expected what state() gives") from None
        return judge

    def restore_counts(self, counts: dict[str, Any]) -> None:
        """Take over what `counts` gave.

        Raises
        ------
        EvidenceError
            When the counts are not what `counts` gives.
        """
        try:
            for name, test in self._harm.items():
                test.restore(counts["harm"][name])
            for metric, shown in self._good.items():
                shown.restore(counts["harm"][metric])
            for kind, tests in self._shifts.items():
                for output, bins in counts["shifts"][kind].items():
                    tests[output] = BinShift(self.plan.output_tolerance)
                    tests[output].restore(bins)
            self._units.restore(counts["units"])
            self._labels.restore(counts["labels"])
        except (KeyError, TypeError, AttributeError) as error:
            raise EvidenceError(f"counts of a judge lack or spoil {error}: expected what counts() gives") from None

    def _is_new(self, share: float, unit_key: str | None, *, metric: str) -> bool:
        """Tell whether there was something to draw and the unit has not counted for this metric yet."""
        return 0.0 < share < 1.0 and self._seen.first(unit_key, metric)

    def _shift(
        self, metric: Metric, name: str, index: int, *, on_canary: bool, weight: float, unit_key: str | None
    ) -> None:
        share = _share_of(weight)
        test = self._shift_of(metric, name)
        if self._is_new(share, unit_key, metric=f"{metric}:{name}"):
            test.update(index, on_canary, share=share)

    def _shift_of(self, metric: Metric, name: str) -> BinShift:
        tests = self._shifts[metric]
        test = tests.get(name)
        if test is None:
            if len(tests) == MAX_NAMES:
                raise EvidenceError(f"{metric} {name!r} is one too many: expected at most {MAX_NAMES} names")
            test = tests[name] = BinShift(self.plan.output_tolerance)
        return test

    def _sheet(self, step: int | None) -> Sheet:
        arrived: dict[str, OddsTest] = {"units": self._units, "labels": self._labels}
        totals = {name: _by_arm(test) for name, test in arrived.items()}
        share = self._share if step is None else _share_of(self.plan.steps[step])
        return Sheet(
            harm={name: self._harm_of(name) for name in METRICS},
            good={name: self._good_of(name) for name in self._good},
            events={name: self._events_of(name) for name in METRICS},
            balance={name: test.log_evidence for name, test in arrived.items()},
            arrived=totals,
            arrived_at_step=totals if step is None else {name: test.at(share) for name, test in arrived.items()},
            guards=dict(self._guards),
            acknowledged=tuple(sorted(self._acknowledged)),
            share=share,
        )

    def _action_of(self, metric: Metric) -> Action:
        return self.plan.actions.get(metric, "alert")

    def _events_of(self, metric: Metric) -> tuple[int, int]:
        if metric in self._harm:
            return _by_arm(self._harm[metric])
        tests = self._shifts[metric].values()
        return sum(test.stable for test in tests), sum(test.canary for test in tests)

    def _harm_of(self, metric: Metric) -> float:
        if metric in self._shifts:
            tests = self._shifts[metric].values()
            return log_mixture([(1.0 / len(tests), test.log_evidence) for test in tests]) if tests else 0.0
        ratio = self._harm[metric]
        if metric != "inputs_out_of_range":
            return ratio.log_evidence
        # Harm is both more than stable and more than tolerated: the weaker of the two proofs holds for both together.
        above = log_rate_above(self._units.canary, ratio.canary, floor=self.plan.input_tolerance)
        return min(ratio.log_evidence, above)

    def _good_of(self, metric: str) -> float:
        shown = self._good[metric].log_evidence
        if metric != "errors":
            return shown
        # Bad is both relatively and absolutely too many errors, so half of the wealth may bet against either.
        few = log_rate_below(self._units.canary, self._harm["errors"].canary, floor=self.plan.error_floor)
        return log_mixture([(0.5, shown), (0.5, few)])


def _by_arm(test: OddsTest) -> tuple[int, int]:
    return test.stable, test.canary


def _share_of(weight: float) -> float:
    if not 0.0 <= weight <= 100.0:
        raise EvidenceError(f"weight is {weight}: expected a percentage from 0 to 100")
    return weight / 100.0
