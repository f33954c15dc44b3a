"""Rollout plan, state machine, judge and certificates. Pure."""
