"""Inference over gRPC, beside HTTP in the same front. Needs the extra `grpc`; this module alone does not."""

from __future__ import annotations

import importlib.util

__all__ = ("HOW_TO_INSTALL", "is_installed")

HOW_TO_INSTALL = "pip install 'inference-gateway[grpc]'"


def is_installed() -> bool:
    """Whether the packages of the extra are there."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("grpc", "grpc_health", "google.protobuf"))
    except ModuleNotFoundError:  # of a package above it
        return False
