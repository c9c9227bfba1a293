"""The cache of what a base model chose on text of its own: hits, misses, damaged files."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import get_peft_model

from kasatune import KasaConfig
from kasatune.kasa import KasaLayer, chosen_components
from kasatune.kasa.truncation import self_calibration_cache
from tests.kasa.models import llama, token_ids


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("KASATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(self_calibration_cache, "SMALLEST_CACHED", 8)
    return tmp_path / "cache" / "tails"


@pytest.fixture
def measured(monkeypatch):
    calls = []
    measure = chosen_components.measure_generated
    monkeypatch.setattr(
        chosen_components, "measure_generated", lambda *args, **kw: calls.append(1) or measure(*args, **kw)
    )
    return calls


def adapted(base=None, **changes):
    torch.manual_seed(0)
    settings = {"r": 2, "target_modules": ["q_proj", "k_proj", "up_proj"], "truncate_by": "activation", **changes}
    return get_peft_model(llama() if base is None else base, KasaConfig(**settings))


def layers(model):
    return [module for module in model.modules() if isinstance(module, KasaLayer)]


def test_the_second_adapter_reads_what_the_first_one_chose(measured, caplog):
    with caplog.at_level(logging.WARNING, "kasatune"):
        first, second = adapted(protect=0.1), adapted(protect=0.1)
    assert len(measured) == 1
    lines = [record.message for record in caplog.records if record.name == "kasatune"]
    assert ["read from the cache" in line for line in lines] == [False, True]
    assert all("text that the base generated" in line and "seed 0" in line for line in lines)
    ids = token_ids(2)
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)
    assert first.peft_config["default"].calibration_used == second.peft_config["default"].calibration_used
    for one, other in zip(layers(first), layers(second), strict=True):
        assert torch.equal(one.protected["default"], other.protected["default"])
    q, k = layers(second)[:2]
    assert q.protected["default"].data_ptr() == k.protected["default"].data_ptr()  # one K for one input


def test_other_weights_layers_ranks_and_shares_are_measured_again(measured):
    adapted()
    other = llama()
    other.lm_head.weight.data[3] += 1  # no target, and still part of what the activations depend on
    adapted(other)
    for changes in (
        {"drop": 1},
        {"protect": 0.1},
        {"target_modules": ["q_proj"]},
        {"truncate_by": "magnitude", "protect": 0.1},
    ):
        adapted(**changes)
    assert len(measured) == 6


def test_a_damaged_file_is_measured_again_with_a_warning(cached, measured):
    adapted()
    (file,) = cached.glob("activation-*")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        adapted()
    assert len(measured) == 2


def test_nothing_is_stored_for_small_layers_or_with_the_cache_off(cached, measured, monkeypatch):
    monkeypatch.setattr(self_calibration_cache, "SMALLEST_CACHED", 64)
    adapted()
    monkeypatch.setattr(self_calibration_cache, "SMALLEST_CACHED", 8)
    monkeypatch.setenv("KASATUNE_CACHE", "off")
    adapted()
    assert len(measured) == 2
    assert not list(cached.glob("activation-*"))
