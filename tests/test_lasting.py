from __future__ import annotations

import asyncio

import pytest

from gateway import lasting


def test_work_that_fails_is_noted_and_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "PAUSE_SECONDS", 0.0)
    notes: list[str] = []
    runs: list[int] = []

    async def work() -> None:
        runs.append(len(runs))
        if len(runs) < 3:
            raise OSError("no space left")

    asyncio.run(lasting.lasting("sweeping", work, note=notes.append))
    assert runs == [0, 1, 2]
    assert notes == ["sweeping failed and is begun again: OSError('no space left')"] * 2


def test_cancelling_ends_it() -> None:
    async def test() -> None:
        task = asyncio.create_task(lasting.lasting("sleeping", lambda: asyncio.sleep(60), note=print))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())
