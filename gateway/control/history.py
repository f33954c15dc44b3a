"""When each model's trial began and what a person has said since, read from the decisions of the store."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.events.records import DecisionRecord

__all__ = ("Trials", "TrialStart")


class TrialStart(msgspec.Struct):
    """The start of one trial.

    `began` and `resumed` are ISO 8601; evidence from before `began` does not count, and the hours of `max_hours` run
    from `resumed`. A rollout that is thawed begins its trial anew. `rollout` is empty for a canary that was put on the
    route without a plan. `looked_at` are the metrics that had paused the rollout when a person resumed it.
    """

    trial: int
    rollout: str
    began: str
    resumed: str
    looked_at: list[str] = []
    paused_by: str = ""


class Trials(msgspec.Struct):
    """Follows the decisions by their sequence numbers; plain, so that a checkpoint can keep it.

    `hash` is that of the last decision taken, which tells one store from another.
    """

    seq: int = 0
    hash: str = ""
    starts: dict[str, TrialStart] = {}

    def take(self, decision: DecisionRecord) -> None:
        """Follow one decision; those that were taken before change nothing."""
        if decision.seq <= self.seq:
            return
        self.seq, self.hash = decision.seq, decision.hash
        trial, rollout = decision.after.get("trial"), _rollout_id(decision.after)
        known = self.starts.get(decision.model)
        if isinstance(trial, int) and (known is None or known.trial != trial or _begins(known, decision)):
            self.starts[decision.model] = TrialStart(trial, rollout, decision.time, decision.time)
            return
        if known is None:
            return
        if decision.kind == "rollout_paused":
            known.paused_by = str(decision.evidence.get("metric", ""))
        elif decision.kind == "rollout_thawed":
            # What froze it is mended from now on; the arms before would freeze it again at once.
            self.starts[decision.model] = TrialStart(
                known.trial, known.rollout, decision.time, decision.time, known.looked_at
            )
        elif decision.kind == "rollout_resumed":
            known.resumed = decision.time
            if known.paused_by and known.paused_by not in known.looked_at:
                known.looked_at.append(known.paused_by)


def _begins(known: TrialStart, decision: DecisionRecord) -> bool:
    """A rollout of a canary that was on the route before, a canary's first weight, or another stable version beside it.

    Records from before that other one speak of the canary alone, and would look like arms not drawn at their weights.
    """
    before, after = decision.before, decision.after
    if decision.kind == "rollout_started":
        return _rollout_id(after) != known.rollout
    if decision.kind != "route_set" or not after.get("weight", 0):
        return False
    return not before.get("weight", 0) or before.get("stable") != after.get("stable")


def _rollout_id(after: dict[str, Any]) -> str:
    rollout = after.get("rollout")
    return str(rollout.get("id", "")) if isinstance(rollout, dict) else ""
