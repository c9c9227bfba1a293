"""KaSA adapters in PEFT's own form: a LoraConfig with `kasa_config`, and lora_A, lora_B, lora_diag."""

from __future__ import annotations

from typing import Any

from kasatune.adapters.diagonal import diagonal_tensors, native_from_diagonal, require_holdable, shared_fields
from kasatune.adapters.native_format import CARRIED, native_tensors
from kasatune.adapters.storage import AdapterFiles
from kasatune.errors import AdapterError
from kasatune.kasa.config import KasaConfig

# What a LoraConfig may ask for beside KaSA, each of which would change the outputs.
_CHANGES_OUTPUTS = (
    *("use_dora", "lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora"),
    *("velora_config", "monteclora_config", "use_bdlora", "arrow_config", "alora_invocation_tokens"),
)


def to_peft_kasa(source: AdapterFiles) -> AdapterFiles:
    """A native adapter in PEFT's form. PEFT decomposes the base again when it loads it.

    Raises:
        InputError: PEFT's form cannot hold it exactly: quantized or Conv1D layers, or other triplets dropped.
    """
    require_holdable(source, "paper", "PEFT", conv1d=False)
    config = {
        **{key: source.config.get(key) for key in CARRIED},
        **shared_fields(source.config),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "kasa_config": {"beta": source.config["beta"], "gamma": source.config["gamma"]},
        "peft_type": "LORA",
        "use_dora": False,
    }
    return AdapterFiles(config, diagonal_tensors(source))


def from_peft_kasa(files: AdapterFiles) -> AdapterFiles:
    """A native adapter without tails: PEFT drops the r smallest triplets of min(out, in).

    Raises:
        AdapterError: the configuration asks for something beside KaSA.
    """
    factors, rest = native_from_diagonal(files, "peft-kasa")
    sub = files.config["kasa_config"]
    sub = sub if isinstance(sub, dict) else {}
    return AdapterFiles(
        native_config(files.config, convention="paper", core="diagonal", beta=sub.get("beta"), gamma=sub.get("gamma")),
        native_tensors(factors, rest),
    )


def native_config(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The configuration of a native adapter out of a LoraConfig; settings that are None stay KasaConfig's own.

    Raises:
        AdapterError: the LoraConfig asks for something that would change the outputs.
    """
    asked = [name for name in _CHANGES_OUTPUTS if config.get(name)]
    if asked:
        raise AdapterError(f"the adapter's configuration combines KaSA with {', '.join(asked)}, which is not read here")
    carried = {key: config.get(key) for key in CARRIED}
    auto_mapping = carried.pop("auto_mapping")
    values = {key: value for key, value in settings.items() if value is not None}
    fields = shared_fields(config)
    made = KasaConfig(**carried, **fields, **values).to_dict()
    return {**made, "auto_mapping": auto_mapping, "fan_in_fan_out": bool(config.get("fan_in_fan_out"))}
