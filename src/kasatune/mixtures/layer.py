"""MixtureLayer, a linear layer with a mixture of LoRA experts: what all mixtures share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.errors import InputError, ModelError
from kasatune.mixtures.balance import RouterLoad
from kasatune.mixtures.config import MixtureConfig
from kasatune.peft_compat.tuner_bases import TunerLayer
from kasatune.weights.base_weight import BaseWeight

NOT_MERGEABLE = (
    "the update of a mixture depends on the input, through its router: it cannot be added to a base weight or exported "
    "as a LoRA"
)
ONE_ADAPTER = "one mixture can be active at a time; choose one with model.set_adapter(name)"
ROUTER_DEVIATION = 0.02
"""Standard deviation of a router's weight at the start."""


class MixtureModule(nn.Module, TunerLayer):
    """A module with the parameters of mixtures: an adapted layer, or a router of a block. One adapter is active.

    Attributes:
        settings: the configuration of each adapter.
        router_loads: the loads of each adapter's router, if the module has one.
        mixture_pass: the state that all modules share in a forward pass.
    """

    other_param_names: tuple[str, ...] = ("settings", "router_loads")

    mixture_router: nn.ParameterDict

    def __init__(self, mixture_pass: Any) -> None:
        super().__init__()
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.settings: dict[str, Any] = {}
        self.router_loads: dict[str, RouterLoad] = {}
        self.mixture_pass = mixture_pass
        self.frozen_peft_weight_names = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = []

    def add_parameters(
        self,
        adapter_name: str,
        config: MixtureConfig,
        values: Mapping[str, Tensor],
        device: torch.device,
        base_dtype: torch.dtype,
    ) -> None:
        """Put the parameters of a new adapter into the ParameterDicts, in float32 or wider."""
        dtype = torch.float64 if base_dtype == torch.float64 else torch.float32
        for name, value in values.items():
            target = value.device if value.is_meta else device
            getattr(self, name)[adapter_name] = nn.Parameter(value.to(target, dtype))
        self.frozen_peft_weight_names.pop(adapter_name, None)
        self.settings[adapter_name] = config
        if "mixture_router" in self.adapter_layer_names:
            self.router_loads[adapter_name] = RouterLoad(self, adapter_name)

    def acting(self) -> str | None:
        """The adapter that takes part in this forward pass."""
        if self._disable_adapters or not self.active_adapters or self.active_adapters[0] not in self.settings:
            return None
        return self.active_adapters[0]

    @property
    def in_training(self) -> bool:
        """Whether this is a training pass, which has a balance loss."""
        return self.training and torch.is_grad_enabled()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            InputError: more than one adapter.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise InputError(f"set_adapter: {names} received; {ONE_ADAPTER}")
        super().set_adapter(names, inference_mode=inference_mode)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """False: the update is no matrix."""
        return False

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all adapters of this module."""
        for name in self.adapter_layer_names:
            yield from getattr(self, name).values()

    def move_parameters(self, adapter_name: str, device: torch.device) -> None:
        """Move the parameters of an adapter that are not on the meta device, keeping their dtypes."""
        for name in self.adapter_layer_names:
            parameter = getattr(self, name).get(adapter_name)
            if parameter is not None and not parameter.is_meta:
                parameter.data = parameter.data.to(device)


class MixtureLayer(MixtureModule):
    """y = W x + s * update(x), the update of the active adapter. A subclass has the parameters and the update.

    The parameters of an adapter are in float32 (float64 on such a base), and B is 0 at the start.

    Args:
        base_layer: the layer to adapt.
        weight: its weight.
        mixture_pass: the state that all layers of the model share in a forward pass.
    """

    other_param_names = ("mixture_dropout", *MixtureModule.other_param_names)

    base_layer: nn.Module
    mixture_A: nn.ParameterDict
    mixture_B: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, weight: BaseWeight, mixture_pass: Any) -> None:
        super().__init__(mixture_pass)
        self.base_layer = base_layer
        self.out_features, self.in_features = weight.shape
        self.mixture_dropout = nn.ModuleDict()

    @abstractmethod
    def initial_parameters(self, config: Any) -> Mapping[str, Tensor]:
        """The parameters of a new adapter, by the name of their ParameterDict, on the CPU (or the meta device)."""

    @abstractmethod
    def add_update(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """The output of the base (..., out) plus the update, for x (..., in) in any dtype.

        `result` may be overwritten if `may_overwrite`.
        """

    def update_layer(self, adapter_name: str, config: Any, weight: BaseWeight) -> None:
        """Add an adapter, or replace it."""
        self.add_parameters(adapter_name, config, self.initial_parameters(config), weight.device, weight.dtype)
        dropout = config.lora_dropout
        self.mixture_dropout[adapter_name] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.set_adapter(self.active_adapters)

    def is_idle(self, adapter_name: str) -> bool:
        """Whether the update is 0 for the entire batch and need not be computed."""
        return False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer to x (..., in).

        Raises:
            InputError: `adapter_names` was given: one forward pass uses one mixture.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise InputError(f"adapter_names: a mixture acts on the entire batch; {ONE_ADAPTER}")
        result = self.base_layer(x, *args, **kwargs)
        adapter = self.acting()
        if adapter is None or self.is_idle(adapter):
            return result
        return self.add_update(adapter, x, result)

    def cast(self, adapter_name: str, x: Tensor) -> Tensor:
        """X in the dtype of the parameters."""
        return self._cast_input_dtype(x, self.mixture_B[adapter_name].dtype)

    def add_product(self, result: Tensor, inputs: Tensor, factor: Tensor) -> Tensor:
        """`result` (..., out) + inputs (..., width) @ factor (width, out), in the dtype of `result`.

        In place where nothing else can hold the output of the base: one pass over it less, and no tensor of its size.
        """
        if self.may_overwrite(result) and inputs.dtype == factor.dtype == result.dtype:
            overwritten: Any = AddProduct.apply(result, inputs, factor)
            return overwritten
        return (result + inputs @ factor).to(result.dtype)

    def may_overwrite(self, result: Tensor) -> bool:
        """Whether the output of the base layer belongs to this layer alone.

        Not that of other classes than nn.Linear, nor one that a hook has seen. With a bias it is a view in autograd,
        whose backward pass after an operation in place is slower.
        """
        base = self.base_layer
        return (
            type(base) is nn.Linear
            and type(result) is Tensor
            and result.is_contiguous()
            and not (result.requires_grad and base.bias is not None)
            and not torch.compiler.is_compiling()
            and not (base._forward_hooks or base._backward_hooks or base._backward_pre_hooks)
        )

    def drops(self, adapter_name: str) -> bool:
        """Whether dropout acts on the input of the experts in this pass."""
        return self.training and isinstance(self.mixture_dropout[adapter_name], nn.Dropout)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            ModelError: always.
        """
        raise ModelError(NOT_MERGEABLE)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the device of the base layer, keeping its dtypes."""
        self.move_parameters(adapter_name, BaseWeight(self.get_base_layer()).device if device is None else device)

    def extra_repr(self) -> str:
        """Rank and number of experts of each adapter."""
        return ", ".join(
            f"{name}: r={config.r}" + (f", experts={n}" if (n := getattr(config, "num_experts", None)) else "")
            for name, config in self.settings.items()
        )


class AddProduct(torch.autograd.Function):
    """`result` (..., out) += inputs (..., width) @ factor (width, out), in place."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, inputs: Tensor, factor: Tensor) -> Tensor:
        """Overwrite and return `result`."""
        result.view(-1, result.shape[-1]).addmm_(inputs.reshape(-1, len(factor)), factor)
        ctx.mark_dirty(result)
        ctx.save_for_backward(inputs, factor)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of result, inputs and factor."""
        inputs, factor = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, factor.shape[1])
        of_inputs = (gradient @ factor.T).view_as(inputs) if ctx.needs_input_grad[1] else None
        of_factor = inputs.reshape(-1, len(factor)).T @ gradient if ctx.needs_input_grad[2] else None
        return gradients[0], of_inputs, of_factor


def draw_device() -> torch.device:
    """Where initial values are drawn: the CPU whatever the device of the model, so that one seed gives one adapter."""
    return torch.device("meta" if torch.get_default_device().type == "meta" else "cpu")


def uniform_rows(rows: int, columns: int) -> Tensor:
    """A (rows, columns) as LoRA draws its A: uniform in +-1/sqrt(columns)."""
    A = torch.empty(rows, columns, device=draw_device())
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A


def normal_rows(rows: int, columns: int, deviation: float = ROUTER_DEVIATION) -> Tensor:
    """A matrix (rows, columns) of N(0, deviation^2), as a router's weight at the start."""
    return deviation * torch.randn(rows, columns, device=draw_device())


def top_k_weights(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The weights w (..., N) of the experts, and the numbers (..., top_k) of the chosen ones.

    w_i is softmax(scores) of a chosen expert, divided by the sum over the chosen ones if top_k > 1, and 0 elsewhere.
    """
    index = scores.detach().topk(top_k, dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True)
    if top_k > 1:
        return scores.masked_fill(~chosen, -math.inf).softmax(-1), index
    return scores.softmax(-1) * chosen, index


def linear_together(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """W_i x for several matrices of the same input, as one product unless the tokens are few."""
    if is_short(x):
        return tuple(F.linear(x, weight) for weight in weights)
    joined = F.linear(x, torch.cat(weights))
    return cast(tuple[Tensor, ...], joined.split([len(weight) for weight in weights], dim=-1))


def is_short(x: Tensor) -> bool:
    """Whether x (..., in) has so few tokens, as in generation, that joining matrices costs more than it saves."""
    return x.numel() < 16 * x.shape[-1]
