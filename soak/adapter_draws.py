"""Draw LoRA configurations of PEFT at random, train an adapter of each on a tiny model, and save it with PEFT."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

WORDS = 97
_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
_DECODER = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
_ATTENTION, _FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_INITS = (
    *(True, True, True, False, "gaussian", "eva", "orthogonal", "mica", "olora", "OLoRA", "pissa", "pissa"),
    *("pissa_niter_4", "corda", "loftq", "lora_ga"),
)


@dataclass(frozen=True)
class Family:
    """A kind of base model: how it is built, its task, and the names of its layers."""

    build: Callable[[], PreTrainedModel]
    task: str
    layers: tuple[str, ...]
    embeddings: tuple[str, ...]
    saved: tuple[str, ...]
    parameters: tuple[str, ...] = ()


FAMILIES = {
    "llama": Family(
        lambda: LlamaForCausalLM(LlamaConfig(**_DECODER)),
        "CAUSAL_LM",
        (*_ATTENTION, *_FEED_FORWARD),
        ("embed_tokens", "lm_head"),
        ("lm_head", "embed_tokens", "norm"),
    ),
    "llama, tied, with biases": Family(
        lambda: LlamaForCausalLM(LlamaConfig(**_DECODER, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
        "CAUSAL_LM",
        (*_ATTENTION, *_FEED_FORWARD),
        ("embed_tokens", "lm_head"),
        ("lm_head", "embed_tokens", "input_layernorm"),
    ),
    "gpt2": Family(
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=40, initializer_range=0.2)
        ),
        "CAUSAL_LM",
        ("c_attn", "c_proj", "c_fc"),
        ("wte", "lm_head"),
        ("lm_head", "wte", "ln_f"),
    ),
    "bert": Family(
        lambda: BertForSequenceClassification(BertConfig(**_SIZES, intermediate_size=48, num_labels=3)),
        "SEQ_CLS",
        ("query", "key", "value", "dense"),
        ("word_embeddings",),
        ("pooler", "classifier"),
    ),
    "mixtral": Family(
        lambda: MixtralForCausalLM(MixtralConfig(**_DECODER, num_local_experts=4)),
        "CAUSAL_LM",
        _ATTENTION,
        ("embed_tokens", "lm_head"),
        ("lm_head",),
        ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
}


@dataclass
class Draw:
    """A configuration that was drawn.

    Attributes:
        family: the name of its base.
        settings: arguments of LoraConfig.
        later: fields that are added to adapter_config.json, as a later PEFT would write them.
        converted: saved with `path_initial_model_for_weight_conversion`.
        trained: trained for two steps; otherwise every trainable number is moved at random.
    """

    family: str
    settings: dict[str, Any]
    later: dict[str, Any] = field(default_factory=dict)
    converted: bool = False
    trained: bool = False


def draw(number: int, seed: int = 0) -> Draw:
    """The configuration of a number, the same at every call."""
    dice = random.Random(f"{seed}:{number}")
    name = dice.choice([*FAMILIES, "llama", "llama"])
    family = FAMILIES[name]
    settings: dict[str, Any] = {
        "task_type": family.task,
        "r": dice.choice([1, 2, 4, 6]),
        "lora_alpha": dice.choice([1, 3, 8, 16]),
        "init_lora_weights": dice.choice(_INITS),
        "target_modules": _targets(dice, family),
    }
    for key, share, value in _options(dice, family):
        if dice.random() < share:
            settings[key] = value()
    variants = _variants(dice, family)
    for _ in range(dice.choices([0, 1, 2], [0.6, 0.37, 0.03])[0]):
        key = dice.choice(list(variants))
        settings[key] = variants[key]
    _reconcile(settings, dice)
    later: dict[str, Any] = {}
    if dice.random() < 0.06:
        later = {dice.choice(["use_later", "later_config", "later_scale"]): dice.choice([True, {"a": 1}, 0.5, "x"])}
    elif dice.random() < 0.1:
        later = {"use_later": False, "later_config": None, "later_names": []}
    converts = settings["init_lora_weights"] in ("pissa", "olora", "OLoRA", "pissa_niter_4", "lora_ga", "corda")
    return Draw(name, settings, later, converts and dice.random() < 0.2, dice.random() < 0.3)


def _reconcile(settings: dict[str, Any], dice: random.Random) -> None:
    """Avoid most combinations that PEFT refuses, and add the configurations that an initialization needs."""
    init = settings["init_lora_weights"]
    if init == "lora_ga":
        settings["lora_ga_config"] = peft.LoraGAConfig()
    if init == "corda":
        settings["corda_config"] = CordaConfig(corda_method=dice.choice(["kpm", "ipm"]), verbose=False)
    if init == "loftq":
        settings["loftq_config"] = peft.LoftQConfig(loftq_bits=4)
    if init == "eva":
        settings["eva_config"] = peft.EvaConfig(rho=1.0)
    if init == "orthogonal":
        settings["r"] = 2 * dice.choice([1, 2])
        settings.pop("rank_pattern", None)
    if isinstance(settings["target_modules"], str):
        settings.pop("layers_to_transform", None)
    if "lora_bias" in settings and not isinstance(init, bool):
        settings["init_lora_weights"] = True
    if "target_parameters" in settings:
        settings.pop("lora_dropout", None)


def _targets(dice: random.Random, family: Family) -> Any:
    kind = dice.random()
    some = dice.sample(family.layers, dice.randint(1, len(family.layers)))
    if kind < 0.1:
        return None
    if kind < 0.2:
        return "all-linear"
    if kind < 0.3:
        return rf".*({'|'.join(some)})$"
    return [*some, dice.choice(family.embeddings)] if kind < 0.4 else some


def _options(dice: random.Random, family: Family) -> list[tuple[str, float, Callable[[], Any]]]:
    """(setting, how often it is drawn, its value) for the settings that a plain LoRA may have."""
    layer = dice.choice(family.layers)
    return [
        ("use_rslora", 0.25, lambda: True),
        (
            "rank_pattern",
            0.2,
            lambda: {dice.choice([layer, f".*{layer}", rf"^.*\.1\..*{layer}$"]): dice.choice([2, 8])},
        ),
        ("alpha_pattern", 0.2, lambda: {dice.choice([layer, rf"^.*\.0\..*{layer}$"]): dice.choice([2, 5])}),
        ("exclude_modules", 0.08, lambda: [layer]),
        ("layers_to_transform", 0.1, lambda: dice.choice([[0], [1], 1])),
        ("bias", 0.2, lambda: dice.choice(["all", "lora_only"])),
        ("modules_to_save", 0.15, lambda: dice.sample(family.saved, 1)),
        ("ensure_weight_tying", 0.1, lambda: True),
        ("lora_dropout", 0.2, lambda: 0.1),
        ("fan_in_fan_out", 0.1, lambda: True),
        ("qalora_group_size", 0.05, lambda: 8),
    ]


def _variants(dice: random.Random, family: Family) -> dict[str, Any]:
    """Settings that make an adapter more than a plain LoRA; PEFT refuses most combinations of two."""
    blocks = peft.BdLoraConfig(target_modules_bd_a=[dice.choice(family.layers)], nblocks=2, match_strict=False)
    return {
        "use_dora": True,
        "lora_bias": True,
        **({"target_parameters": list(family.parameters)} if family.parameters else {}),
        "layer_replication": [[0, 2], [1, 2]],
        "trainable_token_indices": dice.choice([[3, 5], {family.embeddings[0]: [1, 2]}]),
        "alora_invocation_tokens": [7],
        "use_qalora": True,
        "velora_config": peft.VeloraConfig(num_groups=4),
        "monteclora_config": peft.MontecloraConfig(),
        "use_bdlora": blocks,
        "arrow_config": peft.ArrowConfig(),
        "kasa_config": peft.KasaConfig(),
    }


def make_adapter(drawn: Draw, base: PreTrainedModel, folder: Path, number: int) -> None:
    """Train the adapter of a configuration on a base and save it with PEFT; raises what PEFT raises."""
    torch.manual_seed(number)
    settings = dict(drawn.settings)
    # PEFT initializes LoftQ on a GPU only, and Arrow from adapters that were trained before: set in the file alone.
    added: dict[str, Any] = {**drawn.later}
    if settings["init_lora_weights"] == "loftq":
        added["init_lora_weights"], settings["init_lora_weights"] = "loftq", False
    if "arrow_config" in settings:
        added["arrow_config"] = dataclasses.asdict(settings.pop("arrow_config"))
    config = LoraConfig(**settings)
    ids = torch.randint(1, WORDS, (4, 12))
    labels = ids if drawn.settings["task_type"] == "CAUSAL_LM" else torch.tensor([0, 1, 2, 0])
    if config.init_lora_weights == "corda":
        preprocess_corda(base, config, run_model=lambda: [base(row) for row in ids.split(1)])
    if config.init_lora_weights == "lora_ga":
        preprocess_loraga(base, config, lambda: base(input_ids=ids, labels=labels).loss.backward())
        base.zero_grad()
    model: Any = get_peft_model(base, config)
    if drawn.converted:
        model.save_pretrained(folder / "initial")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if drawn.trained:
        optimizer = torch.optim.AdamW(trainable, lr=0.05)
        for _ in range(2):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        with torch.no_grad():
            for parameter in trainable:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    options = {"path_initial_model_for_weight_conversion": str(folder / "initial")} if drawn.converted else {}
    model.save_pretrained(folder / "adapter", **options)
    path = folder / "adapter" / "adapter_config.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **added}
    path.write_text(json.dumps(values), encoding="utf-8")


def read_with_peft(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter as PEFT itself loads it."""
    return PeftModel.from_pretrained(base, str(folder))
