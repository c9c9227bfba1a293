"""Find out which public function of PEFT, or trainer of TRL, is running, where PEFT does not tell the tuner."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import peft
from peft import PeftMixedModel, PeftModel

_LOADERS = tuple(
    getattr(model, name) for model in (PeftModel, PeftMixedModel) for name in ("load_adapter", "from_pretrained")
)

_BASE_FUNCTIONS = tuple(
    getattr(peft, name)
    for name in ("get_base_model_state_dict", "set_base_model_state_dict")
    if hasattr(peft, name)  # since PEFT 0.20
)

REFERENCE_TRAINERS = frozenset(f"trl.trainer.{name}_trainer" for name in ("dpo", "grpo", "kto", "rloo"))
"""Modules of the TRL trainers whose reference is an adapter "ref", or the model with its adapter switched off."""


def in_loader() -> bool:
    """Whether PEFT is loading an adapter from files."""
    return _is_running(*_LOADERS)


def in_base_state_dict() -> bool:
    """Whether PEFT reads or writes the state dict of the base model."""
    return _is_running(*_BASE_FUNCTIONS)


def reference_trainer() -> Mapping[str, Any] | None:
    """The arguments of the TRL trainer with a reference model that is being created; None if none is."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "__init__" and frame.f_globals.get("__name__") in REFERENCE_TRAINERS:
            return frame.f_locals
        frame = frame.f_back
    return None


def _is_running(*functions: Callable[..., Any]) -> bool:
    codes = {getattr(function, "__func__", function).__code__ for function in functions}
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
