"""The PEFT tuners of the mixtures of LoRA experts: match and check the targets, and insert the layers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from kasatune.errors import AdapterError, InputError, ModelError
from kasatune.mixtures.config import MixtureConfig
from kasatune.mixtures.forward_pass import ForwardPass
from kasatune.mixtures.layer import NOT_MERGEABLE, ONE_ADAPTER, MixtureLayer, MixtureModule
from kasatune.mixtures.malora import MaloraLayer, join_inputs
from kasatune.mixtures.milora_moe import CHILD, MiloraMoeLayer, PromptRouter
from kasatune.mixtures.moe_lora import MoeLoraLayer
from kasatune.mixtures.mor import MorLayer
from kasatune.mixtures.prompt_pass import PromptPass
from kasatune.peft_compat.quantization_backends import get_quantization_kwargs
from kasatune.peft_compat.tuner_bases import Tuner
from kasatune.weights.base_weight import BaseWeight, refusal
from kasatune.weights.quantized_weight import weight_of
from kasatune.wording import counted


class MixtureModel(Tuner):
    """A model whose targeted layers have a mixture of LoRA experts, made by `peft.get_peft_model(base, config)`.

    Raises:
        InputError: more than one adapter is activated.
        ModelError: a target cannot be adapted, or a merge is requested.
        AdapterError: a saved adapter does not fit the model.
    """

    prefix = "mixture_"
    tuner_layer_cls = MixtureModule
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    layer_class: ClassVar[type[MixtureLayer]]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter on the targeted layers of `model`; PEFT calls this."""
        if "mixture_pass" not in vars(self):
            self.mixture_pass = self.make_pass()
            self.mixture_pass.install(model)
        keys: dict[str, Tensor] | None = kwargs.get("state_dict")
        self._loaded_layers = None if keys is None else {key.rsplit(f".{self.prefix}", 1)[0] for key in keys}
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            if not any(isinstance(module, MixtureLayer) for module in model.modules()):
                self.mixture_pass.remove()
            raise

    def make_pass(self) -> ForwardPass:
        """The state that the layers share in a forward pass."""
        return ForwardPass()

    def _prepare_model(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, peft_config: MixtureConfig, model: nn.Module
    ) -> None:
        """Match and check the targets; PEFT calls this before it replaces the first layer."""
        _maybe_include_all_linear_layers(peft_config, model)
        adapted = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
        quantization = get_quantization_kwargs(model)
        self._weights: dict[str, BaseWeight] = {}
        refused: list[str] = []
        for name, module in model.named_modules():
            if not name or (adapted and name.startswith(adapted)) or not self._is_target(peft_config, name):
                continue
            base = module.get_base_layer() if isinstance(module, MixtureLayer) else module
            weight = weight_of(base, **quantization)
            if isinstance(module, BaseTunerLayer) and not isinstance(module, self.layer_class):
                refused.append(f"{name} has an adapter of another kind ({type(module).__name__})")
            elif weight.backend is None and (refusal(base) is not None or weight.pointwise):
                refused.append(f"{name} is a {type(base).__name__}")
            else:
                self._weights[name] = weight
        if refused:
            more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise ModelError(
                f"target_modules: {'; '.join(refused[:5])}{more}. A mixture adapts linear layers: nn.Linear, "
                "transformers' Conv1D and their quantized forms. Name others, or leave these out with exclude_modules."
            )
        self.check_targets(peft_config, model, list(self._weights))

    def _is_target(self, config: MixtureConfig, name: str) -> bool:
        if self._loaded_layers is not None:
            return name in self._loaded_layers
        return bool(self._check_target_module_exists(config, name))

    def check_targets(self, config: Any, model: nn.Module, names: list[str]) -> None:
        """Raise ModelError if the adapter cannot be put on the layers of these names."""

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: MixtureConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        weight = self._weights.pop(current_key)
        layer = target
        if not isinstance(layer, MixtureLayer):
            layer = self.layer_class(target, weight, self.mixture_pass)
            layer.train(target.training)
        layer.update_layer(adapter_name, peft_config, weight)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # The layers create their parameters on the device of the base weight; PEFT's version would move them again.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast the adapter to the dtype of the base if autocast_adapter_dtype is False."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        own = {id(p) for m in self.modules() if isinstance(m, MixtureModule) for p in m.own_parameters()}
        base = (p.dtype for p in self.model.parameters() if p.is_floating_point() and id(p) not in own)
        dtype = next(base, torch.float32)
        for module in self.modules():
            if isinstance(module, BaseTunerLayer):
                for name in module.adapter_layer_names:
                    parameter = getattr(module, name).get(adapter_name)
                    if parameter is not None:
                        parameter.data = parameter.data.to(dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Check the tensors before anything is loaded."""
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        faults: list[str] = []
        for name, module in model.named_modules():
            if not isinstance(module, BaseTunerLayer):
                continue
            for kind in module.adapter_layer_names:
                key, parameters = f"{name}.{kind}.{adapter_name}", getattr(module, kind)
                if adapter_name not in parameters:
                    continue
                if key not in remapped:
                    faults.append(f"{key} is missing")
                elif remapped[key].shape != parameters[adapter_name].shape:
                    faults.append(
                        f"{key} has shape {list(remapped[key].shape)}, the model and the configuration give "
                        f"{list(parameters[adapter_name].shape)}"
                    )
                elif not bool(torch.isfinite(remapped[key]).all()):
                    faults.append(f"{key} holds NaN or Inf")
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise AdapterError("this adapter cannot be loaded: " + "; ".join(faults[:5]) + more)
        return remapped

    # Active adapter, and what a mixture refuses

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            InputError: more than one adapter.
        """
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise InputError(f"set_adapter: {list(adapter_name)} received; {ONE_ADAPTER}")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        """Refuse mixed batches; PEFT enters this context around every forward pass."""
        if kwargs.get("adapter_names") is not None:
            raise InputError(f"adapter_names: a mixture acts on the entire batch; {ONE_ADAPTER}")
        yield

    def _check_merge_allowed(self) -> None:
        raise ModelError(f"merge: {NOT_MERGEABLE}")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Refused.

        Raises:
            ModelError: always.
        """
        self._check_merge_allowed()

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(f"add_weighted_adapter: {NOT_MERGEABLE}")

    def unload(self) -> nn.Module:
        """The base model without its mixture, bit for bit the original."""
        unloaded = super().unload()
        self.mixture_pass.remove()
        return unloaded

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        """Accept any number of adapters."""


class MoeLoraModel(MixtureModel):
    """The tuner of `MoeLoraConfig`."""

    layer_class = MoeLoraLayer


class MorModel(MixtureModel):
    """The tuner of `MorConfig`."""

    layer_class = MorLayer


class MiloraMoeModel(MixtureModel):
    """The tuner of `MiloraMoeConfig`; each block with adapted layers gets a router, the module `prompt_router`."""

    layer_class = MiloraMoeLayer
    mixture_pass: PromptPass

    def make_pass(self) -> PromptPass:
        """See `MixtureModel.make_pass`."""
        return PromptPass()

    def check_targets(self, config: Any, model: nn.Module, names: list[str]) -> None:
        """Group the targets by block.

        Raises:
            ModelError: a target is in no block, a block has fewer targets than top_k, or the model has an encoder and a
                decoder.
        """
        model_config: Any = getattr(model, "config", None)
        if getattr(model_config, "is_encoder_decoder", False):
            raise ModelError(
                f"{type(model).__name__} has an encoder and a decoder: a router of prompts needs a model whose prompt "
                "and answer are one text; use a mixture that routes tokens"
            )
        self._experts: dict[str, list[str]] = {}
        for name in names:
            block = _block_of(model, name)
            if block is None:
                raise ModelError(
                    f"target_modules: {name} is in no block of the model, whose hidden states a router could read; "
                    "leave it out with exclude_modules"
                )
            self._experts.setdefault(block, []).append(name)
        for block, experts in self._experts.items():
            if config.top_k > len(experts):
                raise ModelError(
                    f"top_k: {config.top_k} received, more than the experts of {block}, which has "
                    f"{counted(len(experts), 'adapted layer')}; lower top_k or name more target_modules"
                )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        weight = self._weights[current_key]
        super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key)
        layer: Any = getattr(parent, target_name)
        name = next(block for block, experts in self._experts.items() if current_key in experts)
        layer.place[adapter_name] = (name, self._experts[name].index(current_key))
        block = self.model.get_submodule(name)
        router: Any = getattr(block, CHILD, None)
        if router is None:
            router = PromptRouter(self.mixture_pass, name, _width(self.model, name))
            router.train(block.training)
            setattr(block, CHILD, router)
            router.handle = block.register_forward_pre_hook(router.before_block, with_kwargs=True)
        if adapter_name not in router.settings:
            router.add_adapter(adapter_name, peft_config, len(self._experts[name]), weight.device, weight.dtype)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in the base model; the input is the prompt, also where no cache is used."""
        prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        with self.mixture_pass.writing(prompt, kwargs.get("attention_mask")):
            base: Any = self.model
            return base.generate(*args, **kwargs)

    def unload(self) -> nn.Module:
        """See `MixtureModel.unload`."""
        unloaded = super().unload()
        for module in list(unloaded.modules()):
            router = getattr(module, CHILD, None)
            if isinstance(router, PromptRouter):
                handle: Any = router.handle
                handle.remove()
                delattr(module, CHILD)
        return unloaded


def _block_of(model: nn.Module, name: str) -> str | None:
    """The outermost element of a list of modules that a module is in."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if parts[end].isdecimal() and isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return ".".join(parts[: end + 1])
    return None


def _width(model: nn.Module, block: str) -> int:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(f"{block}: the configuration of {type(model).__name__} states no hidden_size for its router")
    return width


class MaloraModel(MixtureModel):
    """The tuner of `MaloraConfig`."""

    layer_class = MaloraLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """See `MixtureModel.inject_adapter`; layers that read the same input are joined."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        join_inputs({name: layer for name, layer in model.named_modules() if isinstance(layer, MaloraLayer)})
