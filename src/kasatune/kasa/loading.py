"""Load a saved adapter without decomposing: deferred tails, checks of the loaded tensors and of the base model.

PEFT builds the layers of an adapter in the same way whether its weights are loaded afterwards or not, and does not
tell the tuner which. So an adapter whose configuration was saved with an adapter (`KasaConfig.saved`) gets no tails
when it is attached. Loading fills them in; otherwise they are decomposed when a forward pass, training, merging,
saving or exporting first needs them (docs/decisions/0014-deferred-decomposition.md).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kasatune.distributed.gather_scatter import is_sharded
from kasatune.errors import AdapterError, InputError
from kasatune.kasa.call_stack import in_loader
from kasatune.kasa.chosen_components import decompose
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.targets import Target, uncompiled_name, warn_unmatched
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance
from kasatune.wording import agree, counted

logger = logging.getLogger("kasatune")

_PEFT_PREFIX = "base_model.model."
_TAIL_HALVES = ((".kasa_tail_U.", ".kasa_tail_V."), (".kasa_tail_V.", ".kasa_tail_U."))


class DeferredTails:
    """The tails of an adapter that was attached without any: to be loaded, or else decomposed when first needed.

    Args:
        adapter_name: its name.
        config: its configuration.
        model: the adapted model.

    Attributes:
        from_files: whether PEFT attached the adapter in order to load it from files.
    """

    def __init__(self, adapter_name: str, config: KasaConfig, model: nn.Module) -> None:
        self.adapter_name = adapter_name
        self.config = config
        self.model = model
        self.layers: dict[str, KasaLayer] = {}
        self.from_files = in_loader()

    def is_loadable_only(self) -> bool:
        """Whether the tails cannot be decomposed yet: the adapter or its base is on the meta device."""
        return any(
            layer.kasa_tail_U[self.adapter_name].is_meta or layer.base.is_missing for layer in self.layers.values()
        )

    @torch.no_grad()
    def resolve(self) -> None:
        """Decompose the base weights, or accept the tails where a loader has written them.

        Raises:
            AdapterError: the adapter is on the meta device, was loaded in part, or belongs to another base.
            InputError: the layers are sharded and nothing was loaded.
            ModelError: a weight cannot be decomposed, by name.
        """
        name = self.adapter_name
        if any(layer.kasa_tail_U[name].is_meta or layer.kasa_A[name].is_meta for layer in self.layers.values()):
            raise AdapterError(f"adapter {name!r}: its weights were never loaded; use PeftModel.from_pretrained")
        missing = [layer_name for layer_name, layer in self.layers.items() if not layer.has_tail(name)]
        if not missing:
            self.check_base()
            self.stop()
        elif len(missing) < len(self.layers):
            raise AdapterError(
                f"adapter {name!r} was loaded in part: {len(missing)} of {counted(len(self.layers), 'layer')} "
                f"{agree(len(missing), 'has', 'have')} no tail "
                f"({missing[0]} first); load all of its tensors"
            )
        else:
            self._decompose()

    def check_base(self) -> None:
        """Compare the base with the fingerprint of the base that the adapter was trained on.

        Raises:
            AdapterError: it is another base.
        """
        check_base(self.config, self._targets())

    def stop(self) -> None:
        """Stop deferring: the tails of all layers are written, or are about to be."""
        for layer in self.layers.values():
            layer.deferred.pop(self.adapter_name, None)

    def _decompose(self) -> None:
        if any(is_sharded(layer.kasa_tail_U[self.adapter_name]) for layer in self.layers.values()):
            raise InputError(
                f"adapter {self.adapter_name!r} was attached with the configuration of a saved adapter, nothing was "
                "loaded, and its layers are sharded now: call model.train() before sharding, so that its tails are "
                "decomposed there"
            )
        if self.config.needs_activations and self.config.activations is None and not self.config.saved:
            raise InputError(
                f"adapter {self.adapter_name!r} depends on activations of the base, was attached to be loaded, and "
                "nothing was loaded: load its weights, or attach it with get_peft_model(base, calibrate(base, config))"
            )
        targets = self._targets()
        warn_unmatched(self.config, targets)
        for layer_name, tail in decompose(targets, self.config, self.model).tails.items():
            self.layers[layer_name].write_tail(self.adapter_name, tail)
        self.stop()

    def _targets(self) -> list[Target]:
        return [
            Target(name, layer, layer.base, layer.settings[self.adapter_name]) for name, layer in self.layers.items()
        ]


def makes_empty_weights() -> bool:
    """Whether new parameters go to the meta device at present, as under low_cpu_mem_usage: weights will follow."""
    probe = nn.Module()
    probe.register_parameter("weight", nn.Parameter(torch.empty(1)))
    return probe.get_parameter("weight").is_meta


def check_tensors(model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor], *, complete: bool) -> None:
    """Check the tensors of an adapter's KaSA layers before they are loaded.

    Args:
        model: the adapted model.
        adapter_name: the adapter.
        state_dict: tensors by their keys in the model.
        complete: every tensor is required. Otherwise the adapter has tensors already, and may be loaded in part: the
            two halves of a layer's tail come together, and the caller learns the missing keys from PEFT.

    Raises:
        AdapterError: tensors are missing, unknown, of another shape, or not finite; at most five are named.
    """
    expected: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, KasaLayer) and adapter_name in layer.kasa_A:
            for kind in layer.adapter_layer_names:
                expected[f"{name}.{kind}.{adapter_name}"] = getattr(layer, kind)[adapter_name]
    faults: list[str] = []
    for key, parameter in expected.items():
        if key not in state_dict:
            if complete:
                faults.append(f"{key} is missing")
            elif any(half in key and key.replace(half, other) in state_dict for half, other in _TAIL_HALVES):
                faults.append(f"{key} is missing, and the other half of the tail is not")
        elif state_dict[key].shape != parameter.shape:
            faults.append(
                f"{key} has shape {list(state_dict[key].shape)}, the model and the configuration give "
                f"{list(parameter.shape)}"
            )
        elif not state_dict[key].is_floating_point() or not bool(torch.isfinite(state_dict[key]).all()):
            faults.append(f"{key} holds NaN, Inf or no floating-point numbers")
    faults += [f"{key} belongs to no layer of the model" for key in state_dict if _is_unknown(key, expected)]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise AdapterError("this adapter cannot be loaded: " + "; ".join(faults[:5]) + more)


def check_base(config: KasaConfig, targets: Sequence[Target]) -> None:
    """Compare the base weights with the fingerprint in the adapter's configuration.

    The same base in another precision, or quantized, is accepted and noted in the log.

    Raises:
        AdapterError: another base, with the first layer that differs.
    """
    stored = config.base_fingerprint
    if stored is None:
        return
    other_precision: list[Target] = []
    for target in targets:
        name, weight = target.name, target.weight
        if name not in stored or weight.is_missing:
            continue
        distance = sketch_distance(target.original(), stored[name])
        limit = sketch_tolerance(weight.dtype, weight.bits, stored[name])
        if distance is not None and distance <= limit:
            if distance > sketch_tolerance(torch.float32, None):
                other_precision.append(target)
            continue
        difference = (
            f"has shape {list(weight.shape)}, the adapter's base had {stored[name]['shape']}"
            if distance is None
            else f"differs from the adapter's base by {distance:.2g} of its norm (limit {limit:g})"
        )
        message = f"this is another base model than the adapter was trained on: {name} {difference}"
        if config.check_base or distance is None:
            raise AdapterError(f"{message}. Load the right base, or pass check_base=False to load it anyway.")
        warnings.warn(message + "; loaded anyway, because check_base=False", stacklevel=2)
        return
    if other_precision:
        logger.info(
            "the base is the adapter's own, held in another precision (%d layers, first %s: %s)",
            len(other_precision),
            other_precision[0].name,
            other_precision[0].weight.held_as,
        )


def with_compiled_names(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the layer names of the model, where one of the two was compiled with torch.compile."""
    names = {uncompiled_name(name): name for name, layer in model.named_modules() if isinstance(layer, KasaLayer)}
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        layer, separator, rest = key.rpartition(".kasa_")
        plain = uncompiled_name(layer)
        prefix = "" if plain in names else _PEFT_PREFIX
        name = names.get(plain.removeprefix(prefix))
        renamed[key if name is None else f"{prefix}{name}{separator}{rest}"] = tensor
    return renamed


def _is_unknown(key: str, expected: dict[str, Tensor]) -> bool:
    return key not in expected and any(f".{kind}" in key for kind in KasaLayer.adapter_layer_names)
