"""The ratios that are asked of the gateway by name, and whether a run bears them out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.cases import TWO_CORES, Round, Series
from benchmarks.ours import EVERYTHING_ON, OBSERVATION_OFF
from benchmarks.suites import IMAGE_ON_TWO_CORES, SLOW_FRONTS, TRITON, TWO_FRONTS, WITH_KAFKA, WITHOUT_DIGESTS
from benchmarks.workloads import IMAGE_BINARY, IMAGE_JSON, ONE_ROW, ROWS_32, SLOW

__all__ = ("ASKED", "Asked", "Verdict", "judge")

Key = tuple[str, str, int, str]
"""Stage, workload, connections, server."""


@dataclass(frozen=True)
class Asked:
    """One demand: a number drawn from each round of two series, its median held against a limit.

    Attributes
    ----------
    text : str
        What is compared.
    ours, peer : tuple
        Keys of the series; the same one where a server is held against itself.
    measure : callable
        Two rounds to a number.
    limit : float
    at_least : bool
        Whether the limit is the least or the most.
    unit : str
    """

    text: str
    ours: Key
    peer: Key
    measure: Callable[[Round, Round], float]
    limit: float
    at_least: bool = True
    unit: str = ""

    @property
    def wording(self) -> str:
        """The limit in words."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}{self.unit}"


@dataclass(frozen=True)
class Verdict:
    """What was measured for one demand; `holds` is None when the peer was not measured."""

    asked: Asked
    median: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    holds: bool | None = None


def judge(series: Sequence[Series]) -> list[Verdict]:
    """Hold every demand that the run is about against it: those whose server of ours was measured."""
    known = {each.key: each.rounds for each in series}
    verdicts = []
    for asked in ASKED:
        if asked.ours not in known:
            continue
        pairs = zip(known.get(asked.ours, []), known.get(asked.peer, []), strict=False)
        numbers = [asked.measure(one, other) for one, other in pairs]
        if not numbers:
            verdicts.append(Verdict(asked))
            continue
        median = statistics.median(numbers)
        holds = median >= asked.limit if asked.at_least else median <= asked.limit
        verdicts.append(Verdict(asked, median, min(numbers), max(numbers), holds))
    return verdicts


def _rate(one: Round, other: Round) -> float:
    return one.load.rate / other.load.rate


def _slower(one: Round, other: Round) -> float:
    return one.load.p50_us - other.load.p50_us


def _tail(one: Round, other: Round) -> float:
    return one.load.p99_us / other.load.p50_us


def _tabular(server: str, *, connections: int = 64, rows: int = 1) -> Key:
    return "tabular", (ONE_ROW if rows == 1 else ROWS_32).name, connections, server


def _against(text: str, peer: str, *, limits: tuple[float | None, float | None]) -> list[Asked]:
    return [
        Asked(
            f"{text}, {work}, 64 connections",
            _tabular(EVERYTHING_ON, rows=rows),
            _tabular(peer, rows=rows),
            _rate,
            limit,
        )
        for limit, rows, work in zip(limits, (1, 32), (ONE_ROW.name, ROWS_32.name), strict=True)
        if limit is not None
    ]


_BARE = "bare handler"
_ALONE = _tabular(EVERYTHING_ON, connections=1)
_SHIPPING = ("shipping", ONE_ROW.name, 64, WITH_KAFKA)

ASKED: tuple[Asked, ...] = (
    *_against("everything on / observation off", OBSERVATION_OFF, limits=(0.8, 0.75)),
    *_against("everything on / bare handler", _BARE, limits=(2.5, 1.3)),
    Asked(
        "median beyond the bare handler's, 1 row, 1 connection",
        _ALONE,
        _tabular(_BARE, connections=1),
        _slower,
        60,
        at_least=False,
        unit=" us",
    ),
    *_against("everything on / FastAPI", "FastAPI", limits=(6, 3)),
    *_against("everything on / MLServer", "MLServer", limits=(20, 5)),
    *_against("everything on / mosec", "mosec", limits=(1.5, None)),
    *_against("everything on / Triton", TRITON, limits=(2, None)),
    *[
        Asked(
            f"two fronts on two cores / one on one core, {work.name}, {text}",
            (stage, work.name, connections, TWO_FRONTS),
            (stage, work.name, 64, EVERYTHING_ON),
            _rate,
            1.7,
        )
        for stage, work in (("fronts", ONE_ROW), ("fronts", ROWS_32), (SLOW_FRONTS, SLOW))
        for text, connections in (("64 connections a front", 128), ("64 in all", 64))
    ],
    Asked(
        "p99 / p50, 1 row, 64 connections",
        _tabular(EVERYTHING_ON),
        _tabular(EVERYTHING_ON),
        _tail,
        3,
        at_least=False,
    ),
    Asked("p99 / p50, the same, shipping to Kafka", _SHIPPING, _SHIPPING, _tail, 3, at_least=False),
    *[
        Asked(
            f"{text}, {work.name}, 16 connections",
            (stage, work.name, 16, ours),
            (stage, work.name, 16, peer),
            _rate,
            limit,
        )
        for text, ours, peer, work, limit, stage in (
            ("everything on / bare handler", EVERYTHING_ON, _BARE, IMAGE_BINARY, 0.9, "image"),
            (
                f"everything on / bare handler, {TWO_CORES.name}",
                EVERYTHING_ON,
                _BARE,
                IMAGE_BINARY,
                0.9,
                IMAGE_ON_TWO_CORES,
            ),
            ("log.tensor_digests off / bare handler", WITHOUT_DIGESTS, _BARE, IMAGE_BINARY, 0.9, "image"),
            ("everything on / Triton", EVERYTHING_ON, TRITON, IMAGE_BINARY, 1.2, "image"),
            ("everything on / bare handler with orjson", EVERYTHING_ON, _BARE, IMAGE_JSON, 1.8, "image"),
        )
    ],
)
