"""The logging extension: what the process log is like. It is set in `gateway.toml`, not by callers.

Source: Triton's `extension_logging`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.protocol.errors import CallerError
from gateway.protocol.mistakes import told_mistake

__all__ = ("LOGGING", "keep_logging")

LOGGING: dict[str, Any] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "ISO8601",
}
"""What holds for every process: to standard error, all of it, with times in ISO 8601."""


def keep_logging(body: bytes) -> dict[str, Any]:
    """Take a request to set what is set already.

    Raises
    ------
    CallerError
        Something is to become different, or is no setting.
    """
    kind = dict[str, bool | int | str]
    try:
        asked = msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"log settings must be a JSON object of them: {told_mistake(error, kind)}") from None
    for name, value in asked.items():
        if name not in LOGGING:
            raise CallerError(f"there is no log setting '{name[:64]}'; there are {', '.join(LOGGING)}")
        if value != LOGGING[name] or type(value) is not type(LOGGING[name]):
            raise CallerError(f"{name} cannot be changed while the gateway runs; it is {LOGGING[name]!r}")
    return LOGGING
