"""Where the tails of a quantized base come from: its full-precision checkpoint, or the dequantized weight."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from kasatune import KasaConfig, tail_svd
from kasatune.errors import AdapterError, InputError, ModelError
from kasatune.kasa.layer import KasaLayer
from kasatune.weights.safetensors_reader import StoredTensor
from tests.kasa.quantized import bert_folder, distance, linear_task, llama_folder, loaded, logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama"))


def adapted(base, targets=("q_proj", "down_proj"), **settings):
    torch.manual_seed(1)
    return get_peft_model(base, KasaConfig(r=4, lora_alpha=8, target_modules=list(targets), **settings))


def source(model):
    return model.peft_config["default"].tail_source_used


def one_layer(model, end="layers.1.mlp.down_proj"):
    return next(m for n, m in model.named_modules() if isinstance(m, KasaLayer) and n.endswith(end))


def exact_tail(W, r=4):
    found = tail_svd(W, r)
    return (found.U * found.S) @ found.Vh


def weight_of(folder, name="model.layers.1.mlp.down_proj"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_submodule(name).weight.detach()


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao-int8", "forward-only"])
@pytest.mark.parametrize("asked", ["auto", "checkpoint"])
def test_the_checkpoint_s_weight_is_decomposed_when_it_is_at_hand(folder, kind, asked, monkeypatch):
    model = adapted(loaded(folder, kind, monkeypatch), tail_source=asked)
    layer = one_layer(model)
    W = weight_of(folder)
    assert distance(layer.original_weight(), W) > 1e-3
    assert distance(layer.tail("default"), exact_tail(W)) < 1e-4
    assert source(model) == "checkpoint"


@pytest.mark.parametrize("kind", ["nf4", "forward-only"])
def test_the_dequantized_weight_is_decomposed_when_asked_for(folder, kind, monkeypatch):
    model = adapted(loaded(folder, kind, monkeypatch), tail_source="dequantized")
    layer = one_layer(model)
    assert distance(layer.tail("default"), exact_tail(layer.original_weight())) < 1e-4
    assert distance(layer.tail("default"), exact_tail(weight_of(folder))) > 0.1
    assert source(model) == "dequantized"


def test_a_float_base_has_no_choice(folder):
    model = adapted(AutoModelForCausalLM.from_pretrained(folder), tail_source="checkpoint")
    assert source(model) is None


def test_the_source_is_stored_with_the_adapter(folder, monkeypatch, tmp_path):
    model = adapted(loaded(folder, "forward-only", monkeypatch))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["tail_source_used"] == "checkpoint"
    assert PeftConfig.from_pretrained(tmp_path).tail_source_used == "checkpoint"


@pytest.mark.parametrize("place", ["gone", "unnamed", "pickled"])
def test_without_a_checkpoint_auto_takes_the_dequantized_weight_and_checkpoint_says_what_it_looked_for(
    folder, monkeypatch, tmp_path, place
):
    lost = tmp_path / "base"
    shutil.copytree(folder, lost)
    base = loaded(lost, "forward-only", monkeypatch)
    if place == "unnamed":
        base.name_or_path = base.config._name_or_path = ""
        expected = "the model has no name_or_path"
    else:
        (lost / "model.safetensors").unlink()
        if place == "pickled":
            (lost / "pytorch_model.bin").write_bytes(b"x")
        expected = f"no model.safetensors or model.safetensors.index.json in '{lost}'"
    before = logits(base)
    with pytest.raises(ModelError) as fault:
        adapted(base, tail_source="checkpoint")
    assert expected in str(fault.value) and "tail_source='dequantized'" in str(fault.value)
    assert torch.equal(logits(base), before)
    assert source(adapted(base)) == "dequantized"


def test_a_checkpoint_is_named_where_the_base_does_not_know_its_own(folder, monkeypatch):
    base = loaded(folder, "forward-only", monkeypatch)
    base.name_or_path = base.config._name_or_path = "nobody/at-home"
    model = adapted(base, tail_checkpoint=str(folder))
    assert source(model) == "checkpoint"
    with pytest.raises(ModelError, match=r"no model\.safetensors .* in 'nobody/elsewhere'"):
        adapted(model.unload(), tail_checkpoint="nobody/elsewhere")


def test_shards_are_read_through_their_index(monkeypatch, tmp_path):
    folder = llama_folder(tmp_path, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = adapted(loaded(folder, "forward-only", monkeypatch), tail_source="checkpoint")
    assert distance(one_layer(model).tail("default"), exact_tail(weight_of(folder))) < 1e-4


@pytest.mark.parametrize("damage", ["index", "outside", "shard"])
def test_damaged_checkpoints_are_refused_by_file(monkeypatch, tmp_path, damage):
    folder = llama_folder(tmp_path / "base", max_shard_size="60KB")
    base = loaded(folder, "forward-only", monkeypatch)
    index = folder / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    key = "model.layers.0.self_attn.q_proj.weight"
    if damage == "index":
        index.write_text("[1]")
        expected = "is not an index of safetensors files"
    elif damage == "outside":
        held["weight_map"][key] = "../elsewhere.safetensors"
        index.write_text(json.dumps(held))
        expected = "not in the same folder"
    else:
        shard = folder / held["weight_map"][key]
        shard.write_bytes(shard.read_bytes()[:200])
        expected = "is not a complete safetensors file"
    with pytest.raises(ModelError) as fault:
        adapted(base)
    assert expected in str(fault.value)


def test_tensors_are_read_one_at_a_time(folder, monkeypatch):
    read = []
    original = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: read.append(self.key) or original(self))
    adapted(loaded(folder, "forward-only", monkeypatch), targets=["q_proj"])
    assert read == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]


def trunk(folder, monkeypatch):
    return loaded(folder, "forward-only", monkeypatch, LlamaModel)


def test_names_with_and_without_the_prefix_of_the_trunk_are_found(folder, monkeypatch, tmp_path):
    model = adapted(trunk(folder, monkeypatch))
    assert source(model) == "checkpoint"
    LlamaModel.from_pretrained(folder).save_pretrained(tmp_path)
    assert any(key.startswith("layers.") for key in load_file(tmp_path / "model.safetensors"))
    head = loaded(folder, "forward-only", monkeypatch)
    assert source(adapted(head, tail_source="checkpoint", tail_checkpoint=str(tmp_path))) == "checkpoint"


@pytest.mark.parametrize("settings", [{}, {"tail_source": "checkpoint"}])
def test_names_of_an_older_form_are_found_by_their_end(folder, monkeypatch, tmp_path, settings):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"old.trunk.{key.removeprefix('model.')}": tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = adapted(loaded(folder, "forward-only", monkeypatch), tail_checkpoint=str(tmp_path), **settings)
    assert source(model) == "checkpoint"
    assert distance(one_layer(model).tail("default"), exact_tail(weight_of(folder))) < 1e-4


def test_a_trunk_inside_another_module_is_found(folder, monkeypatch):
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = trunk(folder, monkeypatch)
            self.score = nn.Linear(64, 1)

    assert source(adapted(Scorer())) == "checkpoint"


def test_bert_with_its_biases(tmp_path, monkeypatch):
    folder = bert_folder(tmp_path)
    base = loaded(folder, "nf4", monkeypatch, linear_task(folder))
    assert source(adapted(base, targets=["query", "value"], tail_source="checkpoint")) == "checkpoint"


def test_a_transposed_weight_is_turned(tmp_path, monkeypatch):
    """GPT-2 stores (in, out), and bitsandbytes makes layers (out, in) of it; its projections are square too."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=40, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    base = loaded(tmp_path, "nf4", monkeypatch)
    assert type(base.transformer.h[0].attn.c_proj).__name__ == "Linear4bit"
    model = adapted(base, targets=["c_attn", "c_proj"], tail_source="checkpoint")
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_proj"):
        (key,) = (key for key in stored if key.endswith(f"h.1.{name}.weight"))
        layer = one_layer(model, f"h.1.{name}")
        assert distance(layer.tail("default"), exact_tail(stored[key].T)) < 1e-4, name


