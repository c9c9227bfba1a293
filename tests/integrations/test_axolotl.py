"""KaSA in Axolotl: the plug-in by contract, and its runs in an environment with Axolotl."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest
from peft import PeftModel
from transformers import LlamaForCausalLM

from kasatune import KasaConfig
from kasatune.errors import AdapterError
from tests.integrations import tiny_llama
from tests.integrations.checkpoints import (
    assert_different_adapters,
    assert_loads_in_plain_peft,
    assert_penalized_once,
    assert_same_adapter,
    export_command,
)
from tests.integrations.environments import foreign_python, run_in_one_process

RATE, BETA, GAMMA = 0.5, 1e-2, 1e-2


class Configuration(dict):
    """Axolotl's configuration: keys are attributes, and those that are not set are None."""

    def __getattr__(self, name):
        return self.get(name)


@pytest.fixture
def axolotl(monkeypatch):
    """The plug-in's module over the names of Axolotl 0.19 that it uses."""
    names = [
        "axolotl",
        "axolotl.integrations",
        "axolotl.integrations.base",
        "axolotl.loaders",
        "axolotl.loaders.adapter",
    ]
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    base, adapter = modules["axolotl.integrations.base"], modules["axolotl.loaders.adapter"]
    base.BasePlugin = type("BasePlugin", (), {})
    base.AdapterCapabilities = lambda name, lora_like=False, relora=False: (name, lora_like, relora)
    adapter.find_all_linear_names = lambda model: ["q_proj", "k_proj"]
    monkeypatch.delitem(sys.modules, "kasatune.integrations.axolotl", raising=False)
    yield importlib.import_module("kasatune.integrations.axolotl")
    sys.modules.pop("kasatune.integrations.axolotl")


def checked(module, **keys):
    return module.KasaArgs.model_validate({"adapter": "kasa", "lora_r": 4, **keys})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_llama.write_model(tmp_path_factory.mktemp("axolotl") / "base")


@pytest.fixture
def llama(base):
    return LlamaForCausalLM.from_pretrained(base)


def test_it_is_an_adapter_of_its_own_with_keys_of_its_own(axolotl):
    plugin = axolotl.KasaPlugin()
    assert plugin.get_adapter_capabilities() == [("kasa", False, False)]
    module, _, name = plugin.get_input_args().rpartition(".")
    assert getattr(importlib.import_module(module), name) is axolotl.KasaArgs
    assert checked(axolotl, kasa={"beta": 0.5}).kasa == {"beta": 0.5}
    assert axolotl.KasaArgs.model_validate({"adapter": "lora"}).kasa is None
    assert plugin.load_adapter(None, Configuration(adapter="lora")) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kasa": {"betta": 1}}, "did you mean 'beta'"),
        ({"kasa": {"beta": -1}}, "beta must be a number"),
        ({"kasa": {"r": 8}}, "name r, which the trainer's own options"),
        ({"kasa": 3}, "3 must be a mapping"),
        ({"adapter": "lora", "kasa": {}}, "no effect with adapter: lora"),
        ({"peft_use_dora": True}, "DoRA rescales"),
        ({"peft_init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft": {"loftq_config": {"loftq_bits": 4}}}, "loftq_config"),
        ({"lora_target_parameters": ["experts"]}, "target_parameters"),
        ({"loraplus_lr_ratio": 16}, "loraplus_lr_ratio: 16 acts on LoRA's own layers"),
        ({"lora_mlp_kernel": True}, "lora_mlp_kernel"),
        ({"load_in_4bit": True}, "load_in_4bit: true}}, or name a base_model that was saved"),
    ],
)
def test_keys_that_kasa_would_not_follow_are_refused_before_the_model_is_loaded(axolotl, keys, message):
    with pytest.raises(ValueError, match=message):
        checked(axolotl, **keys)


def test_the_keys_of_lora_and_of_kasa_make_one_adapter(axolotl, llama):
    cfg = Configuration(
        adapter="kasa",
        lora_r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        lora_target_linear=True,
        lora_target_modules=["up_proj"],
        peft_layers_to_transform=[1],
        lora_rank_pattern={"up_proj": 2},
        kasa={"beta": 0.5},
    )
    tuned, config = axolotl.KasaPlugin().load_adapter(llama, cfg)
    assert isinstance(tuned, PeftModel)
    assert isinstance(config, KasaConfig)
    assert (config.r, config.lora_alpha, config.beta, config.task_type) == (4, 8, 0.5, "CAUSAL_LM")
    assert config.target_modules == {"q_proj", "k_proj", "up_proj"}
    shapes = {name.split("layers.")[1]: p.shape[0] for name, p in tuned.named_parameters() if "kasa_A" in name}
    assert shapes == {
        f"1.{name}.kasa_A.default": rank
        for name, rank in {"self_attn.q_proj": 4, "self_attn.k_proj": 4, "mlp.up_proj": 2}.items()
    }


