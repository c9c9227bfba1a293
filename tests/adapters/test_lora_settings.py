"""Adapters of PEFT mean what their configuration says: the settings of a plain LoRA, conversions, and refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import kasatune
from kasatune import export_adapter
from kasatune.adapter_tools.inspect import inspect
from kasatune.adapter_tools.merge import merge
from kasatune.adapter_tools.verify import verify
from kasatune.adapters.lora_settings import PLAIN, REFUSED, check_settings, residual_init
from kasatune.errors import AdapterError, InputError
from tests.kasa.models import gpt2, llama, token_ids
from tests.peft_versions import needs_train, newest_peft


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def close(given, expected):
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def trained(folder, build=llama, **settings):
    """An adapter of PEFT in `folder`/adapter on the base in `folder`/base, and PEFT's own outputs of both."""
    torch.manual_seed(5)
    build().save_pretrained(folder / "base")
    common = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(**common | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "adapter")
    return logits(PeftModel.from_pretrained(base_of(folder), folder / "adapter"))


def base_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "base")


def edit(folder, **changes):
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# The list of settings


@newest_peft
def test_every_setting_of_the_installed_peft_has_been_judged():
    assert {field.name for field in dataclasses.fields(LoraConfig)} == PLAIN | set(REFUSED) | {"init_lora_weights"}


def test_every_setting_that_selects_a_variant_in_peft_is_refused():
    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants <= set(REFUSED)


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
@pytest.mark.parametrize("name", [*REFUSED, "a_later_setting"])
def test_a_setting_that_is_off_is_accepted(name, value):
    check_settings({name: value}, "lora")


@pytest.mark.parametrize("value", [True, 0, 0.5, "text", [1], {"a": 1}])
@pytest.mark.parametrize("name", [*REFUSED, "a_later_setting"])
def test_a_setting_that_is_on_is_refused_by_name(name, value):
    with pytest.raises(AdapterError, match=name):
        check_settings({name: value}, "lora")


@pytest.mark.parametrize("value", ["sum", "ALL", 5, ["none"]])
def test_a_bias_that_is_no_choice_of_peft_is_refused(value):
    with pytest.raises(AdapterError, match="bias is"):
        check_settings({"bias": value}, "lora")


@pytest.mark.parametrize("value", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_an_initialization_that_leaves_the_base_as_it_is_is_accepted(value):
    check_settings({"init_lora_weights": value}, "lora")
    assert residual_init({"init_lora_weights": value}) is None


@pytest.mark.parametrize(
    "value", ["pissa_niter_4", "corda", "lora_ga", "loftq", "PISSA", "a later one", "", 1, 0, ["pissa"], {}]
)
def test_any_other_initialization_is_refused_by_name(value):
    with pytest.raises(AdapterError, match="init_lora_weights"):
        check_settings({"init_lora_weights": value}, "lora")


@pytest.mark.parametrize("kind", ["peft-kasa", "authors"])
def test_kasa_combined_with_another_setting_is_refused(kind):
    check_settings({"kasa_config": {"beta": 0.1}}, "peft-kasa")
    for setting in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"a_later_setting": 1}):
        with pytest.raises(AdapterError, match=next(iter(setting))):
            check_settings(setting, kind)


def test_a_native_adapter_of_a_later_version_is_refused():
    check_settings({"r": 4, "truncate_by": "magnitude", "a_later_setting": None}, "kasa")
    with pytest.raises(AdapterError, match="a_later_setting"):
        check_settings({"r": 4, "a_later_setting": 1}, "kasa")


@needs_train
@pytest.mark.parametrize(
    "setting", [{"use_dora": True}, {"init_lora_weights": "corda"}, {"a_later_setting": {"on": True}}], ids=str
)
def test_every_command_refuses_it_before_the_base_is_read(tmp_path, setting):
    trained(tmp_path)
    edit(tmp_path, **setting, base_model_name_or_path=str(tmp_path / "nowhere"))
    (name,) = setting
    for act in (
        lambda: merge(tmp_path / "adapter", tmp_path / "out"),
        lambda: kasatune.shrink_adapter(tmp_path / "adapter", tmp_path / "out", rank=2),
        lambda: export_adapter(tmp_path / "adapter", tmp_path / "out"),
        lambda: inspect(tmp_path / "adapter"),
    ):
        with pytest.raises(AdapterError, match=name):
            act()
    assert not (tmp_path / "out").exists()


# Initializations that change the base


