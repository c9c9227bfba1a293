"""Runs over several processes: the process group, sharded models and sharded tensors."""
