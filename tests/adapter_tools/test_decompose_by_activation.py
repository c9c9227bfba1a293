"""`kasatune decompose --truncate-by activation`: tails as calibration gives them, weights on disk, resumed, refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import get_peft_model

from kasatune import KasaConfig, calibrate
from kasatune.adapter_tools import decompose_by_activation as module
from kasatune.adapter_tools.decompose import Job, decompose
from kasatune.data.calibration_text import bundled_batches
from kasatune.errors import InputError, ModelError
from kasatune.kasa import KasaLayer
from kasatune.kasa.truncation.self_written_text import calibration_length, generate_text
from tests.kasa.models import llama
from tests.text_toys import save_tokenizer

TARGETS = ("q_proj", "up_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(place)
    save_tokenizer(place)
    return place


def job(folder, rank=2, truncate_by="activation"):
    return Job(str(folder), rank, TARGETS, truncate_by=truncate_by)


def config(**changes):
    return KasaConfig(**{"r": 2, "target_modules": list(TARGETS), "truncate_by": "activation", **changes})


def tails(model):
    return {n: m.tail("default") for n, m in model.named_modules() if isinstance(m, KasaLayer)}


def assert_same_tails(one, other):
    assert one.keys() == other.keys() and len(one) == 4
    for name, tail in one.items():
        torch.testing.assert_close(tail, other[name], atol=1e-4, rtol=1e-3)


def test_the_tails_are_those_of_calibration_on_the_same_text(folder, tmp_path):
    index = decompose(job(folder), tmp_path / "t")
    assert sorted(index["layers"]) == sorted(
        f"layers.{n}.{e}" for n in range(2) for e in ("self_attn.q_proj", "mlp.up_proj")
    )
    model = get_peft_model(llama(), config(tails=str(tmp_path / "t")))
    used = model.peft_config["default"].calibration_used
    assert (used["source"], used["seed"], len(used["layers"])) == ("generated", 0, 4)
    base = llama()
    text = generate_text(base, 0)
    assert_same_tails(tails(model), tails(get_peft_model(base, calibrate(base, config(), [{"input_ids": text}]))))
    assert not (tmp_path / "t" / "unfinished.json").exists()


def test_weights_that_do_not_fit_stay_on_disk_and_each_layer_is_measured_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 20_000.0)
    places = []
    load = module._load

    def loaded(*args):
        model, offloaded = load(*args)
        places.extend(map(str, model.hf_device_map.values()))
        return model, offloaded

    monkeypatch.setattr(module, "_load", loaded)
    decompose(job(folder), tmp_path / "t")
    assert "disk" in places
    base = llama()
    batches = list(bundled_batches(save_tokenizer(tmp_path / "tokenizer"), calibration_length(base.config)))
    expected = tails(get_peft_model(base, calibrate(base, config(), batches)))
    assert_same_tails(tails(get_peft_model(llama(), config(tails=str(tmp_path / "t")))), expected)


def test_an_interrupted_decomposition_is_resumed(folder, tmp_path, monkeypatch):
    whole = decompose(job(folder), tmp_path / "whole")
    monkeypatch.setattr(module, "_groups", lambda targets: iter([[target] for target in targets]))
    write, written = module.write_tail, []

    def interrupted(*args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args[1])
        return write(*args)

    monkeypatch.setattr(module, "write_tail", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decompose(job(folder), tmp_path / "t")
    monkeypatch.setattr(module, "write_tail", lambda *args: written.append(args[1]) or write(*args))
    resumed = decompose(job(folder), tmp_path / "t", resume=True)
    assert len(written) == 4
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_directories_of_another_rank_or_choice_are_refused(folder, tmp_path, monkeypatch):
    decompose(job(folder), tmp_path / "activation")
    decompose(job(folder, truncate_by="magnitude"), tmp_path / "magnitude")
    with pytest.raises(ModelError, match=r"component of rank 2.*--rank 1"):
        get_peft_model(llama(), config(tails=str(tmp_path / "activation"), drop=1))
    with pytest.raises(InputError, match=r"triplets of smallest magnitude.*--truncate-by activation"):
        get_peft_model(llama(), config(tails=str(tmp_path / "magnitude")))
    with pytest.raises(InputError, match=r"chosen by activation, and truncate_by is 'magnitude'"):
        get_peft_model(llama(), config(tails=str(tmp_path / "activation"), truncate_by="magnitude"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="works in one process, and torchrun started 2"):
        decompose(job(folder), tmp_path / "several")
    assert not (tmp_path / "several").exists()
    assert json.loads((tmp_path / "magnitude" / "index.json").read_text())["truncate_by"] == "magnitude"
