from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.engine.arena import Arena
from gateway.engine.errors import EngineGone, RunFailed
from gateway.engine.oneshot import connect_engine
from gateway.engine.process import _order_to_end
from gateway.engine.pulse import BEAT_SECONDS, read_beats
from gateway.engine.wire import (
    HEADER,
    HELLO,
    RESULT,
    RUN,
    STOPPED,
    FrameReader,
    decode_result,
    encode_arena,
    encode_run,
)
from gateway.parent import PARENT_VARIABLE
from tests.engines import save_doubler, save_looper, save_model
from tests.processes import holding

Array = np.ndarray[Any, np.dtype[Any]]
DRAIN_SECONDS = 20.0
SCRIPT = """
import os, select, sys
from pathlib import Path
from gateway.engine.loading import load_session
from gateway.engine.process import run_engine
from gateway.engine.pulse import Pulse, lay_out_beats
from gateway.engine.wire import Hello
from gateway.parent import follow
follow(os.getppid())
model, socket, beat, drain_seconds, poll = sys.argv[1:]
if poll == "without epoll":
    del select.epoll
session = load_session(Path(model), threads=1)
hello = Hello(signature=session.signature, pid=1)
lay_out_beats(Path(beat), 1)
pulse = Pulse(Path(beat))
run_engine(
    session, Path(socket), hello=hello, max_output_bytes=2**22, drain_seconds=float(drain_seconds), pulse=pulse
)
"""
ROW = np.array([[1, 2, 3]], "f4")


class Engine:
    """A process that serves one of the tiny models."""

    def __init__(self, model: Path, *, poll: str = "") -> None:
        self.path = model.parent / "e.sock"
        self.beat = model.parent / "e.beat"
        arguments = [str(model), str(self.path), str(self.beat), str(DRAIN_SECONDS), poll]
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])
        self.until(self.path.exists)

    def until(self, condition: Any) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.005)

    @property
    def descriptors(self) -> int:
        return holding(self.process.pid).descriptors

    @property
    def cpu_seconds(self) -> float:
        return time.clock_gettime(~self.process.pid << 3 | 2)


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[Engine]:
    made = Engine(model, **options)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


class Front:
    """A front that asks and reads when it is told to."""

    def __init__(self, asked: Engine) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(str(asked.path))
        self._reader = FrameReader()
        self._frames: list[tuple[int, int, int, memoryview]] = []

    def __enter__(self) -> Front:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, frame_id: int, array: Array, *, deadline: float = float("inf")) -> None:
        self.socket.sendall(b"".join(encode_run(frame_id, [[array]], deadline=deadline)))

    def next(self) -> tuple[int, int, list[Array]]:
        """Kind, id and tensors of the next frame."""
        while not self._frames:
            received = self.socket.recv(2**16)
            if not received:
                raise EOFError
            self._frames += self._reader.feed(received)
        kind, count, frame_id, payload = self._frames.pop(0)
        return kind, frame_id, decode_result(payload, count)[1] if kind == RESULT else []


def test_several_fronts_are_greeted_and_answered_with_and_without_epoll(tmp_path: Path) -> None:
    for poll in ("", "without epoll"):
        folder = tmp_path / f"engine {poll}"
        folder.mkdir()
        with engine(save_doubler(folder / "m.onnx"), poll=poll) as e, Front(e) as one, Front(e) as other:
            for front in (one, other):
                assert front.next()[0] == HELLO
            for number in range(3):
                for front in (one, other):
                    front.ask(number, ROW * number)
            for number in range(3):
                for front in (one, other):
                    kind, frame_id, [doubled] = front.next()
                    assert (kind, frame_id, doubled.tolist()) == (
                        RESULT,
                        number,
                        [[2 * number, 4 * number, 6 * number]],
                    )


