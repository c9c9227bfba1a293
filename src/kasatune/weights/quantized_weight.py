"""The weight matrix of any base layer, float or quantized, the latter through PEFT's quantization backends.

Private or undocumented parts of other libraries that this module relies on:

- `peft.utils.quantization_utils`: its backends are the only interface to a quantized weight that is common to
  bitsandbytes, torchao, HQQ and GPTQ, and PEFT does not document the module;
- `layer.state` and `weight.module` of bitsandbytes: where an 8-bit layer holds its statistics, and the layer that a
  4-bit weight reports its quantization to; both must be copied with a layer that gets another weight;
- `forward`, `_old_forward` and `_hf_hook` in a layer's `__dict__`: accelerate binds them to one layer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import ModelError
from kasatune.peft_compat.quantization_backends import (
    ForwardOnlyQuantizationBackend,
    HqqBackend,
    QuantizationBackend,
    TorchaoBackend,
    resolve_quantization_backend,
)
from kasatune.weights.base_weight import BaseWeight, Original
from kasatune.weights.bitsandbytes_cpu import dequantize_packed, is_packed

EXPORT = "export the adapter with export_adapter(model, out, to='lora') and serve it unmerged"

# A 16-bit kernel rounds each output once or twice; a layer that normalizes or quantizes its input is far outside.
LINEARITY = 3e-2
ROWS_AT_ONCE = 512


def weight_of(layer: nn.Module, **quantization: Any) -> BaseWeight:
    """The weight of a base layer; `quantization` as returned by `get_quantization_kwargs`."""
    return weight_with_backend(layer, quantization_backend(layer, **quantization))


def weight_with_backend(layer: nn.Module, backend: QuantizationBackend | None) -> BaseWeight:
    """The weight of a base layer whose backend is known, None for a float layer."""
    return BaseWeight(layer) if backend is None else QuantizedWeight(layer, backend)


def quantization_backend(layer: nn.Module, **quantization: Any) -> QuantizationBackend | None:
    """PEFT's quantization backend for a layer; None for a float layer and for layers that PEFT does not know.

    Args:
        layer: a base layer.
        quantization: as returned by `get_quantization_kwargs` for the model.
    """
    if type(layer) in (nn.Linear, Conv1D) and type(layer.weight) is nn.Parameter:
        # Saves a float model the import of every installed quantization package.
        return None
    try:
        backend = resolve_quantization_backend(layer, **quantization)
    except ValueError:
        # torchao's quantize_ was applied by hand: the model does not record how to quantize a merged weight again.
        backend = TorchaoBackend(None)
        backend.supports_merge = False
    return backend


class QuantizedWeight(BaseWeight):
    """The matrix W (out, in) that a quantized layer applies.

    Args:
        layer: the base layer.
        backend: PEFT's backend for it.
    """

    def __init__(self, layer: nn.Module, backend: QuantizationBackend) -> None:
        super().__init__(layer)
        self._backend = backend

    @property
    def backend(self) -> QuantizationBackend:
        """PEFT's quantization backend."""
        return self._backend

    @property
    def held_as(self) -> str:
        """The name of the quantization backend."""
        return self.backend.backend_name or "quantized"

    @property
    def bits(self) -> int:
        """Bits per entry."""
        if isinstance(self.backend, HqqBackend):
            return int(self.layer.quant_config["weight_quant_params"]["nbits"])
        if isinstance(self.backend, ForwardOnlyQuantizationBackend):
            return int(getattr(self.layer, "bits", 4))
        return 8 if "8" in self.held_as or "8" in type(self.layer.weight).__name__ else 4

    @property
    def device(self) -> torch.device:
        """The device the layer computes on."""
        if self.offloaded:
            return super().device
        device = next((t.device for t in self._tensors()), torch.device(getattr(self.layer, "device", "cpu")))
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the layer computes in."""
        compute = getattr(self.layer, "compute_dtype", None)
        if isinstance(compute, torch.dtype):
            return compute
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.float32)

    def read(self) -> Tensor:
        """W, dequantized, as a float tensor (out, in).

        Raises:
            ModelError: the layer cannot be dequantized.
        """
        if is_packed(self.layer):
            return dequantize_packed(self.layer)
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
        """Replace the base layer of `owner` by one that holds `matrix` (out, in), quantized again.

        The original layer is not modified: it is returned, with its quantized weight and statistics.

        Raises:
            ModelError: the backend cannot quantize a merged weight, or the layer is offloaded.
        """
        if not self.backend.supports_merge:
            raise ModelError(f"a {self._words()} layer cannot take a merged weight: {EXPORT}")
        if self.offloaded:
            raise ModelError(f"an offloaded {self._words()} layer cannot take a merged weight: {EXPORT}")
        original = self.layer
        try:
            owner.base_layer = _copy_sharing_tensors(original)
            self.backend.set_base_weight(owner, matrix.to(self.dtype))
        except BaseException:
            owner.base_layer = original
            raise
        if owner.base_layer.bias is None:
            # HQQ's backend creates a new layer without the bias.
            owner.base_layer.bias = original.bias
        return Original(original)

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


def _copy_sharing_tensors(layer: nn.Module) -> Any:
    """A copy of a quantized layer that shares its tensors and can be given another weight."""
    attributes = (value for value in vars(layer).values() if isinstance(value, Tensor))
    shared: dict[int, Any] = {id(t): t for t in (*layer.parameters(), *layer.buffers(), *attributes)}
    # These are written to when the copy gets its weight.
    weight, state = dict(layer.named_parameters(recurse=False)).get("weight"), getattr(layer, "state", None)
    is_4bit = hasattr(weight, "quant_state")
    if is_4bit:
        shared[id(weight)] = copy.copy(weight)
    if state is not None:
        shared[id(state)] = copy.copy(state)
    twin: Any = copy.deepcopy(layer, shared)
    if is_4bit:
        twin.weight.module = twin
    for name in ("forward", "_old_forward", "_hf_hook"):
        twin.__dict__.pop(name, None)
    return twin
