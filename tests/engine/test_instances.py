from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.engine.errors import EngineGone, RunStopped
from gateway.engine.notes import EnginePaths, socket_of
from gateway.engine.oneshot import BlockingEngine, connect_engine, open_engine
from gateway.engine.pulse import read_beats
from tests.engines import save_divider, save_looper, save_model
from tests.gateways import eventually, running_gateway
from tests.load import Load
from tests.orders import made, started
from tests.processes import holding, is_running

ROW = {"features": np.array([[0.0, 9.0, 3.0, 20.0, 50.0, 10.0]], "f4")}
SMALLEST = -(2**63)

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="instances need Linux")


def reach(socket: str, instance: int, *, timeout_seconds: float = 10.0) -> BlockingEngine:
    eventually(Path(socket).exists, seconds=60, what="the engine")
    return connect_engine(socket_of(Path(socket), instance), timeout_seconds=timeout_seconds)


def test_each_instance_answers_at_a_place_of_its_own_as_the_model_does(tmp_path: Path) -> None:
    with started(tmp_path, instances=3) as (process, order, log), contextlib.ExitStack() as connected:
        engines = [connected.enter_context(reach(order.socket, number)) for number in range(3)]
        assert 'instances="3: as many as engine.instances, fronts and cores allow"' in log.read_text()
        assert engines[0].hello.pid == process.pid
        assert len({engine.hello.pid for engine in engines}) == 3
        with open_engine(Path(order.staged) / "model.onnx") as alone:
            expected = alone.run(ROW)
        for engine in engines:
            assert {name: array.tolist() for name, array in engine.run(ROW).items()} == {
                name: array.tolist() for name, array in expected.items()
            }
        titles = [Path(f"/proc/{engine.hello.pid}/cmdline").read_text().rstrip("\0 ") for engine in engines]
        assert titles == [f"gateway: engine bike-demand/1{end}" for end in ("", " instance 1", " instance 2")]
        eventually(lambda: set(read_beats(Path(order.beat))) == {engine.hello.pid for engine in engines}, what="beats")


def test_the_weights_are_in_memory_once(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.random.default_rng(0).random((4096, 4096), "f4"), "w")
    file = save_model(
        tmp_path / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["n", 4096])},
        outputs={"y": (TensorProto.FLOAT, ["n", 4096])},
        weights=[weights],
    )
    with started(tmp_path, version=made(tmp_path, file), instances=2) as (_, order, _):
        for number in (0, 1):
            with reach(order.socket, number) as engine:
                engine.run({"x": np.ones((8, 4096), "f4")})
                assert holding(engine.hello.pid).private_bytes < weights.ByteSize() / 2


@pytest.mark.parametrize(
    ("threads", "asked", "said"),
    [(2, 2, '"1: the model runs on several threads"'), (1, 1, '"1: engine.instances, fronts and cores allow no more"')],
)
def test_a_model_that_cannot_have_several_has_one_and_says_why(
    tmp_path: Path, threads: int, asked: int, said: str
) -> None:
    if len(os.sched_getaffinity(0)) < threads:
        pytest.skip("needs two cores")
    with started(tmp_path, threads=threads, instances=asked) as (_, order, log):
        with reach(order.socket, 0) as engine:
            engine.run(ROW)
        assert f"instances={said}" in log.read_text()
        assert not socket_of(Path(order.socket), 1).exists()


@pytest.mark.fault
@pytest.mark.promise("P5")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_engine_ends_as_any_of_its_instances_does(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path, instances=3) as (process, order, _):
        others = []
        for instance in (1, 2):
            with reach(order.socket, instance) as engine:
                others.append(engine.hello.pid)
        os.kill(others[1], number)
        assert process.wait(30) == -number
        eventually(lambda: not any(map(is_running, others)), what="the end of all")


@pytest.mark.fault
@pytest.mark.promise("P5")
def test_the_instances_end_with_the_first(tmp_path: Path) -> None:
    with started(tmp_path, instances=2) as (process, order, _):
        with reach(order.socket, 1) as engine:
            process.kill()
            eventually(lambda: not is_running(engine.hello.pid), what="the end of the other")
            with pytest.raises(EngineGone):
                engine.run(ROW)