@needs_train
@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (llama, {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"down_proj": 5}}),
        (llama, {"init_lora_weights": "OLoRA", "alpha_pattern": {"q_proj": 9}, "bias": "all"}),
        (gpt2, {"init_lora_weights": "pissa", "target_modules": ["c_attn"], "modules_to_save": ["ln_f"]}),
        (gpt2, {"init_lora_weights": "olora", "target_modules": [r"attn.c_proj"]}),
    ],
    ids=["pissa", "olora", "pissa on Conv1D", "olora on square Conv1D"],
)
def test_pissa_and_olora_give_pefts_outputs_and_leave_the_base_alone(tmp_path, build, settings):
    expected = trained(tmp_path, build, **settings)
    base = base_of(tmp_path)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    export_adapter(tmp_path / "adapter", tmp_path / "lora", base=base)
    kasatune.shrink_adapter(tmp_path / "adapter", tmp_path / "small", energy=1.0, base=base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    merge(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))
    for name in ("lora", "small"):
        close(logits(PeftModel.from_pretrained(base_of(tmp_path), tmp_path / name)), expected)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    layer = inspect(tmp_path / "adapter", str(tmp_path / "base"))["layers"][0]
    assert layer["rank"] % 2 == 0
    assert layer["update"]["norm"] > 0


def test_pissa_in_16_bits_gives_pefts_outputs_to_the_rounding(tmp_path):
    expected = trained(tmp_path, lambda: llama(torch.bfloat16), init_lora_weights="pissa")
    merge(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))
    given = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((given - expected).abs().max() / expected.abs().max()) < 0.05


def test_without_the_base_pissa_is_refused_and_asks_for_it(tmp_path):
    trained(tmp_path, init_lora_weights="pissa")
    with pytest.raises(InputError, match=r"init_lora_weights='pissa'.*needs the base model"):
        export_adapter(tmp_path / "adapter", tmp_path / "lora")
    edit(tmp_path, base_model_name_or_path=None)
    with pytest.raises(InputError, match="needs the base model"):
        inspect(tmp_path / "adapter")


def test_pissa_on_a_tied_head_is_refused_because_the_embedding_changes_too(tmp_path):
    trained(tmp_path, lambda: llama(tied=True), init_lora_weights="pissa", target_modules=["lm_head", "q_proj"])
    with pytest.raises(AdapterError, match=r"lm_head.*tied"):
        merge(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": 0}, {"lora_alpha": -4}], ids=["a scaling of zero", "a negative scaling"]
)
def test_pissa_with_a_scaling_that_has_no_root_is_refused(tmp_path, settings):
    trained(tmp_path, init_lora_weights="pissa")
    edit(tmp_path, **settings)
    with pytest.raises(AdapterError, match="scaling"):
        export_adapter(tmp_path / "adapter", tmp_path / "lora", base=base_of(tmp_path))


def test_pissa_is_verified_with_every_export(tmp_path):
    trained(tmp_path, init_lora_weights="pissa")
    checks = {check.name: check for check in verify(tmp_path / "adapter", str(tmp_path / "base"))}
    assert checks["base untouched"].passed is None
    assert {name for name, check in checks.items() if check.passed is False} == set()
    assert all(checks[name].passed for name in ("reload", "export to lora", "export to gguf", "merge"))


# The base that a caller passes, and the layers that a configuration names


@needs_train
@pytest.mark.parametrize("settings", [{"bias": "all"}, {"modules_to_save": ["norm"]}], ids=str)
def test_biases_and_heads_are_not_written_into_the_base_that_is_passed(tmp_path, settings):
    def build():
        model = llama(biases=True)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_()
        return model

    expected = trained(tmp_path, build, **settings)
    base = base_of(tmp_path)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    kasatune.shrink_adapter(tmp_path / "adapter", tmp_path / "small", energy=1.0, base=base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    close(logits(PeftModel.from_pretrained(base_of(tmp_path), tmp_path / "small")), expected)


def test_a_merge_refuses_an_adapter_without_a_module_that_its_configuration_saves(tmp_path):
    trained(tmp_path, modules_to_save=["lm_head"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if "lm_head" not in key}, path)
    with pytest.raises(AdapterError, match=r"lm_head.weight, which the adapter lacks"):
        merge(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj"]}, "holds .*down_proj.*does not target"),
        ({"layers_to_transform": [1]}, "holds .*layers.0.*does not target"),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, "lacks .*v_proj"),
        ({"target_modules": ["nothing"]}, "PEFT cannot apply"),
    ],
    ids=["a target fewer", "a block fewer", "a target more", "no target"],
)
def test_a_merge_applies_the_layers_that_peft_would_load(tmp_path, changes, message):
    trained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(AdapterError, match=message):
        merge(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))
    assert not (tmp_path / "merged").exists()
