"""Let PEFT before 0.21 call our tuners when it saves and loads adapters, as PEFT 0.21 does.

Older versions select the tensors of an adapter by PEFT type, inside `get_peft_model_state_dict` and
`set_peft_model_state_dict`, where types of other packages get a default: the adapters of a model are not told apart,
trained biases are not saved, and nothing is checked before a load. Both functions are replaced for adapters of our
types and unchanged for all others.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor

from kasatune.peft_compat.tuner_bases import HAS_STATE_DICT_HOOKS, HookedTuner

_PEFT_PREFIX = "base_model.model."


def install() -> None:
    """Replace the two functions wherever they have been imported; no effect on PEFT 0.21, or if called again."""
    if HAS_STATE_DICT_HOOKS:
        return
    for original, ours in (
        (peft.get_peft_model_state_dict, _get_state_dict),
        (peft.set_peft_model_state_dict, _set_state_dict),
    ):
        if not hasattr(original, "__wrapped__"):
            _replace(original, ours)


def _replace(original: Callable[..., Any], ours: Callable[..., Any]) -> None:
    @functools.wraps(original)
    def replacement(model: Any, *args: Any, **kwargs: Any) -> Any:
        name = kwargs.get("adapter_name", args[1] if len(args) > 1 else "default")
        config = getattr(model, "peft_config", {}).get(name)
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type) if config is not None else None
        if isinstance(tuner, type) and issubclass(tuner, HookedTuner):
            return ours(original, model, *args, **kwargs)
        return original(model, *args, **kwargs)

    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get(original.__name__) is original:
            setattr(module, original.__name__, replacement)


def _get_state_dict(
    original: Callable[..., dict[str, Tensor]],
    model: Any,
    state_dict: dict[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """The tensors of an adapter, by their keys in a file: `peft.get_peft_model_state_dict`."""
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    tensors = model.state_dict() if state_dict is None else state_dict
    others = [name for name in model.peft_config if name != adapter_name]
    tensors = {key: t for key, t in tensors.items() if not any(f".{name}." in f"{key}." for name in others)}
    config = model.peft_config[adapter_name]
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    own = tuner._get_adapter_state_dict(
        model=model, config=config, adapter_name=adapter_name, state_dict=tensors, unwanted_adapter_names=others
    )
    saved = {tuner._remove_adapter_name_from_key(key, adapter_name): tensor for key, tensor in own.items()}
    # modules_to_save and embeddings are the same for every type of adapter
    rest = {key: tensor for key, tensor in tensors.items() if tuner.prefix not in key}
    return saved | original(model, rest, adapter_name, save_embedding_layers=save_embedding_layers)


def _set_state_dict(
    original: Callable[..., Any],
    model: Any,
    peft_model_state_dict: dict[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> Any:
    """Load the tensors of a file into an adapter: `peft.set_peft_model_state_dict`."""
    config = model.peft_config[adapter_name]
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    tensors = dict(peft_model_state_dict)
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            stem = name.removeprefix("_fsdp_wrapped_module.")
            keys: dict[str, str] = module.adapter_state_dict_load_map(adapter_name)
            tensors |= {f"{stem}.{held}": tensors.pop(f"{stem}.{saved}") for saved, held in keys.items()}
    tensors = tuner._remap_adapter_state_dict_for_load(
        model=model, config=config, adapter_name=adapter_name, state_dict=tensors
    )
    if not any(name.startswith(_PEFT_PREFIX) for name, _ in model.named_parameters()):
        tensors = {key.removeprefix(_PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    if ignore_mismatched_sizes:
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        wrong = [key for key, tensor in tensors.items() if shapes.get(key, tensor.shape) != tensor.shape]
        if wrong:
            sizes = ", ".join(f"{key} ({list(tensors[key].shape)}, not {list(shapes[key])})" for key in wrong)
            warnings.warn(f"not loaded, because of ignore_mismatched_sizes=True: {sizes}", stacklevel=2)
        tensors = {key: tensor for key, tensor in tensors.items() if key not in wrong}
    result = model.load_state_dict(tensors, strict=False, assign=low_cpu_mem_usage)
    if low_cpu_mem_usage:
        for module in model.modules():
            if hasattr(module, "_move_adapter_to_device_of_base_layer"):
                module._move_adapter_to_device_of_base_layer(adapter_name)
    return result
