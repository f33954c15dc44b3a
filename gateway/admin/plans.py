"""From the rollout policy in `model.toml` to the plan of one rollout."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.admin.errors import BadRequest
from gateway.control.plans import plan_of
from gateway.protocol.mistakes import told_mistake
from gateway.repository.policy import ModelPolicy
from gateway.rollout.errors import PlanError
from gateway.rollout.plan import Plan, check_plan

__all__ = ("plan_from",)


def plan_from(policy: ModelPolicy, *, changes: dict[str, Any]) -> dict[str, Any]:
    """The plan that a policy asks for, with what one rollout wants otherwise.

    Parameters
    ----------
    changes : dict
        Fields of `gateway.rollout.plan.Plan`.

    Raises
    ------
    BadRequest
        The changes do not give a plan that can be carried out.

    >>> plan_from(ModelPolicy(), changes={"steps": [5, 25]})["steps"]
    (5.0, 25.0)
    """
    if unknown := sorted(set(changes) - set(Plan.__struct_fields__)):
        raise BadRequest(f"plan: no such field {unknown[0][:64]!r}; there are {', '.join(Plan.__struct_fields__)}")
    try:
        whole = msgspec.convert({**msgspec.to_builtins(plan_of(policy)), **changes}, Plan)
        check_plan(whole)
    except (msgspec.ValidationError, PlanError) as error:
        raise BadRequest(f"plan: {told_mistake(error, Plan)}") from None
    return dict(msgspec.to_builtins(whole))
