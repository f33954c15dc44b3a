"""The servers that ours is measured against; each is run by an environment of its own."""
