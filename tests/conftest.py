"""What every test starts from."""

from __future__ import annotations

import os
import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_works():
    """Python's own handling of Ctrl-C, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user():
    """No test reads or fills the cache of the person who runs it; those of the cache have one of their own."""
    before = os.environ.get("KASATUNE_CACHE")
    os.environ["KASATUNE_CACHE"] = "off"
    yield
    if before is None:
        del os.environ["KASATUNE_CACHE"]
    else:
        os.environ["KASATUNE_CACHE"] = before


@pytest.fixture
def data_hub(tmp_path):
    """A hub of data sets on this machine, in the place of the real one."""
    from tests.hub_server import served

    with served(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def no_network(monkeypatch):
    """The hub cannot be reached."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def decompositions(monkeypatch):
    """Names of the layers that a new adapter decomposes."""
    from kasatune.tuner import tails

    counted = []
    original = tails.tail_svd_many

    def counting(weights, ranks, **options):
        counted.extend(options["names"])
        return original(weights, ranks, **options)

    monkeypatch.setattr(tails, "tail_svd_many", counting)
    return counted
