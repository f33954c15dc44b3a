from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.gateways import eventually, running_gateway
from tests.serving.callers import Caller, request_of

pytestmark = pytest.mark.slow

ROW = request_of({"features": ("FP32", np.zeros((1, 6), "f4"))}, model="bike-demand")
APART = [("grpc.use_local_subchannel_pool", 1)]
"""A channel that shares no connection with others."""


async def ask_once(address: str) -> str:
    """The id of one prediction, asked for on a connection of its own."""
    async with grpc.aio.insecure_channel(address, options=APART) as channel:
        answer = await Caller(channel).call("ModelInfer", ROW)
    return str(answer.parameters["prediction_id"].string_param)


async def ask_until(address: str, stopped: asyncio.Event, answered: list[str], refused: list[str]) -> None:
    """Ask, on a connection of its own, until told to stop or refused."""
    async with grpc.aio.insecure_channel(address, options=APART) as channel:
        caller = Caller(channel)
        while not stopped.is_set():
            try:
                answer = await caller.call("ModelInfer", ROW)
            except grpc.aio.AioRpcError as error:
                refused.append(error.code().name)
                return
            answered.append(answer.parameters["prediction_id"].string_param)


def test_fronts_share_the_port_and_drain_it_on_sigterm(tmp_path: Path) -> None:
    answered: list[str] = []
    refused: list[str] = []
    with running_gateway(tmp_path, fronts=2) as gateway:

        async def drive() -> None:
            stopped = asyncio.Event()
            address = f"127.0.0.1:{gateway.grpc_port}"
            async with asyncio.timeout(30):
                while len({prediction_id[12:14] for prediction_id in answered}) < 2:
                    # One front may be ready before the other; each connection finds one of those that are.
                    answered.append(await ask_once(address))
                asking = [asyncio.create_task(ask_until(address, stopped, answered, refused)) for _ in range(16)]
                while len(answered) < 200:
                    await asyncio.sleep(0.01)
            gateway.process.send_signal(signal.SIGTERM)
            done, _ = await asyncio.wait(asking, timeout=30)
            stopped.set()
            assert len(done) == len(asking)
            for task in done:
                task.result()

        asyncio.run(drive())
        assert gateway.stop() == 0
        logged = gateway.predictions()
    assert set(refused) == {"UNAVAILABLE"}
    assert {record.id for record in logged if record.status == 200} == set(answered)


def test_grpc_can_be_turned_off(tmp_path: Path) -> None:
    with running_gateway(tmp_path, environment={"GATEWAY_SERVER__GRPC": "false"}) as gateway:
        assert gateway.infer("bike-demand", [0.0] * 6)["model_name"] == "bike-demand"
        assert gateway.grpc_port is None
        assert "gRPC" not in gateway.output.read_text()


def test_bytes_that_are_no_http2_end_their_connection_and_write_no_log(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        eventually(lambda: "gateway: ready" in gateway.output.read_text())
        before = gateway.output.read_text()
        for content in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64):
            with socket.create_connection(("127.0.0.1", gateway.grpc_port), timeout=20) as connection:
                connection.sendall(content)
                while connection.recv(4096):
                    pass

        async def ask() -> None:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
                await Caller(channel).call("ModelInfer", ROW)

        asyncio.run(ask())
        eventually(lambda: len(gateway.predictions()) == 1)
        assert gateway.output.read_text() == before
