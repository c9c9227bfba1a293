"""The weights of a KaSA layer: the base weight, the change of each adapter, folding, merging and restoring."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from kasatune.errors import CheckError, InputError
from kasatune.kasa.config import LayerSettings
from kasatune.kasa.functional import Factors, update
from kasatune.peft_compat.tuner_bases import TunerLayer
from kasatune.weights.base_weight import BaseWeight, Original
from kasatune.weights.quantized_weight import weight_with_backend

COMBINE = "export each adapter with export_adapter(model, out, to='lora') and combine the LoRA adapters with PEFT"


class Deferred(Protocol):
    """Supplies the tails of an adapter that was attached without any: `kasa.loading.DeferredTails`."""

    from_files: bool

    def is_loadable_only(self) -> bool:
        """Whether the tails cannot be decomposed yet, because weights are on the meta device."""
        ...

    def resolve(self) -> None:
        """Write the tails of all layers, or accept those that were loaded."""
        ...

    def check_base(self) -> None:
        """Raise AdapterError if the base is not the one that the adapter was trained on."""
        ...

    def stop(self) -> None:
        """Stop deferring, in all layers."""
        ...


class LayerWeights(nn.Module, TunerLayer):
    """The weights of a KaSA layer: W, the change W' - W of each adapter, and W with an adapter folded or merged in.

    W is replaced, and the original kept, while an adapter is folded (truncation="fold": W - tail) or merged
    (W - tail + s B diag(sigma) A).

    Attributes:
        folded: name of the folded adapter; None for none.
        merged_adapters: names of the merged adapters.
    """

    settings: dict[str, LayerSettings]
    deferred: dict[str, Deferred]
    folded: str | None
    merged_adapters: list[str]
    base_layer: nn.Module
    kasa_A: nn.ParameterDict
    kasa_B: nn.ParameterDict
    kasa_sigma: nn.ParameterDict
    kasa_tail_U: nn.ParameterDict
    kasa_tail_V: nn.ParameterDict
    quantization_backend: Any
    scaling: dict[str, float]
    _original: Original | None

    @property
    def base(self) -> BaseWeight:
        """The weight of the base layer in its present state: original, folded or merged."""
        return weight_with_backend(self.get_base_layer(), self.quantization_backend)

    def resolve_tail(self, adapter_name: str) -> None:
        """Ensure that an adapter has its tail: decompose W now if that was deferred and no tail was loaded.

        Raises:
            AdapterError: the adapter was attached to be loaded and never was, or belongs to another base.
            ModelError: the weight of a layer cannot be decomposed, by name.
        """
        deferred = self.deferred.get(adapter_name)
        if deferred is not None:
            deferred.resolve()

    def factors(self, adapter_name: str) -> Factors:
        """The trained A (r, in), sigma (r,) or (r, r) and B (out, r) of an adapter."""
        return Factors(self.kasa_A[adapter_name], self.kasa_sigma[adapter_name], self.kasa_B[adapter_name])

    def tail(self, adapter_name: str) -> Tensor:
        """The component dropped from W, (out, in), in the dtype of the tail."""
        self.resolve_tail(adapter_name)
        return self.kasa_tail_U[adapter_name] @ self.kasa_tail_V[adapter_name]

    def change(self, adapter_name: str) -> Tensor:
        """W' - W = s B diag(sigma) A - tail, (out, in), in float32 or wider."""
        wide = Factors(*(factor.detach().to(self.wide(factor)) for factor in self.factors(adapter_name)))
        return update(wide, self.scaling[adapter_name]) - self.tail(adapter_name).detach().to(wide.A.dtype)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """`change` in the layout of the base layer's weight; PEFT's conversion to LoRA reads it."""
        return self.base.aligned(self.change(adapter_name))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """True: W' - W is a matrix of rank r + d."""
        return True

    def original_weight(self) -> Tensor:
        """W (out, in) without any adapter, also while one is folded or merged."""
        return self.base.read() if self._original is None else self.base.read_original(self._original)

    @staticmethod
    def wide(tensor: Tensor) -> torch.dtype:
        """The dtype to compute in: float32, or wider."""
        return torch.promote_types(tensor.dtype, torch.float32)

    def restore_base(self) -> None:
        """Restore the original weight, bit for bit."""
        if self._original is not None:
            self.base.restore(self._original, self)
        self._original, self.folded = None, None
        self.merged_adapters = []

    def _replace_base(self, matrix: Tensor) -> None:
        self._original = self.base.replace(matrix, self)

    def sync_fold(self) -> None:
        """Fold the active adapter's tail into W where its settings say so, and restore W otherwise."""
        adapter = self.active_adapters[0] if self.active_adapters else None
        wanted = (
            adapter
            if adapter in self.settings
            and not self._disable_adapters
            and adapter not in self.deferred
            and self.settings[adapter].truncation == "fold"
            else None
        )
        if self.merged_adapters or wanted == self.folded:
            return
        self.restore_base()
        tail_U = None if wanted is None else self.kasa_tail_U[wanted]
        if wanted is None or tail_U is None or tail_U.is_meta:
            return
        W = self.base.read()
        self._replace_base(W.to(self.wide(W)) - self.tail(wanted).detach().to(W.device, self.wide(W)))
        self.folded = wanted

    def fold_error(self) -> float | None:
        """|| rounded(W - tail) - (W - tail) || / || tail ||: the error of folding; None if nothing is folded."""
        if self.folded is None:
            return None
        tail = self.tail(self.folded).detach().double()
        exact = self.original_weight().double() - tail
        return float((self.base.read().double() - exact).norm() / tail.norm().clamp_min(1e-300))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """W <- W - tail + s B diag(sigma) A, rounded once to W's dtype; the original is kept until `unmerge`.

        Args:
            safe_merge: refuse, changing nothing, if the result holds NaN or Inf.
            adapter_names: the adapter to merge; None for the active one.

        Raises:
            InputError: more than one adapter.
            CheckError: safe_merge, and the result is not finite.
            ModelError: the quantization backend cannot hold a merged weight.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.kasa_A]
        if not names:
            return
        if len(names) + len(self.merged_adapters) > 1:
            raise InputError(f"one KaSA adapter can be merged at a time, got {self.merged_adapters + names}; {COMBINE}")
        W = self.original_weight()
        merged = W.to(self.wide(W)) + self.change(names[0]).to(W.device)
        if safe_merge and not torch.isfinite(merged).all():
            # Starts with the words of PEFT's tuners, by which programs recognize the error.
            raise CheckError(
                f"NaNs detected in the merged weights. The adapter {names[0]} seems to be broken: merging it gives NaN "
                "or Inf. Nothing was changed."
            )
        self.restore_base()
        self._replace_base(merged)
        self.merged_adapters = [names[0]]

    def unmerge(self) -> None:
        """Restore the original weight, bit for bit; the adapter is attached again."""
        self.restore_base()
        self.sync_fold()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The base layer without its adapters: merged, or bit for bit the original."""
        if merge:
            if not self.merged_adapters:
                self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            if not self.merged_adapters:
                self.restore_base()  # another adapter is folded here than the one to merge
            self._original, self.folded, self.merged_adapters = None, None, []
        else:
            self.restore_base()
        return self.base_layer
