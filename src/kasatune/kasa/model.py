"""KasaModel, the PEFT tuner: match and check the targets, decompose their weights, and insert the KaSA layers."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import (
    _maybe_include_all_linear_layers,  # pyright: ignore[reportPrivateUsage]
)
from torch import Tensor, nn

from kasatune.errors import AdapterError, InputError, ModelError
from kasatune.kasa.call_stack import in_loader
from kasatune.kasa.chosen_components import choose
from kasatune.kasa.config import KasaConfig, require_kasa_config
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.layer_weights import COMBINE
from kasatune.kasa.loading import DeferredTails, check_tensors, makes_empty_weights, with_compiled_names
from kasatune.kasa.orthonormal import scaled_by_norm
from kasatune.kasa.protection import project
from kasatune.kasa.second_adapter import (
    REFERENCE,
    copy_factors,
    copy_statements_about_base,
    equal_adapter,
    is_reference,
    needs_reference,
    tails_of,
)
from kasatune.kasa.targets import (
    DEFAULT_TARGETS,
    Target,
    matched,
    new_targets,
    too_large,
    uncompiled_name,
    warn_unmatched,
)
from kasatune.kasa.truncation.output_check import OutputCheck, remedy
from kasatune.linalg import TailSVD
from kasatune.peft_compat.tuner_bases import Tuner
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving

logger = logging.getLogger("kasatune")


class KasaModel(Tuner):
    """W' = W - tail_d(W) + s B diag(sigma) A on every targeted layer of a model.

    Created by `peft.get_peft_model(base, KasaConfig(...))` and `peft.PeftModel.from_pretrained(base, directory)`. The
    targets are matched and checked, and the weights of a new adapter are decomposed, before any layer is replaced. The
    tails of a saved adapter are loaded with it; `kasa.loading` distinguishes the two cases.

    Raises:
        InputError: not a kasatune.KasaConfig, or settings that contradict each other.
        ModelError: a target cannot be adapted, or r is too large for it; all by name.
        AdapterError: the adapter was trained on another base.
    """

    prefix = "kasa_"
    tuner_layer_cls = KasaLayer
    target_module_mapping: Any = DEFAULT_TARGETS

    # Creating and loading adapters

    def __init__(
        self,
        model: nn.Module,
        peft_config: KasaConfig | dict[str, KasaConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        for config in peft_config.values() if isinstance(peft_config, dict) else [peft_config]:
            require_kasa_config(config)
        configs: Any = peft_config
        super().__init__(model, configs, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage, state_dict=state_dict)
        if needs_reference(self._configs(), self.model):
            self.peft_config[REFERENCE] = self.peft_config[adapter_name]
            self.inject_adapter(self.model, REFERENCE)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put an adapter on the targeted layers of `model`; PEFT calls this."""
        config = require_kasa_config(self.peft_config[adapter_name])
        self._adapter_name, self._equal = adapter_name, None
        self._deferred: DeferredTails | None = None
        self._empty = low_cpu_mem_usage or state_dict is not None or makes_empty_weights()
        if config.saved or self._empty:
            self._deferred = DeferredTails(adapter_name, config, model)
        self._loaded_keys = state_dict
        self._targets: dict[str, Target] = {}
        self._tails: dict[str, TailSVD] = {}
        self._protected: dict[str, Tensor] = {}
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        check = OutputCheck(remedy(config.truncate_by))
        for target in self._targets.values():
            layer = model.get_submodule(target.name)
            assert isinstance(layer, KasaLayer)
            if self._deferred is None and self._equal is None and target.settings.drop:
                layer.output_checks[adapter_name] = (check, target.name)
            layer.settings[adapter_name] = target.settings.counted(len(self._targets))
            if self._deferred is not None:
                self._deferred.layers[target.name] = layer
            if target.name in self._protected:
                layer.protected[adapter_name] = self._protected[target.name]
        project([layer for layer in model.modules() if isinstance(layer, KasaLayer)], adapter_name)
        if self._equal is not None and is_reference(adapter_name):
            copy_factors(model, self._equal, adapter_name)
        if self._deferred is None and self._equal is None:
            self._warn_of_rounding(model, config, adapter_name)
        if self._deferred is None and config.activations is not None:
            # the caller's configuration keeps the moments, which may be large
            attached = copy.copy(config)
            attached.calibrated_as, attached.activations = config.activations.identity, None
            self.peft_config[adapter_name] = attached
        del self._targets, self._protected, self._tails, self._loaded_keys, self._deferred
        del self._adapter_name, self._equal, self._empty

    def _prepare_model(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, peft_config: KasaConfig, model: nn.Module
    ) -> None:
        """Match, check and decompose; PEFT calls this before it replaces the first layer."""
        unpack_for_training_and_saving(model)
        all_linear = str(peft_config.target_modules).lower() == "all-linear"
        _maybe_include_all_linear_layers(peft_config, model)
        if self._takes_tails(peft_config, model):
            return
        if self._deferred is not None:
            targets = self._matched_keys(peft_config, model)
            self._refuse_unsuitable(peft_config, model, targets)
        else:
            targets = new_targets(peft_config, model, all_linear=all_linear)
            warn_unmatched(peft_config, targets)
            self._refuse_unsuitable(peft_config, model, targets)
            if peft_config.orthonormal:
                targets = scaled_by_norm(targets, peft_config)
            self._tails, self._protected, line = choose(targets, peft_config, model)
            if line is not None:
                logger.warning(line)
        self._targets = {target.name: target for target in targets}

    def _takes_tails(self, config: KasaConfig, model: nn.Module) -> bool:
        """Take targets, tails and protected directions of an attached adapter of the same configuration."""
        configs = self._configs()
        if len(configs) == 1:
            return False
        targets = matched(config, model, lambda name: bool(self._check_target_module_exists(config, name)))
        equal = equal_adapter(self._adapter_name, configs, targets, empty=self._empty)
        if equal is None:
            return False
        self._equal, self._deferred = equal, None
        self._targets = {target.name: target for target in targets}
        self._tails = tails_of(equal, targets)
        for target in targets:
            assert isinstance(target.module, KasaLayer)
            if equal in target.module.protected:
                self._protected[target.name] = target.module.protected[equal]
        copy_statements_about_base(configs[equal], config)
        return True

    def _configs(self) -> dict[str, KasaConfig]:
        return {name: require_kasa_config(config) for name, config in self.peft_config.items()}

    def _matched_keys(self, config: KasaConfig, model: nn.Module) -> list[Target]:
        """The layers of an adapter whose weights may be loaded: those named by its file, if PEFT passed its keys."""
        if self._loaded_keys is None:
            return matched(config, model, lambda name: bool(self._check_target_module_exists(config, name)))
        keys = {uncompiled_name(key.rsplit("." + self.prefix, 1)[0]) for key in self._loaded_keys}
        return matched(config, model, lambda name: uncompiled_name(name) in keys)

    def _refuse_unsuitable(self, config: KasaConfig, model: nn.Module, targets: Sequence[Target]) -> None:
        faults: list[str] = []
        for name, _, weight, _ in targets:
            if weight.is_missing and not (self._deferred is not None and config.truncation == "attach"):
                faults.append(f"{name}: its weight is on the meta device; load the base's checkpoint first")
        faults += too_large(targets)
        if config.truncation == "fold":
            shared = _shared_weights(model)
            for name, _, weight, _ in targets:
                if weight.backend is not None:
                    faults.append(f"{name}: a quantized weight cannot be folded; use truncation='attach'")
                elif weight.offloaded:
                    faults.append(f"{name}: an offloaded weight cannot be folded; use truncation='attach'")
                elif id(weight.layer.weight) in shared:
                    faults.append(f"{name}: its weight is tied to another module's; use truncation='attach'")
        if faults:
            raise ModelError("KaSA cannot adapt this model: " + "; ".join(faults))

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: KasaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        name = uncompiled_name(current_key)
        planned, tail = self._targets[name], self._tails.pop(name, None)
        if isinstance(target, KasaLayer):
            layer = target
        else:
            layer = KasaLayer(target, planned.weight)
            layer.train(target.training)
        layer.update_layer(adapter_name, planned.settings, peft_config.lora_dropout, tail, self._deferred)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # A KaSA layer creates its parameters on the device of the base weight; PEFT's version would move them again.
        setattr(parent, child_name, new_module)

    @classmethod
    def _remap_adapter_state_dict_for_load(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: nn.Module, config: KasaConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Check tensors and base before anything is loaded.

        If a check fails, nothing is changed. An adapter that PEFT has just attached to load it from files is removed.
        """
        named = with_compiled_names(model, state_dict)
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, named)
        layers = [m for m in model.modules() if isinstance(m, KasaLayer) and adapter_name in m.kasa_A]
        deferred = next((layer.deferred[adapter_name] for layer in layers if adapter_name in layer.deferred), None)
        try:
            if deferred is not None:
                deferred.check_base()
            check_tensors(model, adapter_name, remapped, complete=deferred is not None)
        except AdapterError:
            if deferred is not None and deferred.from_files and in_loader():
                _remove_adapter(model, adapter_name)
            raise
        if deferred is not None:
            deferred.stop()
        return remapped

    @classmethod
    def _get_adapter_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        model: nn.Module,
        config: KasaConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """The tensors to save; deferred tails are decomposed first, into the storage that the state dict refers to."""
        for layer in model.modules():
            if isinstance(layer, KasaLayer):
                layer.resolve_tail(adapter_name)
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast A and B to the base's dtype if autocast_adapter_dtype is False; sigma and tail stay in float32."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.modules():
            if not isinstance(layer, KasaLayer) or adapter_name not in layer.kasa_A:
                continue
            if not autocast_adapter_dtype:
                for factors in (layer.kasa_A, layer.kasa_B):
                    factors[adapter_name].data = factors[adapter_name].data.to(layer.base.dtype)
            # PEFT calls this last, after creating and after loading: a loaded tail can be folded only now.
            layer.sync_fold()

    def _warn_of_rounding(self, model: nn.Module, config: KasaConfig, adapter_name: str) -> None:
        if config.truncation != "fold":
            return
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, KasaLayer) and m.folded == adapter_name]
        errors = {n: m.fold_error() for n, m in layers if m.base.dtype in (torch.float16, torch.bfloat16)}
        if errors:
            worst = max(errors, key=lambda n: errors[n] or 0.0)
            warnings.warn(
                f"truncation='fold' on a 16-bit base: rounding W - tail loses up to {errors[worst]:.2f} of the tail's "
                f"own norm ({worst}). truncation='attach' loses none.",
                stacklevel=2,
            )

    # Active adapter

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            InputError: more than one adapter.
        """
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise InputError(f"one KaSA adapter can be active at a time, got {list(adapter_name)}; {COMBINE}")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        """Refuse mixed batches; PEFT enters this context around every forward pass."""
        if kwargs.get("adapter_names") is not None:
            raise InputError(f"adapter_names: a KaSA model uses one adapter for the entire batch; {COMBINE}")
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a weighted sum of KaSA adapters would drop several tails.

        Raises:
            InputError: always, with the alternative.
        """
        raise InputError(f"add_weighted_adapter: KaSA adapters cannot be added; {COMBINE}")


def _shared_weights(model: nn.Module) -> set[int]:
    """The ids of parameters that more than one module holds."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _remove_adapter(model: nn.Module, adapter_name: str) -> None:
    """Remove an adapter that could not be loaded from the model."""
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, KasaModel):
        return
    if list(tuner.peft_config) == [adapter_name]:
        tuner.unload()
    else:
        tuner.delete_adapter(adapter_name)
