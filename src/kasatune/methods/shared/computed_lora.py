"""LoRA whose A or B is computed from other trained or frozen tensors at every forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.methods.lora import ADAPTER_NAME, Lora, lora_layers
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.weights.quantized_weight import weight_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ComputedLinear(nn.Module, ABC):
    """x -> weight x, with a weight (out, in) computed at every forward pass; replaces A or B of a LoRA layer."""

    bias = None

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The current weight, with gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Weight x."""
        return F.linear(x, self.weight)


class Frozen(ComputedLinear):
    """A weight that is not trained and not saved.

    Args:
        weight: (out, in).
    """

    fixed: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", weight, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The weight."""
        return self.fixed


class ComputedLora(Lora):
    """y = W x + s B A drop(x), with A or B computed from tensors that are trained instead of them.

    Saved as a plain LoRA: anything that serves LoRA loads it, without the decomposition or the frozen matrices.
    """

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        for _, layer in lora_layers(wrapped):
            self.reform(layer, settings)
        return wrapped

    @abstractmethod
    def reform(self, layer: Any, settings: MethodSettings) -> None:
        """Replace A and B of a PEFT LoRA layer by `ComputedLinear`s."""

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """See `Method.stored_numbers`: the numbers in A and B."""
        return {self.folder: sum(settings.r * sum(shape) for shape in shapes)}

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        with plain(model):
            super().save(model, run_dir, base_name)


@contextmanager
def plain(model: nn.Module) -> Generator[None]:
    """A context in which A and B are plain linear layers with the values of the computed ones."""
    replaced: list[tuple[Any, ComputedLinear]] = []
    for _, layer in lora_layers(model):
        for factors in (layer.lora_A, layer.lora_B):
            computed = factors[ADAPTER_NAME]
            if isinstance(computed, ComputedLinear):
                replaced.append((factors, computed))
                weight = computed.weight.detach().contiguous()
                linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
                linear.weight = nn.Parameter(weight, requires_grad=False)
                factors[ADAPTER_NAME] = linear
    try:
        yield
    finally:
        for factors, computed in replaced:
            factors[ADAPTER_NAME] = computed


def weight_under(layer: Any) -> Tensor | None:
    """W (out, in) of the layer under an adapter, dequantized if it is quantized; None if it is not loaded."""
    base = layer.get_base_layer()
    if all(parameter.is_meta for parameter in base.parameters()):
        return None
    return weight_of(base).read()
