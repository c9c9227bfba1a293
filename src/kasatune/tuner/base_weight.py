"""The weight under an adapter, read and replaced as a float matrix (out, in), whatever holds it."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.quantization_utils import QuantizationBackend, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import ModelError


def refusal(module: nn.Module) -> str | None:
    """Why a module cannot be adapted, or None where it can."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the output projection of nn.MultiheadAttention, whose forward reads the weight and passes by the layer"
    if isinstance(module, nn.Linear | Conv1D):
        return None
    return f"a {type(module).__name__}; KaSA adapts Linear and Conv1D layers"


class BaseWeight:
    """The matrix W (out, in) of a base layer: nn.Linear, transformers' Conv1D, or a quantized linear layer.

    Args:
        layer: the base layer.
        backend: PEFT's quantization backend of it, None for a float layer.
    """

    def __init__(self, layer: nn.Module, backend: QuantizationBackend | None = None) -> None:
        self.layer = layer
        self.backend = backend
        self.transposed = isinstance(layer, Conv1D)

    @classmethod
    def of(cls, layer: nn.Module, **quantization: Any) -> BaseWeight:
        """The weight of a layer, with its quantization backend looked up; `quantization` as PEFT gathers it."""
        return cls(layer, resolve_quantization_backend(layer, **quantization))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if isinstance(self.layer, Conv1D):
            rows, columns = self.layer.weight.shape
            return columns, rows
        return self.layer.out_features, self.layer.in_features  # pyright: ignore[reportReturnType]

    @property
    def held_as(self) -> str:
        """What holds the weight: "linear", "conv1d", or the name of the quantization backend."""
        if self.backend is not None:
            return self.backend.backend_name or "quantized"
        return "conv1d" if self.transposed else "linear"

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return next(self.layer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the layer computes in."""
        compute = getattr(self.layer, "compute_dtype", None)
        if isinstance(compute, torch.dtype):
            return compute
        dtype = self.layer.weight.dtype
        return dtype if dtype.is_floating_point else torch.float32  # pyright: ignore

    def read(self) -> Tensor:
        """W as a float tensor (out, in); a view of the weight where that is possible.

        Raises:
            ModelError: the quantization backend cannot give its weight back.
        """
        if self.backend is None:
            weight = self.layer.weight.detach()  # pyright: ignore[reportCallIssue]
            return weight.T if self.transposed else weight
        try:
            return self.backend.get_base_weight(self.layer).detach()
        except (TypeError, NotImplementedError) as error:
            raise ModelError(
                f"{self.backend.backend_name} layers cannot be dequantized here: give the full-precision checkpoint "
                "with tail_source='checkpoint', or quantize with bitsandbytes or torchao"
            ) from error

    def aligned(self, matrix: Tensor) -> Tensor:
        """A matrix (out, in) in the layout of the layer's own weight."""
        return matrix.T if self.transposed else matrix

    def replace(self, matrix: Tensor, owner: nn.Module) -> Any:
        """Put `matrix` (out, in) in the place of W and return what `restore` needs to undo it bit for bit.

        Args:
            matrix: the new weight; rounded to the layer's dtype, or quantized again.
            owner: the adapter layer that holds the base layer.
        """
        if self.backend is None:
            original = self.layer.weight.data
            self.layer.weight.data = self.aligned(matrix).to(original.dtype).contiguous()  # pyright: ignore
            return original
        if not self.backend.supports_merge:
            raise ModelError(
                f"{self.backend.backend_name} layers cannot take a merged weight: export the adapter with "
                "export_adapter(model, out, to='lora') and serve it beside the base"
            )
        original = self.snapshot()
        self.backend.set_base_weight(owner, matrix.to(self.dtype))
        return original

    def snapshot(self) -> Any:
        """What `restore` needs to bring a quantized layer back to what it holds now."""
        return {"layer": self.layer, "weight": self.layer.weight}

    def restore(self, original: Any, owner: nn.Module) -> None:
        """Undo `replace`."""
        if self.backend is None:
            self.layer.weight.data = original
            return
        original["layer"].weight = original["weight"]
        owner.base_layer = original["layer"]
