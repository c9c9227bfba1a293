"""KaSA in Axolotl: a plug-in that adds `adapter: kasa` to its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from axolotl.integrations.base import AdapterCapabilities, BasePlugin  # pyright: ignore[reportMissingImports]
from peft import PeftConfig, PeftModel, get_peft_model
from pydantic import BaseModel, model_validator
from torch import nn

from kasatune.errors import AdapterError, InputError
from kasatune.integrations.lora_options import kasa_config
from kasatune.kasa import KasaConfig

NAME = "kasa"

_OPTIONS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "peft_use_rslora",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "modules_to_save": "lora_modules_to_save",
    "layers_to_transform": "peft_layers_to_transform",
    "layers_pattern": "peft_layers_pattern",
    "fan_in_fan_out": "lora_fan_in_fan_out",
    # KasaConfig refuses these, with the reason and what to use instead.
    "use_dora": "peft_use_dora",
    "init_lora_weights": "peft_init_lora_weights",
    "target_parameters": "lora_target_parameters",
    "layer_replication": "peft_layer_replication",
    "trainable_token_indices": "peft_trainable_token_indices",
    "ensure_weight_tying": "peft_ensure_weight_tying",
}
"""Axolotl's key of each option that Axolotl passes to peft.LoraConfig."""

_WITHOUT_EFFECT = (
    "loraplus_lr_ratio",
    *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"),
)
"""Keys that act on LoRA's classes or parameter names."""


class KasaArgs(BaseModel):
    """The key `kasa` of a configuration: fields of KasaConfig that Axolotl has no key for, such as `beta`."""

    kasa: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def check_kasa(cls, data: Any) -> Any:
        """Check what can be checked before the model is loaded.

        Raises:
            InputError: settings without `adapter: kasa`, or a key that KaSA would not follow.
            UnknownSettingError: an option of LoRA that KaSA has no counterpart for, or an unknown setting.
        """
        settings = data.get(NAME)
        if data.get("adapter") != NAME:
            if settings is not None:
                raise InputError(f"kasa: {settings!r} has no effect with adapter: {data.get('adapter')}; use {NAME}")
            return data
        if settings is not None and not isinstance(settings, Mapping):
            raise InputError(
                f"kasa: {settings!r} must be a mapping of settings of KasaConfig, such as {{beta: 1.0e-4}}"
            )
        _refuse(data)
        kasa_config({**_options(data), "target_modules": None, "task_type": None}, settings or {})
        return data


class KasaPlugin(BasePlugin):
    """Create or load a KaSA adapter where Axolotl would create or load a LoRA adapter."""

    def get_input_args(self) -> str:
        """The keys that the plug-in adds to Axolotl's configuration."""
        return f"{__name__}.KasaArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        """`adapter: kasa`, without ReLoRA: a merged KaSA adapter cannot be restarted as if it were a LoRA."""
        return [AdapterCapabilities(name=NAME)]

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[PeftModel | None, PeftConfig] | None:
        """The model with the adapter of `lora_model_dir`, or with a new one, and the adapter's configuration.

        Args:
            model: the base.
            cfg: Axolotl's configuration.
            inference: whether the adapter stays frozen.
            config_only: only return the configuration of a new adapter, for trainers that create it themselves.

        Raises:
            AdapterError: `lora_model_dir` holds another kind of adapter.
            InputError, ModelError: as for KasaConfig and peft.get_peft_model.
        """
        if cfg.adapter != NAME:
            return None
        autocast = cfg.peft_autocast_adapter_dtype
        dtype = {} if autocast is None else {"autocast_adapter_dtype": autocast}
        if cfg.lora_model_dir and not config_only:
            saved = PeftConfig.from_pretrained(cfg.lora_model_dir)
            if not isinstance(saved, KasaConfig):
                raise AdapterError(
                    f"lora_model_dir: {cfg.lora_model_dir} holds a {type(saved).__name__}, not a KaSA adapter: name "
                    "another directory, or load it with the `adapter` that it was trained with"
                )
            tuned = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference, **dtype)
            return tuned, saved
        if cfg.seed is not None:
            torch.manual_seed(cfg.seed)  # Axolotl seeds only when it creates the trainer, after A and sigma are drawn
        lora = {**_options(cfg), "target_modules": _target_modules(cfg, model), "task_type": _task_type(model)}
        config = kasa_config(lora, cfg.kasa or {})
        if config_only:
            return None, config
        tuned: Any = get_peft_model(model, config, **dtype)
        tuned.print_trainable_parameters()
        return tuned, config


def _options(cfg: Any) -> dict[str, Any]:
    """What Axolotl would pass to peft.LoraConfig; keys that are not set are left to KasaConfig."""
    options = {name: cfg.get(key) for name, key in _OPTIONS.items()}
    options["loftq_config"] = (cfg.get("peft") or {}).get("loftq_config")
    return {name: value for name, value in options.items() if value not in (None, [], {})}


def _refuse(cfg: Any) -> None:
    """Keys that Axolotl reads for `adapter: lora` or `qlora` alone."""
    for key in _WITHOUT_EFFECT:
        if cfg.get(key):
            raise InputError(f"{key}: {cfg[key]} acts on LoRA's own layers and would miss KaSA's: leave it out")
    for key in ("load_in_4bit", "load_in_8bit"):
        if cfg.get(key):
            raise InputError(
                f"{key}: Axolotl quantizes while loading for adapter: lora and qlora alone, and would load this base "
                "in full. Leave it out and write model_kwargs: {quantization_config: {quant_method: bitsandbytes, "
                f"{key}: true}}}}, or name a base_model that was saved quantized"
            )


def _target_modules(cfg: Any, model: nn.Module) -> list[str] | str | None:
    """The targets that Axolotl would give LoRA."""
    names = cfg.lora_target_modules or []
    if not cfg.lora_target_linear:
        return names or None
    from axolotl.loaders.adapter import find_all_linear_names  # pyright: ignore[reportMissingImports]

    return sorted({*([names] if isinstance(names, str) else names), *find_all_linear_names(model)})


def _task_type(model: nn.Module) -> str:
    kind = type(model).__name__
    heads = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}
    return next((task for head, task in heads.items() if head in kind), "CAUSAL_LM")
