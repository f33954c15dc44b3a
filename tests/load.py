"""A client that keeps a gateway busy and writes down every request and every answer."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tests.checker import History

ROWS = [
    [8.0, 1.0, 6.0, 71.0, 83.0, 0.0],
    [17.0, 3.0, 4.0, 55.0, 61.5, 0.0],
    [2.0, 6.0, 12.0, 30.0, 39.0, 0.2],
    [12.0, 0.0, 9.0, 66.0, 80.0, 0.0],
]
"""Hour, weekday, month and a day's weather, as bike-demand takes them."""
RECONNECT_SECONDS = 0.02


class Answer(NamedTuple):
    """One answer; times in seconds since 1970."""

    sent: float
    received: float
    request_id: str
    status: int
    prediction_id: str
    version: str
    arm: str
    body: dict[str, Any]


class Load:
    """Sends requests over a few connections, one at a time on each, until it is stopped.

    `sent` holds the id of every request, `answers` every answer, `broken` one line for every request that ended
    without one. A request whose connection breaks is not sent again: the next one is.

    Parameters
    ----------
    port : int
    model : str
    inputs : tensors of the requests, taken in turn
    name : str
        Begins every request's id.
    version : int, optional
        Pinned, by path.
    fresh : bool
        A new connection for every request.
    history : History, optional
        Where each request is written down before it leaves and each answer when it is there.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        port: int,
        model: str = "bike-demand",
        *,
        inputs: Iterable[list[dict[str, Any]]] = (),
        version: int | None = None,
        headers: Mapping[str, str] | None = None,
        connections: int = 4,
        pause_seconds: float = 0.004,
        fresh: bool = False,
        history: History | None = None,
    ) -> None:
        self.name = f"load{next(self._numbers)}"
        self.sent: list[str] = []
        self.answers: list[Answer] = []
        self.broken: list[str] = []
        self._port = port
        pinned = "" if version is None else f"/versions/{version}"
        self._path = f"/v2/models/{model}{pinned}/infer"
        self._inputs = list(inputs) or [[features(row)] for row in ROWS]
        self._headers = {"content-type": "application/json", **(headers or {})}
        if fresh:
            self._headers["connection"] = "close"
        self._pause_seconds = pause_seconds
        self._history = history
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(slot,)) for slot in range(connections)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more and wait for what is under way."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def failed(self) -> list[Answer]:
        """Answers other than 200."""
        return [answer for answer in self.answers if answer.status != 200]

    def wait(self, answers: int, *, seconds: float = 60.0) -> None:
        """Go on until so many more answers came."""
        wanted, deadline = len(self.answers) + answers, time.monotonic() + seconds
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline, f"{wanted - len(self.answers)} of {answers} answers did not come"
            time.sleep(0.01)

    def _run(self, slot: int) -> None:
        connection = None
        for number in itertools.count():
            if self._over.wait(self._pause_seconds):
                break
            request_id = f"{self.name}-{slot}-{number}"
            body = json.dumps({"id": request_id, "inputs": self._inputs[number % len(self._inputs)]})
            self.sent.append(request_id)
            started = time.time()
            if self._history is not None:
                self._history.sent(request_id, at=started)
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                connection.request("POST", self._path, body, self._headers)
                response = connection.getresponse()
                raw = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(f"{request_id}: {type(error).__name__} {error}")
                if connection is not None:
                    connection.close()
                connection = None
                self._over.wait(RECONNECT_SECONDS)
                continue
            answer = Answer(
                started,
                time.time(),
                request_id,
                response.status,
                response.getheader("gateway-prediction-id", ""),
                response.getheader("gateway-model-version", ""),
                response.getheader("gateway-arm", ""),
                json.loads(raw),
            )
            if self._history is not None:
                self._history.answered(
                    request_id,
                    sent=started,
                    received=answer.received,
                    status=answer.status,
                    prediction_id=answer.prediction_id,
                    body=answer.body,
                )
            self.answers.append(answer)
            if response.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


def features(row: list[float]) -> dict[str, Any]:
    """One row as bike-demand's input."""
    return {"name": "features", "shape": [1, len(row)], "datatype": "FP32", "data": row}


def vector(name: str, values: list[int]) -> dict[str, Any]:
    """An INT64 input of shape [n]."""
    return {"name": name, "shape": [len(values)], "datatype": "INT64", "data": values}
