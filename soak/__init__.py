"""What takes minutes to show: runs killed, faults injected, processes, inputs; run by `make soak`."""

from kasatune.io.library_noise import hush_imports

hush_imports()
