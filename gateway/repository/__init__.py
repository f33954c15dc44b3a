"""Model folders: manifest, digests, lineage, profile building, safe loading."""
