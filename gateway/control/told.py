"""What a decision made of a version or a route, in a few words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ("told_change",)


def told_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The change between both sides of a decision, as its record has them; empty where nothing of the kind changed.

    >>> told_change({"stable": 1}, {"stable": 1, "canary": 2, "weight": 5.0, "rollout": {"step": 0}})
    'stable 1 -> stable 1, canary 2 at 5 %, step 1'
    """
    was, became = _state(before), _state(after)
    if not was or was == became or "version" in after:
        return became
    return f"{was} -> {became or 'no route'}"


def _state(side: Mapping[str, Any]) -> str:
    if "version" in side:
        return f"version {side['version']} {side.get('status')}"
    if "stable" not in side:
        return ""
    text = f"stable {side['stable']}"
    if side.get("canary") is None:
        return text
    weight = side.get("weight")
    text += f", canary {side['canary']} at {f'{weight:g}' if isinstance(weight, int | float) else weight} %"
    match side.get("rollout"):
        case {"step": int(step)}:
            text += f", step {step + 1}"
    return text
