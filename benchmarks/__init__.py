"""Speed and memory against peers; the cache of tails is off here, so that every turn decomposes."""

import os

os.environ["KASATUNE_CACHE"] = "off"
