"""The weight of a quantized base layer, through PEFT's quantization backends."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from peft.utils.quantization_utils import (
    ForwardOnlyQuantizationBackend,
    HqqBackend,
    QuantizationBackend,
    TorchaoBackend,
    resolve_quantization_backend,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import ModelError
from kasatune.weights import packed_4bit
from kasatune.weights.base_weight import BaseWeight, Original

EXPORT = "export the adapter with export_adapter(model, out, to='lora') and serve it beside the base"

# A kernel in 16 bits rounds each output once or twice; a layer that normalizes or quantizes its input is far outside.
LINEARITY = 3e-2
ROWS_AT_ONCE = 512


def quantization_backend(layer: nn.Module, **quantization: Any) -> QuantizationBackend | None:
    """PEFT's backend of a layer; None for a float layer, and for layers that PEFT does not know.

    Args:
        layer: a base layer.
        quantization: what `peft.utils.get_quantization_kwargs` finds on the model.
    """
    if type(layer) in (nn.Linear, Conv1D) and type(layer.weight) is nn.Parameter:
        # Spares a float model the import of every quantization package that is installed.
        return None
    try:
        backend = resolve_quantization_backend(layer, **quantization)
    except ValueError:
        # torchao's quantize_ was applied by hand: nothing on the model says how to quantize a merged weight again.
        backend = TorchaoBackend(None)
        backend.supports_merge = False
    return backend


class QuantizedWeight(BaseWeight):
    """The matrix W (out, in) that a quantized layer applies.

    Args:
        layer: the base layer.
        backend: PEFT's backend of it.
    """

    def __init__(self, layer: nn.Module, backend: QuantizationBackend) -> None:
        super().__init__(layer)
        self.backend: QuantizationBackend = backend

    @property
    def held_as(self) -> str:
        """The name of the quantization backend."""
        return self.backend.backend_name or "quantized"

    @property
    def bits(self) -> int:
        """Bits of an entry."""
        if isinstance(self.backend, HqqBackend):
            return int(self.layer.quant_config["weight_quant_params"]["nbits"])
        if isinstance(self.backend, ForwardOnlyQuantizationBackend):
            return int(getattr(self.layer, "bits", 4))
        return 8 if "8" in self.held_as or "8" in type(self.layer.weight).__name__ else 4

    @property
    def device(self) -> torch.device:
        """Where the layer computes."""
        if self.offloaded:
            return super().device
        held = next((t.device for t in self._tensors()), torch.device(getattr(self.layer, "device", "cpu")))
        return torch.device("cpu") if held.type == "meta" else held

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the layer computes in."""
        compute = getattr(self.layer, "compute_dtype", None)
        if isinstance(compute, torch.dtype):
            return compute
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    def read(self) -> Tensor:
        """W as a float tensor (out, in).

        Raises:
            ModelError: the layer cannot give its weight back.
        """
        if packed_4bit.is_packed(self.layer):
            return packed_4bit.dequantized(self.layer)
        if isinstance(self.backend, ForwardOnlyQuantizationBackend):
            return self._read_from_outputs()
        try:
            return self.backend.get_base_weight(self.layer).detach()
        except (TypeError, NotImplementedError) as fault:
            raise ModelError(
                f"the weight of a {self._words()} layer cannot be read: {fault}. Quantize with bitsandbytes, HQQ or "
                "torchao's int8 weight-only, or load the base in 16 bits"
            ) from fault

    def replace(self, matrix: Tensor, owner: Any) -> Original:
        """Put a layer that holds `matrix` (out, in), quantized again, in the place of the base layer.

        The original layer is set aside whole, with its quantized weight and all that belongs to it.

        Raises:
            ModelError: the backend cannot quantize a merged weight.
        """
        if not self.backend.supports_merge:
            raise ModelError(f"a {self._words()} layer cannot take a merged weight: {EXPORT}")
        if self.offloaded:
            raise ModelError(f"an offloaded {self._words()} layer cannot take a merged weight: {EXPORT}")
        twin = _twin(self.layer)
        holder = SimpleNamespace(base_layer=twin, get_base_layer=lambda: twin)
        self.backend.set_base_weight(holder, matrix.to(self.dtype))
        if holder.base_layer.bias is None:
            # HQQ makes a new layer, without the bias.
            holder.base_layer.bias = self.layer.bias
        owner.base_layer = holder.base_layer
        return Original(self.layer)

    def read_original(self, original: Original) -> Tensor:
        """W as it was before `replace`."""
        assert isinstance(original.held, nn.Module)
        return QuantizedWeight(original.held, self.backend).read()

    def restore(self, original: Original, owner: Any) -> None:
        """Undo `replace`."""
        owner.base_layer = original.held

    def _tensors(self) -> list[Tensor]:
        return [*self.layer.parameters(), *self.layer.buffers()]

    def _words(self) -> str:
        return f"{self.held_as} ({type(self.layer).__name__})"

    @torch.no_grad()
    def _read_from_outputs(self) -> Tensor:
        """W = [ layer(e_1) - b ... layer(e_in) - b ], e_i the unit vectors: for backends that only have a forward."""
        rows, columns = self.shape
        dtype = self.dtype if self.dtype in (torch.float16, torch.bfloat16) else torch.float32
        b = self.layer(torch.zeros(1, columns, dtype=dtype, device=self.device)).float()
        units = torch.eye(columns, dtype=dtype, device=self.device)
        W = torch.cat([self.layer(part).float() - b for part in units.split(ROWS_AT_ONCE)]).mT.contiguous()
        probe = torch.randn(4, columns, generator=torch.Generator().manual_seed(0)).to(self.device, dtype)
        expected = probe.float() @ W.mT + b
        error = float((self.layer(probe).float() - expected).norm() / expected.norm().clamp_min(1e-30))
        if W.shape != (rows, columns) or error > LINEARITY:
            raise ModelError(
                f"a {self._words()} layer does more than W x + b (its output is off by {error:.2g} of its norm), so "
                "there is no weight to decompose: leave it out of target_modules, or load the base in 16 bits"
            )
        return W


def _twin(layer: nn.Module) -> Any:
    """A copy of a quantized layer that shares every tensor with it and can be given another weight."""
    twin: Any = copy.copy(layer)
    twin._parameters, twin._buffers = dict(layer._parameters), dict(layer._buffers)
    # accelerate binds a hooked forward to the layer that it was made for.
    for name in ("forward", "_old_forward", "_hf_hook"):
        twin.__dict__.pop(name, None)
    if hasattr(layer, "state"):
        twin.state = copy.copy(layer.state)
    weight: Any = layer._parameters.get("weight")
    if hasattr(weight, "quant_state"):
        twin._parameters["weight"] = weight = copy.copy(weight)
        weight.module = twin
    return twin
