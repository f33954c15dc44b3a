from __future__ import annotations

import math

import msgspec
import pytest

from gateway.rollout.errors import PlanError
from gateway.rollout.judge import Judge
from gateway.rollout.plan import Plan, check_plan


def test_the_default_plan_can_be_carried_out() -> None:
    check_plan(Plan())


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": ()},
        {"steps": (10.0, 10.0)},
        {"steps": (50.0, 10.0)},
        {"steps": (-1.0,)},
        {"steps": (0.0, 10.0)},
        {"steps": (10.0, 100.0)},
        {"steps": (101.0,)},
        {"steps": (math.nan,)},
        {"steps": tuple(0.009 * number for number in range(1, 10_001))},
        {"false_rollback": 0.0},
        {"false_rollback": 1.0},
        {"bad_promotion": math.nan},
        {"harm_ratio": 0.9},
        {"harm_ratio": math.inf},
        {"worse_ratio": 1.0},
        {"error_floor": 0.0},
        {"input_tolerance": 1.0},
        {"output_tolerance": -0.1},
        {"max_hours": 0.0},
        {"max_hours": math.inf},
        {"minimum_units": 0},
        {"minimum_labels": -5},
        {"remembered_units": 0},
        {"require": ()},
        {"require": ("speed",)},
        {"actions": {"errors": "explode"}},
        {"actions": {"mood": "alert"}},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_carried_out_is_refused_with_its_field(changes: dict[str, object]) -> None:
    plan = msgspec.structs.replace(Plan(), **changes)
    (field,) = changes
    with pytest.raises(PlanError, match=field):
        check_plan(plan)
    with pytest.raises(PlanError):
        Judge(plan)


def test_plans_do_not_share_their_actions() -> None:
    Plan().actions["errors"] = "alert"
    assert Plan().actions["errors"] == "rollback"
