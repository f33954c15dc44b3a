"""Inference over gRPC, beside HTTP in the same front."""
