"""A decision's evidence computed a second time: from the counts in its certificate, or from the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from gateway.rollout.errors import EvidenceError
from gateway.rollout.judge import Judge
from gateway.rollout.plan import Plan

__all__ = ("Observation", "observe", "recompute", "replay")


class Observation(msgspec.Struct, frozen=True):
    """One call of the judge as a value, for a replay.

    Parameters
    ----------
    kind : str
        Which call: "unit", "event", "label", "output_bin", "latency_bin" or "guard".
    name : str
        Of the metric, the output, the latency or the guard.
    index : int
        The bin.
    weight : float
        The canary's weight when the arm was drawn, percent.
    reason : str
        Of a guard.
    position : str, optional
        In the log.
    """

    kind: Literal["unit", "event", "label", "output_bin", "latency_bin", "guard"]
    on_canary: bool = False
    weight: float = 0.0
    name: str = ""
    index: int = 0
    miss: bool = False
    unit_key: str | None = None
    reason: str = ""
    position: str | None = None


def observe(judge: Judge, seen: Observation) -> None:
    """Tell the judge one observation.

    Raises
    ------
    EvidenceError
        When the judge cannot take it.
    """
    if seen.position is not None:
        judge.at(seen.position)
    on_canary, weight, unit_key = seen.on_canary, seen.weight, seen.unit_key
    match seen.kind:
        case "unit":
            judge.unit(on_canary, weight, unit_key=unit_key)
        case "event":
            judge.event(seen.name, on_canary, weight=weight, unit_key=unit_key)
        case "label":
            judge.label(seen.miss, on_canary, weight=weight, unit_key=unit_key)
        case "output_bin":
            judge.output_bin(seen.name, seen.index, on_canary=on_canary, weight=weight, unit_key=unit_key)
        case "latency_bin":
            judge.latency_bin(seen.name, seen.index, on_canary=on_canary, weight=weight, unit_key=unit_key)
        case "guard":
            judge.guard(seen.name, seen.reason)


def replay(observations: Iterable[Observation], plan: Plan) -> Judge:
    """Return a judge that has seen the observations in this order; its certificate is equal bit for bit.

    >>> misses = [Observation("label", on_canary=number % 2 == 0, weight=50.0, miss=True) for number in range(40)]
    >>> first, second = replay(misses, Plan()), replay(misses, Plan())
    >>> first.certificate() == second.certificate()
    True
    """
    judge = Judge(plan)
    for seen in observations:
        observe(judge, seen)
    return judge


def recompute(certificate: dict[str, Any]) -> dict[str, float]:
    """Compute the log evidences of a certificate from its plan and counts alone.

    They equal `certificate["log_evidence"]` bit for bit, also after a journey through JSON.

    Raises
    ------
    EvidenceError
        When the certificate lacks its plan or its counts, or they are spoilt.
    PlanError
        When its plan cannot be carried out.
    """
    try:
        plan = msgspec.convert(certificate["plan"], Plan)
        counts = certificate["counts"]
    except (KeyError, msgspec.ValidationError) as error:
        raise EvidenceError(f"certificate lacks or spoils {error}: expected 'plan' and 'counts'") from None
    judge = Judge(plan)
    judge.restore_counts(counts)
    return judge.log_evidence()
