"""An async inference gateway for versioned ONNX models."""

from __future__ import annotations

__all__ = ("__version__",)

__version__ = "0.1.0"
