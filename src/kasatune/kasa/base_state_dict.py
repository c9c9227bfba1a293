"""The base weight of a KaSA layer in state dicts: W, whether or not an adapter is folded into it.

A state dict of a model with a folded adapter (W - tail in the layer) holds W, and a W that is loaded becomes the
original weight from which the tail is subtracted. A state dict of a merged model holds the merged weight, as with
every tuner of PEFT, except for PEFT's `get_base_model_state_dict` and `set_base_model_state_dict`: they read and write
W in any state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kasatune.distributed.gather_scatter import is_sharded
from kasatune.kasa.call_stack import in_base_state_dict

if TYPE_CHECKING:
    from kasatune.kasa.layer import KasaLayer
    from kasatune.weights.base_weight import Original

_WEIGHT = "base_layer.weight"


def write_original(
    layer: KasaLayer, original: Original, tensors: dict[str, Any], prefix: str, *, keep_vars: bool
) -> None:
    """Replace a folded or merged weight in the state dict of a model by the original.

    Args:
        layer: the layer whose base is folded or merged.
        original: its original weight.
        tensors: the state dict; changed in place.
        prefix: of the layer's keys.
        keep_vars: as in nn.Module.state_dict: the parameter itself, not its data.
    """
    if layer.merged_adapters and not in_base_state_dict():
        return
    held = original.held
    if isinstance(held, nn.Module):
        for key in [key for key in tensors if key.startswith(f"{prefix}base_layer.")]:
            del tensors[key]
        tensors.update(held.state_dict(prefix=f"{prefix}base_layer.", keep_vars=keep_vars))
        return
    weight = layer.get_base_layer().weight
    if not (isinstance(weight, Tensor) and is_sharded(weight)):
        tensors[prefix + _WEIGHT] = held if keep_vars else held.detach()


def before_loading(layer: KasaLayer, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before `load_state_dict`: undo a fold, or a merge in PEFT's base API, so that W itself is loaded."""
    if layer.merged_adapters:
        if in_base_state_dict() and any(key.startswith(f"{prefix}base_layer.") for key in tensors):
            layer.merged_before_loading = list(layer.merged_adapters)
            layer.restore_base()
    elif layer.folded is not None:
        tail = (f"{prefix}{kind}.{layer.folded}" for kind in ("kasa_tail_U", "kasa_tail_V"))
        if any(key in tensors for key in (prefix + _WEIGHT, *tail)):
            layer.restore_base()


def after_loading(layer: KasaLayer, _: Any) -> None:
    """After `load_state_dict`: fold or merge the adapter into the W that was loaded."""
    merged, layer.merged_before_loading = layer.merged_before_loading, []
    if merged:
        layer.merge(adapter_names=merged)
    else:
        layer.sync_fold()
