"""Long-running tests, run by `make soak`: killed runs, injected faults, several processes, bad and random inputs."""

from kasatune.io.library_noise import hush_imports

hush_imports()
