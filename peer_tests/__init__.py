"""PEFT's own test suite, run on this project's tuners."""
