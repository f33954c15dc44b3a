"""How often a test repeats what it does: a few times as a rule, and as often as one says for the long form."""

from __future__ import annotations

import os

__all__ = ("rounds",)


def rounds(short: int) -> int:
    """`GATEWAY_TEST_ROUNDS` where it is set, else `short`."""
    return int(os.environ.get("GATEWAY_TEST_ROUNDS", short))
