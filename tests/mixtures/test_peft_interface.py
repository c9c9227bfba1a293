"""The mixtures through PEFT's functions: files, several adapters, switching off, dtypes, generation, refusals."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from kasatune.errors import AdapterError, InputError, ModelError, UnknownSettingError
from tests.mixtures.models import ALL_EXPERTS, CHOOSING, KINDS, adapted, base, batch, config, shake

DATA = batch()
WEIGHTS = "adapter_model.safetensors"


def logits(model):
    with torch.no_grad():
        return model(input_ids=DATA["input_ids"], attention_mask=DATA["attention_mask"]).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_load_switch_delete(kind, low_cpu_mem_usage, tmp_path):
    first, second = adapted(kind), adapted(kind, seed=2)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    model = peft.PeftModel.from_pretrained(base(), tmp_path / "a", "one", low_cpu_mem_usage=low_cpu_mem_usage)
    model.load_adapter(tmp_path / "b", "two", low_cpu_mem_usage=low_cpu_mem_usage)
    model.eval()
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(logits(model), logits(first))
    model.set_adapter("two")
    assert torch.equal(logits(model), logits(second))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base()))
    assert torch.equal(logits(model), logits(second))
    model.delete_adapter("two")
    model.set_adapter("one")
    assert torch.equal(logits(model), logits(first))
    plain = model.unload()
    assert torch.equal(logits(plain), logits(base()))
    assert {n for n, _ in plain.named_modules()} == {n for n, _ in base().named_modules()}
    assert not plain._forward_pre_hooks and not plain._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_adapter_is_added_without_changing_the_first(kind):
    model = adapted(kind)
    expected = logits(model)
    model.add_adapter("other", config(kind))
    assert torch.equal(logits(model), expected)
    model.set_adapter("other")
    torch.testing.assert_close(logits(model), logits(base()), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="one mixture can be active at a time"):
        model.base_model.set_adapter(["default", "other"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_mixture_cannot_do_is_refused_by_name(kind):
    model = adapted(kind)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ModelError, match="depends on the input, through its router"):
            merge()
    with pytest.raises(InputError, match="through its router"):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(InputError, match="adapter_names: a mixture acts on the entire batch"):
        model(**DATA, adapter_names=["default"] * 8)
    assert not model.supports_lora_conversion()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_damaged_files_are_refused(kind, damage, tmp_path):
    adapted(kind).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    key = next(name for name in tensors if "mixture_router" in name)
    if damage == "missing":
        del tensors[key]
    elif damage == "shape":
        tensors[key] = tensors[key][:, 1:].contiguous()
    else:
        tensors[key][0, 0] = torch.nan
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match=r"router.* (is missing|has shape|holds NaN)"):
        peft.PeftModel.from_pretrained(base(), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(kind, autocast):
    settings = ALL_EXPERTS[kind]  # a choice may differ after rounding
    torch.manual_seed(3)
    model = peft.get_peft_model(base(torch.bfloat16), config(kind, **settings), autocast_adapter_dtype=autocast)
    shake(model)
    own = {p.dtype for name, p in model.named_parameters() if "mixture_" in name}
    assert own == {torch.float32 if autocast else torch.bfloat16}
    out = model.train()(**DATA)
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    torch.testing.assert_close(logits(model.eval()).float(), logits(adapted(kind, **settings)), atol=0.6, rtol=0.2)


@pytest.mark.parametrize("kind", ["moe-lora", "mor", "malora"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_without_autocast_the_adapter_has_the_dtype_of_a_base_whose_first_layer_is_adapted(kind, dtype):
    bare = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).to(dtype)
    settings = config(kind, target_modules=["0"], task_type=None)
    model = peft.get_peft_model(bare, settings, autocast_adapter_dtype=False)
    model.add_adapter("other", settings, autocast_adapter_dtype=False)
    assert {p.dtype for name, p in model.named_parameters() if "mixture_" in name} == {dtype}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_cache_and_padding(kind, beams):
    model = adapted(kind)
    prompts = [[5, 6, 7, 8, 9], [11, 12, 13], [21]]
    ids = torch.tensor([[0] * (5 - len(prompt)) + prompt for prompt in prompts])
    options = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    mask = (ids != 0).long()
    cached = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **options)
    again = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, again)
    for prompt, text in zip(prompts, cached.tolist(), strict=True):
        alone = model.generate(input_ids=torch.tensor([prompt]), **options)[0].tolist()
        assert strip(text[5:]) == strip(alone[len(prompt) :])


def strip(text):
    while text and text[-1] in (0, 2):
        text = text[:-1]
    return text


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *((kind, {"top_k": 9}, "top_k 9 is more than num_experts = 8") for kind in CHOOSING),
        ("moe-lora", {"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ("moe-lora", {"num_experts": 1}, "num_experts must be a whole number of at least 2, got 1"),
        ("moe-lora", {"num_experts": 2.5}, "num_experts must be a whole number of at least 2, got 2.5"),
        ("moe-lora", {"balance_weight": -1}, "balance_weight must be a number of at least 0, got -1"),
        ("mor", {"num_experts": True}, "num_experts must be a whole number"),
        ("malora", {"up_rank": 1}, "up_rank must be a whole number of at least r = 2"),
        ("malora", {"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ("milora-moe", {"pooling": "sum"}, "pooling must be one of attention, mean, max, last, got 'sum'"),
        ("milora-moe", {"gate": "hard", "balance_weight": 0}, "leaves the router without a gradient"),
        ("mor", {"r": 0}, "r must be a whole number of at least 1, got 0"),
        ("mor", {"lora_alpha": float("nan")}, "lora_alpha must be a number above 0"),
    ],
)
def test_values_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        config(kind, **settings)


def test_unknown_settings_are_explained():
    with pytest.raises(UnknownSettingError, match=r"MorConfig.*top_k.*weights all experts"):
        config("mor", top_k=2)
    with pytest.raises(UnknownSettingError, match=r"rank_pattern.*all experts"):
        config("moe-lora", rank_pattern={"q_proj": 4})
    with pytest.raises(UnknownSettingError, match="did you mean 'num_experts'"):
        config("malora", num_expert=4)


def test_layers_that_are_not_linear_are_named():
    with pytest.raises(ModelError, match=r"model\.embed_tokens is a Embedding"):
        adapted("moe-lora", target_modules=["embed_tokens", "q_proj"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_do_not_depend_on_the_hash_seed(kind, tmp_path):
    adapted(kind).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(saved["target_modules"])
    assert saved["peft_type"] == kind.replace("-", "_").upper()
