"""Metrics in shared memory, their catalog and exposition, and the process log."""
