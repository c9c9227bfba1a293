"""What truncation would do to a base model: its loss with the tails of KaSA dropped, by kind of layer and by choice."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from kasatune.evaluation.batches import evaluation_mode
from kasatune.evaluation.causal_loss import token_losses
from kasatune.io.library_noise import quiet
from kasatune.io.progress import progress_counter
from kasatune.kasa import KasaConfig, KasaLayer
from kasatune.kasa.layer import kasa_layers
from kasatune.kasa.targets import targets_of_base
from kasatune.kasa.truncation.measure_activations import measure
from kasatune.kasa.truncation.self_written_text import LENGTH, generate_text
from kasatune.linalg.leading_directions import InputMoments
from kasatune.models.load import load_base
from kasatune.recipes.sections import ModelSection

_ADAPTER = "default"
_CHOICES = ("magnitude", "activation")  # "sensitivity" would need labelled rows
_SCORED, _CALIBRATION = 1, 0  # seeds of the texts


def measure_truncation(base: str, *, r: int = 8, targets: str = "all-linear") -> dict[str, Any]:
    """Measure what dropping a component of rank r from every linear layer of a causal language model does to it.

    The model generates two texts of 16 x 96 tokens: activations are measured on one, losses on the other. Both choices
    of the component are measured, "magnitude" (KaSA as published) and "activation".

    Args:
        base: hub id, folder, GGUF file or package:NAME.
        r: rank of the component.
        targets: "all-linear", or a regular expression that matches the names of the layers.

    Returns:
        Plain data: `base`, `r`, `tokens`; `loss` of the untouched base, in nats per token of text that it wrote;
        `losses`, with the layers of one kind truncated (`layers`: the last part of their names, or "all"), for each
        choice; `layers`: name, shape, and by choice the share E||T x||^2 / E||W x||^2 of the layer's output that is
        dropped.

    Raises:
        ModelError: the model cannot be found or generates no text, or r is too large for a layer.
    """
    section = ModelSection.model_validate({"name": base})
    loaded = load_base(section, kind="generation", label_names=None, seed=0, max_length=LENGTH)
    model: Any = loaded.model
    config = KasaConfig(r=r, target_modules=targets)
    with quiet():
        text, calibration = (generate_text(model, seed) for seed in (_SCORED, _CALIBRATION))
        weights = {target.name: target.weight for target in targets_of_base(copy.deepcopy(config), model)}
        activations = measure(model, weights, ({"input_ids": rows} for rows in calibration.split(4)), inputs=True)
        result: dict[str, Any] = {"base": base, "r": r, "tokens": text.numel(), "loss": _loss(model, text)}
        kinds = list(dict.fromkeys(map(_kind, weights)))
        losses: dict[str, dict[str, Any]] = {kind: {"layers": kind} for kind in [*kinds, "all"]}
        layers = {name: {"name": name, "shape": list(weight.shape)} for name, weight in weights.items()}
        with progress_counter("measuring truncated models", len(_CHOICES) * len(losses)) as advance:
            for choice in _CHOICES:
                attached = copy.deepcopy(config)
                attached.truncate_by, attached.activations = choice, activations
                adapted = get_peft_model(model, attached)
                for name, layer in kasa_layers(adapted):
                    layers[name][choice] = _dropped_share(layer, activations.inputs[name])
                for kind in losses:
                    with _only(adapted, kind):
                        losses[kind][choice] = _loss(adapted, text)
                    advance()
                model = adapted.unload()
    return {**result, "losses": list(losses.values()), "layers": list(layers.values())}


@contextmanager
def _only(model: nn.Module, kind: str) -> Generator[None]:
    """A context in which only the layers of one kind drop their tails; "all" for every layer."""
    others = [layer.kasa_tail_U[_ADAPTER] for name, layer in kasa_layers(model) if kind not in ("all", _kind(name))]
    tails = [tail.data for tail in others]
    for tail in others:
        tail.data = torch.zeros_like(tail)
    yield
    for tail, data in zip(others, tails, strict=True):
        tail.data = data


def _kind(name: str) -> str:
    """The last part of a layer's name."""
    return name.rpartition(".")[2]


def _loss(model: Any, text: Tensor) -> float:
    total = 0.0
    with evaluation_mode(model, "float32") as device:
        for rows in text.to(device).split(4):
            total += float(token_losses(model(input_ids=rows).logits, rows))
    return total / (text.shape[0] * (text.shape[1] - 1))


@torch.no_grad()
def _dropped_share(layer: KasaLayer, inputs: InputMoments) -> float:
    """E||T x||^2 / E||W x||^2 on the calibration text; 0 where the layer's output is zero."""
    T, W = layer.tail(_ADAPTER).double(), layer.original_weight().double()
    dropped, total = (_energy(matrix, inputs) for matrix in (T, W))
    return dropped / total if total > 0 else 0.0


def _energy(matrix: Tensor, inputs: InputMoments) -> float:
    """Trace(M C M^T) of a matrix M (out, in)."""
    if inputs.moments is None:
        assert inputs.rows is not None
        return float((inputs.rows.to(matrix) @ matrix.mT).square().sum()) / inputs.tokens
    return float((matrix @ inputs.moments.to(matrix) * matrix).sum())
