"""What a large tensor costs on its way to an engine and what comes back: over the socket, and in shared memory.

    python -m benchmarks.wire_cost [--rounds 3]

Two processes on uvloop, one question at a time, an answer of one number or of the tensor's size. `joined` puts a frame
together before it is written and after it was read, which is what asyncio's streams come down to; `pieces` is what the
gateway does: buffers are written as they are and received where they stay. `shared` copies the tensor into a file in
shared memory that both map, sends where it is, and answers the same way. CPU time of both processes for each question,
interleaved, smallest of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import get_context
from typing import Any, cast

import numpy as np
import uvloop

from gateway.engine.wire import Frame, FrameReader, encode_result, encode_run

MODES = ("joined", "pieces", "shared")
SIZES = (1_000, 150_000, 600_000, 4_000_000, 16_000_000)
SHARED_BYTES = 2**26
QUESTION, ANSWER = 0, SHARED_BYTES // 2


class _Peer(asyncio.BufferedProtocol):
    """One end of the socket; `got` is called with each tensor that has arrived."""

    def __init__(self, mode: str, shared: mmap.mmap, *, theirs: int, got: Any) -> None:
        self.mode = mode
        self._view = memoryview(shared)
        self._theirs = theirs
        self._got = got
        self._reader = FrameReader()
        self._scratch = bytearray(2**18)
        self._transport: asyncio.Transport
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._scratch) if self.mode == "joined" else self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        frames: Iterable[Frame]
        if self.mode == "joined":
            frames = self._reader.feed(bytes(memoryview(self._scratch)[:nbytes]))
        else:
            frames = self._reader.received(nbytes)
        for _, count, frame_id, payload in frames:
            if self.mode == "shared" and count == 0:
                place = self._view[self._theirs : self._theirs + frame_id]
                self._got(np.frombuffer(place, "f4"))
            else:
                self._got(np.frombuffer(payload[32:], "f4"))

    def send(self, tensor: Any, mine: int, *, answer: bool) -> None:
        if self.mode == "shared" and tensor.nbytes > 2**16:
            self._view[mine : mine + tensor.nbytes] = memoryview(tensor).cast("B")
            self._transport.write(b"".join(encode_run(tensor.nbytes, [])))
            return
        pieces = encode_result(1, 0, [tensor]) if answer else encode_run(1, [[tensor]])
        if self.mode == "joined" or tensor.nbytes < 2**16:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)


async def _answer(connection: socket.socket, file: str, mode: str, size: int, *, large: bool) -> None:
    shared = _mapped(file)
    answers = np.ones(size // 4 if large else 1, "f4")

    def got(tensor: Any) -> None:
        # As a model would: every byte is read once.
        float(tensor.sum())
        peer.send(answers, ANSWER, answer=True)

    peer = _Peer(mode, shared, theirs=QUESTION, got=got)
    await asyncio.get_running_loop().create_unix_connection(lambda: peer, sock=connection)
    await peer.lost.wait()


def _serve(
    connection: socket.socket, other: socket.socket, file: str, mode: str, size: int, large: bool, results: Any
) -> None:
    other.close()
    uvloop.run(_answer(connection, file, mode, size, large=large))
    results.put(time.process_time())


async def _ask(connection: socket.socket, file: str, mode: str, size: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    shared = _mapped(file)
    tensor = np.ones(size // 4, "f4")
    left = count

    def got(answer: Any) -> None:
        nonlocal left
        float(answer.sum())
        left -= 1
        if left:
            peer.send(tensor, QUESTION, answer=False)
        elif not done.done():
            done.set_result(None)

    peer = _Peer(mode, shared, theirs=ANSWER, got=got)
    transport, _ = await loop.create_unix_connection(lambda: peer, sock=connection)
    peer.send(tensor, QUESTION, answer=False)
    await done
    transport.close()


def _mapped(file: str) -> mmap.mmap:
    with open(file, "r+b") as opened:
        return mmap.mmap(opened.fileno(), SHARED_BYTES)


def measure(mode: str, size: int, *, large: bool, count: int) -> tuple[float, float]:
    """CPU and wall time of one question, in microseconds, of both processes together."""
    context = get_context("fork")
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        os.truncate(file.name, SHARED_BYTES)
        results = context.Queue()
        child = context.Process(target=_serve, args=(there, here, file.name, mode, size, large, results))
        child.start()
        there.close()
        before, started = time.process_time(), time.perf_counter()
        uvloop.run(_ask(here, file.name, mode, size, count))
        wall = time.perf_counter() - started
        cpu = time.process_time() - before + results.get(timeout=60)
        child.join(60)
    return cpu / count * 1e6, wall / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(f"{'bytes':>10} {'answer':>7} " + " ".join(f"{mode + ' cpu':>11} {'wall':>8}" for mode in MODES) + "  us")
    for large in (False, True):
        for size in SIZES:
            count = max(30, min(3000, 300_000_000 // size))
            runs = [[measure(mode, size, large=large, count=count) for mode in MODES] for _ in range(rounds)]
            best = [tuple(min(run[index][part] for run in runs) for part in (0, 1)) for index in range(len(MODES))]
            shown = " ".join(f"{cpu:>11.0f} {wall:>8.0f}" for cpu, wall in best)
            print(f"{size:>10} {'large' if large else 'small':>7} {shown}", flush=True)


if __name__ == "__main__":
    main()
