"""Runs stages: starts servers, checks their answers, measures them in turn, round by round."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from benchmarks.answers import check_answers, check_grpc_answers, grpc_answer_bytes
from benchmarks.cases import Bench, Case, Round, Series, Stage
from benchmarks.errors import ServerFailed, WrongAnswer
from benchmarks.grpc_load import run_grpc_load
from benchmarks.load import Load, run_load
from benchmarks.models import model_file
from benchmarks.ours import logged
from benchmarks.processes import cpu_seconds, freeze, memory_bytes, pin, settle, thaw
from benchmarks.servers import Running
from benchmarks.workloads import Workload
from gateway.serving.grpc.framing import framed

__all__ = ("Depth", "Outcome", "estimated_seconds", "run_stages")

_WAKE_SECONDS = 0.3
"""Longer than an engine's pulse, so that its supervisor finds it alive."""
_SETTLE_SECONDS = 15.0
_LAST_ANSWERS_SECONDS = 1.0
_START_SECONDS = 5.0
_BETWEEN_SECONDS = 1.1
_FEW = 8


@dataclass(frozen=True)
class Depth:
    """How long is measured.

    Attributes
    ----------
    rounds : int
    seconds : float
        Of one measurement.
    checked : int
        Answers compared with onnxruntime's, for each server and case, before the load and after it.
    warm_seconds : float
        Of load before the first measurement of a server.
    """

    rounds: int
    seconds: float
    checked: int
    warm_seconds: float = 1.0


@dataclass
class Outcome:
    """What came of a run.

    Attributes
    ----------
    checked, equal : int
        Answers that were compared with onnxruntime's, and those equal bit for bit.
    answered, logged, in_flight : int
        Answers of gateways that log, predictions in their logs, and requests that the load left unread at its ends.
    skipped : list
        (server, why) of what could not be started.
    faults : list
        (server, what) of wrong or missing answers.
    """

    series: list[Series] = field(default_factory=list)
    checked: int = 0
    equal: int = 0
    answered: int = 0
    logged: int = 0
    in_flight: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


def estimated_seconds(stages: Sequence[Stage], depth: Depth) -> float:
    """About how long a run takes, installations not counted."""
    total = 0.0
    for stage in stages:
        names = [name for source in stage.sources for name in source.names]
        measured = sum(len(_asked(case, names)) for case in stage.cases)
        total += depth.rounds * measured * (depth.seconds + _BETWEEN_SECONDS)
        total += len(names) * (_START_SECONDS + depth.warm_seconds) + measured * _BETWEEN_SECONDS
    return total


def _asked(case: Case, there: Collection[str]) -> list[str]:
    return [name for name in case.servers or there if name in there]


def run_stages(stages: Sequence[Stage], bench: Bench, depth: Depth) -> Outcome:
    """Run all stages, one after the other; what fails is noted and left out."""
    outcome = Outcome()
    until = time.monotonic() + estimated_seconds(stages, depth)
    for number, stage in enumerate(stages, 1):
        _say(f"stage {number} of {len(stages)}: {stage.name}")
        try:
            _Stage(stage, bench, depth, outcome, until=until).run()
        except Exception as error:
            # An hour of measurements must not be lost to the one stage that has a defect.
            traceback.print_exc()
            outcome.faults.append((stage.name, f"the stage broke off: {type(error).__name__} {error}"))
    return outcome


class _Asking(TypedDict):
    connections: int
    seconds: float
    cores: tuple[int, ...]
    threads: int
    first: bool


