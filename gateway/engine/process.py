"""The engine process: one model, one socket, one run at a time in order of arrival.

Its loop is a plain one of its own. A frame often comes alone, to a core whose caches another process has filled, and
there whatever lies between the socket and the model costs more than the run of a small one.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.engine.address import short_address
from gateway.engine.connection import Connection
from gateway.engine.errors import RunStopped
from gateway.engine.instances import Others
from gateway.engine.memory import Floor
from gateway.engine.pulse import Pulse
from gateway.engine.readiness import READABLE, open_readiness
from gateway.engine.session import ModelSession
from gateway.engine.wire import (
    MAX_FRAME_BYTES,
    Hello,
    encode_failure,
    encode_hello,
    encode_result,
    encode_stopped,
    join_parts,
)

__all__ = ("run_engine",)

FLOOR_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.02
QUIET_SECONDS = 2.0
"""An engine that is told to end waits so long for another question of those that are still connected."""
JOIN_SECONDS_PER_BYTE = 2e-10
"""Joining what lies in several places takes some 0.05 ns for a byte; a model that takes little more is run on each."""
BACKLOG = 100
MAX_EVENTS = 64

Array = np.ndarray[Any, np.dtype[Any]]


def run_engine(
    session: ModelSession,
    socket_path: Path,
    *,
    hello: Hello,
    floor: Floor | None = None,
    max_run_seconds: float = math.inf,
    max_output_bytes: int = MAX_FRAME_BYTES,
    drain_seconds: float = 0.0,
    pulse: Pulse | None = None,
    others: Others | None = None,
) -> None:
    """Serve `session` on `socket_path` until SIGTERM; the socket appears only once everything is ready.

    Parameters
    ----------
    session : ModelSession
        Loaded and warm.
    socket_path : Path
        A Unix socket; a stale one is replaced.
    hello : Hello
        The greeting of every connection.
    floor : Floor, optional
        Kept once a second.
    max_run_seconds : float
        A run is stopped at the deadline that came with it, and after this time at the latest.
    max_output_bytes : int
        A run whose outputs take more fails.
    drain_seconds : float
        How long the engine goes on after SIGTERM for those that are connected and still ask.
    pulse : Pulse, optional
        For the supervisor.
    others : Others, optional
        The instances that end with this one, and this one with them.
    """
    others = Others() if others is None else others
    with _order_to_end() as order, _door_at(socket_path) as door:
        engine = _Engine(
            session,
            door=door,
            order=order,
            greeting=encode_hello(msgspec.structs.replace(hello, pid=os.getpid(), shared_memory=True)),
            max_run_seconds=max_run_seconds,
            max_output_bytes=max_output_bytes,
            pulse=pulse or Pulse(None),
            others=others,
            floor=floor,
        )
        others.watch()
        engine.serve()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
        end = time.monotonic() + drain_seconds
        engine.drain(drain_seconds)
        others.wait(end - time.monotonic())


@contextlib.contextmanager
def _order_to_end() -> Iterator[socket.socket]:
    """A socket that can be read from once SIGTERM has come, be it just before a wait for it; or Ctrl-C, unless it is
    left to the parent.
    """
    order, giving = socket.socketpair()
    with order, giving:
        giving.setblocking(False)
        signal.set_wakeup_fd(giving.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: None)
        try:
            yield order
        finally:
            signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def _door_at(socket_path: Path) -> Iterator[socket.socket]:
    # Bound under another name and then renamed, so that whoever sees the socket can connect to it.
    hidden = socket_path.with_name(f".{socket_path.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.setblocking(False)
        with short_address(hidden) as address:
            door.bind(address)
        door.listen(BACKLOG)
        hidden.replace(socket_path)
        yield door


class _Engine:
    """Attends to the connections in the order in which something came of them."""

    def __init__(
        self,
        session: ModelSession,
        *,
        door: socket.socket,
        order: socket.socket,
        greeting: bytes,
        max_run_seconds: float,
        max_output_bytes: int,
        pulse: Pulse,
        others: Others,
        floor: Floor | None,
    ) -> None:
        self._session = session
        self._input_names = [spec.name for spec in session.signature.inputs]
        self._door = door
        self._order = order
        self._greeting = greeting
        self._max_run_seconds = max_run_seconds
        self._max_output_bytes = max_output_bytes
        self._pulse = pulse
        self._others = others
        self._floor = floor
        self._floor_at = 0.0
        self._seconds_per_byte = math.inf  # of the last run of what lay in several places
        self._now = self._asked_at = time.monotonic()
        self._is_to_end = False
        self._connections: set[Connection] = set()
        self._readiness = open_readiness()
        self._attend: dict[int, Callable[[int], object]] = {door.fileno(): self._let_in, order.fileno(): self._be_ended}
        for descriptor in self._attend:
            self._readiness.register(descriptor, READABLE)

    def serve(self) -> None:
        """Let in who comes to the door, and answer, until the order to end comes."""
        self._keep()
        while True:
            something_came = self._turn(self._pulse.due - self._now)
            if self._is_to_end:
                return
            if something_came:
                self._asked_at = self._now

    def drain(self, seconds: float) -> None:
        """Close the door behind those who stand at it, and go on for all who still ask."""
        end = self._now + seconds
        while self._let_in(READABLE):
            pass
        self._readiness.unregister(self._door.fileno())
        self._door.close()
        while self._is_wanted() and self._now < end:
            if self._turn(DRAIN_LOOK_SECONDS):
                self._asked_at = self._now
        for connection in list(self._connections):
            self._let_go(connection)

    def _is_wanted(self) -> bool:
        """Whether someone may still ask, or has not got all of an answer."""
        if any(connection.is_writing for connection in self._connections):
            return True
        return bool(self._connections) and self._now - self._asked_at < QUIET_SECONDS

    def _turn(self, seconds: float) -> bool:
        """Wait so long at most for something to do, do it, and tell whether there was anything."""
        came = self._readiness.poll(seconds, MAX_EVENTS)
        for descriptor, events in came:
            self._attend[descriptor](events)
        self._now = time.monotonic()
        if self._now >= self._pulse.due:
            self._keep()
        return bool(came)

    def _keep(self) -> None:
        self._pulse.beat(self._now)
        if not self._is_to_end:
            # Those who came when there was no room for them may still stand there.
            self._readiness.modify(self._door.fileno(), READABLE)
        if self._floor is not None and self._now >= self._floor_at:
            self._floor_at = self._now + FLOOR_SECONDS
            self._floor.keep()

    def _be_ended(self, _: int) -> None:
        self._is_to_end = True
        self._readiness.unregister(self._order.fileno())
        self._others.end()

    def _let_in(self, _: int) -> bool:
        """Let one in; False where nobody stands at the door, or there is no room."""
        try:
            connected = self._door.accept()[0]
            connection = Connection(
                connected,
                greeting=self._greeting,
                readiness=self._readiness,
                answer=self._answer,
                over=self._let_go,
            )
        except BlockingIOError:
            return False
        except (OSError, MemoryError):
            # Looked at without a pause, the door would keep the loop from resting until there is room again.
            self._readiness.modify(self._door.fileno(), 0)
            return False
        self._connections.add(connection)
        self._attend[connection.descriptor] = connection.go_on
        return True

    def _let_go(self, connection: Connection) -> None:
        self._connections.remove(connection)
        del self._attend[connection.descriptor]
        connection.close()

    def _answer(self, frame_id: int, deadline: float, inputs: list[list[Array]]) -> Sequence[bytes | memoryview]:
        started = time.monotonic()
        if deadline <= started:
            return (encode_stopped(frame_id),)
        until = started + self._max_run_seconds
        try:
            outputs, nanoseconds = self._run(inputs, started, until=until if until < deadline else deadline)
            ended = time.monotonic()
            if ended >= self._pulse.due:
                # Several long runs may follow one another before the loop is back.
                self._pulse.beat(ended)
            return encode_result(frame_id, nanoseconds, outputs, max_bytes=self._max_output_bytes)
        except RunStopped:
            self._pulse.beat(time.monotonic())
            return (encode_stopped(frame_id),)
        except Exception as error:
            # Whatever a model gives, or does not, it costs what was asked with this frame and nothing else.
            self._pulse.beat(time.monotonic())
            return (encode_failure(frame_id, str(error) or type(error).__name__),)

    def _run(self, inputs: list[list[Array]], started: float, *, until: float) -> tuple[list[Array], int]:
        """The outputs, and the nanoseconds in the model."""
        names = self._input_names
        if len(inputs) == len(names) == 1 and len(inputs[0]) == 1:
            outputs = self._session.run({names[0]: inputs[0][0]}, until=until)
            return outputs, int((time.monotonic() - started) * 1e9)
        in_places = any([len(parts) > 1 for parts in inputs])
        apart = None
        if in_places and self._seconds_per_byte < JOIN_SECONDS_PER_BYTE:
            apart = self._run_apart(inputs, until=until)
        if apart is None:
            arrays = dict(zip(names, map(join_parts, inputs), strict=True))
            started = time.monotonic()
            outputs = self._session.run(arrays, until=until)
        else:
            outputs = apart
        seconds = time.monotonic() - started
        if in_places:
            self._seconds_per_byte = seconds / sum([part.nbytes for parts in inputs for part in parts])
        return outputs, int(seconds * 1e9)

    def _run_apart(self, inputs: list[list[Array]], *, until: float) -> list[Array] | None:
        """A run for each part; None where inputs differ in their parts, or what comes out cannot be put together."""
        rows = [len(part) for part in inputs[0]]
        if any([[len(part) for part in parts] != rows for parts in inputs]):
            return None
        runs: list[list[Array]] = []
        for count, parts in zip(rows, zip(*inputs, strict=True), strict=True):
            outputs = self._session.run(dict(zip(self._input_names, parts, strict=True)), until=until)
            runs.append(outputs)
            for output, first in zip(outputs, runs[0], strict=True):
                if not output.ndim or len(output) != count or output.shape[1:] != first.shape[1:]:
                    return None
        return [np.concatenate(outputs) for outputs in zip(*runs, strict=True)]
