"""uvicorn's server without its signals: the front decides when to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from uvicorn import Server

__all__ = ("FrontServer",)


class FrontServer(Server):
    """Stops when `should_exit` is set; connections finish what has been read, within the configured time."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
