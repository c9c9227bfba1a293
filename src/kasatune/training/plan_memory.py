"""A rough estimate of the peak memory of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kasatune.methods.table import METHODS
from kasatune.training.plan_layers import LayerPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from kasatune.recipes.schema import Recipe

_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
_QUANTIZED_WIDTH = {"nf4": 0.56, "int8": 1.0, "torchao-int8": 1.0}  # with the constants of each block
_FLOAT32 = 4


def estimate(
    recipe: Recipe, config: PreTrainedConfig, layers: Sequence[LayerPlan], parameters: int, trained: int
) -> dict[str, int] | None:
    """Bytes of weights, gradients, optimizer state and activations, and their sum.

    activations = layers b (17 t h + 2.5 a t^2) width, b rows of t tokens in a piece of a step, h hidden size, a heads:
    Korthikanti et al. (arXiv 2205.05198, eq. 1) count 34 and 5 bytes of float16; with gradient checkpointing one layer
    in full and t h of every other. A model that writes text adds its logits and their gradient, 2 b t v width, v the
    size of its vocabulary. AdamW holds two float32 values of each trained parameter.

    Returns:
        Bytes by name; None where the configuration does not tell the sizes.
    """
    sizes = [getattr(config, name, None) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    hidden, depth, heads = (int(size or 0) for size in sizes)
    training = recipe.training
    rows = training.batch_size // training.gradient_accumulation
    tokens = recipe.task.max_length
    width = min(_WIDTH[recipe.model.dtype], _WIDTH[training.precision])
    one_layer = rows * (17 * tokens * hidden + 2.5 * heads * tokens**2) * width
    kept = one_layer + depth * rows * tokens * hidden * width if training.gradient_checkpointing else depth * one_layer
    weights = _weights(recipe, layers, hidden, depth, parameters, trained)
    if recipe.generation is not None:
        kept += 2 * rows * tokens * int(getattr(config, "vocab_size", 0)) * width
    parts = {
        "weights": int(weights),
        "gradients": _FLOAT32 * trained,
        "optimizer": 2 * _FLOAT32 * trained,
        "activations": int(kept),
    }
    return {**parts, "total": sum(parts.values())}


def _weights(
    recipe: Recipe, layers: Sequence[LayerPlan], hidden: int, depth: int, parameters: int, trained: int
) -> float:
    width = _WIDTH[recipe.model.dtype]
    weights = float(parameters * width)
    if recipe.model.quantization != "none":
        blocks = min(parameters, 12 * hidden**2 * depth)  # quantizers leave embeddings, normalisations and head alone
        weights -= blocks * (width - _QUANTIZED_WIDTH[recipe.model.quantization])
    info = METHODS[recipe.method.name]
    if info.trains_base_weights:
        return weights
    frozen = info.frozen_rank * sum(layer.rank * sum(layer.shape) for layer in layers)
    return weights + _FLOAT32 * (trained + frozen)
