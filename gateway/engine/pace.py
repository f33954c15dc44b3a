"""How fast an engine answers a front, learnt from its answers: what a batch may hold, and how long a queue takes."""

from __future__ import annotations

import math

__all__ = ("SHORT_SECONDS", "Pace")

FIRST_ROWS = 8  # of the first batch, when nothing is known yet
MEMORY = 0.8  # weight of what was known when another batch has been drained
SPREAD = 0.1  # of the rows of frames, of their mean, that tells a row from a frame
SHARE = 0.25  # of a new measurement in the mean time of a frame or a run
FORGET_SECONDS = 10.0  # of frames, after which a row may take e times as long as it was seen to
SHORT_SECONDS = 0.0002  # a run that is over before a front has another batch worth it


class Pace:
    """What is known of one engine's speed.

    Parameters
    ----------
    max_rows : int
        Of a batch.
    batch_seconds : float
        A batch is kept so small that its run is expected to take no longer.

    few : int
        A queue of more requests is worth a second look, however fast the engine is.

    Attributes
    ----------
    rows : int
        Rows of the next batch.
    few_rows : int
        Of a queue that needs no look: they fit the next batch.
    frame_seconds : float
        Between two answers while there was work: the mean, of which recent ones are the most.
    run_seconds : float
        The model runs for a frame: the mean, of which recent ones are the most; infinite when nothing is known yet.

    >>> pace = Pace(max_rows=256, batch_seconds=0.1, few=100)
    >>> pace.add(rows=8, run_seconds=0.04, seconds=0.05, pressed=False)
    >>> pace.rows, pace.seconds_of(100, 5)
    (20, 0.0)
    >>> pace.add(rows=20, run_seconds=0.08, seconds=0.1, pressed=True)
    >>> pace.rows, pace.seconds_of(100, 5)
    (25, 0.5)
    """

    __slots__ = (
        "_batch_seconds",
        "_few",
        "_frames",
        "_max_rows",
        "_products",
        "_row_seconds",
        "_rows",
        "_seconds",
        "_squares",
        "few_rows",
        "frame_seconds",
        "rows",
        "run_seconds",
    )

    def __init__(self, *, max_rows: int, batch_seconds: float, few: int) -> None:
        self._max_rows = max_rows
        self._few = few
        self._batch_seconds = batch_seconds
        # Of frames while others had to wait: how many, their rows, squares of these, seconds, rows times seconds.
        self._frames = self._rows = self._squares = self._seconds = self._products = 0.0
        self._row_seconds = math.inf
        self.rows = min(FIRST_ROWS, max_rows)
        self.few_rows = min(self.rows, few)
        self.frame_seconds = 0.0
        self.run_seconds = math.inf

    def __repr__(self) -> str:
        backlog = self.seconds_of(1000, 1000 / self.rows)
        return f"<Pace batches of {self.rows} rows | a backlog of 1000 takes {backlog:.3g} s>"

    def add(self, *, rows: int, run_seconds: float, seconds: float, pressed: bool) -> None:
        """Learn from one answered frame.

        Parameters
        ----------
        run_seconds : float
            Of the model's run.
        seconds : float
            Since the answer before, or since the frame was sent, whichever is later.
        pressed : bool
            Others had to wait when the frame was formed: only then does its time tell how fast a queue drains.
        """
        self.frame_seconds += (seconds - self.frame_seconds) * SHARE
        known = self.run_seconds < math.inf
        self.run_seconds = self.run_seconds + (run_seconds - self.run_seconds) * SHARE if known else run_seconds
        if rows:
            fitting = self._max_rows
            if run_seconds * self._max_rows > rows * self._batch_seconds:
                # One run that was held up by something else shall not cost more than half.
                fitting = max(int(rows * self._batch_seconds / run_seconds), self.rows // 2, 1)
            if fitting != self.rows:
                self.rows = fitting
                self.few_rows = min(fitting, self._few)
            # A row takes at most its share of any frame. Few are large, and it is these that tell.
            share = max(run_seconds, seconds, 1e-9) / rows
            self._row_seconds = min(share, self._row_seconds * (1 + seconds / FORGET_SECONDS))
        if pressed and rows:
            self._frames = self._frames * MEMORY + 1
            self._rows = self._rows * MEMORY + rows
            self._squares = self._squares * MEMORY + rows * rows
            self._seconds = self._seconds * MEMORY + seconds
            self._products = self._products * MEMORY + rows * seconds

    @property
    def usual_rows(self) -> float:
        """Of a frame while others had to wait; 0 as long as nothing had to."""
        return self._rows / self._frames if self._frames else 0.0

    def seconds_of(self, rows: int, frames: float) -> float:
        """How long a queue takes that goes as so many frames, as far as is known; 0 as long as nothing has had to wait.

        A frame takes some time and each of its rows some more: frames of different rows tell how much, by least
        squares. Frames that are all alike tell only what a row of such a frame takes, which may be far too much for a
        frame of many more: so larger ones that were seen bound it.
        """
        if not self._rows:
            return 0.0
        each = self._seconds / self._rows
        spread = self._frames * self._squares - self._rows**2
        if spread > (SPREAD * self._rows) ** 2:
            slope = (self._frames * self._products - self._rows * self._seconds) / spread
            # Neither is less than nothing, whatever was measured.
            each = min(max(slope, 0.0), each)
        each = min(each, self._row_seconds)
        per_frame = max(0.0, self._seconds - each * self._rows) / self._frames
        return rows * each + frames * per_frame
