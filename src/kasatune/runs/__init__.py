"""The run directory and the provenance of its numbers."""
