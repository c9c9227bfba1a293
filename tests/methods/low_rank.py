"""Attach a method to a small model in float64 with random trained tensors, and call its callbacks."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import transformers as tf
from torch import nn

from kasatune import methods
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import MethodSection
from tests.methods.bottleneck.models import make

LAYER = "base_model.model.bert.encoder.layer.1.attention.self.query"


def attached(name, architecture="bert", *, r=4, alpha=8, drawn=True, seed=0, **options) -> nn.Module:
    """The method on a fresh model in float64, in evaluation mode."""
    torch.manual_seed(seed)
    section = MethodSection(name=name, r=r, alpha=alpha, options=options)
    model = methods.load(name).attach(make(architecture).double(), section, "classification", ["classifier"]).eval()
    if drawn:
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter.copy_(torch.randn(parameter.shape))
    return model


def state(step: int, seed: int = 0) -> SimpleNamespace:
    """The arguments that a trainer passes to a callback at a step."""
    return SimpleNamespace(
        args=SimpleNamespace(seed=seed), state=SimpleNamespace(global_step=step), control=tf.TrainerControl()
    )


def begin(callback, step: int, seed: int = 0, **given) -> None:
    at = state(step, seed)
    callback.on_step_begin(at.args, at.state, at.control, **given)


def end(callback, step: int) -> None:
    at = state(step)
    callback.on_step_end(at.args, at.state, at.control)
