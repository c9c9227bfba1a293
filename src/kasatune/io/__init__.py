"""Atomic writes, locks, progress reporting, output of other libraries, and the software environment."""
