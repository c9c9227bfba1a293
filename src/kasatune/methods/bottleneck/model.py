"""`BottleneckModel`: the PEFT tuner that puts bottleneck adapters into a model."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import InputError, ModelError
from kasatune.methods.bottleneck.config import BottleneckConfig
from kasatune.methods.bottleneck.layer import NOT_MERGEABLE, BottleneckLayer
from kasatune.methods.bottleneck.places import block_index, find_places
from kasatune.peft_compat.tuner_bases import Tuner

_ADAPTERS = "bottleneck_adapter"
_NAME_IN_KEY = re.compile(rf"\.{_ADAPTERS}\.[^.]+\.(norm|down|up)\.")


class BottleneckModel(Tuner):
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
        """Find the places of a new adapter, or check those of the configuration."""
        if peft_config.places is not None:
            missing = sorted(set(peft_config.places) - {name for name, _ in model.named_modules()})
            if missing:
                raise ModelError(
                    f"places: {missing[0]} is no module of {type(model).__name__}"
                    + (f", nor are {len(missing) - 1} others" if len(missing) > 1 else "")
                    + "; give full module names, as in model.named_modules()"
                )
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
            layer = BottleneckLayer(target, block_index(current_key), _features(target))
            layer.train(target.training)
        widths = self._widths(layer.get_base_layer(), place, current_key)
        device, dtype = _placement(layer.get_base_layer(), parent)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        layer.update_layer(adapter_name, peft_config, place, widths, device, wide)
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

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Files have always had "default" in this place, whatever the name of the adapter in the model.
        return key.replace(f".{_ADAPTERS}.{adapter_name}.", f".{_ADAPTERS}.default.")

    @classmethod
    def _remap_adapter_state_dict_for_load(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: nn.Module, config: BottleneckConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The keys of the model; files of adapters with another name than "default" may hold that name."""
        named = {_NAME_IN_KEY.sub(rf".{_ADAPTERS}.default.\1.", key): tensor for key, tensor in state_dict.items()}
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, named)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast the adapter to the dtype of the base if autocast_adapter_dtype is False."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        for parent in list(self.modules()):
            for layer in parent.children():
                if isinstance(layer, BottleneckLayer) and adapter_name in layer.bottleneck_adapter:
                    _, dtype = _placement(layer.get_base_layer(), parent)
                    layer.bottleneck_adapter[adapter_name].to(dtype)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        """Refuse mixed batches; PEFT enters this context around every forward pass."""
        if kwargs.get("adapter_names") is not None:
            raise InputError(
                "adapter_names: bottleneck adapters act on the entire batch; run one batch for each adapter, with "
                "model.set_adapter(name)"
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise ModelError(NOT_MERGEABLE)

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        """Accept any number of adapters."""


def _placement(module: nn.Module, parent: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of the weights beside an adapter: of the module, or of its parent if it has none.

    The device is the CPU if no weight is loaded; the dtype is float32 if all weights are quantized.
    """
    weights = list(chain(module.parameters(), parent.parameters()))
    device = next((p.device for p in weights if not p.is_meta), torch.device("cpu"))
    return device, next((p.dtype for p in weights if p.is_floating_point()), torch.float32)


def _features(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer, quantized ones included; None for other modules."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    inside, outside = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (inside, outside) if isinstance(inside, int) and isinstance(outside, int) else None
