"""The penalty of PEFT's KaSA acts once per optimizer step."""

from __future__ import annotations

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from kasatune.training.train import train
from tests.toys import make_recipe


def first_step(recipe, folder):
    """(parameter, gradient) of each parameter in the first step, as the optimizer used them."""
    before, gradients = [], []

    def parameters(optimizer):
        return [p for group in optimizer.param_groups for p in group["params"]]

    hooks = (
        register_optimizer_step_pre_hook(lambda o, *_: before.append([p.detach().clone() for p in parameters(o)])),
        register_optimizer_step_post_hook(lambda o, *_: gradients.append([p.grad.clone() for p in parameters(o)])),
    )
    try:
        train(recipe, folder)
    finally:
        for hook in hooks:
            hook.remove()
    return list(zip(before[0], gradients[0], strict=True))


@pytest.mark.parametrize("pieces", [1, 4])
def test_its_gradient_is_added_once_per_optimizer_step(pieces, bert, tmp_path):
    steps = {}
    for beta, gamma in ((0.0, 0.0), (0.5, 0.25)):
        recipe = make_recipe(
            bert,
            tmp_path,
            train=8,
            method={"name": "peft-kasa", "beta": beta, "gamma": gamma},
            model_options={"dropout": 0},
            epochs=1,
            gradient_accumulation=pieces,
        )
        steps[beta] = first_step(recipe, tmp_path / f"run{beta}")
    checked = set()
    for (parameter, task), (same, both) in zip(steps[0.0], steps[0.5], strict=True):
        assert torch.equal(parameter, same)
        added = both - task
        if parameter.shape == (2,):  # sigma and the head's bias
            if torch.allclose(added, torch.zeros(2), atol=1e-6):
                checked.add("head")
            else:
                torch.testing.assert_close(added, 2 * 0.5 * parameter, rtol=1e-4, atol=1e-6)
                checked.add("sigma")
        elif parameter.shape == (2, 32) and not torch.allclose(added, torch.zeros_like(added), atol=1e-6):
            defect = parameter @ parameter.T - torch.eye(2)
            torch.testing.assert_close(added, 0.25 * 2 * defect @ parameter / defect.norm(), rtol=1e-3, atol=1e-5)
            checked.add("A")
    assert checked == {"head", "sigma", "A"}
