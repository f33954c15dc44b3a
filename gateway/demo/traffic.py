"""The callers: they ask for hours and send labels, over HTTP and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.demo.errors import DemoError
from gateway.demo.hours import Hour

__all__ = ("Answer", "Callers")

ANSWER_SECONDS = 20.0
MAX_BODY_BYTES = 2**20
_HEAD = "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"


class Answer(NamedTuple):
    """What came back for one hour: `value` is None for a request that was refused; `at` are seconds since 1970."""

    prediction_id: str
    status: int
    version: int
    arm: str
    value: float | None
    hour: Hour
    at: float


class Callers:
    """A few callers with a connection each, which stays open.

    Parameters
    ----------
    port : int
        Where the gateway answers predictions, on loopback.
    model : str
    callers : int
        Requests that may be in flight at once.
    """

    def __init__(self, port: int, *, model: str, callers: int = 8) -> None:
        self._model = f"/v2/models/{model}"
        self._connections = [_Connection(port) for _ in range(callers)]

    def __repr__(self) -> str:
        return f"<Callers {self._model} connections={len(self._connections)}>"

    async def ask(self, hours: Sequence[Hour], *, width: int = 6) -> list[Answer]:
        """Ask for hours, one request each; the answers are in the order of the hours.

        Parameters
        ----------
        width : int
            Features that are sent; fewer than six is a caller's mistake, which the gateway refuses and logs.
        """
        ways = len(self._connections)
        asked = await asyncio.gather(
            *(self._ask_each(each, hours[start::ways], width) for start, each in enumerate(self._connections))
        )
        return sorted((answer for answers in asked for answer in answers), key=lambda answer: answer.hour.time)

    async def label(self, labels: Sequence[tuple[str, float]]) -> int:
        """Send what turned out to be true, by prediction id; returns how many labels were taken.

        Raises
        ------
        DemoError
            They were refused.
        """
        batch = [{"prediction_id": prediction_id, "row": 0, "label": label} for prediction_id, label in labels]
        status, _, body = await self._connections[0].post(f"{self._model}/feedback", {"feedback": batch})
        if status != 200:
            raise DemoError(f"{len(batch)} labels were refused with {status}: {body!r:.200}")
        return int(json.loads(body)["accepted"])

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def _ask_each(self, connection: _Connection, hours: Sequence[Hour], width: int) -> list[Answer]:
        answers = []
        for hour in hours:
            status, headers, body = await connection.post(f"{self._model}/infer", _request(hour, width))
            answers.append(_answer(hour, status, headers, body))
        return answers


class _Connection:
    """One HTTP/1.1 connection that is used again and again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
        content = json.dumps(body).encode()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._exchange(_HEAD.format(path=path, length=len(content)).encode() + content)
        except TimeoutError:
            raise DemoError(f"the gateway did not answer within {ANSWER_SECONDS:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise DemoError(f"the gateway did not answer: {error!r}") from None

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request)
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers["content-length"])
        if not 0 <= length <= MAX_BODY_BYTES:
            raise ValueError(f"a body of {length} bytes")
        body = await self._reader.readexactly(length)
        if headers.get("connection", "").lower() == "close":
            self._writer.close()
            self._reader = self._writer = None
        return int(status_line.split(" ")[1]), headers, body


def _request(hour: Hour, width: int) -> dict[str, Any]:
    data = list(hour.features[:width])
    return {
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [1, len(data)], "data": data}],
        # Alarms shall speak of the time that the hour is of, not of the seconds of this replay.
        "parameters": {"event_time": hour.time},
    }


def _answer(hour: Hour, status: int, headers: dict[str, str], body: bytes) -> Answer:
    try:
        value = float(json.loads(body)["outputs"][0]["data"][0]) if status == 200 else None
        return Answer(
            headers["gateway-prediction-id"],
            status,
            int(headers["gateway-model-version"]),
            headers["gateway-arm"],
            value,
            hour,
            time.time(),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DemoError(f"an answer with status {status} cannot be read: {error!r} in {body!r:.200}") from None
