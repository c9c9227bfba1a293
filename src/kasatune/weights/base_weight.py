"""The weight under an adapter, read and replaced as a float matrix (out, in), whatever holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pointwise_dimensions(module: nn.Module) -> int:
    """The number of dimensions that a convolution with a kernel of 1 runs over, 1 or 2; 0 for any other module.

    Such a convolution is the linear layer y = W x + b at every place: one stride, no padding, one group.
    """
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups != 1:
        return 0
    unpadded = module.padding in ("same", "valid") or not any(module.padding)
    return len(module.kernel_size) if unpadded and {*module.kernel_size, *module.stride} == {1} else 0


def refusal(module: nn.Module) -> str | None:
    """Why a module that PEFT has no quantization backend for cannot be adapted, or None where it can."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the output projection of nn.MultiheadAttention, whose forward reads the weight and passes by the layer"
    if isinstance(module, nn.Linear | Conv1D) or pointwise_dimensions(module):
        weight: Any = module.weight
        plain = type(weight).__module__.partition(".")[0] == "torch"
        if weight.dtype in _FLOAT_DTYPES and plain:
            return None
        held = str(weight.dtype).removeprefix("torch.") if plain else type(weight).__name__
        return (
            f"a {kind} quantized to {held}, which PEFT has no backend for; quantize with bitsandbytes, torchao, HQQ "
            "or GPTQ, or load the base in 16 bits"
        )
    if isinstance(module, nn.Embedding):
        return (
            "an Embedding; KaSA adapts layers that multiply: a token reaches a single column of A, whose entries start "
            "at 1/sqrt(vocabulary). Train it whole with modules_to_save, or adapt it with LoRA in an adapter of its own"
        )
    if isinstance(module, _ConvNd):
        return (
            f"a {kind} (convolution) of kernel {list(module.kernel_size)}, stride {list(module.stride)}, groups "
            f"{module.groups}; KaSA adapts Conv1d and Conv2d of kernel 1, stride 1, no padding and one group, and "
            "transformers' Conv1D, which are linear"
        )
    return f"a {kind}; KaSA adapts linear layers: nn.Linear, transformers' Conv1D and their quantized forms"


@dataclass
class Original:
    """What was in the place of a weight that has been replaced, kept whole.

    Args:
        held: the parameter of a float layer, or the quantized layer itself.
    """

    held: nn.Parameter | nn.Module

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Take it along to another device or dtype; `fn` as in nn.Module._apply."""
        if isinstance(self.held, nn.Module):
            self.held._apply(fn)
        else:
            self.held.data = fn(self.held.data)


class BaseWeight:
    """The matrix W (out, in) of a float base layer: nn.Linear, transformers' Conv1D, a convolution of kernel 1.

    A quantized layer is a `QuantizedWeight`; `of` gives whichever it is.

    Args:
        layer: the base layer.
    """

    backend: QuantizationBackend | None = None

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.transposed = isinstance(layer, Conv1D)
        self.pointwise = pointwise_dimensions(layer)

    @classmethod
    def of(cls, layer: nn.Module, **quantization: Any) -> BaseWeight:
        """The weight of a layer, with its quantization backend looked up; `quantization` as PEFT gathers it."""
        from kasatune.weights.quantized_weight import quantization_backend  # it builds on this module

        return cls.held_by(layer, quantization_backend(layer, **quantization))

    @classmethod
    def held_by(cls, layer: nn.Module, backend: QuantizationBackend | None) -> BaseWeight:
        """The weight of a layer of a known backend, None for a float layer."""
        from kasatune.weights.quantized_weight import QuantizedWeight

        return BaseWeight(layer) if backend is None else QuantizedWeight(layer, backend)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if self.transposed:
            rows, columns = self.layer.weight.shape
            return columns, rows
        if self.pointwise:
            return self.layer.out_channels, self.layer.in_channels
        return self.layer.out_features, self.layer.in_features

    @property
    def held_as(self) -> str:
        """What holds the weight: "linear", "conv1d", "pointwise1d", "pointwise2d", or a quantization backend's name."""
        if self.pointwise:
            return f"pointwise{self.pointwise}d"
        return "conv1d" if self.transposed else "linear"

    @property
    def bits(self) -> int | None:
        """Bits of an entry of a quantized weight; None for a float weight."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the layer computes, also where its weight is offloaded; the CPU for a weight that is not loaded."""
        if has_offloaded_params(self.layer):
            return torch.device(self.layer._hf_hook.execution_device)
        device = self.layer.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the layer computes in."""
        return self.layer.weight.dtype

    @property
    def offloaded(self) -> bool:
        """Whether accelerate keeps the weight elsewhere between forward passes."""
        return has_offloaded_params(self.layer)

    @property
    def is_missing(self) -> bool:
        """Whether the weight is on the meta device with nothing behind it: a model that was built and not loaded."""
        return not self.offloaded and any(p.is_meta for p in self.layer.parameters(recurse=False))

    def read(self) -> Tensor:
        """W as a float tensor (out, in); a view of the weight where that is possible."""
        if not self.layer.weight.is_meta:
            # Also where accelerate keeps it elsewhere and somebody has it here just now, as PEFT does for a merge.
            return self.aligned(self.layer.weight.detach())
        with align_module_device(self.layer):
            return self.aligned(self.layer.weight.detach())

    def aligned(self, matrix: Tensor) -> Tensor:
        """A matrix (out, in) in the layout of the layer's own weight, or back."""
        if self.pointwise:
            return matrix.flatten(1) if matrix.ndim > 2 else matrix.reshape(*matrix.shape, *[1] * self.pointwise)
        return matrix.T if self.transposed else matrix

    def replace(self, matrix: Tensor, owner: nn.Module) -> Original:
        """Put `matrix` (out, in), rounded to the layer's dtype, in the place of W.

        The layer gets a parameter of its own: a weight tied to another module's stays what it is over there.

        Args:
            matrix: the new weight.
            owner: the adapter layer that holds the base layer.

        Returns:
            What `restore` needs to undo it bit for bit.
        """
        original = self.layer.weight
        new = self.aligned(matrix).to(original.dtype).contiguous()
        self.layer.weight = nn.Parameter(new, requires_grad=original.requires_grad)
        return Original(original)

    def read_original(self, original: Original) -> Tensor:
        """W as it was before `replace`."""
        assert isinstance(original.held, nn.Parameter)
        return self.aligned(original.held.detach())

    def restore(self, original: Original, owner: nn.Module) -> None:
        """Undo `replace`; whether the weight is trained is as it was last, since PEFT freezes the base in between."""
        trained = self.layer.weight.requires_grad
        self.layer.weight = original.held
        original.held.requires_grad_(trained)
