"""Bases that lie somewhere else than in memory, or share their weights: offloaded, on the meta device, tied."""

from __future__ import annotations

import warnings

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from kasatune import KasaConfig, export_adapter
from kasatune.errors import ModelError
from kasatune.kasa.layer import KasaLayer
from tests.kasa.models import llama, shaken
from tests.kasa.quantized import llama_folder, loaded, logits
from tests.peft_versions import needs_merge_of_quantized, needs_peft_0_19

TARGETS = ["q_proj", "down_proj"]
ON_DISK = {
    **dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu"),
    "model.layers.1": "disk",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama"))


def adapted(base, targets=TARGETS, **settings):
    torch.manual_seed(1)
    return get_peft_model(base, KasaConfig(r=4, lora_alpha=8, target_modules=list(targets), **settings))


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def placed(folder, where, tmp_path):
    if where == "disk":
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map=ON_DISK, offload_folder=tmp_path / "offload"
        )
    if where == "auto":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="auto").to("cpu")
    if where == "hooks":
        return dispatch_model(plain(folder), {"": "cpu"}, force_hooks=True)
    return cpu_offload(plain(folder), torch.device("cpu"))


PLACES = ["auto", "hooks", "disk", "offloaded"]


@pytest.mark.parametrize("where", PLACES)
def test_wherever_the_base_lies_the_adapted_model_is_the_same(folder, where, tmp_path):
    expected = logits(adapted(plain(folder)))
    base = placed(folder, where, tmp_path)
    before = logits(base)
    model = adapted(base)
    assert all(not p.is_meta for name, p in model.named_parameters() if "kasa_" in name)
    assert torch.equal(logits(model), expected)
    shaken(model)
    model.train()
    model(input_ids=torch.arange(20).reshape(2, 10)).logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("where", PLACES)
def test_wherever_the_base_lies_a_merge_is_undone_bit_for_bit(folder, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PEFT writes a merged weight of a base on disk below the current directory
    model = shaken(adapted(placed(folder, where, tmp_path)))
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", PLACES)
def test_wherever_the_base_lies_the_adapter_is_saved_and_exported(folder, where, tmp_path):
    model = shaken(adapted(placed(folder, where, tmp_path)))
    expected = logits(model)
    model.save_pretrained(tmp_path / "kasa")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain(folder), tmp_path / "kasa")), expected)
    export_adapter(model, tmp_path / "lora")
    lora = PeftModel.from_pretrained(plain(folder), tmp_path / "lora")
    torch.testing.assert_close(logits(lora), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("where", ["hooks", "offloaded"])
def test_an_adapter_is_loaded_onto_a_placed_base(folder, where, tmp_path):
    model = shaken(adapted(plain(folder)))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(placed(folder, where, tmp_path), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_an_offloaded_weight_cannot_be_folded(folder, tmp_path):
    with pytest.raises(ModelError, match=r"an offloaded weight cannot be folded; use truncation='attach'"):
        adapted(placed(folder, "offloaded", tmp_path), truncation="fold")


@needs_merge_of_quantized
def test_a_quantized_layer_under_a_hook_merges_into_what_it_computes(folder, monkeypatch):
    """accelerate binds a hooked forward to one layer; a copy of it must not go on computing the original."""
    base = dispatch_model(loaded(folder, "int8", monkeypatch), {"": "cpu"}, force_hooks=True)
    model = shaken(adapted(base))
    expected = logits(model)
    with model.disable_adapter():
        before = logits(model)
    model.merge_adapter()
    assert (logits(model) - expected).norm() < 0.5 * (before - expected).norm()
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)


# The meta device


def on_meta(folder):
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig.from_pretrained(folder))


def test_a_new_adapter_needs_loaded_weights(folder):
    base = on_meta(folder)
    with pytest.raises(ModelError, match=r"q_proj: its weight is on the meta device; load the base's checkpoint first"):
        adapted(base)
    assert not any(isinstance(module, KasaLayer) for module in base.modules())


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_an_adapter_is_loaded_before_its_base(folder, tmp_path, low_cpu_mem_usage):
    trained = shaken(adapted(plain(folder)))
    trained.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(on_meta(folder), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    base = plain(folder)
    weights = {
        name.replace(".weight", ".base_layer.weight") if name.rpartition(".")[0].endswith(tuple(TARGETS)) else name: t
        for name, t in base.state_dict().items()
    }
    model.get_base_model().load_state_dict(weights, strict=False, assign=True)
    model.get_base_model().model.rotary_emb = base.model.rotary_emb
    assert torch.equal(logits(model), logits(trained))


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_loading_onto_a_loaded_base_with_low_cpu_mem_usage(folder, tmp_path, low_cpu_mem_usage):
    trained = shaken(adapted(plain(folder)))
    trained.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(plain(folder), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(model), logits(trained))


def test_low_cpu_mem_usage_leaves_the_tail_as_exact_as_it_was_saved(tmp_path):
    trained = shaken(adapted(llama(torch.bfloat16)))
    trained.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(llama(torch.bfloat16), tmp_path, low_cpu_mem_usage=True)
    held = dict(trained.named_parameters())
    for name, parameter in model.named_parameters():
        if "kasa_" in name:
            assert parameter.dtype == held[name].dtype and torch.equal(parameter, held[name]), name


# Tied weights


def tied():
    model = llama(tied=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


def test_attaching_to_a_tied_head_leaves_the_tie(tmp_path):
    base = tied()
    before = logits(base)
    embeddings = base.model.embed_tokens.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells of the tie when it is targeted
        model = shaken(adapted(base, targets=["lm_head"]))
    assert model.get_base_model().lm_head.base_layer.weight is embeddings
    assert not torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


def test_folding_a_tied_weight_is_refused():
    with pytest.raises(ModelError, match=r"lm_head: its weight is tied to another module's; use truncation='attach'"):
        adapted(tied(), targets=["lm_head"], truncation="fold")


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings:UserWarning")
def test_merging_a_tied_head_is_warned_and_leaves_the_embeddings_alone():
    base = tied()
    before = logits(base)
    embeddings = base.model.embed_tokens.weight
    held = embeddings.detach().clone()
    model = shaken(adapted(base, targets=["lm_head"]))
    expected = logits(model)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model.merge_adapter()
    assert torch.equal(embeddings, held)
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert model.get_base_model().lm_head.base_layer.weight is embeddings
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@needs_peft_0_19
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings:UserWarning")
def test_a_merged_and_saved_tied_head_is_loaded_untied(tmp_path):
    model = shaken(adapted(tied(), targets=["lm_head"]))
    expected = logits(model)
    with pytest.warns(UserWarning, match="no longer tied after merging"):
        merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain(tmp_path)), expected, atol=1e-4, rtol=1e-4)


def test_a_merged_weight_follows_the_model_to_another_dtype_and_back():
    model = shaken(adapted(llama()))
    model.merge_adapter()
    model.double()
    layer = next(m for m in model.modules() if isinstance(m, KasaLayer))
    assert layer.base_layer.weight.dtype == torch.float64
    model.unmerge_adapter()
    assert layer.base_layer.weight.dtype == torch.float64
    assert isinstance(layer.base_layer.weight, nn.Parameter)
    assert logits(model).dtype == torch.float64
