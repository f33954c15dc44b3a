from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from gateway.admin.plans import plan_from
from gateway.control.model import ModelWatch
from gateway.control.plans import plan_of
from gateway.repository.policy import ModelPolicy, QualityPolicy, RolloutPolicy
from gateway.rollout.plan import METRICS

ACTIONS: Any = ("alert", "pause", "rollback")


@pytest.mark.parametrize(("errors", "outputs"), list(itertools.product(ACTIONS, ACTIONS)))
def test_a_canary_is_judged_alike_with_a_rollout_and_without(make_world: Any, errors: Any, outputs: Any) -> None:
    policy = ModelPolicy(rollout=RolloutPolicy(errors=errors, outputs=outputs), quality=QualityPolicy(action=errors))
    world = make_world(policy=policy)
    world.store.set_route("m", stable=1, canary=2, weight=10.0, actor="tester", reason="by hand")
    watch: ModelWatch = world.run().models["m"]
    assert watch.trial is not None
    assert msgspec.to_builtins(watch.trial.plan) == plan_from(policy, changes={})


def test_every_metric_has_an_action() -> None:
    assert plan_of(ModelPolicy()).actions.keys() == set(METRICS)
