"""Which blocks are trained at a step: importance-aware sparse tuning, the choice itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Generator, Tensor, nn
from transformers import TrainerCallback

from kasatune.methods.base import trainable

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")


@dataclass
class AdaptedBlock:
    """What belongs to one transformer block.

    Attributes:
        parameters: of its adapters.
        layers: PEFT's layers in it, whose scaling switches them down.
    """

    parameters: list[nn.Parameter] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)


def adapted_blocks(model: nn.Module) -> list[AdaptedBlock]:
    """The blocks that hold adapters, lowest first: all that shares a name up to its first number."""
    blocks: dict[str, AdaptedBlock] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (block := _block_of(name)):
            blocks.setdefault(block, AdaptedBlock()).layers.append(module)
    for name, parameter in trainable(model).items():
        if (block := _block_of(name)) in blocks:
            blocks[block].parameters.append(parameter)  # type: ignore[arg-type]
    return list(blocks.values())


def draw_blocks(weights: Tensor, count: int, generator: Generator) -> list[int]:
    """`count` different indices, drawn one after the other with probabilities proportional to `weights`."""
    return torch.multinomial(weights, count, replacement=False, generator=generator).tolist()


def draw_candidates(I: Tensor, number: int, count: int, generator: Generator) -> list[list[int]]:  # noqa: E741
    """`number` different sets S_k of `count` blocks, drawn with weights sigmoid(I); fewer where there are fewer."""
    found: list[list[int]] = []
    for _ in range(50 * number):
        if len(found) == number:
            break
        candidate = sorted(draw_blocks(I.sigmoid(), count, generator))
        if candidate not in found:
            found.append(candidate)
    return found


def updated_scores(I: Tensor, sets: Sequence[Sequence[int]], losses: Sequence[float], rate: float) -> Tensor:  # noqa: E741
    """I_i + rate * sum_{k: i in S_k} R_k p_i (1 - p_i), R_k = exp(-L_k) - mean_j exp(-L_j), p = sigmoid(I)."""
    gains = torch.tensor(losses, dtype=I.dtype).neg().exp()
    rewards = gains - gains.mean()
    slope = I.sigmoid() * (1 - I.sigmoid())
    new = I.clone()
    for S, reward in zip(sets, rewards, strict=True):
        new[list(S)] += rate * reward * slope[list(S)]
    return new


class SparseTuning(TrainerCallback):
    """Before each optimizer step, trials where they are due, and the blocks to train; after it, all can be trained.

    Args:
        model: with its adapters.
        scores: I, (N,), float64; changed in place.
        options: those of IST in the table of methods.
    """

    def __init__(self, model: nn.Module, scores: Tensor, options: Mapping[str, Any]) -> None:
        self._model = model
        self._blocks = adapted_blocks(model)
        self._scores = scores
        self._options = options

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Choose the blocks of this step."""
        step, options = state.global_step, self._options
        generator = Generator().manual_seed(args.seed * 1_000_003 + step)
        if step > 0 and step % options["interval"] == 0 and not options["random"]:
            self._try(given["train_dataloader"], generator)
        weights = torch.ones_like(self._scores) if options["random"] else (-self._scores).sigmoid()
        chosen = draw_blocks(weights, self._count("update_share"), generator)
        for index, block in enumerate(self._blocks):
            _set_trainable(block, index in chosen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Whatever looks at the model between two steps finds every adapter to be trained."""
        for block in self._blocks:
            _set_trainable(block, True)

    def _count(self, share: str) -> int:
        return max(1, int(self._options[share] * len(self._blocks)))

    def _try(self, loader: Any, generator: Generator) -> None:
        """One round of trials, on rows of their own."""
        sets = draw_candidates(self._scores, self._options["candidates"], self._count("suppress_share"), generator)
        rows = torch.randperm(len(loader.dataset), generator=generator)[: self._options["rows"]].tolist()
        device = next(self._model.parameters()).device
        batch = loader.collate_fn([loader.dataset[row] for row in rows])
        batch = {name: value.to(device) for name, value in batch.items()}
        was_training = self._model.training
        self._model.eval()
        losses = []
        for S in sets:
            with torch.no_grad(), suppressed([self._blocks[i] for i in S], self._options["suppression"]):
                losses.append(float(self._model(**batch).loss))
        self._model.train(was_training)
        if torch.tensor(losses).isfinite().all():
            self._scores.copy_(updated_scores(self._scores, sets, losses, self._options["rate"]))


@contextmanager
def suppressed(blocks: Sequence[AdaptedBlock], factor: float) -> Iterator[None]:
    """The scaling of these blocks' adapters times `factor`, for the length of the context."""
    layers = [layer for block in blocks for layer in block.layers]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            for name in layer.scaling:
                layer.scaling[name] *= factor
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def _block_of(name: str) -> str | None:
    found = _BLOCK.match(name)
    return found.group(1) if found else None


def _set_trainable(block: AdaptedBlock, wanted: bool) -> None:
    for parameter in block.parameters:
        parameter.requires_grad_(wanted)
