"""Cache what a base model chose on text of its own: tails and protected directions, by base, source and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from kasatune.kasa.truncation.tail_store import SMALLEST_CACHED, TailCache
from kasatune.linalg.tail import TailSVD
from kasatune.weights.base_weight import BaseWeight
from kasatune.weights.fingerprint import parameters_sha256

ALGORITHM = 1
"""Part of every key; raised when a base chooses other components on the same text than before."""


class SelfCalibrated(NamedTuple):
    """What was chosen on the base's own text.

    Args:
        tails: by layer name.
        protected: directions K (in, c), float16, by layer name; layers that read one tensor share one K.
        used: `KasaConfig.calibration_used`.
    """

    tails: dict[str, TailSVD]
    protected: dict[str, Tensor]
    used: dict[str, Any]


class SelfCalibrationCache:
    """One file of the user's cache of tails (docs/decompose.md) for each base, choice of layers and seed.

    Args:
        cache: the user's cache.
        name: of the file.
    """

    def __init__(self, cache: TailCache, name: str) -> None:
        self._cache = cache
        self._name = name

    @classmethod
    def of(
        cls, model: nn.Module, weights: Mapping[str, BaseWeight], settings: Mapping[str, Any], seed: int
    ) -> SelfCalibrationCache | None:
        """The cache for a model, which is identified by all of its values, since activations depend on all of them.

        Args:
            model: the base, with or without adapters.
            weights: of the layers to choose for.
            settings: by layer name, what decides the choice.
            seed: of the text.

        Returns:
            None where nothing is cached: the cache is off, the layers are so small that measuring is as fast, or
            weights are quantized, offloaded or not loaded.
        """
        cache = TailCache.of_user()
        small = all(min(weight.shape) < SMALLEST_CACHED for weight in weights.values())
        if cache is None or small or any(w.backend is not None or w.offloaded for w in weights.values()):
            return None
        tensors = list(_base_tensors(model))
        if any(tensor.is_meta for _, tensor in tensors):
            return None
        generation: Any = getattr(model, "generation_config", None)
        identity = {
            "algorithm": ALGORITHM,
            "base": parameters_sha256(tensors),
            "config": _architecture(getattr(model, "config", None)),
            "tokens": [getattr(generation, f"{kind}_token_id", None) for kind in ("bos", "eos")],
            "settings": dict(settings),
            "seed": seed,
        }
        text = json.dumps(identity, sort_keys=True, default=str)
        return cls(cache, f"activation-{hashlib.sha256(text.encode()).hexdigest()[:40]}")

    def get(self) -> SelfCalibrated | None:
        """What was stored; None where there is no undamaged file."""
        stored = self._cache.get_tensors(self._name)
        if stored is None:
            return None
        tensors, metadata = stored
        tails = {name: TailSVD(*(tensors[f"{name}.{part}"] for part in TailSVD._fields)) for name in metadata["tails"]}
        protected = {name: tensors[f"{first}.K"] for name, first in metadata["protected"].items()}
        return SelfCalibrated(tails, protected, metadata["used"])

    def put(self, chosen: SelfCalibrated) -> None:
        """Store what was chosen."""
        tensors = {
            f"{name}.{part}": tensor for name, tail in chosen.tails.items() for part, tensor in tail._asdict().items()
        }
        first: dict[int, str] = {}
        for name, K in chosen.protected.items():
            if id(K) not in first:
                first[id(K)] = name
                tensors[f"{name}.K"] = K
        protected = {name: first[id(K)] for name, K in chosen.protected.items()}
        metadata = {"tails": list(chosen.tails), "protected": protected, "used": chosen.used}
        self._cache.put_tensors(self._name, tensors, metadata)
        self._cache.trim()


def _base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of the base, without those of adapters, under the names that they have in the base."""
    adapters = {
        id(tensor)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for kind in layer.adapter_layer_names
        for tensor in getattr(layer, kind).parameters()
    }
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in adapters:
            yield name.replace(".base_layer.", "."), tensor


def _architecture(config: Any) -> dict[str, Any]:
    """The model's configuration without what does not change its outputs."""
    values: dict[str, Any] = dict(config.to_dict()) if hasattr(config, "to_dict") else {}
    for key in ("_name_or_path", "transformers_version", "architectures", "use_cache"):
        values.pop(key, None)
    return values
