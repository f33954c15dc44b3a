"""What the supervisor asks of an engine."""

from __future__ import annotations

import msgspec

__all__ = ("EngineOrder",)


class EngineOrder(msgspec.Struct, frozen=True):
    """What to serve, and where.

    `folder` is the version's folder, `staged` the private folder its files are copied to while they are hashed;
    only the version with `digest` is loaded. An engine that cannot serve the version leaves why in the file `failure`,
    as an `EngineNote`: another attempt would fail in the same way. `instances`: how many processes it may have, where
    the model allows it. `hang_seconds`: the longest run. `max_resident_bytes`: a run that would take an instance beyond
    it fails, as does one whose outputs take more than `max_output_bytes`. `drain_seconds`: how long an engine that is
    told to end goes on for those that are connected. `start_timeout_seconds`: all that comes before it is ready; half
    of it is for the warm-up. `json_lines`: how it writes its process log.
    """

    model: str
    version: int
    digest: str
    folder: str
    staged: str
    socket: str
    beat: str
    failure: str
    threads: int
    instances: int
    hang_seconds: float
    max_resident_bytes: int
    max_output_bytes: int
    drain_seconds: float
    start_timeout_seconds: float
    json_lines: bool
