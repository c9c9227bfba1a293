"""The layers that an adapter is for: decomposed when it is made, held against its fingerprint when it is loaded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kasatune.errors import AdapterError
from kasatune.kasa.config import KasaConfig, LayerSettings
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.truncation.compute_tails import TailRequest, compute_tails
from kasatune.kasa.truncation.tail_source import TailSource
from kasatune.linalg import TailSVD
from kasatune.weights.base_weight import BaseWeight
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance, weight_sketch

logger = logging.getLogger("kasatune")


class Target(NamedTuple):
    """A layer about to be adapted.

    Args:
        name: in the model.
        module: the layer, adapted already or not.
        weight: of its base layer.
        settings: of the adapter in it.
    """

    name: str
    module: nn.Module
    weight: BaseWeight
    settings: LayerSettings

    def original(self) -> Tensor:
        """W (out, in), also where another adapter is folded or merged into it."""
        return self.module.original_weight() if isinstance(self.module, KasaLayer) else self.weight.read()

    def no_tail(self) -> TailSVD:
        """The tail of a layer that drops nothing."""
        rows, columns = self.weight.shape
        return TailSVD(torch.zeros(rows, 0), torch.zeros(0), torch.zeros(0, columns))


class Decomposition(NamedTuple):
    """What a new adapter takes from its base.

    Args:
        tails: by layer name, of the layers that drop anything.
        fingerprint: by layer name, of every layer.
    """

    tails: dict[str, TailSVD]
    fingerprint: dict[str, Any]


def decompose(targets: Sequence[Target], source: TailSource, directory: str | None = None) -> Decomposition:
    """The tail and the fingerprint of every target; a quantized or offloaded weight is opened for its turn alone.

    Args:
        targets: the layers.
        source: gives the weight of each that is decomposed.
        directory: of tails that were decomposed before; None for none.

    Raises:
        InputError: the directory lacks a tail.
        ModelError: a weight that cannot be read or decomposed, by name.
    """
    fingerprint: dict[str, Any] = {}

    def opened() -> Iterator[TailRequest]:
        for target in targets:
            W, _, bits = source.of(target.name, target.weight, target.original())
            fingerprint[target.name] = {**weight_sketch(W, bits), "held_as": target.weight.held_as}
            if target.settings.drop:
                yield TailRequest(target.name, W, target.settings.drop)
            del W

    total = sum(1 for target in targets if target.settings.drop)
    return Decomposition(compute_tails(opened(), total, directory), fingerprint)


def check_base(config: KasaConfig, targets: Sequence[Target]) -> None:
    """Hold the base against the fingerprint in the adapter's configuration.

    The same base in another precision, or quantized, is accepted and noted in the log.

    Raises:
        AdapterError: another base, with the first layer that differs.
    """
    stored = config.base_fingerprint
    if stored is None:
        return
    otherwise_held = []
    for target in targets:
        name, weight = target.name, target.weight
        if name not in stored or weight.is_missing:
            continue
        found = sketch_distance(target.original(), stored[name])
        limit = sketch_tolerance(weight.dtype, weight.bits, stored[name])
        if found is not None and found <= limit:
            if found > sketch_tolerance(torch.float32, None):
                otherwise_held.append(name)
            continue
        what = (
            f"has shape {list(weight.shape)}, the adapter's base had {stored[name]['shape']}"
            if found is None
            else f"differs from the adapter's base by {found:.2g} of its norm (limit {limit:g})"
        )
        message = f"this is another base model than the adapter was trained on: {name} {what}"
        if config.check_base or found is None:
            raise AdapterError(f"{message}. Load the right base, or pass check_base=False to load it all the same.")
        warnings.warn(message + "; loaded all the same, because check_base=False", stacklevel=2)
        return
    if otherwise_held:
        first = next(target.weight.held_as for target in targets if target.name == otherwise_held[0])
        logger.info(
            "the base is the adapter's own, held in another precision (%d layers, first %s: %s)",
            len(otherwise_held),
            otherwise_held[0],
            first,
        )
