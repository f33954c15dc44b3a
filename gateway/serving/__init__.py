"""The front: HTTP protocol class, batching by version, feedback, health."""
