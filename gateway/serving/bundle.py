"""Requests that differ in nothing but their numbers, and go from their connections to their answers as one job.

Most traffic of a busy front is like that: the same head and the same body but for the numbers, again and again, on
connections that wait for one answer at a time. For such a request nothing is made but its text and its time of arrival.
Whatever then is not as usual, with one of them or with their run, takes the bundle apart, and each goes on alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from gateway.engine.job import Job
from gateway.protocol.decode import Usual
from gateway.routing.table import Choice, Route
from gateway.serving.inference import Connection, Inference
from gateway.serving.version import ServedVersion

__all__ = ("Bundle",)

OPEN_SECONDS, OPEN_SHARE = 0.005, 0.05
"""So long a bundle takes others in, and for no larger share of the time they have: they share the first's deadline."""


class Standing(Connection, Protocol):
    """A connection on which an inference may stand for a request."""

    def replace(self, inference: Inference, another: Inference) -> None:
        """Another one is answered in the place of one that is due."""


class Bundle(Job):
    """Requests that were recognised by one decoder and routed alike.

    Parameters
    ----------
    usual : Usual
        What their bodies have in common.
    route, choice, served
        How they were routed.
    now : float
        `time.perf_counter()` when the first arrived.
    seconds : float
        Each may take.

    Attributes
    ----------
    likes : list of Inference
        Of each connection the inference whose head it has sent again: it stands there for the request.
    texts : list of bytes
        Their numbers, as `RequestDecoder.recognise` gave them.
    arrived : list of float
        When each came, in seconds of `time.perf_counter()`; queued at once.
    open_until : float
        Whoever comes later, by the same clock, is none of it.
    """

    is_joint = True

    __slots__ = ("_parts", "arrived", "choice", "likes", "open_until", "requests", "route", "served", "texts", "usual")

    def __init__(
        self, usual: Usual, route: Route, choice: Choice, served: ServedVersion, *, now: float, seconds: float
    ) -> None:
        super().__init__()
        self.usual = usual
        self.route = route
        self.choice = choice
        self.served = served
        self.queued_at = now
        self.open_until = now + min(OPEN_SECONDS, OPEN_SHARE * seconds)
        self.deadline = now + seconds
        self.rows = self.requests = 0
        self.likes: list[Inference] = []
        self.texts: list[bytes] = []
        self.arrived: list[float] = []
        self._parts: list[Inference] | None = None

    def __repr__(self) -> str:
        return f"<Bundle of {self.requests} for {self.served!r}>"

    def add(self, like: Inference, text: bytes, size: int, now: float) -> None:
        """Take in a request; `size` is its body's, in bytes."""
        self.likes.append(like)
        self.texts.append(text)
        self.arrived.append(now)
        self.rows += self.usual.shape[0]
        self.size += size
        self.requests += 1

    @property
    def is_usual(self) -> bool:
        """Whether all of them may still be answered as one: nobody has gone, and no connection is to be closed."""
        if self._parts is not None or self.failure is not None:
            return False
        return all([like.keep_alive and not like.abandoned for like in self.likes])

    @property
    def is_deserted(self) -> bool:
        return any([like.abandoned for like in self.likes])

    def apart(self) -> Sequence[Inference]:
        """Each of its requests as an inference of its own, which its connection knows from now on."""
        if self._parts is None:
            self._parts = [self._part(place) for place in range(self.requests)]
        if self.failure is not None:
            for part in self._parts:
                part.failure = part.failure or self.failure
        return self._parts

    def _part(self, place: int) -> Inference:
        like, usual, text, arrived = self.likes[place], self.usual, self.texts[place], self.arrived[place]
        part = like.again()
        part.keep_alive = like.keep_alive
        part.abandoned = like.abandoned
        part.take_usual((usual, text), len(usual.before) + len(text) + len(usual.after))
        part.route, part.choice, part.served = self.route, self.choice, self.served
        part.arrived = part.queued_at = arrived
        part.deadline = arrived + (self.deadline - self.queued_at)
        part.run = self.run
        part.row = self.row + place * part.rows
        if self.inputs:
            part.take_inputs([array[place * part.rows : (place + 1) * part.rows] for array in self.inputs])
        cast(Standing, like.connection).replace(like, part)
        return part
