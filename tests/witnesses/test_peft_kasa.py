"""PEFT's own KaSA as a witness: the convention "paper" with a diagonal core gives what it gives."""

import peft
import pytest
import torch

from kasatune import KasaConfig, regularization
from kasatune.kasa import KasaLayer
from tests.kasa.penalty_probe import batch, bert, llama, scatter, trainable
from tests.witnesses.agreement import relative, trained_factors

TARGETS = {bert: ["query", "value", "dense"], llama: ["q_proj", "k_proj", "down_proj"]}
EXCLUDED = {bert: ["bert.pooler.dense"], llama: None}
NAMES = {"kasa_A": "lora_A.default.weight", "kasa_B": "lora_B.default.weight", "kasa_sigma": "lora_diag.default"}


def pair(make, truncation, use_rslora=False):
    """Our model and PEFT's, from one base and one start."""
    shared = {"r": 4, "lora_alpha": 8, "use_rslora": use_rslora, "target_modules": TARGETS[make]}
    shared["exclude_modules"] = EXCLUDED[make]
    weights = {"beta": 0.05, "gamma": 0.02}
    theirs = peft.get_peft_model(make(), peft.LoraConfig(**shared, kasa_config=peft.KasaConfig(**weights)))
    ours = peft.get_peft_model(make(), KasaConfig(**shared, **weights, truncation=truncation))
    with torch.no_grad():
        for parameter, reference in aligned(ours, theirs):
            parameter.copy_(reference)
    return ours, theirs


def aligned(ours, theirs):
    """Pairs of factors."""
    for name, parameter in trained_factors(ours).items():
        layer, part, _ = name.rsplit(".", 2)
        yield parameter, theirs.get_parameter(f"base_model.model.{layer}.{NAMES[part]}")


def layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, KasaLayer)}


@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("make", [bert, llama])
def test_the_start_is_the_same(make, truncation):
    ours, theirs = pair(make, truncation)
    assert len(layers(ours)) == {bert: 10, llama: 6}[make]
    for name, layer in layers(ours).items():
        truncated = theirs.get_submodule(name).base_layer.weight
        if truncation == "fold":
            assert relative(layer.base_layer.weight, truncated) < 1e-5
        else:
            assert relative(layer.base_layer.weight - layer.tail("default"), truncated) < 1e-5
            assert relative(layer.base_layer.weight, truncated) > 1e-3
    assert relative(regularization(ours), theirs._get_kasa_loss()) < 1e-6
    with torch.no_grad():
        logits = [model(**batch(make)).logits for model in (ours, theirs, make())]
    assert relative(logits[0], logits[1]) < 1e-5
    assert relative(logits[2], logits[1]) > 1e-3


@pytest.mark.parametrize(
    ("make", "truncation", "use_rslora"),
    [(bert, "attach", True), (bert, "fold", False), (llama, "attach", False), (llama, "fold", False)],
)
def test_twenty_steps_go_the_same_way(make, truncation, use_rslora):
    ours, theirs = pair(make, truncation, use_rslora)
    # B = 0 has gradients so near zero that Adam turns their rounding errors into whole steps.
    scatter(ours)
    with torch.no_grad():
        for parameter, reference in aligned(ours, theirs):
            reference.copy_(parameter)
    start = [parameter.detach().clone() for parameter, _ in aligned(ours, theirs)]
    history = {}
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW(trainable(model), lr=3e-3, weight_decay=0.01)
        history[model] = []
        for step in range(20):
            task = model(**batch(make, seed=step)).loss
            penalty = theirs._get_kasa_loss() if model is theirs else regularization(model)
            # The step hook adds the penalty to ours.
            (task + penalty if model is theirs else task).backward()
            optimizer.step()
            optimizer.zero_grad()
            history[model].append([task.item(), penalty.item()])
    ours_history, theirs_history = (torch.tensor(history[model]) for model in (ours, theirs))
    torch.testing.assert_close(ours_history, theirs_history, rtol=1e-4, atol=0)
    for (parameter, reference), first in zip(aligned(ours, theirs), start, strict=True):
        assert relative(parameter, reference) < 1e-4
        assert relative(parameter, first) > 1e-2
    ours_merged, theirs_merged = ours.merge_and_unload(), theirs.merge_and_unload()
    for (name, parameter), reference in zip(ours_merged.named_parameters(), theirs_merged.parameters(), strict=True):
        assert relative(parameter, reference) < 1e-4, name