@pytest.mark.fault
@pytest.mark.promise("P5")
def test_an_input_that_kills_its_instance_ends_the_engine_with_that_signal(tmp_path: Path) -> None:
    version = made(tmp_path, save_divider(tmp_path / "divider.onnx"))
    with started(tmp_path, version=version, instances=2) as (process, order, _):
        with reach(order.socket, 1) as engine, pytest.raises(EngineGone):
            engine.run({"a": np.array([SMALLEST]), "b": np.array([-1])})
        assert process.wait(30) == -signal.SIGFPE


def test_a_run_of_any_instance_is_stopped_at_its_deadline(tmp_path: Path) -> None:
    version = made(tmp_path, save_looper(tmp_path / "looper.onnx"))
    with started(tmp_path, version=version, instances=2) as (process, order, _):
        for number in (0, 1):
            with reach(order.socket, number, timeout_seconds=0.5) as engine:
                with pytest.raises(RunStopped):
                    engine.run({"n": np.array([2**62])})
                assert engine.run({"n": np.array([8])})["y"].tolist() == [8]
        assert process.poll() is None


@pytest.mark.fault
@pytest.mark.promise("P13")
@pytest.mark.parametrize("told", [0, 1])
def test_all_instances_answer_who_is_connected_before_they_end(tmp_path: Path, told: int) -> None:
    with started(tmp_path, instances=2) as (process, order, _):
        engines = [reach(order.socket, number) for number in (0, 1)]
        os.kill(engines[told].hello.pid, signal.SIGTERM)
        sockets = [socket_of(Path(order.socket), number) for number in (0, 1)]
        eventually(lambda: not any(path.exists() for path in sockets), what="the end of all sockets")
        assert engines[0].run(ROW) and engines[1].run(ROW) and process.poll() is None
        engines[0].close()
        time.sleep(0.5)  # long enough for the first, which nobody asks any more
        assert engines[1].run(ROW) and process.poll() is None
        for engine in engines:
            engine.close()
        assert process.wait(30) == 0
        assert not is_running(engines[1].hello.pid)
        assert not any(path.exists() for path in sockets)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_an_engine_that_is_told_twice_drains_once(tmp_path: Path) -> None:
    version = made(tmp_path, save_looper(tmp_path / "looper.onnx"))
    with started(tmp_path, version=version, instances=2) as (process, order, _):
        with reach(order.socket, 0, timeout_seconds=1.0) as engine, reach(order.socket, 1) as other:
            running = threading.Thread(target=lambda: pytest.raises(RunStopped, engine.run, {"n": np.array([2**62])}))
            running.start()
            time.sleep(0.2)
            os.kill(other.hello.pid, signal.SIGTERM)
            other.close()
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            running.join()
            assert engine.run({"n": np.array([8])})["y"].tolist() == [8]
        assert process.wait(30) == 0


@pytest.mark.fault
@pytest.mark.promise("P5")
def test_a_crash_of_an_instance_is_seen_during_a_run_of_the_first(tmp_path: Path) -> None:
    version = made(tmp_path, save_looper(tmp_path / "looper.onnx"))
    with started(tmp_path, version=version, instances=2) as (process, order, _):
        with reach(order.socket, 0) as engine, reach(order.socket, 1) as other:
            running = threading.Thread(target=lambda: pytest.raises(EngineGone, engine.run, {"n": np.array([2**62])}))
            running.start()
            time.sleep(0.2)
            os.kill(other.hello.pid, signal.SIGKILL)
            assert process.wait(order.hang_seconds / 2) == -signal.SIGKILL
            running.join()


