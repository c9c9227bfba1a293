"""The collector rests while large libraries are imported, and works as before afterwards."""

from __future__ import annotations

import gc
import sys

import pytest

from kasatune.cli.fast_import import large_libraries


@pytest.fixture
def without_torch(monkeypatch):
    """A process that has not imported torch yet."""
    import torch

    assert torch
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_rests_during_imports(enabled, without_torch):
    before = gc.get_freeze_count()
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(ImportError), large_libraries():
            assert not gc.isenabled()
            imported = [[] for _ in range(1000)]
            raise ImportError("no such library")
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() >= before + len(imported)
    finally:
        gc.enable()


def test_nothing_changes_where_torch_is_there(without_torch, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with large_libraries():
        assert gc.isenabled()
    # frozen objects of earlier imports may die meanwhile
    assert gc.get_freeze_count() <= before
