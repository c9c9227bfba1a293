"""The warning at the first training forward pass of an adapter whose tail carries much of a layer's output."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import get_peft_model

from kasatune import KasaConfig
from tests.kasa.models import llama, token_ids

WARNING = r"the component dropped from (\S+) is (\d+)% of the layer's output"


def with_strong_tail(kind="v_proj"):
    """A Llama whose layers of one kind read their inputs through their smallest singular directions alone."""
    model = llama()
    for name, module in model.named_modules():
        if name.endswith(kind):
            torch.nn.init.orthogonal_(module.weight)  # every singular value is 1: the tail is as strong as the rest
    return model


def forward(model):
    model.train()
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()


def caught(model):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        forward(model)
    return [str(warning.message) for warning in seen if "KaSA: the component" in str(warning.message)]


def test_one_warning_names_a_layer_its_share_and_the_remedy():
    model = get_peft_model(with_strong_tail(), KasaConfig(r=4, target_modules=["q_proj", "v_proj"]))
    messages = caught(model)
    assert len(messages) == 1
    assert "v_proj" in messages[0] or "q_proj" in messages[0]
    assert "truncate_by='activation'" in messages[0]
    assert caught(model) == []


def test_the_share_is_that_of_the_outputs():
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))
    torch.nn.init.orthogonal_(layer[0].weight)
    model = get_peft_model(layer, KasaConfig(r=4, target_modules=["0"]))
    x = torch.randn(64, 8)
    tail = model.base_model.model[0].tail("default")
    expected = float((x @ tail.T).norm() / x.norm())
    with pytest.warns(UserWarning, match=WARNING) as seen:
        model.train()(x)
    assert f"{expected:.0%}" in str(seen[0].message)


def test_nothing_is_said_where_nothing_is_dropped():
    model = get_peft_model(with_strong_tail(), KasaConfig(r=4, target_modules=["v_proj"], drop=0))
    assert caught(model) == []


def test_a_folded_tail_is_compared_with_the_same_output():
    attached, folded = (
        caught(get_peft_model(with_strong_tail(), KasaConfig(r=4, target_modules=["v_proj"], truncation=truncation)))
        for truncation in ("attach", "fold")
    )
    assert attached == folded != []


def test_a_weak_tail_gives_no_warning():
    model = llama()
    for name, module in model.named_modules():
        if name.endswith("v_proj"):
            U, S, Vh = torch.linalg.svd(module.weight.data, full_matrices=False)
            S[-4:] *= 1e-3
            module.weight.data = U @ torch.diag(S) @ Vh
    assert caught(get_peft_model(model, KasaConfig(r=4, target_modules=["v_proj"]))) == []


def test_inference_and_gradients_are_those_without_the_check():
    torch.manual_seed(0)
    first = get_peft_model(llama(), KasaConfig(r=4))
    torch.manual_seed(0)
    second = get_peft_model(llama(), KasaConfig(r=4))
    for layer in second.modules():
        if hasattr(layer, "output_checks"):
            layer.output_checks.clear()
    for model in (first, second):
        forward(model)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name
