"""What a run consists of: stages of servers that run at the same time, and the cases that each is put through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Load
from benchmarks.servers import Running
from benchmarks.workloads import Workload

__all__ = ("ONE_CORE", "SHARED_CORE", "TWO_CORES", "Bench", "Case", "Placement", "Round", "Series", "Source", "Stage")


@dataclass(frozen=True)
class Placement:
    """Which cores answer and which ask; what a server runs beside its answers shares the asking ones."""

    name: str
    serving: tuple[int, ...]
    asking: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether nothing that answers runs where the load does."""
        return not set(self.serving) & set(self.asking)


ONE_CORE = Placement("one core", (0,), (1,))
SHARED_CORE = Placement("one core, load included", (0,), (0,))
TWO_CORES = Placement("two cores, load included", (0, 1), (0, 1))


@dataclass(frozen=True)
class Bench:
    """Where a run finds and leaves things.

    Attributes
    ----------
    cache : Path
        Models and environments, kept between runs.
    place : Path
        Everything of this run, removed after it.
    """

    cache: Path
    place: Path


@dataclass(frozen=True)
class Source:
    """Where servers of a stage come from; `names` are those that it will bring."""

    names: tuple[str, ...]
    open: Callable[[Bench], contextlib.AbstractContextManager[list[Running]]]


@dataclass(frozen=True)
class Case:
    """One workload on so many connections; `servers` empty: all of the stage's."""

    workload: Workload
    connections: int
    servers: tuple[str, ...] = ()
    placement: Placement = ONE_CORE


@dataclass(frozen=True)
class Stage:
    """Servers that run at the same time, one of them asked at a time, the others standing still."""

    name: str
    sources: tuple[Source, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Round:
    """One measurement: what the load saw, and microseconds of CPU a request of what answers and of what is beside."""

    load: Load
    cpu_us: float
    beside_us: float


@dataclass
class Series:
    """All rounds of one server in one case."""

    stage: str
    workload: str
    rows: int
    connections: int
    placement: str
    server: str
    rounds: list[Round] = field(default_factory=list)
    memory_bytes: int = 0

    @property
    def key(self) -> tuple[str, str, int, str]:
        """Stage, workload, connections, server."""
        return self.stage, self.workload, self.connections, self.server
