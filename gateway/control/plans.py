"""From the rollout policy in `model.toml` to the plan by which a canary is judged."""

from __future__ import annotations

from gateway.repository.policy import ModelPolicy
from gateway.rollout.plan import Plan

__all__ = ("plan_of",)


def plan_of(policy: ModelPolicy) -> Plan:
    """The plan that a policy asks for, with a rollout or for a canary that was put on the route by hand.

    >>> from gateway.repository.policy import RolloutPolicy
    >>> plan_of(ModelPolicy(rollout=RolloutPolicy(errors="alert"))).actions["invalid_outputs"]
    'alert'
    """
    rollout = policy.rollout
    return Plan(
        steps=rollout.steps,
        false_rollback=rollout.false_rollback,
        bad_promotion=rollout.bad_promotion,
        harm_ratio=rollout.harm_ratio,
        worse_ratio=rollout.worse_ratio,
        require=rollout.require,
        max_hours=rollout.max_hours,
        actions={
            "errors": rollout.errors,
            "invalid_outputs": rollout.errors,
            "inputs_out_of_range": rollout.inputs,
            "outputs": rollout.outputs,
            "quality": policy.quality.action,
            "latency": "alert",
        },
    )
