"""Benchmarks of speed and memory. The cache of tails is disabled, so that every measurement decomposes."""

import logging
import os

os.environ["KASATUNE_CACHE"] = "off"

# As kasatune.io.library_noise does for the commands. That module is not called here, because the process of a peer
# imports this package and must not import kasatune.
for _library in ("bitsandbytes", "torch.utils._pytree", "torchao"):
    logging.getLogger(_library).setLevel(logging.ERROR)
