"""The penalty under transformers' Trainer, with no line changed but the configuration."""

import pytest
import torch

from kasatune import regularization
from tests.kasa.penalty_probe import adapted, assert_penalized_once, no_warning, trainable
from tests.kasa.penalty_trainers import fit, labelled


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_trainer(tmp_path, accumulation):
    with no_warning():
        seen, _ = fit(adapted(), tmp_path, accumulation=accumulation)
    task, _ = fit(adapted(penalty="none"), tmp_path, accumulation=accumulation)
    assert_penalized_once(seen, task)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing_factor": 0.1},
        {"max_grad_norm": 0.1},
        {"optim": "adamw_torch_fused", "bf16": True},
        {"gradient_checkpointing": True},
        {"trainer_settings": {"compute_loss_func": lambda outputs, labels, **_: outputs.logits.square().mean()}},
    ],
    ids=["label smoothing", "clipping", "fused bfloat16", "checkpointing", "own loss"],
)
def test_trainer_with_options_that_bypass_the_model_s_loss(tmp_path, settings):
    seen, _ = fit(adapted(), tmp_path, steps=2, **settings)
    task, _ = fit(adapted(penalty="none"), tmp_path, steps=2, **settings)
    assert_penalized_once(seen, task)


def test_losses_that_trainer_reports_are_the_task_s(tmp_path):
    trainers = {p: fit(adapted(penalty=p), tmp_path, accumulation=2)[1] for p in ("step", "loss", "none")}
    assert regularization(trainers["step"].model).item() > 100
    logged = {p: [row["loss"] for row in t.state.log_history if "loss" in row] for p, t in trainers.items()}
    evaluated = {p: t.evaluate()["eval_loss"] for p, t in trainers.items()}
    assert len(logged["step"]) == 3
    assert logged["step"] == logged["loss"] == logged["none"]
    assert evaluated["step"] == evaluated["loss"] == evaluated["none"] < 20


def test_resuming_from_a_checkpoint_goes_on_with_the_penalty(tmp_path):
    settings = {"steps": 4, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2}
    whole, trainer = fit(adapted(), tmp_path / "a", **settings)
    assert len(whole) == 4
    seen, resumed = fit(adapted(), tmp_path / "b", resume=f"{tmp_path}/a/checkpoint-2", draw=False, **settings)
    assert len(seen) == 2
    for step, reference in zip(seen, whole[2:], strict=True):
        for name, gradient in reference.gradients.items():
            torch.testing.assert_close(step.values[name], reference.values[name])
            torch.testing.assert_close(step.gradients[name], gradient)
    assert trainer.state.global_step == resumed.state.global_step == 4


def test_trainer_goes_where_the_penalty_in_the_loss_leads(tmp_path):
    model = adapted()
    fit(model, tmp_path, steps=3, learning_rate=1e-3, max_grad_norm=0.0, train_sampling_strategy="sequential")
    by_hand = adapted(penalty="loss")
    optimizer = torch.optim.SGD(trainable(by_hand), lr=1e-3)
    data = labelled()
    for step in range(3):
        pieces = data[8 * step : 8 * step + 8]
        batch = {key: torch.stack([piece[key] for piece in pieces]) for key in pieces[0]}
        (by_hand(**batch).loss + regularization(by_hand)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, got), wanted in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6, msg=name)
