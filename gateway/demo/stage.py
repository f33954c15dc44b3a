"""Where the scene is shown: live on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live

from gateway.demo.scene import Scene
from gateway.demo.screen import draw, line_of, told

__all__ = ("LiveStage", "PlainStage", "Stage")

_LINE_SECONDS = 4.0
_QUIET_KINDS = ("version_registered",)


class Stage(Protocol):
    """Shows scenes; a context manager."""

    def show(self, scene: Scene) -> None: ...

    def __enter__(self) -> Stage: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveStage:
    """The terminal's own screen while the demo runs; what was there before comes back, and the last scene stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, screen=False)

    def show(self, scene: Scene) -> None:
        self._live.update(draw(scene, width=self._console.width, height=self._console.height), refresh=True)

    def __enter__(self) -> LiveStage:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainStage:
    """A line for every decision, and one every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = 0
        self._next_line = 0.0
        self._note = ""

    def show(self, scene: Scene) -> None:
        for decision in scene.decisions[self._shown :]:
            if decision["kind"] not in _QUIET_KINDS:
                self._write(told(scene, decision))
        self._shown = len(scene.decisions)
        if scene.note != self._note:
            self._note = scene.note
            self._write(f"--- {scene.note}")
        elif time.monotonic() >= self._next_line and scene.now:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self._write(line_of(scene))

    def __enter__(self) -> PlainStage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
