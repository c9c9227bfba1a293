"""Find out which public function of PEFT is running, where PEFT does not pass that on to the tuner."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any

from peft import PeftMixedModel, PeftModel, get_base_model_state_dict, set_base_model_state_dict

_LOADERS = tuple(
    getattr(model, name) for model in (PeftModel, PeftMixedModel) for name in ("load_adapter", "from_pretrained")
)


def in_loader() -> bool:
    """Whether PEFT is loading an adapter from files."""
    return _is_running(*_LOADERS)


def in_base_state_dict() -> bool:
    """Whether PEFT reads or writes the state dict of the base model."""
    return _is_running(get_base_model_state_dict, set_base_model_state_dict)


def _is_running(*functions: Callable[..., Any]) -> bool:
    codes = {getattr(function, "__func__", function).__code__ for function in functions}
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
