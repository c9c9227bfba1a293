"""The truncated triplets of base weights: computed, taken from a source, and kept in files."""
