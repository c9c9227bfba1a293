"""Saving and loading: no decomposition at a load, bit-equal outputs, and no adapter on the wrong base."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from kasatune import KasaConfig, load_adapter
from kasatune.errors import AdapterError
from kasatune.kasa import KasaLayer
from tests.kasa.models import bert, gpt2, labels, llama, shaken, token_ids
from tests.peft_versions import needs_transformers_loader

MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def saved(tmp_path, base=bert, **options):
    model = shaken(get_peft_model(base(), KasaConfig(r=4, **options)))
    model.save_pretrained(tmp_path)
    return logits(model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("low_memory", [False, True])
def test_loading_gives_equal_bits_without_decomposing(
    tmp_path, decompositions, name, truncation, trainable, low_memory
):
    expected = saved(tmp_path, MODELS[name], truncation=truncation)
    assert decompositions
    decompositions.clear()
    model = PeftModel.from_pretrained(MODELS[name](), tmp_path, is_trainable=trainable, low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(model), expected)
    assert decompositions == []
    assert any(p.requires_grad for p in model.parameters()) == trainable
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(MODELS[name]()))


def test_a_second_adapter_is_loaded_beside_the_first_without_decomposing(tmp_path, decompositions):
    expected = saved(tmp_path)
    model = get_peft_model(bert(), KasaConfig(r=2))
    decompositions.clear()
    model.load_adapter(tmp_path, "second")
    model.set_adapter("second")
    assert torch.equal(logits(model), expected)
    assert decompositions == []


@needs_transformers_loader
def test_transformers_own_loader_does_not_decompose(tmp_path, decompositions):
    expected = saved(tmp_path)
    decompositions.clear()
    model = bert()
    model.load_adapter(str(tmp_path))
    assert torch.equal(logits(model), expected)
    assert decompositions == []


def test_a_loaded_configuration_used_for_a_fresh_adapter_decomposes(tmp_path, decompositions):
    saved(tmp_path)
    decompositions.clear()
    model = get_peft_model(bert(), KasaConfig.from_pretrained(tmp_path))
    assert decompositions == []
    logits(model)
    assert len(decompositions) == 4
    layers = [m for m in model.modules() if isinstance(m, KasaLayer)]
    assert all(layer.kasa_tail_U["default"].norm() > 0 for layer in layers)


def test_training_continues_after_loading(tmp_path):
    saved(tmp_path)
    model = PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True).train()
    model(input_ids=token_ids(), labels=labels()).loss.backward()
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"kasa_A", "kasa_B", "kasa_sigma"}


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        saved(tmp_path / name, target_modules=["query", "value", "key"])
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


# Another base


def other_weights():
    base = bert()
    with torch.no_grad():
        base.bert.encoder.layer[1].attention.self.value.weight.add_(0.05 * torch.randn(32, 32))
    return base


def test_another_base_is_refused_with_the_layer_named(tmp_path):
    saved(tmp_path)
    base = other_weights()
    expected = logits(base)
    with pytest.raises(AdapterError, match=r"another base model.*layer\.1\.attention\.self\.value differs"):
        PeftModel.from_pretrained(base, tmp_path)
    assert not any(isinstance(m, KasaLayer) for m in base.modules())
    assert torch.equal(logits(base), expected)


@pytest.mark.parametrize("loader", [PeftModel.from_pretrained, load_adapter])
def test_check_base_false_loads_anyway_and_warns(tmp_path, loader):
    saved(tmp_path)
    with pytest.warns(UserWarning, match="loaded anyway, because check_base=False"):
        loader(other_weights(), tmp_path, check_base=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_in_another_dtype_is_accepted_with_a_note(tmp_path, dtype, caplog):
    saved(tmp_path)
    caplog.set_level("INFO", logger="kasatune")
    PeftModel.from_pretrained(bert(dtype=dtype), tmp_path)
    assert ("held in another precision" in caplog.text) == (dtype != torch.float64)


# Damaged adapters


def rewritten(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


DAMAGE = {
    "missing": (lambda t: t.pop(sorted(t)[0]), "kasa_A.default is missing"),
    "shape": (lambda t: t.update({sorted(t)[0]: torch.zeros(3, 32)}), r"has shape \[3, 32\]"),
    "nan": (lambda t: t[sorted(t)[1]].fill_(float("nan")), "holds NaN"),
    "integers": (lambda t: t.update({sorted(t)[0]: torch.zeros(4, 32, dtype=torch.int32)}), "no floating-point"),
    "stray": (lambda t: t.update({"base_model.model.nowhere.kasa_A": torch.zeros(4, 32)}), "belongs to no layer"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_adapter_is_refused_and_the_base_is_as_it_was(tmp_path, kind):
    saved(tmp_path)
    change, said = DAMAGE[kind]
    rewritten(tmp_path, change)
    base = bert()
    with pytest.raises(AdapterError, match=said):
        PeftModel.from_pretrained(base, tmp_path)
    assert not any(isinstance(m, KasaLayer) for m in base.modules())
    assert torch.equal(logits(base), logits(bert()))


def test_another_rank_than_the_configuration_is_refused(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(AdapterError, match=r"the model and the configuration give \[5, 32\]"):
        PeftModel.from_pretrained(bert(), tmp_path)


def test_a_damaged_second_adapter_leaves_the_first_working(tmp_path):
    saved(tmp_path)
    rewritten(tmp_path, DAMAGE["nan"][0])
    model = shaken(get_peft_model(bert(), KasaConfig(r=2)))
    expected = logits(model)
    with pytest.raises(AdapterError):
        model.load_adapter(tmp_path, "second")
    assert torch.equal(logits(model), expected)
    assert list(model.peft_config) == ["default"]


def test_an_adapter_that_was_never_loaded_says_so():
    model = get_peft_model(bert(), KasaConfig(r=4), low_cpu_mem_usage=True)
    with pytest.raises(AdapterError, match="never loaded"):
        model(token_ids())


# Counts, from configurations alone


@pytest.mark.parametrize(("width", "blocks", "heads", "expected"), [(768, 12, 12, 295_104), (1024, 24, 16, 786_816)])
def test_trainable_parameters_of_roberta_as_in_the_authors_logs(width, blocks, heads, expected):
    from accelerate import init_empty_weights
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, intermediate_size=4 * width
    )
    with init_empty_weights():
        base = RobertaModel(config)
    model = get_peft_model(base, KasaConfig(r=8), low_cpu_mem_usage=True)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_pefts_lora_of_the_same_base_loads_through_load_adapter(tmp_path):
    torch.manual_seed(7)
    lora = get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], init_lora_weights=False))
    lora.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(bert(), tmp_path)), logits(lora))
