"""KasaLayer, one adapted linear layer: the base layer, the truncated tail and the trained factors of each adapter."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.distributed.gather_scatter import gather_full, is_sharded
from kasatune.errors import InputError
from kasatune.kasa.base_state_dict import after_loading, before_loading, write_original
from kasatune.kasa.config import LayerSettings
from kasatune.kasa.functional import initial_factors, orthonormal_factors
from kasatune.kasa.kernel import Tail, adapted_linear
from kasatune.kasa.layer_weights import COMBINE, Deferred, LayerWeights
from kasatune.kasa.truncation.output_check import OutputCheck
from kasatune.linalg import TailSVD
from kasatune.weights.base_weight import BaseWeight, Original

TRAINED = ("kasa_A", "kasa_B", "kasa_sigma")
FROZEN = ("kasa_tail_U", "kasa_tail_V")
_PEFT_PREFIX = "base_model.model."

LIVE_LAYERS: weakref.WeakSet[KasaLayer] = weakref.WeakSet()


class KasaLayer(LayerWeights):
    """y = W x - tail_U tail_V x + s B diag(sigma) A dropout(x): a linear layer with KaSA adapters.

    A convolution of kernel 1 is such a layer too, with x and y along the channels.

    W is unchanged while an adapter is attached. It is replaced, and the original kept, while an adapter is folded
    (truncation="fold": W - tail) or merged (W - tail + s B diag(sigma) A); disabling, switching, deleting and
    unloading restore the original bit for bit.

    Parameters of an adapter: kasa_A (r, in), kasa_B (out, r), kasa_sigma (r,) or (r, r), and the frozen tail
    kasa_tail_U (out, d), singular values folded in, and kasa_tail_V (d, in), d = KasaConfig.drop or r. Where fewer are
    dropped (convention "authors"), the other columns and rows of the tail are zero. The tail of a deferred adapter is
    NaN until it is loaded or first needed. `protected` holds, by adapter, the directions K (in, c) that A may not use
    (kasa/protection.py); they are not saved. `fading` holds, by adapter, a component that is dropped in the current
    training step only (kasa/annealing.py).

    Args:
        base_layer: the layer to adapt.
        weight: its weight.
    """

    adapter_layer_names = (*TRAINED, *FROZEN)
    other_param_names = ("kasa_dropout", "scaling", "settings")

    base_layer: nn.Module
    kasa_A: nn.ParameterDict
    kasa_B: nn.ParameterDict
    kasa_sigma: nn.ParameterDict
    kasa_tail_U: nn.ParameterDict
    kasa_tail_V: nn.ParameterDict

    def __new__(cls, *args: Any, **kwargs: Any) -> KasaLayer:
        """Register the layer for the step hook; copied and unpickled layers do not go through __init__."""
        layer = super().__new__(cls)
        LIVE_LAYERS.add(layer)
        return layer

    def __init__(self, base_layer: nn.Module, weight: BaseWeight) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = weight.backend
        self.out_features, self.in_features = weight.shape
        self.fan_in_fan_out = weight.transposed
        self.pointwise = weight.pointwise
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.kasa_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.settings: dict[str, LayerSettings] = {}
        self.frozen_peft_weight_names = {}
        self.merged_adapters: list[str] = []
        self.merged_before_loading: list[str] = []
        self.deferred: dict[str, Deferred] = {}
        self.protected: dict[str, Tensor] = {}
        self.fading: dict[str, Tail] = {}
        self.output_checks: dict[str, tuple[OutputCheck, str]] = {}
        self.needs_step = False
        self._disable_adapters = False
        self._active_adapter = []
        self.folded: str | None = None
        self._original: Original | None = None
        self.register_load_state_dict_pre_hook(before_loading)
        self.register_load_state_dict_post_hook(after_loading)

    # Adapters and their tensors

    def update_layer(
        self,
        adapter_name: str,
        settings: LayerSettings,
        dropout: float,
        tail: TailSVD | None,
        deferred: Deferred | None = None,
    ) -> None:
        """Add an adapter, or replace it.

        Args:
            adapter_name: its name.
            settings: r, scaling, drop and the other settings.
            dropout: probability, on the input of A.
            tail: the triplets to drop; None to defer.
            deferred: supplies the tail later.
        """
        if adapter_name in (self.folded, *self.merged_adapters):
            self.restore_base()
        device = self.base.device
        dtype = torch.float64 if self.base.dtype == torch.float64 else torch.float32
        # Drawn on the CPU whatever the device, so that one seed gives one adapter.
        start = orthonormal_factors if settings.orthonormal else initial_factors
        factors = start(self.out_features, self.in_features, settings.r, settings.core, dtype=dtype)
        if settings.sigma_init == "one":
            ones = torch.ones(settings.r, dtype=dtype)
            factors = factors._replace(sigma=ones if settings.core == "diagonal" else torch.diag(ones))
        tail_U = torch.full((self.out_features, settings.tail_width), torch.nan, dtype=dtype)
        tail_V = torch.full((settings.tail_width, self.in_features), torch.nan, dtype=dtype)
        self.kasa_A[adapter_name] = nn.Parameter(factors.A.to(device))
        self.kasa_B[adapter_name] = nn.Parameter(factors.B.to(device))
        self.kasa_sigma[adapter_name] = nn.Parameter(factors.sigma.to(device))
        self.kasa_tail_U[adapter_name] = nn.Parameter(tail_U.to(device), requires_grad=False)
        self.kasa_tail_V[adapter_name] = nn.Parameter(tail_V.to(device), requires_grad=False)
        self.kasa_dropout[adapter_name] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.scaling[adapter_name] = settings.scaling
        self.settings[adapter_name] = settings
        self.frozen_peft_weight_names[adapter_name] = FROZEN
        self.deferred.pop(adapter_name, None)
        self.protected.pop(adapter_name, None)
        self.fading.pop(adapter_name, None)
        self.output_checks.pop(adapter_name, None)
        if tail is not None:
            self.write_tail(adapter_name, tail)
        elif deferred is not None:
            self.deferred[adapter_name] = deferred
        self.set_adapter(self.active_adapters)

    @torch.no_grad()
    def write_tail(self, adapter_name: str, tail: TailSVD) -> None:
        """Write the tail U diag(S) Vh of an adapter into its parameters, in place; S is folded into U.

        Args:
            adapter_name: name of an adapter whose factors are not sharded.
            tail: U (out, d), S (d,), Vh (d, in), with d <= settings.drop; the rest of the parameters becomes zero.
        """
        width = len(tail.S)
        tail_U, tail_V = self.kasa_tail_U[adapter_name], self.kasa_tail_V[adapter_name]
        tail_U.zero_()
        tail_V.zero_()
        tail_U[:, :width] = (tail.U * tail.S).to(tail_U)
        tail_V[:width] = tail.Vh.to(tail_V)

    def has_tail(self, adapter_name: str) -> bool:
        """Whether the tail of an adapter has been written, by a loader or by `write_tail`."""
        tail_U, tail_V = self.kasa_tail_U[adapter_name], self.kasa_tail_V[adapter_name]
        return all(not t.is_meta and bool(torch.isfinite(gather_full(t)).all()) for t in (tail_U, tail_V))

    # Forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer to x (..., in), of any number of leading dimensions.

        Raises:
            InputError: `adapter_names` was given: one forward pass uses one KaSA adapter.
            AdapterError: the active adapter was attached to be loaded and never was.
        """
        if kwargs.pop("adapter_names", None) is not None:
            raise InputError(f"adapter_names: a KaSA model uses one adapter for the entire batch; {COMBINE}")
        if self._disable_adapters or self.merged_adapters or not self.active_adapters:
            if self._disable_adapters:
                self.restore_base()
            return self.base_layer(x, *args, **kwargs)
        adapter = self.active_adapters[0]
        if adapter not in self.kasa_A:
            return self.base_layer(x, *args, **kwargs)
        if adapter in self.deferred:
            self.resolve_tail(adapter)
        folded = self.settings[adapter].truncation == "fold"
        if folded and self.folded != adapter:
            self.sync_fold()
        if self.training and torch.is_grad_enabled():
            self.needs_step = True
            if self.output_checks and not torch.compiler.is_compiling():
                self._check_output(adapter, x)
        tail = self.fading.get(adapter)
        if self.settings[adapter].drop and not folded:
            tail = Tail(self.kasa_tail_U[adapter], self.kasa_tail_V[adapter])
        if self._needs_plain_autograd(x, adapter):
            return self._plain_forward(x, adapter, tail, *args, **kwargs)
        return adapted_linear(x, self.base_layer, self.factors(adapter), tail, self.scaling[adapter], *args, **kwargs)

    @torch.no_grad()
    def _check_output(self, adapter: str, x: Tensor) -> None:
        """Measure once how much of the base layer's output the tail is, and forget the check."""
        check, name = self.output_checks.pop(adapter, (None, ""))
        tail_U, tail_V = self.kasa_tail_U[adapter], self.kasa_tail_V[adapter]
        if check is None or check.warned or self.pointwise or is_sharded(tail_U):
            return
        dropped = F.linear(F.linear(x.to(tail_V.dtype), tail_V), tail_U)
        output = self.base_layer(x)
        check.measure(name, dropped, output + dropped if self.folded == adapter else output)

    def _needs_plain_autograd(self, x: Tensor, adapter: str) -> bool:
        """Whether the fused function cannot be used: compilers and autocast rewrite plain operations themselves."""
        dropout = self.kasa_dropout[adapter]
        return (
            self.pointwise > 0
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled(x.device.type)
            or (self.training and isinstance(dropout, nn.Dropout))
            or is_sharded(self.kasa_A[adapter])
        )

    def _plain_forward(self, x: Tensor, adapter: str, tail: Tail | None, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        A, sigma, B = self.factors(adapter)
        x = self._cast_input_dtype(x, A.dtype)
        if self.pointwise:
            x = x.movedim(-1 - self.pointwise, -1)
        hidden = F.linear(self.kasa_dropout[adapter](x), A)
        # Scale and sigma act on the r-wide activation, in float32 even where a trainer has cast the adapter.
        core = sigma.to(self.wide(sigma)) * self.scaling[adapter]
        wide = hidden.to(core.dtype)
        hidden = (wide * core if core.ndim == 1 else F.linear(wide, core)).to(B.dtype)
        change = F.linear(hidden, B)
        if tail is not None:
            change = change - F.linear(F.linear(x.to(tail.V.dtype), tail.V), tail.U)
        if self.pointwise:
            change = change.movedim(-1, -1 - self.pointwise)
        return (result + change).to(result.dtype)

    # State dict and active adapter

    def state_dict(self, *args: Any, prefix: str = "", keep_vars: bool = False, **kwargs: Any) -> Any:
        """As in nn.Module, with W as the base weight while an adapter is folded (kasa/base_state_dict.py)."""
        tensors: dict[str, Any] = super().state_dict(*args, prefix=prefix, keep_vars=keep_vars, **kwargs)
        if self._original is not None:
            write_original(self, self._original, tensors, prefix, keep_vars=keep_vars)
        return tensors

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off; while they are off, the base layer is bit for bit the original."""
        super().enable_adapters(enabled)
        if not enabled:
            self.restore_base()
        self.sync_fold()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            InputError: more than one adapter.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if len(names) > 1:
            raise InputError(f"one KaSA adapter can be active at a time, got {names}; {COMBINE}")
        super().set_adapter(names, inference_mode=inference_mode)
        self.sync_fold()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; the base and the other adapters are unchanged."""
        if adapter_name in (self.folded, *self.merged_adapters):
            self.restore_base()
        self.deferred.pop(adapter_name, None)
        self.protected.pop(adapter_name, None)
        self.fading.pop(adapter_name, None)
        self.output_checks.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def train(self, mode: bool = True) -> KasaLayer:
        """Set training mode; entering it decomposes deferred tails, so that none is missing when training begins."""
        if mode:
            for deferred in list(self.deferred.values()):
                if not deferred.is_loadable_only():
                    deferred.resolve()
        return super().train(mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the device of the base layer, keeping its dtypes; PEFT's version would narrow the tail."""
        target = self.base.device if device is None else device
        for kind in self.adapter_layer_names:
            parameter = getattr(self, kind).get(adapter_name)
            if parameter is not None and not parameter.is_meta:
                parameter.data = parameter.data.to(target)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KasaLayer:
        # The kept original is not a parameter, and must still follow the model to another device or dtype.
        super()._apply(fn, recurse)
        if self._original is not None:
            self._original.apply(fn)
        return self

    def extra_repr(self) -> str:
        """Rank, scaling and convention of each adapter."""
        return ", ".join(
            f"{name}: r={s.r}, scaling={s.scaling:g}, {s.convention}, {s.core}, {s.truncation}"
            for name, s in self.settings.items()
        )


def kasa_layers(model: nn.Module) -> Iterator[tuple[str, KasaLayer]]:
    """The KaSA layers of a model, each with the name that it has in the base model."""
    for name, module in model.named_modules():
        if isinstance(module, KasaLayer):
            yield name.removeprefix(_PEFT_PREFIX), module
