"""Distributed runs: the process group, FSDP2, DeepSpeed ZeRO-3, and gathering and scattering of sharded tensors."""
