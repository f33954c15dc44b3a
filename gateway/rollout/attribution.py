"""Can a rollback help? Only if the versions differ; when the world changed, every version sees the same world."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ("Attribution", "Signs", "attribute")


class Signs(msgspec.Struct, frozen=True):
    """What is proven, each at its own threshold; whatever has not been looked at is None or False.

    Parameters
    ----------
    stable_drifts : bool
        Inputs, outputs or labelled risk of the stable version have left its reference.
    canary_drifts : bool, optional
        The same of the canary; None without a canary.
    arms_differ : bool
        The judge has proven that the canary does worse than stable, or otherwise.
    arms_unbalanced : bool
        The judge has proven that the arms are not drawn at their weights.
    labelled_harm : bool
        Labels prove that the stable version has become worse than its reference.
    previous_better : bool, optional
        Labels prove that the version before it does better on the same inputs; False when enough pairs were compared
        without that proof, None when they were not.
    """

    stable_drifts: bool = False
    canary_drifts: bool | None = None
    arms_differ: bool = False
    arms_unbalanced: bool = False
    labelled_harm: bool = False
    previous_better: bool | None = None


class Attribution(msgspec.Struct, frozen=True):
    """What changed, and the sentence that a person reads."""

    verdict: Literal["world_changed", "model_changed", "plumbing", "unclear"]
    sentence: str

    @property
    def rollback_helps(self) -> bool:
        """Return whether going back to another version can mend it."""
        return self.verdict == "model_changed"


def attribute(signs: Signs) -> Attribution:
    """Say what changed.

    >>> attribute(Signs(stable_drifts=True, canary_drifts=True)).verdict
    'world_changed'
    >>> attribute(Signs(labelled_harm=True, previous_better=True)).rollback_helps
    True
    """
    if signs.arms_unbalanced:
        return Attribution(
            "plumbing", "the arms are not drawn at their weights, so nothing that compares them can be believed"
        )
    if signs.arms_differ:
        return Attribution(
            "model_changed", "the canary differs from stable on the same traffic, so taking the canary back can help"
        )
    if signs.labelled_harm:
        return _attribute_harm(signs.previous_better)
    if signs.stable_drifts and signs.canary_drifts is not False:
        arms = "stable drifts and there is no canary" if signs.canary_drifts is None else "both arms drift alike"
        return Attribution(
            "world_changed", f"{arms}: the world changed, and an earlier version would see the same inputs"
        )
    if signs.stable_drifts or signs.canary_drifts:
        arm = "stable" if signs.stable_drifts else "the canary"
        return Attribution("unclear", f"only {arm} has left its reference, and the arms are not shown to differ")
    return Attribution("unclear", "nothing is proven")


def _attribute_harm(previous_better: bool | None) -> Attribution:
    if previous_better:
        return Attribution("model_changed", "labels show harm, and the previous version does better on the same inputs")
    if previous_better is None:
        return Attribution("unclear", "labels show harm, and the previous version has not been compared yet")
    return Attribution("world_changed", "labels show harm, and the previous version does no better: retrain")
