"""`BottleneckLayer`: a module of a model with bottleneck adapters on its input, on its output or parallel to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.methods.bottleneck.adapter import Bottleneck
from kasatune.methods.bottleneck.config import BottleneckConfig
from kasatune.peft_compat.tuner_bases import TunerLayer

NOT_MERGEABLE = "a bottleneck adapter is not linear: there is no base weight that it could be added to"


class BottleneckLayer(nn.Module, TunerLayer):
    """M'(x), by the place of the adapter g on the module M, with scaling s.

    output: h + s g(h), h = M(x)
    input: M(x + s g(x))
    parallel: M(x) + s g(x)
    norm: M(x + s g(M(x))), M a LayerNorm: the adapter reads M(x)

    If a module returns a tuple, its first entry is adapted. If M is a complete block, the hidden states that a model
    collects (`output_hidden_states`) are those before the adapter.

    Args:
        base_layer: M.
        block: number of the transformer block that M is or belongs to; None outside the blocks.
        features: (in, out) of M; None if M is not linear.
    """

    adapter_layer_names = ("bottleneck_adapter",)
    other_param_names = ("scaling", "place", "skip_blocks", "created_on")

    base_layer: nn.Module
    bottleneck_adapter: nn.ModuleDict

    def __init__(self, base_layer: nn.Module, block: int | None, features: tuple[int, int] | None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.block = block
        if features is not None:
            self.in_features, self.out_features = features
        self.bottleneck_adapter = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.place: dict[str, str] = {}
        self.skip_blocks: dict[str, int] = {}
        self.created_on: dict[str, torch.device] = {}
        self.skip_in_training = 0
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = []

    def update_layer(
        self,
        adapter_name: str,
        config: BottleneckConfig,
        place: str,
        widths: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its configuration.
            place: "output", "norm", "input" or "parallel".
            widths: its input and output widths.
            device: where the module computes.
            dtype: of the adapter's parameters.
        """
        self.bottleneck_adapter[adapter_name] = Bottleneck(*widths, config.shape, device, dtype)
        self.scaling[adapter_name] = config.scaling
        self.place[adapter_name] = place
        self.skip_blocks[adapter_name] = config.skip_blocks
        self.created_on[adapter_name] = device
        self.set_adapter(self.active_adapters)

    def acting(self) -> list[str]:
        """The adapters that take part in this forward pass."""
        if self._disable_adapters:
            return []
        names = [name for name in self.active_adapters if name in self.bottleneck_adapter]
        if self.block is None:
            return names
        if self.training:
            return names if self.block >= self.skip_in_training else []
        return [name for name in names if self.block >= self.skip_blocks[name]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """M' for the arguments of M, of which x is the first."""
        names = self.acting()
        for name in names:
            if self.place[name] == "input":
                args = (self._added(args[0], name, args[0]), *args[1:])
            elif self.place[name] == "norm":
                args = (self._added(args[0], name, self.base_layer(args[0])), *args[1:])
        result = self.base_layer(*args, **kwargs)
        for name in names:
            if self.place[name] == "output":
                result = _first(result, lambda h, name=name: self._added(h, name, h))
            elif self.place[name] == "parallel":
                result = self._added(result, name, args[0])
        return result

    def _added(self, stream: Tensor, name: str, read: Tensor) -> Tensor:
        """`stream` + s g(`read`), in the dtype of `stream`."""
        return (stream + self.scaling[name] * self.bottleneck_adapter[name](read)).to(stream.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            ModelError: always.
        """
        raise ModelError(NOT_MERGEABLE)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the device of M, or to that of its creation if M has no weights."""
        if adapter_name not in self.bottleneck_adapter:
            return
        loaded = next((p.device for p in self.base_layer.parameters() if not p.is_meta), self.created_on[adapter_name])
        adapter = self.bottleneck_adapter[adapter_name]
        if not any(parameter.is_meta for parameter in adapter.parameters()):
            adapter.to(loaded if device is None else device)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the base that models read from a block, such as its kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def _first(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)
