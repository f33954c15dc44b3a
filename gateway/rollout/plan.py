"""The plan of a rollout: its steps, the two error rates it promises, and what each metric may do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from gateway.rollout.errors import PlanError

__all__ = ("MAX_STEPS", "METRICS", "Action", "Metric", "Plan", "Requirement", "check_plan", "check_steps")

Action = Literal["alert", "pause", "rollback", "retrain"]
Metric = Literal["errors", "invalid_outputs", "inputs_out_of_range", "quality", "outputs", "latency"]
Requirement = Literal["errors", "quality"]

METRICS: tuple[Metric, ...] = get_args(Metric)

MAX_STEPS = 32
"""Argo Rollouts and Flagger users write 3 to 10."""

_ACTIONS: dict[Metric, Action] = {
    "errors": "rollback",
    "invalid_outputs": "rollback",
    "inputs_out_of_range": "rollback",
    "quality": "rollback",
    "outputs": "pause",
    "latency": "alert",
}


class Plan(msgspec.Struct, frozen=True):
    """How a canary is judged and taken forward; every field has a default.

    Parameters
    ----------
    steps : tuple of float
        The canary's weights, percent, rising, between 0 and 100 (promotion is what follows the last).
    false_rollback : float
        Probability of rolling back a canary that does no harm, over the whole trial, however often one looks.
    bad_promotion : float
        Probability of promoting a canary that is worse by `worse_ratio`, for each required metric.
    harm_ratio : float
        A canary harms when its events are more than this many times as frequent as the stable version's; >= 1.
    worse_ratio : float
        A canary is as good as the stable version when shown to have less than this many times its events; > 1.
    require : tuple of "errors" | "quality"
        What must be shown before a promotion; at least one.
    error_floor : float
        A share of failing units below which errors are no reason against promotion, in (0, 1).
        Precedent: Flagger's request-success-rate asks for 99 %.
    output_tolerance : float
        Outputs of the canary whose odds are within a factor 1 + this of the stable's count as alike.
    input_tolerance : float
        Share of the canary's units that may lie outside its reference before that counts as harm, in (0, 1).
    max_hours : float
        Hours after which a trial without a verdict is paused.
    minimum_units, minimum_labels : int
        What each arm must have seen at the present step before it may be left forward.
    remembered_units : int
        How many randomisation units are remembered, so that each counts once; bounds the judge's memory.
    actions : dict
        What each metric may do; a metric left out only alerts.
    """

    steps: tuple[float, ...] = (10.0, 50.0)
    false_rollback: float = 0.01
    bad_promotion: float = 0.05
    harm_ratio: float = 1.0
    worse_ratio: float = 1.25
    require: tuple[Requirement, ...] = ("quality",)
    error_floor: float = 0.01
    output_tolerance: float = 0.25
    input_tolerance: float = 0.05
    max_hours: float = 168.0
    minimum_units: int = 50
    minimum_labels: int = 50
    remembered_units: int = 16_384
    actions: dict[Metric, Action] = msgspec.field(default_factory=_ACTIONS.copy)


def check_plan(plan: Plan) -> None:
    """Refuse a plan that cannot be carried out.

    Raises
    ------
    PlanError
        With the field, what came and what is expected.
    """
    check_steps(plan.steps)
    for field in ("false_rollback", "bad_promotion", "error_floor", "input_tolerance"):
        _check_range(field, getattr(plan, field), low=0.0, high=1.0)
    for field, low in (("worse_ratio", 1.0), ("output_tolerance", 0.0), ("max_hours", 0.0)):
        _check_range(field, getattr(plan, field), low=low, high=math.inf)
    if not (math.isfinite(plan.harm_ratio) and plan.harm_ratio >= 1.0):
        raise PlanError(f"harm_ratio is {plan.harm_ratio}: expected a number from 1")
    for field in ("minimum_units", "minimum_labels", "remembered_units"):
        if getattr(plan, field) < 1:
            raise PlanError(f"{field} is {getattr(plan, field)}: expected at least 1")
    if not plan.require or any(name not in get_args(Requirement) for name in plan.require):
        raise PlanError(f"require is {list(plan.require)}: expected at least one of {list(get_args(Requirement))}")
    for metric, action in plan.actions.items():
        if metric not in METRICS or action not in get_args(Action):
            raise PlanError(
                f"actions: {metric} = {action!r}: expected one of {list(METRICS)} with one of {list(get_args(Action))}"
            )


def check_steps(steps: Sequence[float]) -> None:
    """Refuse steps that are not rising weights between 0 and 100 percent.

    Raises
    ------
    PlanError
        With what came and what is expected.
    """
    if not 1 <= len(steps) <= MAX_STEPS:
        raise PlanError(f"there are {len(steps)} steps: expected 1 to {MAX_STEPS}")
    for step in steps:
        if not (math.isfinite(step) and 0.0 < step < 100.0):
            raise PlanError(f"steps has {step}: expected a percentage above 0 and below 100")
    if any(before >= after for before, after in zip(steps, steps[1:], strict=False)):
        raise PlanError(f"steps are {list(steps)}: expected weights that rise")


def _check_range(field: str, value: float, *, low: float, high: float) -> None:
    if not (math.isfinite(value) and low < value < high):
        above = f"above {low:g}" + (f" and below {high:g}" if math.isfinite(high) else "")
        raise PlanError(f"{field} is {value}: expected a number {above}")
