"""The weight matrix of a float base layer: nn.Linear, transformers' Conv1D or a pointwise convolution.

Private parts of other libraries that this module relies on:

- `layer._hf_hook` of accelerate: the device on which an offloaded layer computes; there is no public accessor;
- `torch.nn.modules.linear.NonDynamicallyQuantizableLinear`: the only mark of nn.MultiheadAttention's output projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.peft_compat.quantization_backends import QuantizationBackend

_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def pointwise_dimensions(module: nn.Module) -> int:
    """The number of dimensions of a pointwise convolution, 1 or 2; 0 for any other module.

    With kernel 1, stride 1, no padding and one group, it is the linear layer y = W x + b at every position.
    """
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or module.groups != 1:
        return 0
    unpadded = module.padding in ("same", "valid") or not any(module.padding)
    return len(module.kernel_size) if unpadded and {*module.kernel_size, *module.stride} == {1} else 0


def refusal(module: nn.Module) -> str | None:
    """Why a module without a quantization backend cannot be adapted; None if it can."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the output projection of nn.MultiheadAttention, which reads the weight without calling the layer"
    if isinstance(module, nn.Linear | Conv1D) or pointwise_dimensions(module):
        weight: Any = module.weight
        plain = type(weight).__module__.partition(".")[0] == "torch"
        if weight.dtype in _FLOAT_DTYPES and plain:
            return None
        dtype = str(weight.dtype).removeprefix("torch.") if plain else type(weight).__name__
        return (
            f"a {kind} quantized to {dtype}, for which PEFT has no backend; quantize with bitsandbytes, torchao, HQQ "
            "or GPTQ, or load the base in 16 bits"
        )
    if isinstance(module, nn.Embedding):
        return (
            "an Embedding; KaSA adapts layers that multiply: a token reaches a single column of A, whose entries start "
            "at 1/sqrt(vocabulary). Train all of it with modules_to_save, or adapt it with LoRA in a separate adapter"
        )
    if isinstance(module, _CONVOLUTIONS):
        return (
            f"a {kind} (convolution) of kernel {list(module.kernel_size)}, stride {list(module.stride)}, groups "
            f"{module.groups}; KaSA adapts Conv1d and Conv2d of kernel 1, stride 1, no padding and one group, and "
            "transformers' Conv1D, which are linear"
        )
    return f"a {kind}; KaSA adapts linear layers: nn.Linear, transformers' Conv1D and their quantized forms"


@dataclass
class Original:
    """What `replace` removed from a layer, to be restored bit for bit.

    Args:
        held: the parameter of a float layer, or the quantized layer itself.
    """

    held: nn.Parameter | nn.Module

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply `fn` to it, as nn.Module._apply does when the model is moved or cast."""
        if isinstance(self.held, nn.Module):
            self.held._apply(fn)
        else:
            self.held.data = fn(self.held.data)


class BaseWeight:
    """The matrix W (out, in) of a base layer, read and replaced as float.

    This class is for float layers; `kasatune.weights.quantized_weight.weight_of` returns the right class for any layer.

    Args:
        layer: the base layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.transposed = isinstance(layer, Conv1D)
        self.pointwise = pointwise_dimensions(layer)

    @property
    def backend(self) -> QuantizationBackend | None:
        """PEFT's quantization backend; None for a float layer."""
        return None

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
        """The kind of layer: "linear", "conv1d", "pointwise1d", "pointwise2d", or a quantization backend's name."""
        if self.pointwise:
            return f"pointwise{self.pointwise}d"
        return "conv1d" if self.transposed else "linear"

    @property
    def bits(self) -> int | None:
        """Bits per entry of a quantized weight; None for a float weight."""
        return None

    @property
    def device(self) -> torch.device:
        """The device the layer computes on, even while its weight is offloaded; the CPU if it is not loaded."""
        if has_offloaded_params(self.layer):
            return torch.device(self.layer._hf_hook.execution_device)
        device = self.layer.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the layer computes in."""
        return self.layer.weight.dtype

    @property
    def offloaded(self) -> bool:
        """Whether accelerate offloads the weight between forward passes."""
        return has_offloaded_params(self.layer)

    @property
    def is_missing(self) -> bool:
        """Whether the weight is on the meta device without being offloaded: the model was built but not loaded."""
        return not self.offloaded and any(p.is_meta for p in self.layer.parameters(recurse=False))

    def read(self) -> Tensor:
        """W as a float tensor (out, in); a view of the weight where possible."""
        if not self.layer.weight.is_meta:
            # Also for an offloaded weight that is loaded at the moment, as PEFT does for a merge.
            return self.aligned(self.layer.weight.detach())
        with align_module_device(self.layer):
            return self.aligned(self.layer.weight.detach())

    def aligned(self, matrix: Tensor) -> Tensor:
        """Convert a matrix (out, in) to the layout of the layer's weight, or back."""
        if self.pointwise:
            return matrix.flatten(1) if matrix.ndim > 2 else matrix.reshape(*matrix.shape, *[1] * self.pointwise)
        return matrix.T if self.transposed else matrix

    def replace(self, matrix: Tensor, owner: nn.Module) -> Original:
        """Replace W by `matrix` (out, in), rounded to the layer's dtype.

        The layer gets a new parameter: another module that shares the old one keeps it.

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
        """Undo `replace`; the current requires_grad is kept, since PEFT may have frozen the base in between."""
        trained = self.layer.weight.requires_grad
        self.layer.weight = original.held
        original.held.requires_grad_(trained)
