"""Parameter counts of the mixtures on LLaMA-2-7B, from its configuration alone."""

from __future__ import annotations

from collections import Counter

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.mixtures.models import CONFIGS, TARGETS

FEED_FORWARD = TARGETS[4:]


def counts(kind: str, targets: list[str], **settings) -> Counter[str]:
    """The trained parameters by name of their ParameterDict."""
    with torch.device("meta"):
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_config(LlamaConfig()), CONFIGS[kind](target_modules=targets, **settings)
        )
    result: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            result[name.split(".")[-2].removeprefix("mixture_")] += parameter.numel()
    return result


def test_mor_on_the_feed_forward_layers_has_the_published_share():
    total = counts("mor", FEED_FORWARD, r=8, num_experts=8).total()
    assert total == 23_205_888
    base = 6_738_415_616
    assert round(100 * total / base, 2) == 0.34


def test_milora_on_all_layers():
    count = counts("milora-moe", TARGETS, r=32)
    assert count["A"] + count["B"] == 79_953_920
    assert count["router"] == 917_504
    assert count["pooler"] == 131_072
    assert count["numerator"] + count["denominator"] == 384


@pytest.mark.parametrize(("kind", "total"), [("malora", 107_149_312), ("moe-lora", 159_907_840)])
def test_malora_trains_a_third_less_than_moe_lora_without_routers(kind, total):
    count = counts(kind, TARGETS, r=8, num_experts=8)
    assert count.total() - count["router"] == total
