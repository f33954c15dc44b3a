from __future__ import annotations

from itertools import product

import pytest

from gateway.rollout.attribution import Signs, attribute

EVERY = [
    Signs(*values)
    for values in product(
        (False, True), (None, False, True), (False, True), (False, True), (False, True), (None, False, True)
    )
]


def test_a_rollback_is_said_to_help_only_where_versions_are_shown_to_differ() -> None:
    for signs in EVERY:
        helps = not signs.arms_unbalanced and (
            signs.arms_differ or (signs.labelled_harm and signs.previous_better is True)
        )
        assert attribute(signs).rollback_helps == helps, signs


def test_arms_that_are_not_drawn_at_their_weights_are_plumbing_whatever_else_shows() -> None:
    assert {attribute(signs).verdict for signs in EVERY if signs.arms_unbalanced} == {"plumbing"}


@pytest.mark.parametrize("canary", [None, True])
def test_drift_that_no_arm_escapes_is_the_world(canary: bool | None) -> None:
    assert attribute(Signs(stable_drifts=True, canary_drifts=canary)).verdict == "world_changed"


@pytest.mark.parametrize("signs", [Signs(stable_drifts=True, canary_drifts=False), Signs(canary_drifts=True)])
def test_drift_of_one_arm_that_the_judge_has_not_proven_is_unclear(signs: Signs) -> None:
    assert attribute(signs).verdict == "unclear"


def test_labelled_harm_waits_for_the_comparison_with_the_previous_version() -> None:
    assert attribute(Signs(labelled_harm=True)).verdict == "unclear"
    assert attribute(Signs(labelled_harm=True, previous_better=False)).verdict == "world_changed"
    assert attribute(Signs(labelled_harm=True, previous_better=True)).verdict == "model_changed"


def test_every_answer_has_a_sentence() -> None:
    assert all(attribute(signs).sentence for signs in EVERY)