class _Stage:
    """One stage under way."""

    def __init__(self, stage: Stage, bench: Bench, depth: Depth, outcome: Outcome, *, until: float) -> None:
        self._stage = stage
        self._bench = bench
        self._depth = depth
        self._outcome = outcome
        self._until = until
        self._servers: dict[str, Running] = {}
        self._series: dict[tuple[Case, str], Series] = {}
        self._bodies: dict[Workload, tuple[Path, int | None]] = {}
        self._messages: dict[tuple[Workload, str], tuple[Path, int]] = {}
        self._answered: defaultdict[Path, int] = defaultdict(int)
        self._in_flight: defaultdict[Path, int] = defaultdict(int)

    def run(self) -> None:
        with contextlib.ExitStack() as held:
            for source in self._stage.sources:
                try:
                    for server in held.enter_context(source.open(self._bench)):
                        self._servers[server.name] = server
                except ServerFailed as error:
                    for name in source.names:
                        self._leave_out(name, str(error), self._outcome.skipped)
            cases = [(case, name) for case in self._stage.cases for name in _asked(case, self._servers)]
            for case, name in cases:
                self._series[case, name] = _series(self._stage, case, name)
            self._each(cases, self._check)
            warmed: set[str] = set()
            for case, name in cases:
                if name not in warmed:
                    warmed.add(name)
                    self._each([(case, name)], self._warm)
            for number in range(self._depth.rounds):
                # There and back, so that nobody always comes after the same one.
                self._each(cases[:: -1 if number % 2 else 1], self._measure)
            self._each(cases, self._check)
            self._weigh()
            self._compare_logs()
        self._outcome.series += [series for series in self._series.values() if series.rounds]

    def _each(self, cases: Sequence[tuple[Case, str]], do: Callable[[Case, Running], None]) -> None:
        for case, name in cases:
            server = self._servers.get(name)
            if server is None:
                continue
            self._wake(case, server)
            try:
                do(case, server)
            except WrongAnswer as error:
                self._leave_out(name, str(error), self._outcome.faults)

    def _wake(self, case: Case, server: Running) -> None:
        """Let this server go on, on its cores, and all others stand still."""
        needed = server.processes()
        # Watchers are the first to stand still and the last to go on, so that to them nothing has happened.
        for other in self._servers.values():
            freeze(pid for pid in [*other.beside(), *other.served()] if pid not in needed)
        thaw(server.served())
        time.sleep(_WAKE_SECONDS)
        thaw(server.beside())
        pin(server.served(), case.placement.serving)
        pin(server.beside(), case.placement.asking)
        settle(server.beside(), seconds=_SETTLE_SECONDS)

    def _check(self, case: Case, server: Running) -> None:
        if not server.checked or not self._depth.checked:
            return
        model = model_file(case.workload.model, self._bench.cache)
        requests = self._depth.checked if case.workload.model == "tabular" else min(self._depth.checked, _FEW)
        depth = {"requests": requests, "connections": case.connections}
        if case.workload.over_grpc:
            done = check_grpc_answers(server.grpc, case.workload, model, served_as=server.served_as, **depth)
        else:
            done = check_answers(server.url, case.workload, model, **depth)
        self._outcome.checked += done.answers
        self._outcome.equal += done.equal
        self._note(server, done.answers, 0)

    def _warm(self, case: Case, server: Running) -> None:
        if self._depth.warm_seconds:
            self._load(case, server, seconds=self._depth.warm_seconds)

    def _measure(self, case: Case, server: Running) -> None:
        served, beside = server.served(), server.beside()
        before = cpu_seconds(served), cpu_seconds(beside)
        load = self._load(case, server, seconds=self._depth.seconds)
        used = cpu_seconds(served) - before[0], cpu_seconds(beside) - before[1]
        cpu_us, beside_us = (seconds / load.requests * 1e6 for seconds in used)
        self._series[case, server.name].rounds.append(Round(load, cpu_us, beside_us))
        left = max(0.0, self._until - time.monotonic())
        _say(
            f"{left // 60:4.0f}:{left % 60:02.0f} left  {case.workload.name}, {case.connections} connections, "
            f"{server.name}: {load.rate:,.0f}/s, p50 {load.p50_us:,.0f} us, p99 {load.p99_us:,.0f} us, "
            f"CPU {cpu_us:,.0f} + {beside_us:,.0f} us"
        )

    def _load(self, case: Case, server: Running, *, seconds: float) -> Load:
        work = case.workload
        asking: _Asking = {
            "connections": case.connections,
            "seconds": seconds,
            "cores": case.placement.asking,
            "threads": len(case.placement.asking),
            "first": case.placement.apart,
        }
        if work.over_grpc:
            body, answer_bytes = self._message(work, server)
            load = run_grpc_load(server.grpc, body, answer_bytes=answer_bytes, **asking)
        else:
            body, json_length = self._body(work)
            load = run_load(server.url, body, content_type=work.content_type, json_length=json_length, **asking)
        self._note(server, load.requests, case.connections)
        # The load leaves without its last answers, and what is beside may still have to work on what was asked. Who is
        # made to stand still over a request would take the pause for its own slowness.
        settle(server.served(), seconds=_LAST_ANSWERS_SECONDS)
        settle(server.beside(), seconds=_SETTLE_SECONDS)
        return load

    def _body(self, workload: Workload) -> tuple[Path, int | None]:
        if workload not in self._bodies:
            content, json_length = workload.body(0)
            path = self._bench.place / f"{workload.name.replace(' ', '-')}.body"
            path.write_bytes(content)
            self._bodies[workload] = path, json_length
        return self._bodies[workload]

    def _message(self, workload: Workload, server: Running) -> tuple[Path, int]:
        """A file with the message for this server, and how long an answer is."""
        if (workload, server.name) not in self._messages:
            message = workload.message(0, served_as=server.served_as)
            path = self._bench.place / f"{workload.name}-{server.name}.message".replace(" ", "-")
            path.write_bytes(framed(message))
            self._messages[workload, server.name] = path, grpc_answer_bytes(server.grpc, message)
            self._note(server, 1, 0)
        return self._messages[workload, server.name]

    def _note(self, server: Running, answers: int, in_flight: int) -> None:
        if server.log is not None:
            self._answered[server.log] += answers
            self._in_flight[server.log] += in_flight

    def _weigh(self) -> None:
        for (_, name), series in self._series.items():
            if name in self._servers:
                series.memory_bytes = memory_bytes(self._servers[name].processes())

    def _compare_logs(self) -> None:
        for state, answered in self._answered.items():
            written = logged(state)
            self._outcome.answered += answered
            self._outcome.logged += written
            self._outcome.in_flight += self._in_flight[state]
            if not answered <= written <= answered + self._in_flight[state]:
                self._outcome.faults.append(
                    (self._stage.name, f"{answered} predictions were answered and {written} are in the log")
                )

    def _leave_out(self, name: str, why: str, noted: list[tuple[str, str]]) -> None:
        noted.append((name, why))
        self._servers.pop(name, None)
        _say(f"without {name} from here on: {why}")


def _series(stage: Stage, case: Case, server: str) -> Series:
    return Series(stage.name, case.workload.name, case.workload.rows, case.connections, case.placement.name, server)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
