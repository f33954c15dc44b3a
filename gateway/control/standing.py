"""What the decisions say of versions, routes and rollouts, held against what the store says.

The chain shows an edit of the decisions. Traffic follows the tables beside them, and this shows an edit of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gateway.control.approvals import version_summary
from gateway.control.change import VersionState
from gateway.control.traffic import route_summary
from gateway.events.records import DecisionRecord
from gateway.rollout.machine import TERMINAL
from gateway.routing.table import Route

__all__ = ("Standing",)

MAX_NAMED = 50

Summary = dict[str, Any]


class Standing:
    """Follows a chain of decisions from its first one on.

    >>> standing = Standing()
    >>> standing.differences([VersionState("m", 1, "sha256:1", "approved")], [], {})
    ['version m/1 is in the store, but no decision put it there']
    """

    def __init__(self) -> None:
        self._versions: dict[str, Summary] = {}
        self._routes: dict[str, Summary] = {}
        self._rollouts: dict[str, Summary] = {}

    def __repr__(self) -> str:
        return f"<Standing versions={len(self._versions)} routes={len(self._routes)} rollouts={len(self._rollouts)}>"

    def follow(self, decisions: Iterable[DecisionRecord]) -> Iterator[DecisionRecord]:
        """Pass decisions on, and take each once the next one is asked for: whoever finds a bad one asks no more."""
        for decision in decisions:
            yield decision
            self._take(decision)

    def differences(
        self, versions: Iterable[VersionState], routes: Iterable[Route], rollouts: dict[str, Summary]
    ) -> list[str]:
        """What does not agree, a sentence each, at most 50 of them; of a rollout, all that `rollout_facts` gives."""
        stored = {f"{state.model}/{state.version}": version_summary(state) for state in versions}
        found = list(_differences("version", stored, self._versions))
        # SQLite keeps bytes where a text shall be.
        found += _differences(
            "the route of", {str(route.model): route_summary(route) for route in routes}, self._routes
        )
        found += _differences("rollout", rollouts, self._rollouts)
        return found[:MAX_NAMED]

    def _take(self, decision: DecisionRecord) -> None:
        model, after = decision.model, decision.after
        if "rollout" in after:
            self._take_rollout(decision, after["rollout"])
        if "stable" in after:
            self._routes[model] = {name: after.get(name) for name in route_summary(Route(model, 0))}
        elif decision.kind == "route_removed":
            self._routes.pop(model, None)
        elif "status" in after:
            self._versions[f"{model}/{after.get('version')}"] = after
            route = self._routes.get(model)
            # A canary without weight goes off the route by its rejection.
            if route is not None and after["status"] == "rejected" and after.get("version") == route["canary"]:
                route["canary"] = None

    def _take_rollout(self, decision: DecisionRecord, moved: Summary) -> None:
        after = decision.after
        if decision.kind == "rollout_started":
            versions = {"model": decision.model, "stable": after["stable"], "steps": after["plan"]["steps"]}
            self._rollouts[moved["id"]] = {
                "model": decision.model,
                "started_seq": decision.seq,
                "plan": after["plan"],
                "state": versions,
            }
        rollout = self._rollouts[moved["id"]]
        rollout["state"] |= moved
        rollout["is_open"] = moved["phase"] not in TERMINAL


def _differences(noun: str, stored: dict[str, Summary], decided: dict[str, Summary]) -> Iterator[str]:
    for key in sorted(stored.keys() | decided.keys()):
        name = f"{noun} {ascii(key)[1:-1]}"
        found, said = stored.get(key), decided.get(key)
        if said is None:
            yield f"{name} is in the store, but no decision put it there"
        elif found is None:
            yield f"{name} is not in the store, but no decision took it away"
        else:
            for field in sorted(said.keys() | found.keys()):
                if found.get(field) != said.get(field):
                    yield f"{name}: {field} is {found.get(field)!a}, but {said.get(field)!a} by its last decision"
