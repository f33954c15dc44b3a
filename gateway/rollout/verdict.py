"""What the evidence on a canary allows: one decision from one sheet of numbers.

The first of these that holds: a guard fired (rollback), the arms are not what the route says (freeze), harm is proven
(rollback), labels reach the arms unevenly (freeze), a metric shifted that may only pause (pause), everything required
is shown (advance, promote), the time is over (expire). Otherwise hold, with what is still needed.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from gateway.rollout.evidence import NonInferiority, log_mixture
from gateway.rollout.plan import METRICS, Metric, Plan

__all__ = ("FALSE_FREEZE", "Sheet", "Verdict", "decide")

FALSE_FREEZE = 0.001
"""Probability that arms which are drawn at their weights are ever taken for arms which are not."""


class Verdict(msgspec.Struct, frozen=True):
    """What the judge says; every kind but "hold" is an event of the rollout machine.

    Parameters
    ----------
    metric : str
        The metric that decides, or the one that is still missing.
    log_evidence, threshold : float
        Natural logarithms; both 0 where a guard or the clock decides.
    needs : str
        What is still needed, in one sentence; empty when nothing is.
    reason : str
        Why, in one sentence.
    """

    kind: Literal["hold", "advance", "promote", "rollback", "pause", "freeze", "expire"]
    metric: str
    log_evidence: float
    threshold: float
    needs: str
    reason: str


class Sheet(msgspec.Struct, frozen=True):
    """The evidence of one moment.

    Parameters
    ----------
    harm, good : dict
        Log evidence by metric: that the canary does worse, that it does not.
    events : dict
        Events by metric: (on stable, on the canary).
    balance : dict
        Log evidence that "units" and "labels" are not drawn at their weights.
    arrived, arrived_at_step : dict
        "units" and "labels": (on stable, on the canary), of the whole trial and at the weight of the present step.
    guards : dict
        Why, by guard that fired.
    acknowledged : tuple of str
        Metrics that pause no more.
    share : float
        Probability of the canary for the latest unit.
    """

    harm: dict[Metric, float]
    good: dict[str, float]
    events: dict[Metric, tuple[int, int]]
    balance: dict[str, float]
    arrived: dict[str, tuple[int, int]]
    arrived_at_step: dict[str, tuple[int, int]]
    guards: dict[str, str]
    acknowledged: tuple[str, ...]
    share: float


def decide(plan: Plan, sheet: Sheet, *, last_step: bool, threshold: float, hours: float) -> Verdict:
    """Decide from one sheet.

    Parameters
    ----------
    last_step : bool
        Whether "promote" follows, or "advance".
    threshold : float
        Natural logarithm of the evidence that going forward takes.
    hours : float
        Since the trial began, or since a person resumed it.
    """
    return (
        _guarded(sheet)
        or _unbalanced(sheet, "units")
        or _harmful(plan, sheet, "rollback")
        or _unbalanced(sheet, "labels")
        or _harmful(plan, sheet, "pause")
        or _forward(plan, sheet, last_step=last_step, threshold=threshold)
        or _expired(plan, hours)
        or _waiting(plan, sheet, threshold)
    )


def _guarded(sheet: Sheet) -> Verdict | None:
    for name, reason in sheet.guards.items():
        return Verdict("rollback", name, 0.0, 0.0, "", reason)
    return None


def _unbalanced(sheet: Sheet, name: str) -> Verdict | None:
    evidence, threshold = sheet.balance[name], -math.log(FALSE_FREEZE)
    if evidence < threshold:
        return None
    stable, canary = sheet.arrived[name]
    reason = f"{canary} of {stable + canary} {name} are of the canary, which its weights do not explain"
    return Verdict("freeze", name, evidence, threshold, "", reason)


def _harmful(plan: Plan, sheet: Sheet, action: Literal["rollback", "pause"]) -> Verdict | None:
    names = [name for name in METRICS if plan.actions.get(name) == action]
    shown = {name: sheet.harm[name] for name in names if _counts(sheet, name, action)}
    if not shown:
        return None
    # The mean over all names of this action, fixed by the plan; what does not count is taken for 0, which only holds
    # back.
    evidence, threshold = (
        log_mixture([(1.0 / len(names), each) for each in shown.values()]),
        -math.log(plan.false_rollback),
    )
    if evidence < threshold:
        return None
    worst = max(shown, key=lambda name: shown[name])
    stable, canary = sheet.events[worst]
    reason = (
        f"{worst}: {canary} events on the canary and {stable} on stable; with a canary that is no worse, fewer than "
        f"one in {math.exp(min(evidence, 40.0)):.3g} trials would ever look like this"
    )
    return Verdict(action, worst, evidence, threshold, "", reason)


def _counts(sheet: Sheet, name: Metric, action: Literal["rollback", "pause"]) -> bool:
    if name == "quality" and sheet.balance["labels"] >= -math.log(FALSE_FREEZE):
        return False
    return action == "rollback" or name not in sheet.acknowledged


def _forward(plan: Plan, sheet: Sheet, *, last_step: bool, threshold: float) -> Verdict | None:
    if _missing(plan, sheet, threshold) is not None or _suspect(plan, sheet) is not None:
        return None
    weakest = min(plan.require, key=lambda name: sheet.good[name])
    reason = f"{' and '.join(plan.require)}: shown to be less than {plan.worse_ratio:g} times stable's"
    return Verdict("promote" if last_step else "advance", weakest, sheet.good[weakest], threshold, "", reason)


def _expired(plan: Plan, hours: float) -> Verdict | None:
    if hours < plan.max_hours:
        return None
    needs = "a person who resumes, promotes or aborts"
    return Verdict("expire", "max_hours", 0.0, 0.0, needs, f"no verdict within {plan.max_hours:g} hours")


def _waiting(plan: Plan, sheet: Sheet, threshold: float) -> Verdict:
    missing = _missing(plan, sheet, threshold)
    if missing is not None:
        metric, needs = missing
        return Verdict("hold", metric, sheet.good.get(metric, 0.0), threshold, needs, "not enough has been seen")
    suspect = _suspect(plan, sheet) or plan.require[0]
    reason = f"{suspect}: looks worse on the canary, though it is not proven"
    limit = -math.log(plan.false_rollback)
    return Verdict("hold", suspect, sheet.harm[suspect], limit, f"more events of {suspect}, either way", reason)


def _suspect(plan: Plan, sheet: Sheet) -> Metric | None:
    """Name a metric whose harm is half proven; nothing goes forward under suspicion."""
    limit = -math.log(plan.bad_promotion)
    for name in METRICS:
        if plan.actions.get(name) == "rollback" and sheet.harm[name] >= limit:
            return name
    return None


def _missing(plan: Plan, sheet: Sheet, threshold: float) -> tuple[str, str] | None:
    """Name the first thing that is still needed to go forward, and how much of it."""
    needed = [("units", plan.minimum_units, "requests")]
    if "quality" in plan.require:
        needed.append(("labels", plan.minimum_labels, "labels"))
    for name, minimum, noun in needed:
        for arm, count in zip(("stable", "the canary"), sheet.arrived_at_step[name], strict=True):
            if count < minimum:
                return name, f"{minimum - count} more {noun} on {arm} at this step"
    for name in plan.require:
        if sheet.good[name] < threshold:
            return name, _forecast(plan, name, missing=threshold - sheet.good[name], share=sheet.share)
    return None


def _forecast(plan: Plan, metric: str, *, missing: float, share: float) -> str:
    if metric == "errors":
        gain = math.log1p(-0.01 * plan.error_floor) - math.log1p(-plan.error_floor)
        return f"about {math.ceil(missing / gain)} more requests without an error on the canary"
    gain = NonInferiority(plan.worse_ratio - 1.0).gain(share)
    if gain <= 0.0:
        return "misses at a weight between 0 and 100 %"
    return f"about {math.ceil(missing / gain)} more misses on both arms together, if the canary is as good as stable"