def test_a_socket_in_a_deep_folder_is_served_too(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    folder.mkdir(parents=True)
    with engine(save_doubler(folder / "m.onnx")) as e, connect_engine(e.path) as client:
        assert client.run({"x": ROW})["y"].tolist() == [[2, 4, 6]]


def test_a_front_that_always_has_more_to_ask_keeps_no_other_from_being_let_in_and_answered(tmp_path: Path) -> None:
    with engine(save_looper(tmp_path / "m.onnx")) as e, Front(e) as busy:
        turns = calibrated(busy, seconds=0.05)
        ending = threading.Event()

        def keep_asking() -> None:
            busy.ask(0, turns)
            busy.ask(0, turns)
            while not ending.is_set():
                busy.ask(0, turns)
                assert busy.next()[0] == RESULT

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            for _ in range(3):
                with Front(e) as late:
                    assert late.next()[0] == HELLO
                    late.ask(1, np.array([3]))
                    kind, frame_id, [count] = late.next()
                    assert (kind, frame_id, count.tolist()) == (RESULT, 1, [3])
        finally:
            ending.set()
            asking.join()


def calibrated(front: Front, *, seconds: float) -> Array:
    """An input on which the looper's run takes about so long."""
    assert front.next()[0] == HELLO
    turns = 1000
    while True:
        started = time.monotonic()
        front.ask(0, np.array([turns]))
        assert front.next()[0] == RESULT
        took = time.monotonic() - started
        if took > 0.02:
            return np.array([max(1, int(turns * seconds / took))])
        turns *= 2


def test_a_front_that_reads_nothing_holds_up_nobody(tmp_path: Path) -> None:
    rows = np.ones((100_000, 3), "f4")
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as lazy, Front(e) as other:
        for number in range(2):
            lazy.ask(number, rows)
        assert other.next()[0] == HELLO
        for number in range(50):
            other.ask(number, ROW)
            assert other.next()[:2] == (RESULT, number)
        assert lazy.next()[0] == HELLO
        for number in range(2):
            kind, frame_id, [doubled] = lazy.next()
            assert (kind, frame_id) == (RESULT, number) and np.array_equal(doubled, rows * 2)


def test_a_front_that_was_killed_is_let_go_of_whatever_it_had_asked_and_not_read(tmp_path: Path) -> None:
    rows = np.ones((100_000, 3), "f4")
    with engine(save_doubler(tmp_path / "m.onnx")) as e, connect_engine(e.path) as client:
        before = e.descriptors
        fronts = [Front(e) for _ in range(3)]
        fronts[0].socket.sendall(HEADER.pack(1000, RUN, 1, 1) + b"half")
        fronts[1].ask(1, rows)
        fronts[1].ask(2, rows)
        fronts[2].ask(1, ROW)
        e.until(lambda: e.descriptors == before + 3)
        for front in fronts:
            front.socket.close()
        e.until(lambda: e.descriptors == before)
        assert client.run({"x": ROW})["y"].tolist() == [[2, 4, 6]]


def test_a_thousand_fronts_that_come_and_go_leave_no_descriptor_behind(tmp_path: Path) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e:
        with Front(e) as front:
            assert front.next()[0] == HELLO
        with Front(e) as staying:
            assert staying.next()[0] == HELLO
            before = e.descriptors
            for number in range(1000):
                with Front(e) as front:
                    if number % 2:
                        front.ask(1, ROW)
                        assert [front.next()[0] for _ in range(2)] == [HELLO, RESULT]
            e.until(lambda: e.descriptors == before)


def test_whom_there_is_no_descriptor_for_waits_at_the_door_and_the_engine_rests(tmp_path: Path) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as first:
        assert first.next()[0] == HELLO
        resource.prlimit(e.process.pid, resource.RLIMIT_NOFILE, (e.descriptors + 1,) * 2)
        with Front(e) as second:
            assert second.next()[0] == HELLO
            with Front(e) as third:
                before, seconds = e.cpu_seconds, 1.0
                time.sleep(seconds)
                assert e.cpu_seconds - before < seconds / 2
                first.ask(1, ROW)
                assert first.next()[:2] == (RESULT, 1)
                second.socket.close()
                assert third.next()[0] == HELLO


def test_a_frame_whose_deadline_has_passed_is_not_run(tmp_path: Path) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as front:
        assert front.next()[0] == HELLO
        front.ask(1, ROW, deadline=time.monotonic() - 1)
        assert front.next()[:2] == (STOPPED, 1)
        front.ask(2, ROW, deadline=time.monotonic() + 60)
        assert front.next()[:2] == (RESULT, 2)


def test_a_run_is_stopped_at_the_deadline_of_its_frame(tmp_path: Path) -> None:
    with engine(save_looper(tmp_path / "m.onnx")) as e, Front(e) as front:
        assert front.next()[0] == HELLO
        front.ask(1, np.array([2**62]), deadline=time.monotonic() + 0.1)
        assert front.next()[:2] == (STOPPED, 1)


def test_bytes_that_are_no_frame_end_their_connection_and_no_other(tmp_path: Path) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as good, Front(e) as bad:
        assert good.next()[0] == bad.next()[0] == HELLO
        bad.socket.sendall(b"\xff" * 32)
        with pytest.raises((EOFError, ConnectionError)):
            bad.next()
        good.ask(1, ROW)
        assert good.next()[:2] == (RESULT, 1)


def beat_of(e: Engine) -> float:
    [moment] = read_beats(e.beat).values()
    return moment


def test_the_pulse_goes_on_while_nothing_comes_and_while_things_come_that_are_not_run(tmp_path: Path) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as front:
        for _ in range(3):
            before = beat_of(e)
            e.until(lambda before=before: beat_of(e) > before)
        ending = threading.Event()
        front.socket.sendall(HEADER.pack(2**24, RUN, 1, 1))

        def trickle() -> None:
            while not ending.wait(0.001):
                front.socket.sendall(b"x")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            for _ in range(3):
                before = beat_of(e)
                e.until(lambda before=before: beat_of(e) > before)
        finally:
            ending.set()
            trickling.join()


def test_the_pulse_is_felt_between_long_runs_that_came_in_one_read(tmp_path: Path) -> None:
    with engine(save_looper(tmp_path / "m.onnx")) as e, Front(e) as front:
        turns = calibrated(front, seconds=5 * BEAT_SECONDS)
        os.kill(e.process.pid, signal.SIGSTOP)
        for number in range(3):
            front.ask(number, turns)
        os.kill(e.process.pid, signal.SIGCONT)
        beats = []
        for number in range(3):
            assert front.next()[:2] == (RESULT, number)
            beats.append(beat_of(e))
        assert beats == sorted(set(beats))


def test_what_cannot_be_answered_fails_and_the_engine_goes_on(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "m.onnx",
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, [1]), "shape": (TensorProto.INT64, ["axes"])},
        outputs={"y": (TensorProto.FLOAT, None)},
    )
    with engine(model) as e, connect_engine(e.path) as client:

        def expand(*shape: int) -> Array:
            return client.run({"x": np.ones(1, "f4"), "shape": np.array(shape)})["y"]

        with pytest.raises(RunFailed, match="more than 32 axes"):
            expand(*[1] * 33)
        assert expand(*[1] * 32).shape == (1,) * 32
        with pytest.raises(RunFailed, match=r"take 4194336 bytes, more than 4194304 \(engine.max_output_bytes\)"):
            expand(2**20)
        assert expand(2**20 - 8).nbytes == 2**22 - 32
        assert e.process.poll() is None


