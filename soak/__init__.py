"""Long-running tests, run by `make soak`: kills, faults, several processes, bad and random inputs and adapters."""

from kasatune.io.library_noise import hush_imports

hush_imports()
