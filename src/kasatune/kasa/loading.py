"""Adapter weights on their way into a model: is this a load, and is what arrives whole?"""

from __future__ import annotations

import sys
from types import CodeType

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.integrations.peft import PeftAdapterMixin

from kasatune.errors import AdapterError
from kasatune.kasa.layer import KasaLayer


def _code(function: object) -> CodeType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(function, "__func__", function).__code__  # pyright: ignore[reportAttributeAccessIssue]


_LOADERS = {_code(PeftModel.from_pretrained), _code(PeftModel.load_adapter), _code(PeftAdapterMixin.load_adapter)}


def is_loading() -> bool:
    """Whether PEFT or transformers is loading an adapter's files further up the call stack.

    PEFT makes the layers of an adapter in the same way whether weights follow or not, and hands its tuner no sign of
    it. A load must not decompose, and a loaded configuration that is used for a fresh adapter must.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _LOADERS:
            return True
        frame = frame.f_back
    return False


def makes_empty_weights() -> bool:
    """Whether new parameters go to the meta device just now, as under low_cpu_mem_usage: weights will follow."""
    probe = nn.Module()
    probe.register_parameter("weight", nn.Parameter(torch.empty(1)))
    return probe.get_parameter("weight").is_meta


def validated(model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]) -> list[KasaLayer]:
    """The KaSA layers of an adapter, once `state_dict` (model keys) was found to hold all of their tensors.

    Raises:
        AdapterError: tensors that are missing, unknown, of another shape, or not finite; named, at most five.
    """
    layers, expected = [], {}
    for name, layer in model.named_modules():
        if isinstance(layer, KasaLayer) and adapter_name in layer.kasa_A:
            layers.append(layer)
            for kind in layer.adapter_layer_names:
                expected[f"{name}.{kind}.{adapter_name}"] = getattr(layer, kind)[adapter_name]
    faults = []
    for key, parameter in expected.items():
        if key not in state_dict:
            faults.append(f"{key} is missing")
        elif state_dict[key].shape != parameter.shape:
            faults.append(
                f"{key} has shape {list(state_dict[key].shape)}, the model and the configuration give "
                f"{list(parameter.shape)}"
            )
        elif not state_dict[key].is_floating_point() or not bool(torch.isfinite(state_dict[key]).all()):
            faults.append(f"{key} holds NaN, Inf or no floating-point numbers")
    faults += [f"{key} belongs to no layer of the model" for key in state_dict if _is_stray(key, expected)]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise AdapterError("this adapter cannot be loaded: " + "; ".join(faults[:5]) + more)
    return layers


def _is_stray(key: str, expected: dict[str, Tensor]) -> bool:
    return key not in expected and any(f".{kind}" in key for kind in KasaLayer.adapter_layer_names)
