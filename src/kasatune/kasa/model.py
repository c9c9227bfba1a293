"""KaSA adapters on a whole model: what is matched, checked and decomposed before a layer is touched."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from torch import Tensor, nn

from kasatune.errors import AdapterError, InputError, ModelError
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.layer import COMBINE, KasaLayer
from kasatune.kasa.loading import is_loading, makes_empty_weights, validated
from kasatune.kasa.matching import DEFAULT_TARGETS, matched, new_targets, too_large, warn_unmatched
from kasatune.kasa.targets import Target, check_base, decompose
from kasatune.kasa.truncation.tail_source import TailSource
from kasatune.linalg import TailSVD
from kasatune.weights import packed_4bit


class KasaModel(BaseTuner):
    """W' = W - tail_r(W) + s B diag(sigma) A on every targeted layer of a model.

    Made by `peft.get_peft_model(base, KasaConfig(...))` and `peft.PeftModel.from_pretrained(base, directory)`. Before
    any layer is touched, the targets are matched and checked, and a new adapter's tails are decomposed; an adapter
    that is loaded brings its tails along.

    Raises:
        ModelError: a target that cannot be adapted, or a rank that is too large for it; every one by name.
        AdapterError: the adapter was made for another base.
        InputError: settings that contradict each other.
    """

    prefix = "kasa_"
    tuner_layer_cls = KasaLayer
    target_module_mapping = DEFAULT_TARGETS

    # Making and loading adapters

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put an adapter on the targeted layers of `model`; PEFT calls this."""
        self._loading = low_cpu_mem_usage or state_dict is not None or makes_empty_weights() or is_loading()
        self._loaded_keys = state_dict
        self._targets: dict[str, Target] = {}
        self._tails: dict[str, TailSVD] = {}
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        for target in self._targets.values():
            layer = model.get_submodule(target.name)
            assert isinstance(layer, KasaLayer)
            layer.settings[adapter_name] = target.settings.counted(len(self._targets))
        self._report_folding(model, adapter_name)
        del self._targets, self._tails, self._loaded_keys

    def _prepare_model(self, peft_config: KasaConfig, model: nn.Module) -> None:
        """Match, check and decompose; PEFT calls this before it replaces the first layer."""
        packed_4bit.protect(model)
        all_linear = str(peft_config.target_modules).lower() == "all-linear"
        _maybe_include_all_linear_layers(peft_config, model)
        if self._loading:
            targets = self._matched_keys(peft_config, model)
            self._refuse_unsuitable(peft_config, model, targets)
            check_base(peft_config, targets)
        else:
            targets = new_targets(peft_config, model, all_linear=all_linear)
            warn_unmatched(peft_config, targets)
            self._refuse_unsuitable(peft_config, model, targets)
            source = TailSource(peft_config, model, quantized=any(t.weight.backend is not None for t in targets))
            self._tails, peft_config.base_fingerprint = decompose(targets, source, peft_config.tails)
            peft_config.tail_source_used = source.used()
            peft_config.fan_in_fan_out = any(target.weight.transposed for target in targets)
        self._targets = {target.name: target for target in targets}

    def _matched_keys(self, config: KasaConfig, model: nn.Module) -> list[Target]:
        """The layers of an adapter that is about to be loaded: those that its file names, where that is known."""
        if self._loaded_keys is None:
            return matched(config, model, lambda name: bool(self._check_target_module_exists(config, name)))
        keys = {key.rsplit("." + self.prefix, 1)[0].removeprefix("_orig_mod.") for key in self._loaded_keys}
        return matched(config, model, lambda name: name in keys)

    def _refuse_unsuitable(self, config: KasaConfig, model: nn.Module, targets: Sequence[Target]) -> None:
        faults = []
        for name, _, weight, _ in targets:
            if weight.is_missing and not (self._loading and config.truncation == "attach"):
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
            raise ModelError("KaSA cannot be put on this model: " + "; ".join(faults))

    def _create_and_replace(
        self,
        peft_config: KasaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        planned = self._targets[current_key]
        tail = self._tails.pop(current_key, None)
        if not self._loading and tail is None:
            tail = planned.no_tail()
        if isinstance(target, KasaLayer):
            target.update_layer(adapter_name, planned.settings, peft_config.lora_dropout, tail)
            return
        layer = KasaLayer(target, planned.weight)
        layer.train(target.training)
        layer.update_layer(adapter_name, planned.settings, peft_config.lora_dropout, tail)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, KasaLayer):
            # The layer makes its parameters where the base weight lies; PEFT's version would move them again.
            setattr(parent, child_name, new_module)
            return
        setattr(parent, child_name, new_module)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: KasaConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Check what is about to be loaded, and leave the model as it was when it is not whole."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        try:
            layers = validated(model, adapter_name, remapped)
        except AdapterError:
            _abandon(model, adapter_name)
            raise
        for layer in layers:
            layer.awaiting.discard(adapter_name)
            if layer._folded == adapter_name:
                layer.restore_base()
        return remapped

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """A and B in the base's dtype where the user switched PEFT's float32 adapters off; sigma and tail stay wide."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.modules():
            if not isinstance(layer, KasaLayer) or adapter_name not in layer.kasa_A:
                continue
            if not autocast_adapter_dtype:
                for factors in (layer.kasa_A, layer.kasa_B):
                    factors[adapter_name].data = factors[adapter_name].data.to(layer.base.dtype)
            # PEFT calls this last, after making and after loading: only now is a loaded tail there to be folded.
            layer._sync_fold()

    def _report_folding(self, model: nn.Module, adapter_name: str) -> None:
        config = self.peft_config[adapter_name]
        assert isinstance(config, KasaConfig)
        if config.truncation != "fold" or self._loading:
            return
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, KasaLayer) and m._folded == adapter_name]
        errors = {n: m.fold_error() for n, m in layers if m.base.dtype in (torch.float16, torch.bfloat16)}
        if errors:
            worst = max(errors, key=lambda n: errors[n] or 0.0)
            warnings.warn(
                f"truncation='fold' on a 16-bit base: rounding W - tail loses up to {errors[worst]:.2f} of the tail's "
                f"own norm ({worst}). truncation='attach' loses none.",
                stacklevel=2,
            )

    # Which adapter acts

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one.

        Raises:
            InputError: more than one adapter.
        """
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise InputError(f"one KaSA adapter can be active at a time, got {list(adapter_name)}; {COMBINE}")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this around every forward pass; it is where a mixed batch shows."""
        if kwargs.get("adapter_names") is not None:
            raise InputError(f"adapter_names: a KaSA model uses one adapter for the whole batch; {COMBINE}")
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: a weighted sum of KaSA adapters would drop several tails.

        Raises:
            InputError: always, with the remedy.
        """
        raise InputError(f"add_weighted_adapter: KaSA adapters cannot be added up; {COMBINE}")


def _shared_weights(model: nn.Module) -> set[int]:
    """Identities of the parameters that more than one module holds."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _abandon(model: nn.Module, adapter_name: str) -> None:
    """Take an adapter that could not be loaded off the model again."""
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, KasaModel):
        return
    if list(tuner.peft_config) == [adapter_name]:
        tuner.unload()
    else:
        tuner.delete_adapter(adapter_name)
