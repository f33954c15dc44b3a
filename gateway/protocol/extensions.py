"""The extensions of the Open Inference Protocol that tensors and requests take part in, as `GET /v2` lists them."""

from __future__ import annotations

__all__ = ("EXTENSIONS",)

EXTENSIONS = ("binary_tensor_data", "classification", "parameters", "schedule_policy")
"""What this package speaks; what endpoints add to it (statistics, model repository) stands beside them."""
