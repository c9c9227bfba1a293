"""Quantization settings for `from_pretrained`, from the names in a recipe: nf4, int8, torchao-int8."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from kasatune.errors import InputError, MissingExtraError

_PACKAGES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}


def quantization_config(name: str, *, keep: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> Any | None:
    """The `quantization_config` of transformers' `from_pretrained` for a quantization named in a recipe.

    Args:
        name: "none", "nf4" (bitsandbytes, 4 bits), "int8" (bitsandbytes) or "torchao-int8" (weights only).
        keep: names of modules that are not quantized, such as a head that is trained in full.
        dtype: dtype in which a 4-bit layer computes.

    Returns:
        The configuration; None for "none".

    Raises:
        MissingExtraError: its package is not installed.
        InputError: unknown name.
    """
    if name == "none":
        return None
    if name not in _PACKAGES:
        raise InputError(f"quantization: {name!r} received; choose one of: none, {', '.join(_PACKAGES)}")
    if importlib.util.find_spec(_PACKAGES[name]) is None:
        raise MissingExtraError(f"quantization {name} ({_PACKAGES[name]})", "quant")
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=list(keep),
        )
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(keep))
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(keep))
