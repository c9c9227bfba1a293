"""Choose the weight that a tail is computed from: float base, full-precision checkpoint, or dequantized weight."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.kasa.config import KasaConfig
from kasatune.weights.base_weight import BaseWeight
from kasatune.weights.fingerprint import TOLERANCES, sketch_tolerance
from kasatune.weights.safetensors_reader import ModelCheckpoint, find_checkpoint
from kasatune.wording import counted

logger = logging.getLogger("kasatune")


class SourceWeight(NamedTuple):
    """A weight to decompose.

    Args:
        W: (out, in), float.
        source: "checkpoint" or "dequantized"; None for a float base.
        bits: of an entry, if W went through a quantization; None if it is exact.
    """

    W: Tensor
    source: str | None
    bits: int | None


class TailSource:
    """Supplies the weight to decompose, layer by layer, so that one float copy of a quantized weight exists at a time.

    A checkpoint's tensor is used only if it is the weight that was quantized: its distance to the dequantized weight
    must be within the error of that quantization.

    Args:
        config: of the adapter; `tail_source` and `tail_checkpoint` are read.
        model: the model that is adapted.
        quantized: whether any layer to adapt is quantized.

    Raises:
        ModelError: tail_source="checkpoint" and none was found; the message names what was looked for.
    """

    def __init__(self, config: KasaConfig, model: nn.Module, *, quantized: bool) -> None:
        self.required = config.tail_source == "checkpoint"
        self.checkpoint: ModelCheckpoint | None = None
        self._used: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        if not quantized or config.tail_source == "dequantized":
            return
        self.checkpoint, looked_for = find_checkpoint(model, config.tail_checkpoint)
        if self.checkpoint is not None:
            return
        if self.required or config.tail_checkpoint:
            raise ModelError(
                f"tail_source={config.tail_source!r} needs the full-precision checkpoint: {looked_for}. Name it with "
                "tail_checkpoint=..., or use tail_source='dequantized'"
            )
        logger.info("tails come from the dequantized weights: %s", looked_for)

    def of(self, name: str, weight: BaseWeight, original: Tensor) -> SourceWeight:
        """The weight to decompose of one layer.

        Args:
            name: of the layer.
            weight: as the layer holds it.
            original: its float matrix (out, in) without any adapter.

        Raises:
            ModelError: the checkpoint is required, and its tensor is missing or is another weight.
        """
        if weight.backend is None or weight.bits is None:
            return SourceWeight(original, None, None)
        if self.checkpoint is not None:
            limit, nearest = max(sketch_tolerance(weight.dtype, weight.bits), TOLERANCES["int8"]), None
            for W in self.checkpoint.candidates(name, weight.shape):
                distance = float((W.to(original) - original).norm() / original.norm().clamp_min(1e-30))
                if distance <= limit:
                    self._used[name] = "checkpoint"
                    return SourceWeight(W.to(original.device), "checkpoint", None)
                nearest = distance if nearest is None else min(nearest, distance)
            self._reject(name, nearest, limit)
        self._used[name] = "dequantized"
        return SourceWeight(original, "dequantized", weight.bits)

    def _reject(self, name: str, nearest: float | None, limit: float) -> None:
        assert self.checkpoint is not None
        reason = (
            f"{name}: {self.checkpoint.folder} holds no full-precision weight of it"
            if nearest is None
            else f"{name}: the weight in {self.checkpoint.folder} differs from the quantized one by {nearest:.2g} of "
            f"its norm, and this quantization explains {limit:g}"
        )
        if self.required:
            raise ModelError(
                f"tail_source='checkpoint': {reason}. Name the checkpoint that was quantized with "
                "tail_checkpoint=..., or use tail_source='dequantized'"
            )
        if nearest is not None:
            self._reasons[name] = reason
        else:
            logger.info("the tail comes from the dequantized weight: %s", reason)

    def used(self) -> str | dict[str, str] | None:
        """The source of each layer: one word if all have the same, None on a float base; warns of mismatches."""
        if self._reasons:
            warnings.warn(
                f"tail_source='auto': the checkpoint is not the base that was quantized, so "
                f"{counted(len(self._reasons), 'tail')} "
                f"come from the dequantized weight. {next(iter(self._reasons.values()))}",
                stacklevel=2,
            )
        words = set(self._used.values())
        return None if not words else words.pop() if len(words) == 1 else dict(self._used)
