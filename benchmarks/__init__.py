"""Speed and memory against peers; the cache of tails is off here, so that every turn decomposes."""

import logging
import os

os.environ["KASATUNE_CACHE"] = "off"

# As kasatune.runs.quiet does it for its commands; not called from here, because a peer's process imports this package
# and must not import kasatune.
for _library in ("bitsandbytes", "torch.utils._pytree", "torchao"):
    logging.getLogger(_library).setLevel(logging.ERROR)
