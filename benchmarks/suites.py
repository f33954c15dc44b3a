"""The suites by name: which servers are put through which cases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.broker import running_broker
from benchmarks.cases import SHARED_CORE, TWO_CORES, Bench, Case, Source, Stage
from benchmarks.front import PARTS
from benchmarks.models import model_file
from benchmarks.others import PEERS, running_peer, running_triton
from benchmarks.ours import EVERYTHING_ON, OBSERVATION_OFF, Variant, add_model, running_gateway
from benchmarks.servers import Running
from benchmarks.workloads import (
    IMAGE_BINARY,
    IMAGE_JSON,
    ONE_ROW,
    ONE_ROW_GRPC,
    ROWS_32,
    ROWS_32_GRPC,
    SLOW,
    Workload,
    rows_of,
)

__all__ = (
    "GRPC",
    "IMAGE_ON_TWO_CORES",
    "SLOW_FRONTS",
    "SUITES",
    "TRITON",
    "TWO_FRONTS",
    "WITHOUT_DIGESTS",
    "WITH_KAFKA",
    "stages_of",
)

TWO_FRONTS = "gateway, two fronts"
TRITON = "Triton"
GRPC = "gRPC"
SLOW_FRONTS = "slow fronts"
IMAGE_ON_TWO_CORES = "image on two cores"
WITH_KAFKA = "gateway, shipping to Kafka"
WITHOUT_DIGESTS = "gateway, without digests"
_OFF = Variant(OBSERVATION_OFF, ("log", "metrics"))
_APART = tuple(Variant(f"without {part}", (part,)) for part in (*PARTS, "monitor"))
_BARE = "bare handler"
_SPOOL = {"GATEWAY_SPOOL__MAX_BYTES": str(32 * 2**30)}
"""Nothing is removed from the log during a run, so that it can be counted."""


def _gateway(
    model: str,
    *,
    name: str = EVERYTHING_ON,
    fronts: int = 1,
    variants: Sequence[Variant] = (),
    copies: int = 1,
    kafka: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Source:
    @contextlib.contextmanager
    def start(bench: Bench) -> Iterator[list[Running]]:
        models = bench.place / f"models-{model}-{copies}"
        file = model_file(model, bench.cache)
        names = [model if number == 0 else f"{model}-{number}" for number in range(copies)]
        for each in names:
            if not (models / each).exists():
                add_model(models, each, file, place=bench.place)
        with contextlib.ExitStack() as held:
            variables = {**_SPOOL, **(settings or {})}
            if kafka:
                variables["GATEWAY_KAFKA__BOOTSTRAP_SERVERS"] = held.enter_context(running_broker(bench))
            yield held.enter_context(
                running_gateway(
                    models,
                    model=model,
                    place=bench.place,
                    name=name,
                    fronts=fronts,
                    variants=variants,
                    settings=variables,
                )
            )

    return Source((name, *(variant.name for variant in variants)), start)


def _peer(name: str, model: str) -> Source:
    def start(bench: Bench) -> contextlib.AbstractContextManager[list[Running]]:
        return running_peer(PEERS[name], model_file(model, bench.cache), cache=bench.cache, place=bench.place)

    return Source((name,), start)


def _triton(model: str, program: Path | None) -> list[Source]:
    """One source, or none where its binary is not named."""
    if program is None:
        return []

    def start(bench: Bench) -> contextlib.AbstractContextManager[list[Running]]:
        return running_triton(program, model_file(model, bench.cache), place=bench.place)

    return [Source((TRITON,), start)]


def _smoke(triton: Path | None) -> tuple[Stage, ...]:
    # Between them the two variants are without every part that can be taken out.
    variants = (_OFF, Variant("without statistics and isolation", ("statistics", "isolation")))
    sources = (_gateway("tabular", variants=variants), _peer(_BARE, "tabular"))
    over_grpc = Stage(GRPC, (_gateway("tabular"),), (Case(ONE_ROW_GRPC, 8),))
    return Stage("tabular", sources, (Case(ONE_ROW, 8),)), over_grpc


def _quick(triton: Path | None) -> tuple[Stage, ...]:
    sources = (_gateway("tabular", variants=(_OFF,)), _peer(_BARE, "tabular"), _peer("FastAPI", "tabular"))
    return (Stage("tabular", sources, (Case(ONE_ROW, 64), Case(ROWS_32, 64))),)


def _ratios(triton: Path | None) -> tuple[Stage, ...]:
    peers = ["constant reply", _BARE, "FastAPI", "MLServer", "mosec"]
    sources = [
        _gateway("tabular", variants=(_OFF,)),
        *[_peer(name, "tabular") for name in peers],
        *_triton("tabular", triton),
    ]
    alone = Case(ONE_ROW, 1, (EVERYTHING_ON, OBSERVATION_OFF, _BARE, TRITON))
    return (
        Stage("tabular", tuple(sources), (Case(ONE_ROW, 64), Case(ROWS_32, 64), alone)),
        _images((16,), triton),
        _images_on_two_cores(),
        *_fronts(),
        Stage("shipping", (_gateway("tabular", name=WITH_KAFKA, kafka=True),), (Case(ONE_ROW, 64),)),
        _over_grpc(triton),
    )


def _full(triton: Path | None) -> tuple[Stage, ...]:
    sources = [_gateway("tabular", variants=(_OFF,)), *[_peer(name, "tabular") for name in PEERS]]
    slow = [_gateway("slow", variants=(_OFF,)), *[_peer(name, "slow") for name in PEERS if name != "constant reply"]]
    sources += _triton("tabular", triton)
    slow += _triton("slow", triton)
    both = (_gateway("tabular"), _peer(_BARE, "tabular"))
    return (
        Stage(
            "tabular", tuple(sources), tuple(Case(work, count) for work in (ONE_ROW, ROWS_32) for count in (64, 16, 1))
        ),
        Stage(
            "parts",
            (_gateway("tabular", variants=(_OFF, *_APART)),),
            tuple(Case(work, count) for work in (ONE_ROW, ROWS_32) for count in (64, 1)),
        ),
        _images((64, 16, 1), triton),
        _images_on_two_cores(),
        Stage("3 ms model", tuple(slow), tuple(Case(SLOW, count) for count in (16, 1))),
        *_fronts(),
        Stage("shipping", (_gateway("tabular", name=WITH_KAFKA, kafka=True),), (Case(ONE_ROW, 64),)),
        _over_grpc(triton),
        Stage("rows", both, tuple(Case(rows_of(2**power), 16) for power in range(9))),
        Stage("connections", both, tuple(Case(ONE_ROW, 2**power) for power in range(10))),
        Stage(
            "models",
            tuple(_gateway("tabular", name=_counted(count), copies=count) for count in (1, 4, 16)),
            (Case(ONE_ROW, 64),),
        ),
    )


def _counted(copies: int) -> str:
    return "gateway, 1 model" if copies == 1 else f"gateway, {copies} models"


def _images(connections: Sequence[int], triton: Path | None) -> Stage:
    cases = tuple(Case(work, count) for work in (IMAGE_BINARY, IMAGE_JSON) for count in connections)
    without = _gateway("image", name=WITHOUT_DIGESTS, settings={"GATEWAY_LOG__TENSOR_DIGESTS": "false"})
    return Stage("image", (_gateway("image"), without, _peer(_BARE, "image"), *_triton("image", triton)), cases)


def _images_on_two_cores() -> Stage:
    # A front and its engine are two processes: on one core they take turns.
    case = Case(IMAGE_BINARY, 16, placement=TWO_CORES)
    return Stage(IMAGE_ON_TWO_CORES, (_gateway("image"), _peer(_BARE, "image")), (case,))


def _over_grpc(triton: Path | None) -> Stage:
    sources = (_gateway("tabular"), _peer("MLServer", "tabular"), *_triton("tabular", triton))
    cases = [Case(work, count) for work, count in ((ONE_ROW_GRPC, 64), (ROWS_32_GRPC, 64), (ONE_ROW_GRPC, 1))]
    return Stage(GRPC, sources, (*cases, Case(ONE_ROW, 64, (EVERYTHING_ON,))))


def _fronts() -> tuple[Stage, Stage]:
    # One front and its load on one core against two of both: were the load apart, two cores would
    # have to carry it and both fronts, and the machine would be measured, not the fronts. Two fronts
    # get as much each, and beside that what the one got, so that their batches are half as large.
    return _two_against_one("fronts", "tabular", (ONE_ROW, ROWS_32)), _two_against_one(SLOW_FRONTS, "slow", (SLOW,))


def _two_against_one(stage: str, model: str, works: Sequence[Workload]) -> Stage:
    sources = (_gateway(model), _gateway(model, name=TWO_FRONTS, fronts=2))
    cases = []
    for work in works:
        cases.append(Case(work, 64, (EVERYTHING_ON,), SHARED_CORE))
        cases += [Case(work, count, (TWO_FRONTS,), TWO_CORES) for count in (64, 128)]
    return Stage(stage, sources, tuple(cases))


SUITES: dict[str, Callable[[Path | None], tuple[Stage, ...]]] = {
    "smoke": _smoke,
    "quick": _quick,
    "ratios": _ratios,
    "full": _full,
}


def stages_of(suite: str, *, only: Sequence[str], peers: Sequence[str] | None, triton: Path | None) -> list[Stage]:
    """The stages of a suite.

    Parameters
    ----------
    only : sequence of str
        Names of the stages wanted; empty for all.
    peers : sequence of str, optional
        Names of the peers wanted; None for all of the suite's.
    triton : Path, optional
        A tritonserver binary, a peer of the larger suites.
    """
    chosen = []
    for stage in SUITES[suite](triton):
        if only and stage.name not in only:
            continue
        unwanted = set() if peers is None else {*PEERS, TRITON} - set(peers)
        sources = tuple(source for source in stage.sources if not unwanted & set(source.names))
        chosen.append(Stage(stage.name, sources, stage.cases))
    return chosen