def test_trainers_that_make_the_adapter_themselves_get_the_configuration_alone(axolotl, llama):
    cfg = Configuration(adapter="kasa", lora_target_modules=["q_proj"], lora_model_dir="elsewhere")
    tuned, config = axolotl.KasaPlugin().load_adapter(llama, cfg, config_only=True)
    assert tuned is None
    assert (config.r, config.target_modules) == (KasaConfig().r, {"q_proj"})


@pytest.mark.parametrize("inference", [False, True])
def test_training_continues_from_a_saved_adapter(axolotl, llama, base, tmp_path, inference):
    plugin = axolotl.KasaPlugin()
    new, _ = plugin.load_adapter(llama, Configuration(adapter="kasa", lora_r=3, lora_target_modules=["q_proj"]))
    new.save_pretrained(tmp_path / "saved")
    cfg = Configuration(adapter="kasa", lora_r=8, lora_model_dir=str(tmp_path / "saved"))
    tuned, config = plugin.load_adapter(LlamaForCausalLM.from_pretrained(base), cfg, inference=inference)
    assert config.r == 3
    assert any(p.requires_grad for p in tuned.parameters()) is not inference


def test_an_adapter_of_another_kind_is_not_continued(axolotl, llama, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    with pytest.raises(AdapterError, match="holds a LoraConfig, not a KaSA adapter"):
        axolotl.KasaPlugin().load_adapter(llama, Configuration(adapter="kasa", lora_model_dir=str(tmp_path)))


RECIPE = f"""
base_model: base
plugins: [kasatune.integrations.axolotl.KasaPlugin]
adapter: kasa
lora_r: 4
lora_alpha: 8
lora_target_linear: true
datasets: [{{path: chat.jsonl, type: chat_template, field_messages: messages}}]
chat_template: tokenizer_default
special_tokens: {{pad_token: "<pad>"}}
sequence_len: 64
dataset_num_proc: 1
dataset_prepared_path: prepared
micro_batch_size: 4
gradient_accumulation_steps: 2
save_steps: 1
logging_steps: 1
optimizer: sgd
learning_rate: {RATE}
lr_scheduler: constant
bf16: false
seed: 3
"""


def test_axolotl_trains_and_resumes_and_its_adapter_loads_in_plain_peft(tmp_path):
    python = foreign_python("axolotl")
    base = tiny_llama.write_model(tmp_path / "base")
    roles = {"user": "question", "assistant": "answer"}
    chats = [
        {"messages": [{"role": r, "content": row[key]} for r, key in roles.items()]} for row in tiny_llama.rows(24)
    ]
    tiny_llama.write_lines(tmp_path / "chat.jsonl", chats)

    def command(output, *lines, steps=2, penalty="step"):
        settings = f"kasa: {{beta: {BETA}, gamma: {GAMMA}, penalty: {penalty}}}"
        more = [f"output_dir: {output.name}", f"max_steps: {steps}", settings, *lines]
        (tmp_path / f"{output.name}.yaml").write_text(RECIPE + "\n".join(more), encoding="utf-8")
        return ["-m", "axolotl.cli.main", "train", f"{output.name}.yaml", "--launcher", "python"]

    first, task, resumed, lora = (tmp_path / name for name in ("first", "task", "resumed", "lora"))
    run_in_one_process(
        python,
        command(task, steps=1, penalty="none"),
        command(first),
        command(resumed, f"resume_from_checkpoint: {first / 'checkpoint-1'}"),
        export_command(base, first, lora),
        cwd=tmp_path,
    )
    assert_penalized_once(first / "checkpoint-1", task / "checkpoint-1", RATE, BETA, GAMMA)
    assert_different_adapters(first / "checkpoint-1", first / "checkpoint-2")
    assert_same_adapter(first / "checkpoint-2", resumed / "checkpoint-2")
    assert_same_adapter(first / "checkpoint-2", first)
    assert_loads_in_plain_peft(python, base, lora)
