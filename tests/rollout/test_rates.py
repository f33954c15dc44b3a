"""Promised error rates and delays by seeded simulation, small; `benchmarks/judge_rates.py` has the long one."""

from __future__ import annotations

import importlib.util
import math
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gateway.rollout.evidence import ArmBalance, BinShift, NonInferiority, OddsTest, RateRatio
from gateway.rollout.judge import Judge
from gateway.rollout.plan import Plan

RUNS = 400


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rates = load_script(Path(__file__).parents[2] / "benchmarks" / "judge_rates.py")


def at_most(promised: float, runs: int) -> float:
    """The share of runs that a promise kept exactly stays under, but for one time in a thousand."""
    return promised + 3.1 * math.sqrt(promised * (1.0 - promised) / runs)


@pytest.mark.parametrize("build", [RateRatio, lambda: NonInferiority(0.25), ArmBalance])
def test_the_simulation_computes_what_the_class_computes(build: type[OddsTest]) -> None:
    drawn = np.random.default_rng(1).random((1, 50)) < 0.2
    test, path = build(), rates.log_paths(build().bets, drawn, share=0.2)[0]
    for on_canary, expected in zip(drawn[0], path, strict=True):
        test.update(bool(on_canary), 0.2)
        assert test.log_evidence == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_an_equal_canary_is_rolled_back_no_more_often_than_promised(share: float, alpha: float) -> None:
    moments, _ = rates.first_crossings(RateRatio(), -math.log(alpha), share=share, ratio=1.0, runs=RUNS, events=2_000)
    assert np.mean(moments >= 0) <= at_most(alpha, RUNS)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_canary_worse_by_the_margin_is_promoted_no_more_often_than_promised(share: float) -> None:
    test = NonInferiority(0.25)
    moments, _ = rates.first_crossings(test, math.log(20.0), share=share, ratio=1.25, runs=RUNS, events=3_000)
    assert np.mean(moments >= 0) <= at_most(0.05, RUNS)
    worse, _ = rates.first_crossings(test, math.log(20.0), share=share, ratio=2.0, runs=RUNS, events=1_000)
    assert np.mean(worse >= 0) <= 0.01


@pytest.mark.parametrize(("ratio", "requests", "errors"), [(2.0, 29_700, 30), (5.0, 3_300, 8)])
def test_harm_is_found_within_twice_the_reference_delay(ratio: float, requests: int, errors: int) -> None:
    moments, on_canary = rates.first_crossings(
        RateRatio(), math.log(100.0), share=0.05, ratio=ratio, runs=RUNS, events=3_000
    )
    assert np.all(moments >= 0)
    assert np.median(moments) / (0.01 * (0.95 + 0.05 * ratio)) <= 2 * requests
    assert np.median(on_canary) <= 2 * errors


def test_arms_that_are_drawn_at_their_weight_are_not_frozen() -> None:
    moments, _ = rates.first_crossings(ArmBalance(), math.log(1000.0), share=0.1, ratio=1.0, runs=RUNS, events=3_000)
    assert np.mean(moments >= 0) <= at_most(0.001, RUNS)


@pytest.mark.parametrize("edge", [1.0, 1.25, 0.8])
def test_outputs_within_the_tolerance_pause_no_more_often_than_promised(edge: float) -> None:
    ratios = np.array([edge, 1.0 / edge] * 5)
    moments = rates.shift_crossings(
        BinShift(0.25), math.log(20.0), share=0.3, ratios=ratios, runs=200, events=400, look_every=5
    )
    assert np.mean(moments >= 0) <= at_most(0.05, 200)


def test_callers_who_always_fail_take_no_equal_canary_back() -> None:
    assert rates.sticky_false_rollbacks("caller", runs=200) <= at_most(0.01, 200)
    assert rates.sticky_false_rollbacks("event", runs=50) > 0.1


def test_a_whole_judge_keeps_its_promises_on_equal_arms_while_weights_change() -> None:
    wrong = {"rollback": 0, "freeze": 0, "pause": 0}
    runs = 150
    for seed in range(runs):
        draw, judge = random.Random(seed), Judge(Plan())
        for number in range(600):
            weight = (10.0, 25.0, 50.0)[number // 200]
            on_canary = draw.random() < weight / 100.0
            judge.unit(on_canary, weight)
            judge.output_bin("count", draw.randrange(10), on_canary=on_canary, weight=weight)
            if draw.random() < 0.2:
                judge.event("errors", on_canary, weight=weight)
            judge.label(draw.random() < 0.3, on_canary, weight=weight)
            if number % 20 == 19 and (kind := judge.verdict().kind) in wrong:
                wrong[kind] += 1
                break
    assert wrong["rollback"] / runs <= at_most(0.01, runs)
    assert wrong["pause"] / runs <= at_most(0.01, runs)
    assert wrong["freeze"] / runs <= at_most(0.002, runs)
