"""The store with its audit chain, and the loop that turns verdicts into decisions."""
