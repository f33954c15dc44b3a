"""Inference over gRPC, beside HTTP in the same front. Needs the extra `grpc`."""