@pytest.mark.fault
def test_an_instance_that_does_not_end_in_time_ends_with_the_first(tmp_path: Path) -> None:
    with started(tmp_path, instances=2) as (process, order, _):
        with reach(order.socket, 1) as engine:
            os.kill(engine.hello.pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(order.drain_seconds + 10) == 0
        eventually(lambda: not is_running(engine.hello.pid), what="the end of the other")


FORKS = """
import os, sys, time
from gateway.engine.instances import run_instances
fork, forks = os.fork, []
def counted():
    forks.append(1)
    if len(forks) == 2:
        raise BlockingIOError(11, "no room for another")
    return fork()
os.fork = counted
def serve(number, others):
    if sys.argv[1] == "dies" and number:
        os.kill(os.getpid(), 9)
    if sys.argv[1] == "fails" and number:
        raise RuntimeError("an instance's fault")
    if not number:
        others.await_files([] if sys.argv[1] == "refused" else [__import__("pathlib").Path("never")], seconds=20)
        print("others", len(others))
run_instances(3, serve, warn=print)
"""


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("refused", 0, "it has 2 of 3 instances: no room for another\nothers 1\n"),
        ("dies", -signal.SIGKILL, ""),
        ("fails", 1, "an instance's fault"),
    ],
)
def test_a_fork_that_is_refused_is_done_without_and_one_that_ends_before_it_is_ready_ends_the_engine(
    what: str, status: int, said: str
) -> None:
    command = [sys.executable, "-u", "-W", "error", "-c", FORKS, what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


def test_an_instance_has_no_thread_of_onnxruntime_to_miss(tmp_path: Path) -> None:
    with started(tmp_path, instances=2) as (process, order, _), reach(order.socket, 1) as engine:
        # Beside the first one: what watches the runs, and in the first instance what watches the other.
        assert (holding(process.pid).threads, holding(engine.hello.pid).threads) == (3, 2)
        files = [os.readlink(path) for path in Path(f"/proc/{engine.hello.pid}/fd").iterdir()]
        assert not [file for file in files if "onnxruntime" in file.lower()]


def test_only_the_sockets_of_an_engine_itself_are_removed(tmp_path: Path) -> None:
    others = ["engine-m-1.5-2.sock", "engine-m-1.5-2.1.sock", "engine-m-11.sock", "engine-mm-1.sock", "engine-m-1.json"]
    for name in (*others, "engine-m-1.sock", "engine-m-1.1.sock", "engine-m-1.12.sock"):
        (tmp_path / name).touch()
    EnginePaths(tmp_path, "m", 1).unlink_sockets()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_front_looks_for_its_instance_and_then_for_the_first(tmp_path: Path) -> None:
    paths = EnginePaths(tmp_path, "m", 3)
    first = tmp_path / "engine-m-3.sock"
    assert paths.sockets(0, 4) == paths.sockets(4, 4) == paths.sockets(3, 1) == (first,)
    assert paths.sockets(5, 4) == (tmp_path / "engine-m-3.1.sock", first)


def waits_of(pid: int) -> int:
    """How often a process has waited for something."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary")))


@pytest.mark.fault
@pytest.mark.slow
def test_fronts_are_divided_among_instances_and_a_frozen_one_is_replaced(tmp_path: Path) -> None:
    settings = {"GATEWAY_ENGINE__INSTANCES": "2", "GATEWAY_ENGINE__HANG_SECONDS": "1"}
    with running_gateway(tmp_path, fronts=2, environment=settings) as gateway:
        eventually(lambda: len(gateway.instances("bike-demand", 1)) == 2, what="both instances")
        pids = set(gateway.instances("bike-demand", 1))
        before = {pid: waits_of(pid) for pid in pids}
        load = Load(gateway.http_port, version=1, fresh=True, headers={"Gateway-Timeout-Ms": "700"})
        with load:
            eventually(
                lambda: min(waits_of(pid) - before[pid] for pid in pids) > 100, what="work for both, of a front each"
            )
            assert not load.failed
            [victim] = pids - set(gateway.children("engine bike-demand/1"))
            os.kill(victim, signal.SIGSTOP)
            eventually(lambda: not pids & set(gateway.instances("bike-demand", 1)), seconds=30, what="another engine")
            moment = time.time()
            eventually(
                lambda: len([each for each in list(load.answers) if each.sent > moment and each.status == 200]) > 200,
                seconds=30,
                what="answers again",
            )
        assert not load.broken
        assert load.failed and {answer.status for answer in load.failed} <= {500, 503, 504}
        assert max(answer.received - answer.sent for answer in load.failed) < 5
        assert gateway.cli("models", "list").count("ready")
