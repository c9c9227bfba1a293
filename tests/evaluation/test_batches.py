"""Mixed precision in evaluation: each frozen weight is cast once, results are autocast's, the model is as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from kasatune import KasaConfig
from kasatune.evaluation import batches
from kasatune.evaluation.batches import evaluation_mode

IDS = torch.arange(3, 33).reshape(3, 10)
CONFIGS = {
    "lora": LoraConfig(r=2, target_modules="all-linear"),
    "dora": LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "kasa": KasaConfig(r=2, target_modules="all-linear"),
    "kasa folded": KasaConfig(r=2, target_modules="all-linear", truncation="fold"),
}


def adapted(name: str) -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), CONFIGS[name])
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


class Casts(TorchDispatchMode):
    """Counts the matrices that are cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16 and result.ndim == 2:
            self.number += 1
        return result


def states(model: nn.Module) -> list[tuple[str, bool, torch.Tensor]]:
    return [(name, p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]


@pytest.mark.parametrize("name", CONFIGS)
def test_results_are_those_of_autocast_and_parameters_are_left_as_they_were(name):
    model, plain = adapted(name), adapted(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = [plain(input_ids=ids).logits for ids in (IDS, IDS + 4)]
    before = states(model)
    with evaluation_mode(model, "bfloat16"):
        found = [model(input_ids=ids).logits for ids in (IDS, IDS + 4)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for (one, required, value), (other, requires, now) in zip(before, states(model), strict=True):
        assert (one, required) == (other, requires)
        assert name == "kasa folded" or torch.equal(value, now)
    with pytest.raises(ZeroDivisionError), evaluation_mode(model, "bfloat16"):
        raise ZeroDivisionError
    assert [entry[:2] for entry in states(model)] == [entry[:2] for entry in before]


def test_a_weight_that_is_folded_meanwhile_stays_frozen():
    model = adapted("kasa folded")
    with evaluation_mode(model, "bfloat16"):
        with model.disable_adapter():
            model(input_ids=IDS)
        model(input_ids=IDS)
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"kasa_A", "kasa_B", "kasa_sigma"}
    with model.disable_adapter():
        assert not any(p.requires_grad for name, p in model.named_parameters() if "kasa_" not in name)


def test_each_weight_is_cast_once_where_the_memory_suffices(monkeypatch):
    def casts() -> int:
        model = adapted("lora")
        with evaluation_mode(model, "bfloat16"), Casts() as counted:
            for _ in range(3):
                model(input_ids=IDS)
        return counted.number

    layers = sum(type(module) is nn.Linear and "lora" not in name for name, module in adapted("lora").named_modules())
    once = casts()
    monkeypatch.setattr(batches, "available_memory", lambda: 100)
    assert casts() == once + 2 * layers
