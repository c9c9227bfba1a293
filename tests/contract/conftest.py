from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="package")
def _no_time_for_what_is_there_already():
    """The trainer collects garbage at the end of each run; what was imported before need not be looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