def test_another_checkpoint_is_not_taken_for_the_base_that_was_quantized(folder, monkeypatch, tmp_path):
    other = llama_folder(tmp_path, seed=7)
    base = loaded(folder, "nf4", monkeypatch)
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj: the weight in .* differs .* by 1\.\d+ of"):
        adapted(base, tail_source="checkpoint", tail_checkpoint=str(other))
    with pytest.warns(UserWarning, match="checkpoint is not the base that was quantized, so 4 tails come from the deq"):
        model = adapted(base, tail_checkpoint=str(other))
    assert source(model) == "dequantized"
    layer = one_layer(model)
    assert distance(layer.tail("default"), exact_tail(layer.original_weight())) < 1e-4


def test_sources_that_differ_are_stored_by_layer(folder, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = loaded(folder, "forward-only", monkeypatch)
    model = adapted(base, tail_checkpoint=str(tmp_path), targets=["q_proj"])
    assert source(model) == {
        "model.layers.0.self_attn.q_proj": "dequantized",
        "model.layers.1.self_attn.q_proj": "checkpoint",
    }


def test_a_folder_of_a_quantized_model_holds_no_full_precision_weights(folder, monkeypatch, tmp_path):
    loaded(folder, "nf4", monkeypatch).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert source(adapted(base, targets=["q_proj"])) == "dequantized"
    with pytest.raises(ModelError, match=r"q_proj: .* holds no full-precision weight of it"):
        adapted(AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu"), tail_source="checkpoint")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert source(adapted(base, tail_checkpoint=str(folder))) == "checkpoint"


def test_a_tail_source_that_is_no_choice_is_refused():
    with pytest.raises(InputError, match="tail_source must be one of auto, checkpoint, dequantized, got 'disk'"):
        KasaConfig(tail_source="disk")


# The base of an adapter in another form


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "torchao-int8", "hqq-4", "forward-only"])
def test_the_same_base_quantized_is_accepted_with_a_note(folder, kind, monkeypatch, tmp_path, caplog):
    adapted(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(tmp_path)
    base = loaded(folder, kind, monkeypatch)
    caplog.set_level(logging.INFO, logger="kasatune")
    PeftModel.from_pretrained(base, tmp_path)
    assert "the adapter's own, held in another precision (4 layers" in caplog.text


@pytest.mark.parametrize("tail_source", ["checkpoint", "dequantized"])
def test_an_adapter_of_a_quantized_base_is_accepted_on_the_float_one(folder, monkeypatch, tmp_path, tail_source):
    adapted(loaded(folder, "nf4", monkeypatch), tail_source=tail_source).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    assert isinstance(one_layer(model), KasaLayer)


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao-int8", "forward-only"])
def test_another_base_quantized_is_refused_with_the_layer_named(folder, kind, monkeypatch, tmp_path):
    adapted(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(tmp_path / "adapter")
    other = loaded(llama_folder(tmp_path / "other", seed=7), kind, monkeypatch)
    before = logits(other)
    with pytest.raises(AdapterError, match=r"another base model .*: model\.layers\.0\.self_attn\.q_proj differs"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    assert torch.equal(logits(other), before)


def test_a_base_of_another_shape_is_refused(folder, monkeypatch, tmp_path):
    adapted(loaded(folder, "forward-only", monkeypatch), targets=["down_proj"]).save_pretrained(tmp_path / "adapter")
    config = LlamaConfig.from_pretrained(folder, intermediate_size=192)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    with pytest.raises(AdapterError, match=r"down_proj has shape \[64, 192\], the adapter's base had \[64, 128\]"):
        PeftModel.from_pretrained(loaded(tmp_path / "wide", "forward-only", monkeypatch), tmp_path / "adapter")
