"""`BottleneckModel`: the PEFT tuner that puts bottleneck adapters into a model."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import ModelError
from kasatune.methods.bottleneck.config import BottleneckConfig
from kasatune.methods.bottleneck.layer import NOT_MERGEABLE, BottleneckLayer
from kasatune.methods.bottleneck.places import block_index, find_places


class BottleneckModel(BaseTuner):
    """h <- h + s g(h) in every block of a model; made by `peft.get_peft_model(base, BottleneckConfig(...))`.

    Raises:
        ModelError: the architecture is not known, or a merge is requested.
    """

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - an attribute of instances in PEFT

    def _prepare_adapter_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, peft_config: BottleneckConfig, model_config: dict[str, Any]
    ) -> BottleneckConfig:
        return peft_config

    def _prepare_model(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, peft_config: BottleneckConfig, model: nn.Module
    ) -> None:
        """Find the places of a new adapter; a loaded configuration already has them."""
        if peft_config.places is not None:
            return
        places = find_places(model, peft_config.kind)
        peft_config.places = {
            name: how for name, how in places.items() if (block_index(name) or 0) >= peft_config.first_block
        }
        if not peft_config.places:
            raise ModelError(
                f"first_block: {peft_config.first_block} received; {type(model).__name__} has no such block; lower it"
            )

    @staticmethod
    def _check_target_module_exists(  # pyright: ignore[reportIncompatibleMethodOverride]
        peft_config: BottleneckConfig, key: str
    ) -> bool:
        return key in (peft_config.places or {})

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        place = (peft_config.places or {})[current_key]
        layer = target
        if not isinstance(layer, BottleneckLayer):
            layer = BottleneckLayer(target, block_index(current_key))
            layer.train(target.training)
        widths = self._widths(layer.get_base_layer(), place, current_key)
        # A dropout has no weights: its neighbours give the device and the dtype.
        neighbour = next(chain(target.parameters(), parent.parameters()), torch.empty(0))
        dtype = torch.float64 if neighbour.dtype == torch.float64 else torch.float32
        layer.update_layer(adapter_name, peft_config, place, widths, neighbour.device, dtype)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _widths(self, module: nn.Module, place: str, name: str) -> tuple[int, int]:
        """The input and output widths of an adapter at this place."""
        features = _features(module)
        if place == "parallel" and features is not None:
            return features
        if features is not None:
            width = features[0] if place == "input" else features[1]
            return width, width
        config: Any = getattr(self.model, "config", None)
        width = getattr(config, "hidden_size", None)
        if place == "parallel" or not isinstance(width, int):
            raise ModelError(f"{name} is a {type(module).__name__}, whose width is not known; choose linear layers")
        return width, width

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise ModelError(NOT_MERGEABLE)

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        """Accept any number of adapters."""


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, quantized ones included; None for other modules."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    inside, outside = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inside, outside) if isinstance(inside, int) and isinstance(outside, int) else None
