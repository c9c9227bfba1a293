"""EVA: LoRA whose A starts in the leading directions of the activations of training rows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_eva_state_dict
from torch import Tensor, nn

from kasatune.errors import DataError, ModelError
from kasatune.methods.lora import ADAPTER_NAME, Lora, lora_layers
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.starting_factors import computed_once, first_rows
from kasatune.methods.table import METHODS

_PASSES = 50  # over the rows, after which directions that still rotate are given up


class Eva(Lora):
    """y = W x + s B A drop(x); A starts with the r leading right singular vectors of the layer's inputs, B at 0.

    The vectors are those of an incremental principal component analysis of the inputs on `samples` training rows, which
    ends when every vector has turned by less than a cosine similarity of `tau` within a batch. In tasks that generate
    text, only the tokens of answers are read. The result is a plain LoRA of rank r on the untouched base.

    Every layer has rank r. The authors also redistribute ranks between layers (rho = 2), which depends on the data and
    is not offered here.

    Source: Paischer et al., arXiv 2410.07170; computed by PEFT.
    """

    info = METHODS["eva"]

    def prepare(self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """See `Method.prepare`: A."""
        components = computed_once(lambda: _components(model, settings, batches))
        with torch.no_grad():
            for name, layer in lora_layers(model):
                layer.lora_A[ADAPTER_NAME].weight.copy_(components[name])


def _components(model: Any, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The r leading directions of every layer's inputs, (r, in), by layer name.

    Raises:
        DataError: there are no rows, or too few tokens for r directions.
        ModelError: a layer has fewer than r inputs, or never runs.
    """
    rows = [_with_token_labels(batch) for batch in first_rows(batches, settings.options["samples"])]
    if not rows:
        raise DataError("method 'eva' computes directions of activations from training rows, and there are none")
    for name, layer in lora_layers(model):
        if settings.r > layer.in_features:
            raise ModelError(f"method.r: {settings.r} received; {name} has only {layer.in_features} inputs; lower r")
    answers = "labels" in rows[0]
    config = LoraConfig(
        r=settings.r,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, tau=settings.options["tau"], use_label_mask=answers),
    )
    left = _PASSES * len(rows) + 1

    def forward(module: nn.Module, inputs: dict[str, Tensor]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise DataError(
                f"method 'eva': the {settings.r} leading directions of the activations have not settled after "
                f"{_PASSES} passes over {len(rows)} batches of training rows; a batch needs at least r tokens: raise "
                "training.batch_size, lower method.r, or lower method.options.tau"
            )
        module(**{key: value for key, value in inputs.items() if key != "labels"})

    training = {module: module.training for module in model.modules()}
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with contextlib.redirect_stdout(io.StringIO()):  # PEFT prints a line for every batch that it leaves out
        directions = get_eva_state_dict(
            model, rows, config, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
        )
    for module, mode in training.items():
        module.training = mode
    for parameter, requires_grad in trained.items():
        parameter.requires_grad_(requires_grad)
    return {name: vectors.float().cpu() for name, vectors in directions.items()}


def _with_token_labels(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch; labels that are not one for each token are left out, since they cannot select tokens."""
    shape = batch["attention_mask"].shape
    return {key: value for key, value in batch.items() if key != "labels" or value.shape == shape}


METHOD = Eva()
