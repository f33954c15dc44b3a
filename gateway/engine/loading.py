"""From a model file to a session that is warm and held within its memory."""

from __future__ import annotations

from pathlib import Path

from gateway.engine.errors import EngineStartFailed
from gateway.engine.memory import limit_growth, resident_bytes
from gateway.engine.session import ModelSession

__all__ = ("load_session",)


def load_session(model_file: Path, *, threads: int, max_resident_bytes: int | None) -> ModelSession:
    """Load a model, warm it up, and from then on refuse it memory beyond `max_resident_bytes`.

    A run that asks for more fails; the engine and what else it is asked stay as they are.

    Raises
    ------
    EngineStartFailed
        The file is no model that can be served, or it needs more than `max_resident_bytes` to be loaded.
    """
    if max_resident_bytes is None:
        session = ModelSession(model_file, threads=threads)
        session.warm_up()
        return session
    _check(max_resident_bytes, "before the model is loaded")
    limit_growth(max_resident_bytes - resident_bytes())
    try:
        session = ModelSession(model_file, threads=threads)
        session.warm_up()
    except (EngineStartFailed, MemoryError, RuntimeError) as error:
        if isinstance(error, EngineStartFailed) and "alloc" not in str(error):
            raise
        raise EngineStartFailed(f"{error}; {_limit(max_resident_bytes)}, and loading needs more") from None
    _check(max_resident_bytes, "with the model")
    limit_growth(max_resident_bytes - resident_bytes())
    return session


def _check(max_resident_bytes: int, when: str) -> None:
    held = resident_bytes()
    if held >= max_resident_bytes:
        raise EngineStartFailed(f"the engine holds {held} bytes {when}; {_limit(max_resident_bytes)}")


def _limit(max_resident_bytes: int) -> str:
    return f"engine.max_resident_bytes is {max_resident_bytes}"
