"""The story: three acts over real hours. What callers and the operator do is here; every verdict is the gateway's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.demo.errors import DemoError
from gateway.demo.hours import Hour, days_between, read_hours
from gateway.demo.ledger import Answers, Book
from gateway.demo.operator import Operator
from gateway.demo.process import GatewayProcess, lay_out
from gateway.demo.scene import ACTS, Act, Scene
from gateway.demo.traffic import Answer, Callers
from gateway.repository.policy import PolicyError, load_policy

__all__ = ("MODEL", "Play", "Script")

MODEL = "bike-demand"
LATE_DAYS = 2
"""A label comes two days after its hour; every tenth comes a week later still."""
VERY_LATE_DAYS = 9
LOOK_SECONDS = 0.4
SETTLE_SECONDS = 30.0
ROUTE_SECONDS = 1.2
"""A route reaches every front within a second (P11); the operator lets it before sending on."""
UNREAD_SECONDS = 3.0
"""How far the monitor may be behind the callers; it writes its status once a second."""
AFTERWARDS_DAYS = 14
"""Days that are still replayed once version 3 has its verdict, to see where the traffic goes."""
MISTAKE_EACH_DAYS = 14
APPROVE_MONTH = "2013-06"


class Script(msgspec.Struct, frozen=True):
    """What is played.

    Parameters
    ----------
    folder : Path
        Empty; holds models, state and output of the gateway.
    models : Path
        The folder of all models; `bike-demand` in it is copied.
    hours : Path
        The hours file.
    candidate : Path or None
        A version's folder that takes the place of version 3.
    labels : bool
        Whether callers send back what turned out to be true.
    speed : float
        Hours a second, at most; the replay waits where the monitor does not keep up.
    """

    folder: Path
    models: Path
    hours: Path
    candidate: Path | None = None
    labels: bool = True
    speed: float = 400.0


class Play:
    """Plays a script on a gateway of its own.

    Parameters
    ----------
    script : Script
    show : callable
        Called with the scene whenever something has changed, several times a second.
    """

    def __init__(self, script: Script, *, show: Callable[[Scene], None]) -> None:
        self._script = script
        self._show = show
        self._hours: list[Hour] = []
        self._operator: Operator
        self._callers: Callers
        self._owed: dict[int, list[Answer]] = {}
        self._rollout = ""
        self._due = 0.0
        self._changed = asyncio.Event()
        self.gateway = GatewayProcess(script.folder)
        self.scene = Scene(Answers(0.0), time.time())
        self.book: Book
        self.audit_ok = False

    def __repr__(self) -> str:
        return f"<Play {self.scene.act} {self.scene.now} {self.scene.answers!r}>"

    async def run(self) -> None:
        """Play it to the end; the gateway is stopped whatever happens, and its log is read whole.

        Raises
        ------
        DemoError
            It cannot go on.
        """
        script = self._script
        self._hours = read_story(script.hours)
        lay_out(script.folder, models=script.models, model=MODEL, candidate=script.candidate)
        self.scene.answers = Answers(_miss_above(script.folder / "models" / MODEL))
        self.scene.days_total = sum(len(days_between(self._hours, act.first, act.last)) for act in ACTS)
        try:
            self._tell("starting the gateway")
            await self.gateway.start()
            await self._perform()
        finally:
            self.gateway.stop()
        while self.book.read():
            pass
        self._count_log()
        self._tell("the gateway has stopped")

    async def _perform(self) -> None:
        self.book = Book(self.gateway.spool_dir)
        self._operator = Operator(self.gateway.admin_url, model=MODEL)
        self._callers = Callers(self.gateway.http_port, model=MODEL)
        looking = asyncio.create_task(self._look_on())
        playing = asyncio.create_task(self._play_acts())
        try:
            # Whichever fails first ends the other.
            done, _ = await asyncio.wait((looking, playing), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self.audit_ok = bool((await self._operator.verify_audit())["ok"])
        finally:
            for task in (looking, playing):
                task.cancel()
            await asyncio.gather(looking, playing, return_exceptions=True)
            await self._callers.close()
            self._operator.close()

    async def _play_acts(self) -> None:
        alone, second, third = ACTS
        await self._operator.set_stable(1, reason="version 1 serves alone when the demo begins")
        await asyncio.sleep(ROUTE_SECONDS)
        await self._act(alone)

        await self._start_rollout(2, reason="trained on 2012, after version 1 was reported")
        approving: asyncio.Task[None] | None = None
        for day in self._begin(second):
            if approving is None and day[0].time.startswith(APPROVE_MONTH) and await self._is_over():
                approving = asyncio.create_task(self._operator.approve(3, reason="its own metrics look good"))
            await self._send(day)
        await self._settle()
        if approving is None:
            self._tell("version 2 is still on trial, so version 3 has to wait")
            return
        await approving

        await self._start_rollout(3, reason="trained on the newest year")
        left = AFTERWARDS_DAYS
        for day in self._begin(third):
            await self._send(day)
            if any(each["kind"] in ("rollback", "rollout_promoted") for each in self._decided_since(third)):
                left -= 1
            if not left:
                break
        await self._settle()

    async def _act(self, act: Act) -> None:
        for day in self._begin(act):
            await self._send(day)
        await self._settle()

    def _begin(self, act: Act) -> list[list[Hour]]:
        self.scene.act = act
        self._tell(act.title)
        return days_between(self._hours, act.first, act.last)

    def _decided_since(self, act: Act) -> list[dict[str, object]]:
        return [each for each in self.scene.decisions if self.scene.data_time(each["time"]) >= act.first]

    async def _start_rollout(self, version: int, *, reason: str) -> None:
        self._rollout = await self._operator.start_rollout(version, reason=reason)
        await asyncio.sleep(ROUTE_SECONDS)

    async def _is_over(self) -> bool:
        return bool((await self._operator.rollout(self._rollout))["over"])

    async def _send(self, day: list[Hour]) -> None:
        """Ask for one day's hours at the pace of the script, then send the labels that are due."""
        await self._keep_pace(len(day))
        number = self.scene.days_done
        if number % MISTAKE_EACH_DAYS == MISTAKE_EACH_DAYS - 1:
            self.scene.answers.add(await self._callers.ask(day[:1], width=5))
        answers = await self._callers.ask(day)
        self.scene.answers.add(answers)
        self.scene.reach(day[-1].time, time.time())
        self.scene.days_done += 1
        if self._script.labels:
            for place, answer in enumerate(answers):
                late = VERY_LATE_DAYS if place % 10 == number % 10 else LATE_DAYS
                self._owed.setdefault(number + late, []).append(answer)
            await self._send_labels(self._owed.pop(number, []), repeat=number % 7 == 0)

    async def _send_labels(self, answers: list[Answer], *, repeat: bool) -> None:
        # As in life: not in the order of the hours, and some of them twice.
        labels = [(each.prediction_id, each.hour.rented) for each in reversed(answers) if each.status == 200]
        labels += labels[:3] if repeat else []
        if labels:
            self.scene.answers.labels += await self._callers.label(labels)

    async def _keep_pace(self, hours: int) -> None:
        now = time.monotonic()
        # Time that was lost is not made up for, so that the monitor is not flooded after a pause.
        self._due = max(self._due, now - 0.2) + hours / self._script.speed
        await asyncio.sleep(max(0.0, self._due - now))
        until = time.monotonic() + SETTLE_SECONDS
        while self._unread() > UNREAD_SECONDS * self._script.speed:
            await self._next_look(until)

    async def _settle(self) -> None:
        """Wait until the monitor has read everything and has had the time to decide on it."""
        until = time.monotonic() + SETTLE_SECONDS
        while self._unread() > 0:
            await self._next_look(until)
        for _ in range(3):
            await self._next_look(until)

    def _unread(self) -> int:
        answers = self.scene.answers
        return len(answers.by_id) + answers.labels - self.scene.read

    async def _next_look(self, until: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                await self._changed.wait()
        except TimeoutError:
            raise DemoError(f"the monitor did not read {self._unread()} records within {SETTLE_SECONDS:g} s") from None

    async def _look_on(self) -> None:
        """Look at the admin API and at the log again and again, and answer a pause as the operator would."""
        scene = self.scene
        last, asked = time.monotonic(), 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.gateway.check()
            scene.decisions += await self._operator.decisions(
                after=scene.decisions[-1]["seq"] if scene.decisions else 0
            )
            scene.route = await self._operator.route()
            status = await self._operator.status()
            scene.seen = status.get("models", {}).get(MODEL, scene.seen)
            scene.read = status.get("read", scene.read)
            await asyncio.to_thread(self.book.read)
            self._count_log()
            now, total = time.monotonic(), len(scene.answers.by_id)
            scene.pace, last, asked = (total - asked) / (now - last), now, total
            await self._consider_resuming()
            self._changed.set()
            self._show(scene)

    async def _consider_resuming(self) -> None:
        """A trial that was paused goes on when labels show that the canary is as good; else the operator waits."""
        rollout, trial = self.scene.seen.get("rollout") or {}, self.scene.seen.get("trial") or {}
        if rollout.get("phase") != "paused":
            return
        shown = any(
            (reading["metric"], reading["direction"]) == ("quality", "good")
            and reading["log_evidence"] >= reading["threshold"]
            for reading in trial.get("readings", [])
        )
        if shown and (await self._operator.rollout(rollout["id"]))["phase"] == "paused":
            await self._operator.resume(rollout["id"], reason="looked at it: outputs differ, labels show it to be good")

    def _count_log(self) -> None:
        self.scene.logged, self.scene.labels_logged = len(self.book.predictions), self.book.labels

    def _tell(self, note: str) -> None:
        self.scene.note = note
        self._show(self.scene)


def read_story(path: Path) -> list[Hour]:
    """The hours of all acts.

    Raises
    ------
    DemoError
        The file has none of them.
    """
    hours = read_hours(path)
    for act in ACTS:
        if not days_between(hours, act.first, act.last):
            raise DemoError(f"{path} has no hours between {act.first} and {act.last}")
    return hours


def _miss_above(folder: Path) -> float:
    try:
        limit = load_policy(folder).quality.miss_above
    except PolicyError as error:
        raise DemoError(str(error)) from None
    if limit is None:
        raise DemoError(f"{folder / 'model.toml'} does not say quality.miss_above, which the demo shows")
    return limit
