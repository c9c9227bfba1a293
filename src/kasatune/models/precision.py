"""Resolve `training.precision: auto`: bfloat16 where the device multiplies it in hardware, otherwise float32."""

from __future__ import annotations

import torch

from kasatune.distributed.fsdp import deepspeed_requested
from kasatune.io.environment import processor_features
from kasatune.models.device import find_device
from kasatune.recipes.schema import Recipe

AUTO = "auto"
_AMPERE = 8  # major number of the compute capability


def with_precision(recipe: Recipe) -> tuple[Recipe, str | None]:
    """The recipe with the precision that "auto" stands for on this machine, and a sentence that says which and why.

    A recipe that names its precision is returned unchanged, with None.

    Raises:
        RecipeError: this machine does not have the device that the recipe names.
    """
    training = recipe.training
    if training.precision != AUTO:
        return recipe, None
    precision, reason = _choose(find_device(training))
    chosen = recipe.model_copy(update={"training": training.model_copy(update={"precision": precision})})
    return chosen, f"training.precision: auto chose {precision}: {reason}"


def _choose(device: torch.device) -> tuple[str, str]:
    if deepspeed_requested():
        return "float32", "DeepSpeed would cast the base and the adapter"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        if major >= _AMPERE and torch.cuda.is_bf16_supported():
            return "bfloat16", f"{name} multiplies it in hardware"
        return "float32", f"{name} (compute capability {major}.{minor}) is older than Ampere; float16 may overflow"
    if device.type == "cpu":
        features = processor_features()
        if "amx_bf16" in features:
            return "bfloat16", "this processor has AMX-BF16"
        if "avx512_bf16" in features:
            return "bfloat16", "this processor has AVX512-BF16"
        return "float32", "this processor has neither AVX512-BF16 nor AMX-BF16"
    return "float32", f"16 bits on {device.type} are not tested"
