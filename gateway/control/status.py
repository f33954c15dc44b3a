"""What the monitor knows, as one JSON document for people: `gateway drift status` and the admin API read it."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.control.model import ModelWatch
from gateway.control.watch import VersionWatch

__all__ = ("describe_model",)


def describe_model(model: ModelWatch, *, notes: list[str], feedback: dict[str, int]) -> dict[str, Any]:
    """One model: its versions' evidence and quality, its trial, its last alarms.

    Evidence is a natural logarithm; `share` is its share of the line at which it alarms. `notes` are those on the
    model's files, `feedback` is what became of its labels.
    """
    return {
        "route": {"stable": model.route.stable, "canary": model.route.canary, "weight": model.route.weight},
        "rollout": msgspec.to_builtins(model.rollout) if model.rollout is not None else None,
        "versions": {str(version): _describe_version(watch) for version, watch in sorted(model.watches.items())},
        "trial": _describe_trial(model),
        "alarms": [msgspec.to_builtins(alarm) for alarm in reversed(model.alarms)],
        "feedback": feedback,
        "notes": notes,
    }


def _describe_version(watch: VersionWatch) -> dict[str, Any]:
    quality = watch.quality
    return {
        "line": watch.line,
        "evidence": watch.evidence(),
        "features": {
            feature: {"evidence": evidence, "share": evidence / watch.line if watch.line else 0.0}
            for feature, evidence in watch.feature_evidence().items()
        },
        "quality": {
            "rows": quality.rows,
            "misses": quality.misses,
            "miss_rate": watch.miss_rate,
            "mean_loss": quality.mean_loss,
            "miss_above": watch.miss_above,
        },
        "profile": watch.profile is not None,
        "skipped_tensors": watch.skipped,
    }


def _describe_trial(model: ModelWatch) -> dict[str, Any] | None:
    trial = model.trial
    if trial is None:
        return None
    return {
        "number": trial.start.trial,
        "stable": trial.stable,
        "canary": trial.canary,
        "began": trial.start.began,
        "verdict": msgspec.to_builtins(model.verdict) if model.verdict is not None else None,
        "readings": [msgspec.to_builtins(reading) for reading in trial.readings()],
    }
