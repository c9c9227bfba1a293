"""Small models written to a folder and loaded from it quantized, one way for each kind of base that people use."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from kasatune.peft_compat.quantization_backends import ForwardOnlyQuantizationBackend
from kasatune.weights import quantized_weight

CAN_MERGE = ("nf4", "fp4", "int8", "torchao-int8", "hqq-4", "hqq-8")
KINDS = (*CAN_MERGE, "forward-only")
HEADS = ["lm_head", "classifier", "pooler"]
PACKAGES = {"nf4": "bitsandbytes", "fp4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}

# Two runs of one 8-bit base differ by the rounding of its activations to 8 bits, amplified by what comes after.
LOOSE = {"int8": 0.05}


def llama_folder(folder: Path, seed: int = 0, **settings) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, **settings)
    return folder


def bert_folder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


class ForwardOnly(nn.Module):
    """A layer as GPTQ packages make them: whole numbers and scales, no weight, nothing but a forward pass."""

    def __init__(self, linear: nn.Linear, bits: int = 4) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        self.register_buffer("scales", scale)
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, (self.qweight * self.scales).to(x.dtype), self.bias)


def loaded(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, task=AutoModelForCausalLM) -> nn.Module:
    """The model of a folder, quantized; the test is skipped where the package for it is not installed."""
    needed(kind)
    if kind in PACKAGES:
        return task.from_pretrained(folder, quantization_config=_config(kind), dtype=torch.float32, device_map="cpu")
    model = task.from_pretrained(folder, dtype=torch.float32)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name not in HEADS:
                setattr(parent, name, _by_hand(child, kind))
    if kind == "forward-only":
        resolve = quantized_weight.resolve_quantization_backend
        monkeypatch.setattr(
            quantized_weight,
            "resolve_quantization_backend",
            lambda layer, **known: (
                ForwardOnlyQuantizationBackend("gptq") if isinstance(layer, ForwardOnly) else resolve(layer, **known)
            ),
        )
    return model.requires_grad_(False).eval()


def needed(kind: str) -> None:
    package = PACKAGES.get(kind, "hqq" if kind.startswith("hqq") else None)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {'hqq' if package == 'hqq' else repr('kasatune[quant]')}")


def linear_task(folder: Path) -> type:
    is_bert = "Bert" in (folder / "config.json").read_text()
    return AutoModelForSequenceClassification if is_bert else AutoModelForCausalLM


def _config(kind: str):
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=HEADS)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=HEADS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=kind == "fp4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=HEADS,
    )


def _by_hand(linear: nn.Linear, kind: str) -> nn.Module:
    if kind == "forward-only":
        return ForwardOnly(linear)
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    settings = BaseQuantizeConfig(nbits=int(kind[-1]), group_size=64, axis=1)
    return HQQLinear(linear, settings, compute_dtype=torch.float32, device="cpu", del_orig=False)


def token_ids(rows: int = 6, length: int = 10) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())