def test_an_engine_whose_parent_is_gone_before_it_can_ask_ends_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-m", "gateway.engine", str(save_doubler(tmp_path / "m.onnx")), str(tmp_path / "e"), "1"]
    done = subprocess.run(command, env=os.environ | {PARENT_VARIABLE: str(gone.pid)}, timeout=60)
    assert done.returncode == 1
    assert not (tmp_path / "e").exists()


def test_an_engine_that_nobody_is_connected_to_ends_when_it_is_told_to_and_takes_its_socket_away(
    tmp_path: Path,
) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e:
        with connect_engine(e.path) as client:
            client.run({"x": ROW})
        os.kill(e.process.pid, signal.SIGINT)
        with connect_engine(e.path) as client:
            client.run({"x": ROW})
        os.kill(e.process.pid, signal.SIGTERM)
        assert e.process.wait(30) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e.beat", "m.onnx"]


def test_an_engine_that_is_run_by_itself_ends_at_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    command = [sys.executable, "-m", "gateway.engine", str(save_doubler(tmp_path / "m")), str(path), "1"]
    # A shell lets its jobs in the background ignore Ctrl-C, these tests perhaps among them.
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, preexec_fn=heeded)
    try:
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


def test_an_engine_that_is_told_to_end_answers_who_still_asks_until_they_let_go(tmp_path: Path) -> None:
    with engine(save_looper(tmp_path / "m.onnx")) as e, Front(e) as front:
        turns = calibrated(front, seconds=0.3)
        front.ask(1, turns)
        front.ask(2, turns)
        os.kill(e.process.pid, signal.SIGTERM)
        e.until(lambda: not e.path.exists())
        with pytest.raises(EngineGone):
            connect_engine(e.path)
        assert [front.next()[:2] for _ in range(2)] == [(RESULT, 1), (RESULT, 2)]
        front.ask(3, np.array([1]))
        assert front.next()[:2] == (RESULT, 3)
        let_go = time.monotonic()
        front.socket.close()
        assert e.process.wait(30) == 0
        assert time.monotonic() - let_go < DRAIN_SECONDS / 4


