"""The person in the story: approves, sets routes and starts rollouts through the admin API, and looks at what it says.

No verdict comes from here: that a version decays, is better or does harm is what the gateway's own monitor says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.cli.client import APPROVE_SECONDS, AdminClient, CommandError
from gateway.demo.errors import DemoError

__all__ = ("Operator",)

_MOST_DECISIONS = 1_000


class Operator:
    """One operator of one model.

    Parameters
    ----------
    url : str
        The admin API.
    model : str
    """

    def __init__(self, url: str, *, model: str) -> None:
        self._client = AdminClient(url, actor="demo operator")
        self._model = model

    def __repr__(self) -> str:
        return f"<Operator {self._model} {self._client!r}>"

    async def set_stable(self, version: int, *, reason: str) -> None:
        body = {"stable": version, "canary": None, "weight": 0, "reason": reason}
        await self._call(lambda: self._client.put(f"/routes/{self._model}", body))

    async def approve(self, version: int, *, reason: str) -> None:
        """Approve a version and wait for its engine.

        Raises
        ------
        DemoError
            It was refused, or its engine does not run.
        """
        path = f"/models/{self._model}/versions/{version}/approve"
        found = await self._call(lambda: self._client.post(path, {"reason": reason}, timeout_seconds=APPROVE_SECONDS))
        if found["engine"]["state"] != "ready":
            raise DemoError(f"version {version} is approved, but its engine is {found['engine']}")

    async def start_rollout(self, canary: int, *, reason: str) -> str:
        """Start a rollout by the plan in model.toml; returns its id."""
        body = {"model": self._model, "canary": canary, "reason": reason}
        return str((await self._call(lambda: self._client.post("/rollouts", body)))["id"])

    async def resume(self, rollout: str, *, reason: str) -> None:
        await self._call(lambda: self._client.post(f"/rollouts/{rollout}/resume", {"reason": reason}))

    async def rollout(self, rollout: str) -> dict[str, Any]:
        return dict(await self._call(lambda: self._client.get(f"/rollouts/{rollout}")))

    async def route(self) -> dict[str, Any]:
        return dict(await self._call(lambda: self._client.get(f"/routes/{self._model}")))

    async def status(self) -> dict[str, Any]:
        """What the monitor wrote last; empty while it has written nothing."""
        try:
            return dict(await asyncio.to_thread(self._client.get, "/drift"))
        except CommandError:
            return {}

    async def decisions(self, *, after: int) -> list[dict[str, Any]]:
        """Decisions on the model after a sequence number, oldest first."""
        query = {"model": self._model, "after": after, "limit": _MOST_DECISIONS}
        return list((await self._call(lambda: self._client.get("/decisions", query)))["decisions"])

    async def verify_audit(self) -> dict[str, Any]:
        return dict(await self._call(lambda: self._client.get("/audit/verify")))

    def close(self) -> None:
        self._client.close()

    async def _call(self, work: Callable[[], Any]) -> Any:
        try:
            return await asyncio.to_thread(work)
        except CommandError as error:
            raise DemoError(str(error)) from None
