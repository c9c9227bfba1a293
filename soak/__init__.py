"""What takes minutes to show: runs killed, faults injected, processes, inputs; run by `make soak`."""
