from __future__ import annotations

import json
import math
import random

import pytest

from gateway.rollout.errors import EvidenceError
from gateway.rollout.paired import PairedTest


def test_pairs_on_which_both_agree_say_nothing() -> None:
    pairs = PairedTest()
    for right in (True, False) * 500:
        pairs.update(previous_right=right, current_right=right)
    assert pairs.pairs == 1000
    assert pairs.log_evidence == pytest.approx(0.0, abs=1e-12)


def test_a_previous_version_that_does_better_is_shown() -> None:
    draw, pairs = random.Random(5), PairedTest()
    for _ in range(60):
        previous = draw.random() < 0.8
        pairs.update(previous_right=previous, current_right=not previous)
    assert pairs.log_evidence > math.log(100.0)


def test_a_previous_version_that_does_worse_is_never_shown() -> None:
    pairs = PairedTest()
    for _ in range(60):
        pairs.update(previous_right=False, current_right=True)
    assert pairs.log_evidence < 0.0


def test_fair_coins_rarely_reach_the_threshold_however_often_one_looks() -> None:
    alarms = 0
    for seed in range(300):
        draw, pairs = random.Random(seed), PairedTest()
        for _ in range(200):
            previous = draw.random() < 0.5
            pairs.update(previous_right=previous, current_right=not previous)
            if pairs.log_evidence >= math.log(20.0):
                alarms += 1
                break
    assert alarms <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_a_state_that_went_through_json_gives_the_same_bits() -> None:
    before, after = PairedTest(), PairedTest()
    for number in range(50):
        before.update(previous_right=number % 3 != 0, current_right=number % 2 == 0)
    after.restore(json.loads(json.dumps(before.state())))
    assert (repr(after), after.log_evidence) == (repr(before), before.log_evidence)


@pytest.mark.parametrize(
    "state",
    [{}, {"pairs": 1, "previous_only": 2, "current_only": 0}, {"pairs": 1, "previous_only": -1, "current_only": 0}],
)
def test_a_spoilt_state_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(EvidenceError):
        PairedTest().restore(state)