def test_an_engine_that_is_told_to_end_does_not_wait_for_those_who_ask_nothing(tmp_path: Path) -> None:
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as front:
        assert front.next()[0] == HELLO
        told = time.monotonic()
        os.kill(e.process.pid, signal.SIGTERM)
        assert e.process.wait(30) == 0
        assert time.monotonic() - told < DRAIN_SECONDS / 2


def test_an_engine_that_is_told_to_end_waits_for_a_front_to_read_its_answer(tmp_path: Path) -> None:
    rows = np.ones((200_000, 3), "f4")
    with engine(save_doubler(tmp_path / "m.onnx")) as e, Front(e) as front:
        front.ask(1, rows)
        os.kill(e.process.pid, signal.SIGTERM)
        e.until(lambda: not e.path.exists())
        time.sleep(3)  # longer than it would wait for another question
        assert front.next()[0] == HELLO
        assert np.array_equal(front.next()[2][0], rows * 2)


def test_an_order_to_end_that_comes_before_it_is_waited_for_is_not_lost() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _order_to_end() as order:
            os.kill(os.getpid(), signal.SIGTERM)
            order.settimeout(10)
            assert order.recv(1) == bytes([signal.SIGTERM])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


WIDE = 2**19


def save_largest(path: Path, *, slow: bool) -> Path:
    """y = the largest number of all rows, so that an answer shows which rows were run together."""
    nodes = [helper.make_node("ReduceMax", ["h" if slow else "x"], ["y"], keepdims=1)]
    weights = []
    if slow:
        # Ten times what is joined, on the fastest machines too.
        names = ["x", *(f"s{number}" for number in range(8))]
        nodes = [helper.make_node("Sin", [one], [other]) for one, other in pairwise(names)] + [
            helper.make_node("Mul", [names[-1], "none"], ["m"]),
            helper.make_node("Add", ["x", "m"], ["h"]),
            *nodes,
        ]
        weights = [numpy_helper.from_array(np.zeros(1, "f4"), "none")]
    rows = (TensorProto.FLOAT, ["rows", WIDE])
    return save_model(path, nodes, inputs={"x": rows}, outputs={"y": (TensorProto.FLOAT, [1, 1])}, weights=weights)


@pytest.mark.parametrize("slow", [False, True])
def test_rows_in_several_places_are_joined_only_for_a_model_that_takes_longer_than_that(
    tmp_path: Path, slow: bool
) -> None:
    arena = Arena(2**24)
    rows = []
    for number in (1, 2):
        place = arena.lend(4 * WIDE)
        assert place is not None
        rows.append(place.view("<f4").reshape(1, WIDE))
        rows[-1][...] = number
    with engine(save_largest(tmp_path / "m.onnx", slow=slow)) as e, Front(e) as front:
        assert front.next()[0] == HELLO
        socket.send_fds(front.socket, [encode_arena(arena.size_bytes)], [arena.descriptor])
        answers = []
        for number in range(50):
            front.socket.sendall(b"".join(encode_run(number, [rows], arena=arena)))
            kind, _, [answer] = front.next()
            assert kind == RESULT
            answers.append(answer.reshape(-1).round(3).tolist())
    # How fast it is has to be seen first.
    assert answers[0] == [2]
    assert all(answer == [2] for answer in answers) if slow else [1, 2] in answers


def test_rows_in_several_places_are_joined_where_what_comes_out_is_not_theirs(tmp_path: Path) -> None:
    arena = Arena(2**24)
    place = arena.lend(8 * WIDE)
    other = arena.lend(4 * WIDE)
    assert place is not None and other is not None
    rows = [place.view("<f4").reshape(2, WIDE), other.view("<f4").reshape(1, WIDE)]
    rows[0][...], rows[1][...] = 1, 2
    with engine(save_largest(tmp_path / "m.onnx", slow=False)) as e, Front(e) as front:
        front.next()
        socket.send_fds(front.socket, [encode_arena(arena.size_bytes)], [arena.descriptor])
        for number in range(20):
            front.socket.sendall(b"".join(encode_run(number, [rows], arena=arena)))
            assert front.next()[2][0].tolist() == [[2]]
