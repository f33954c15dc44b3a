"""A blocking client of one engine, for work outside the front: adding a model, re-running logged rows."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.engine.address import short_address
from gateway.engine.errors import EngineGone, EngineStartFailed, RunFailed, RunStopped
from gateway.engine.memory import resident_bytes
from gateway.engine.wire import FAILURE, HELLO, RESULT, STOPPED, FrameReader, Hello, decode_result, encode_run
from gateway.parent import PARENT_VARIABLE, ended_how

__all__ = ("BlockingEngine", "connect_engine", "open_engine")

STOP_SECONDS = 0.5
"""How long an engine may take to stop a run, before it is given up."""

Array = np.ndarray[Any, np.dtype[Any]]


class BlockingEngine:
    """One connection to an engine; one run at a time.

    Parameters
    ----------
    connection : socket
        Connected; closed by `close`.
    timeout_seconds : float
        Bound of each run.

    Attributes
    ----------
    inference_ns : int
        Nanoseconds of the last run in the model.
    """

    def __init__(self, connection: socket.socket, *, timeout_seconds: float) -> None:
        self._socket = connection
        self._timeout = timeout_seconds
        self._reader = FrameReader()
        self._frames: list[tuple[int, int, int, memoryview]] = []
        self._next_id = 0
        self.inference_ns = 0
        kind, _, _, payload = self._receive()
        if kind != HELLO:
            raise EngineGone("the engine did not greet")
        self.hello = msgspec.json.decode(payload, type=Hello)
        self.signature = self.hello.signature
        self.omitted = self.hello.omitted

    def __repr__(self) -> str:
        return f"<BlockingEngine {self.hello.model}/{self.hello.version} pid {self.hello.pid}>"

    def __enter__(self) -> BlockingEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Parameters
        ----------
        inputs : mapping of every input's name to an array of its dtype and shape

        Raises
        ------
        RunFailed
            The model failed on these inputs.
        RunStopped
            The model did not end in time; the engine goes on.
        EngineGone
            The engine ended or did not answer in time.
        KeyError
            An input of the signature is missing.
        """
        self._next_id += 1
        parts = [[np.asarray(inputs[spec.name])] for spec in self.signature.inputs]
        try:
            self._socket.settimeout(self._timeout)
            deadline = time.monotonic() + self._timeout
            self._socket.sendall(b"".join(encode_run(self._next_id, parts, deadline=deadline)))
        except OSError as error:
            raise EngineGone(f"the engine cannot be reached: {error}") from None
        while True:
            kind, count, frame_id, payload = self._receive()
            if frame_id == self._next_id:
                break
        if kind == FAILURE:
            raise RunFailed(str(payload, "utf-8", "replace"))
        if kind == STOPPED:
            raise RunStopped(f"the run was stopped after {self._timeout:g} s")
        if kind != RESULT:
            raise EngineGone(f"the engine answered with a frame of kind {kind}")
        self.inference_ns, arrays = decode_result(payload, count)
        return {spec.name: array for spec, array in zip(self.signature.outputs, arrays, strict=True)}

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> tuple[int, int, int, memoryview]:
        deadline = time.monotonic() + self._timeout + STOP_SECONDS
        while not self._frames:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                raise EngineGone(f"the engine did not answer within {self._timeout:g} s")
            try:
                received = self._socket.recv(1 << 20)
            except OSError as error:
                raise EngineGone(f"the engine cannot be reached: {error}") from None
            if not received:
                raise EngineGone("the engine ended while it was asked to run the model")
            self._frames.extend(self._reader.feed(received))
        return self._frames.pop(0)


def connect_engine(socket_path: Path, *, timeout_seconds: float = 10.0) -> BlockingEngine:
    """Connect to an engine that is running.

    Raises
    ------
    EngineGone
        Nothing listens there, or it does not greet in time.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_seconds)
        with short_address(socket_path) as address:
            connection.connect(address)
        return BlockingEngine(connection, timeout_seconds=timeout_seconds)
    except OSError as error:
        connection.close()
        raise EngineGone(f"no engine answers on {socket_path.name}: {error}") from None
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def open_engine(
    model_file: Path,
    *,
    threads: int = 1,
    start_timeout_seconds: float = 30.0,
    timeout_seconds: float = 60.0,
    allowed_bytes: float = math.inf,
) -> Iterator[BlockingEngine]:
    """Start an engine of its own process for `model_file`, and end it afterwards.

    Parameters
    ----------
    allowed_bytes : float
        What an engine of the gateway may hold: that one holds more is said where it is not ready in time.

    Raises
    ------
    EngineStartFailed
        The file is no model that can be served, or loading took too long.
    """
    with tempfile.TemporaryDirectory(prefix="gateway-engine-") as folder:
        socket_path = Path(folder) / "engine.sock"
        # -P: what lies in the current directory is no code of ours.
        command = [sys.executable, "-P", "-m", "gateway.engine"]
        command += [os.fspath(model_file), os.fspath(socket_path), str(threads)]
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid())}
        with open(Path(folder) / "errors", "w+b") as errors:
            process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment
            )
            try:
                _await_socket(
                    process,
                    socket_path,
                    timeout_seconds=start_timeout_seconds,
                    model_file=model_file,
                    allowed_bytes=allowed_bytes,
                )
            except EngineStartFailed as failure:
                errors.seek(0)
                text = errors.read(4096).decode("utf-8", "replace").strip()
                process.kill()
                process.wait()
                raise EngineStartFailed(text or str(failure)) from None
            try:
                with connect_engine(socket_path, timeout_seconds=timeout_seconds) as engine:
                    yield engine
            finally:
                process.kill()
                process.wait()


def _about_memory(held: int, allowed: float) -> str:
    if held <= allowed:
        return ""
    return f", and holds {held} bytes of memory by then: it needs more than engine.max_resident_bytes, {allowed:.0f}"


def _await_socket(
    process: subprocess.Popen[bytes], path: Path, *, timeout_seconds: float, model_file: Path, allowed_bytes: float
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not path.exists():
        if process.poll() is not None:
            raise EngineStartFailed(f"the engine for {model_file.name} ended {ended_how(process.returncode)}")
        if time.monotonic() > deadline:
            raise EngineStartFailed(
                f"the engine for {model_file.name} was not ready within {timeout_seconds:g} s"
                + _about_memory(resident_bytes(process.pid), allowed_bytes)
            )
        time.sleep(0.01)
