"""The admin process: the admin API on one port, the metrics of all processes on another."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from starlette.applications import Starlette
from uvicorn import Config, Server

from gateway.admin.api import create_admin
from gateway.control.store import Store
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile
from gateway.telemetry.log import ProcessLog
from gateway.telemetry.page import create_metrics_app

__all__ = ("run",)

DRAIN_SECONDS = 2
MAX_CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 75


class _Server(Server):
    """uvicorn's server without its signals: the process decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run(settings: Settings, *, log: ProcessLog, cells: CellFile, metrics_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT.

    Parameters
    ----------
    settings : Settings
        With the ports as they are; the admin side listens on `admin.host`.
    log : ProcessLog
    cells : CellFile
        Kept for as long as the process lives, which makes it count as up.
    metrics_dir : Path
        Where all processes keep their metrics.
    """
    store = Store(settings.store_url)
    await asyncio.to_thread(store.create)
    host, server = settings.admin.host, settings.server
    served = [
        _served(create_admin(store=store, settings=settings), _listen(host, server.admin_port)),
        _served(create_metrics_app(metrics_dir), _listen(host, server.metrics_port)),
    ]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(one.serve(sockets=[listener])) for one, listener in served]
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for one, _ in served:
            one.should_exit = True
        await asyncio.gather(*tasks)
    finally:
        stopped.cancel()
        store.close()
    log.note("stopped", {"cells": repr(cells)})


def _served(app: Starlette, listener: socket.socket) -> tuple[_Server, socket.socket]:
    config = Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return _Server(config), listener


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.set_inheritable(True)
    return listener
