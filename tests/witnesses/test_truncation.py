"""A tail stored next to the weight or folded into it: equal training, and the rounding of each in 16 bits."""

import warnings

import peft
import pytest
import torch
from torch import nn

from kasatune import KasaConfig
from kasatune.kasa import oracle
from tests.kasa.penalty_probe import TARGETS, batch, bert, gpt2, llama, scatter, trainable
from tests.witnesses.agreement import relative, trained_factors


@pytest.mark.parametrize("core", ["diagonal", "dense"])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_attach_and_fold_train_alike_in_float32(make, core):
    models, losses = {}, {}
    for truncation in ("attach", "fold"):
        config = KasaConfig(r=4, lora_alpha=8, core=core, target_modules=TARGETS[make], truncation=truncation)
        models[truncation] = model = peft.get_peft_model(make(), config)
        scatter(model)
        start = {name: parameter.detach().clone() for name, parameter in trained_factors(model).items()}
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-3)
        losses[truncation] = []
        for step in range(20):
            loss = model(**batch(make, seed=step)).loss
            losses[truncation].append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(relative(p, start[name]) > 1e-3 for name, p in trained_factors(model).items())
    assert losses["attach"] == pytest.approx(losses["fold"], rel=1e-5)
    folded = trained_factors(models["fold"])
    for name, parameter in trained_factors(models["attach"]).items():
        torch.testing.assert_close(parameter, folded[name], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits = [model(**batch(make)).logits for model in models.values()]
    assert relative(logits[0], logits[1]) < 1e-5


def test_in_bfloat16_folding_loses_much_of_the_tail_and_attaching_nothing():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Sequential(nn.Linear(192, 192, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.randn(192, 192, generator=generator) / 192**0.5)
    layer = layer.to(torch.bfloat16)
    W = layer[0].weight.detach().double()
    tail = W - oracle.world_weight(W, 4, "paper")
    kept = {}
    for truncation in ("attach", "fold"):
        twin = nn.Sequential(nn.Linear(192, 192, bias=False)).to(torch.bfloat16)
        twin.load_state_dict(layer.state_dict())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = peft.get_peft_model(twin, KasaConfig(r=4, target_modules=["0"], truncation=truncation))
        adapted = model.base_model.model[0]
        dropped = adapted.tail("default").double() if truncation == "attach" else 0.0
        kept[truncation] = adapted.base_layer.weight.double() - dropped
        stated = [str(w.message) for w in caught if "rounding W - tail loses" in str(w.message)]
        assert len(stated) == (truncation == "fold")
    errors = {name: float((weight - (W - tail)).norm() / tail.norm()) for name, weight in kept.items()}
    assert errors["attach"] < 1e-6
    assert errors["fold"] > 0.1
    assert f"{errors['fold']:.2f}" in stated[0]
