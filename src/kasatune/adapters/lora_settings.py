"""Check the settings of a LoRA adapter: those of a plain update s B A, those that can be converted, and all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import peft
from peft import LoraConfig

from kasatune import __version__
from kasatune.errors import AdapterError
from kasatune.kasa.config import KasaConfig

_MERGE_WITH_PEFT = "merge it with PEFT: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
_SAVE_CONVERTED = (
    "save it from the training script with save_pretrained(folder, path_initial_model_for_weight_conversion=...) of "
    "PEFT, which writes a plain LoRA"
)


class Refusal(NamedTuple):
    """Why a setting has no equivalent plain LoRA, and what can be done with the adapter instead."""

    reason: str
    remedy: str


# Settings of LoraConfig that leave W' = W + s B A as it is: names, scales, dropout, how A and B were initialized, and
# what is trained besides: biases, whole modules, rows of embeddings.
PLAIN = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("bias", "modules_to_save", "ensure_weight_tying", "trainable_token_indices"),
        # These are read only where init_lora_weights, use_qalora or megatron_config ask for them.
        *("eva_config", "corda_config", "loftq_config", "lora_ga_config", "qalora_group_size", "megatron_core"),
        # PEFT ignores it in a file.
        "runtime_config",
    )
)
REFUSED = {
    "use_dora": Refusal("DoRA also trains the norm of every row of the weight", _MERGE_WITH_PEFT),
    "lora_bias": Refusal(
        "it adds a bias to B, which a plain LoRA does not have",
        "serve it as it is, with PEFT, or merge it there if the layers of the base have biases",
    ),
    "alora_invocation_tokens": Refusal(
        "activated LoRA changes only what follows the invocation tokens, so no single weight has its outputs",
        "serve the adapter as it is, with PEFT or vLLM",
    ),
    "layer_replication": Refusal(
        "it adds layers to the model, which share weights of the base but not their LoRA",
        "replicate the layers in the base first, and train on that model",
    ),
    "target_parameters": Refusal(
        "it adapts parameters that belong to no linear layer, such as stacked experts", _MERGE_WITH_PEFT
    ),
    "use_qalora": Refusal("QALoRA averages groups of inputs before A", "serve the adapter as it is, with PEFT"),
    "use_bdlora": Refusal("the factors of BD-LoRA are block-diagonal and are stored as their blocks", _MERGE_WITH_PEFT),
    "arrow_config": Refusal("Arrow mixes several adapters by a router", "serve the adapters as they are, with PEFT"),
    "velora_config": Refusal("VeLoRA stores projections beside A and B", _MERGE_WITH_PEFT),
    "monteclora_config": Refusal("MonteCLoRA stores a sampler beside A and B", _MERGE_WITH_PEFT),
    "megatron_config": Refusal("its layers are those of Megatron", "convert it with Megatron's own tools"),
    "kasa_config": Refusal("the adapter holds no KaSA tensors although it is configured for KaSA", "save it again"),
}
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
_REFUSED_INITS = {
    "pissa_niter": Refusal(
        "PEFT approximates the initial factors with random numbers again at every load, so the adapter is another "
        "model each time",
        _SAVE_CONVERTED,
    ),
    "corda": Refusal(
        "CorDA changed the base when training began, by activations that the adapter does not hold", _SAVE_CONVERTED
    ),
    "lora_ga": Refusal(
        "LoRA-GA changed the base when training began, by gradients that the adapter does not hold", _SAVE_CONVERTED
    ),
    "loftq": Refusal(
        "LoftQ replaces the base by its quantized form when the adapter is loaded, which no LoRA on the base equals",
        _MERGE_WITH_PEFT,
    ),
}
_BIASES = ("none", "all", "lora_only")
_NATIVE = frozenset(field.name for field in dataclasses.fields(KasaConfig))
_LORA = frozenset(field.name for field in dataclasses.fields(LoraConfig))


def check_settings(config: Mapping[str, Any], kind: str) -> None:
    """Refuse an adapter whose configuration asks for more than its format's update.

    The settings in `PLAIN` are accepted, and so are all others that are off: None, false or empty. PiSSA and OLoRA are
    accepted too, see `residual_init`.

    Args:
        config: adapter_config.json.
        kind: the format of the adapter, from `recognize_format.format_of`.

    Raises:
        AdapterError: every such setting by name, with the reason and what to do instead.
    """
    faults = _faults(config, kind)
    if faults:
        raise AdapterError("adapter_config.json: " + "; ".join(faults))


def residual_init(config: Mapping[str, Any]) -> str | None:
    """The initialization that takes s B0 A0 from the base at every load: "pissa", "olora", or None."""
    init = config.get("init_lora_weights")
    if init == "pissa":
        return "pissa"
    return "olora" if isinstance(init, str) and init.lower() == "olora" else None


def _faults(config: Mapping[str, Any], kind: str) -> list[str]:
    if kind == "kasa":
        return [_unknown(config, name) for name in sorted(set(config) - _NATIVE) if _is_on(config[name])]
    faults = []
    for name in sorted(set(config) - PLAIN - {"init_lora_weights"}):
        if not _is_on(config[name]) or (name == "kasa_config" and kind == "peft-kasa"):
            continue
        refusal = REFUSED.get(name)
        faults.append(f"{name} is set, and {refusal.reason}; {refusal.remedy}" if refusal else _unknown(config, name))
    bias = config.get("bias")
    if bias is not None and bias not in _BIASES:
        faults.append(f"bias is {_brief(bias)}, must be one of {', '.join(_BIASES)}")
    faults += _init_faults(config.get("init_lora_weights"), kind)
    return faults


def _init_faults(init: object, kind: str) -> list[str]:
    if init is None or isinstance(init, bool):
        return []
    name = f"init_lora_weights is {_brief(init)}"
    if not isinstance(init, str):
        return [f"{name}, which PEFT does not know; it is true, false or a name"]
    if init.lower() in _PLAIN_INITS:
        return []
    if residual_init({"init_lora_weights": init}) is not None:
        if kind == "lora":
            return []
        return [f"{name}, and KaSA decomposes the base that this has changed; {_MERGE_WITH_PEFT}"]
    for prefix, refusal in _REFUSED_INITS.items():
        if init.startswith(prefix):
            return [f"{name}, and {refusal.reason}; {refusal.remedy}"]
    return [f"{name}, which this version cannot interpret; upgrade kasatune and PEFT, or {_SAVE_CONVERTED}"]


def _unknown(config: Mapping[str, Any], name: str) -> str:
    version = config.get("peft_version")
    saved = f", and the adapter was saved by PEFT {_brief(version)}" if isinstance(version, str) else ""
    whose = "PEFT" if name in _LORA else "a later version"
    return (
        f"{_brief(name)} is {_brief(config[name])}, a setting of {whose} that kasatune {__version__} with PEFT "
        f"{peft.__version__} cannot interpret{saved}; upgrade both, or merge it with the PEFT that saved it"
    )


def _is_on(value: object) -> bool:
    """Whether a setting is on: neither None nor false nor empty. A number is on, also 0."""
    return value is not None and value is not False and not (isinstance(value, str | list | dict) and not value)


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
