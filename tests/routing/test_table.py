from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.routing.table import Choice, Route, RouteError, check_route, choose, hash_key, point_of

KEYS = st.text(max_size=40)
SALTS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=64)
WEIGHTS = st.floats(0.0, 100.0)


def route_at(weight: float, salt: str = "pepper") -> Route:
    return Route("bike-demand", stable=1, canary=2, weight=weight, salt=salt)


@settings(deadline=None)
@given(KEYS, SALTS, st.lists(WEIGHTS, min_size=2, max_size=6))
def test_a_key_that_entered_the_canary_stays_while_the_weight_grows(key: str, salt: str, weights: list[float]) -> None:
    arms = [choose(route_at(w, salt), point_of(key, salt), sticky=True).arm for w in sorted(weights)]
    assert arms == sorted(arms, reverse=True)  # "stable" before "canary", never back


@settings(deadline=None)
@given(KEYS, SALTS)
def test_every_point_lies_from_zero_to_below_one(key: str, salt: str) -> None:
    assert 0.0 <= point_of(key, salt) < 1.0


@settings(deadline=None)
@given(st.floats(0.0, 1.0, exclude_max=True))
def test_weight_0_sends_nothing_and_weight_100_sends_everything_to_the_canary(point: float) -> None:
    assert choose(route_at(0.0), point, sticky=False).arm == "stable"
    assert choose(route_at(100.0), point, sticky=False).arm == "canary"


def test_points_of_keys_are_spread_evenly() -> None:
    inside = sum(point_of(f"rider-{number}", "pepper") < 0.1 for number in range(20_000))
    assert abs(inside - 2_000) < 5 * math.sqrt(20_000 * 0.1 * 0.9)


def test_another_salt_draws_the_keys_anew() -> None:
    both = sum(point_of(str(n), "one") < 0.5 and point_of(str(n), "two") < 0.5 for n in range(4_000))
    assert abs(both - 1_000) < 5 * math.sqrt(4_000 * 0.25 * 0.75)


def test_a_key_that_is_not_text_of_any_language_still_has_a_point() -> None:
    assert 0.0 <= point_of("\udcff\ud800", "pepper") < 1.0
    assert len(hash_key("\udcff")) == 16


def test_the_log_keeps_sixteen_digits_of_the_key() -> None:
    assert hash_key("rider-7") == "11bd6c4ba5e96373"


@pytest.mark.parametrize("version", [1, 2, 7])
def test_a_pin_is_never_evidence_whatever_it_names(version: int) -> None:
    assert choose(route_at(50.0), 0.1, sticky=True, pinned=version) == Choice(version, "pinned", "pinned")


def test_the_reason_says_how_the_arm_was_drawn() -> None:
    assert choose(route_at(50.0), 0.1, sticky=True) == Choice(2, "canary", "sticky")
    assert choose(route_at(50.0), 0.9, sticky=False) == Choice(1, "stable", "weight")
    assert choose(Route("bike-demand", stable=1), 0.0, sticky=True) == Choice(1, "stable", "stable")


@dataclass
class Refused:
    changes: dict[str, object]
    named: str


@pytest.mark.parametrize(
    "case",
    [
        Refused({"weight": -1.0}, "weight is -1.0"),
        Refused({"weight": 100.5}, "weight is 100.5"),
        Refused({"weight": math.nan}, "weight is nan"),
        Refused({"weight": math.inf}, "weight is inf"),
        Refused({"canary": 1}, "canary is 1"),
        Refused({"canary": None}, "no canary"),
        Refused({"canary": 0}, "canary is 0"),
        Refused({"stable": -3}, "stable is -3"),
        Refused({"previous": 0}, "previous is 0"),
        Refused({"salt": ""}, "salt is empty"),
        Refused({"salt": "s" * 65}, "at most 64 bytes"),
    ],
    ids=str,
)
def test_a_route_that_cannot_be_is_refused_with_its_field(case: Refused) -> None:
    with pytest.raises(RouteError, match=case.named):
        check_route(msgspec.structs.replace(route_at(10.0), **case.changes))


def test_a_route_that_can_be_passes() -> None:
    check_route(route_at(0.0))
    check_route(route_at(100.0))
    check_route(Route("bike-demand", stable=1))
