from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import TrainerCallback

from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.methods.shared.wrapping import WrappingMethod
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

_SCORES = "ist_scores"
_BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")


class Ist(WrappingMethod):
    """Importance-aware sparse tuning of any adapter: each step trains the adapters of a few blocks and no others.

    U ~ draw of n_upd = update_share * N blocks without replacement, with weights sigmoid(-I), I = 0 at the start.
    Every `interval` steps, for k = 1..candidates: S_k ~ draw of n_sup = suppress_share * N blocks with weights
    sigmoid(I), all different; L_k = loss of `rows` training rows with the scaling of S_k's adapters times
    `suppression`, in evaluation mode; R_k = exp(-L_k) - mean_j exp(-L_j); I_i += rate * R_k * p_i (1 - p_i) for i in
    S_k, with p = sigmoid(I) from before the round. A block that can be suppressed without harm gets a high I, and is
    trained less.

    Adapters outside the blocks and newly initialized modules are trained at every step. The number of trained
    parameters and the saved files are those of the method in the option `over`.

    Not specified by the source, chosen here: shares are rounded down, to at least one block; draws depend only on the
    recipe's seed and the step; the loss is the model's own, and a round with a loss that is not finite is skipped.

    Source: Yao et al., arXiv 2410.11772, and the authors' ist.py, which gives the signs; computed by kasatune.
    """

    info = METHODS["ist"]

    def wrapped_name(self, settings: MethodSettings) -> str:
        """The option `over`."""
        return settings.options["over"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        attached = super().attach(model, settings, kind, new_modules)
        setattr(attached, _SCORES, torch.zeros(len(adapted_blocks(attached)), dtype=torch.float64, device="cpu"))
        return attached

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """Choose the blocks of each step, after the callbacks of the method underneath."""
        return [*super().callbacks(model, settings), SparseTuning(model, getattr(model, _SCORES), settings.options)]

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The scores I, and the state of the method underneath."""
        return {**super().training_state(model), _SCORES: getattr(model, _SCORES)}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See `Method.restore_training_state`."""
        getattr(model, _SCORES).copy_(state[_SCORES])
        super().restore_training_state(model, {name: value for name, value in state.items() if name != _SCORES})


@dataclass
class AdaptedBlock:
    """The adapters of one transformer block.

    Attributes:
        parameters: the trained parameters in the block.
        layers: the PEFT layers in it, whose scaling suppresses them.
    """

    parameters: list[Tensor] = field(default_factory=list)
    layers: list[Any] = field(default_factory=list)


def adapted_blocks(model: nn.Module) -> list[AdaptedBlock]:
    """The blocks that hold adapters, lowest first. A block is everything whose name agrees up to the first number."""
    blocks: dict[str, AdaptedBlock] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (block := _block_of(name)):
            blocks.setdefault(block, AdaptedBlock()).layers.append(module)
    for name, parameter in trainable(model).items():
        if (block := _block_of(name)) in blocks:
            blocks[block].parameters.append(parameter)
    return list(blocks.values())


def draw_blocks(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """`count` different indices, drawn in sequence with probabilities proportional to `weights`."""
    return torch.multinomial(weights, count, replacement=False, generator=generator).tolist()


def draw_candidates(I: Tensor, number: int, count: int, generator: torch.Generator) -> list[list[int]]:  # noqa: E741
    """`number` different sets S_k of `count` blocks, drawn with weights sigmoid(I); fewer if fewer exist."""
    candidates: list[list[int]] = []
    for _ in range(50 * number):
        if len(candidates) == number:
            break
        candidate = sorted(draw_blocks(I.sigmoid(), count, generator))
        if candidate not in candidates:
            candidates.append(candidate)
    return candidates


def updated_scores(I: Tensor, sets: Sequence[Sequence[int]], losses: Sequence[float], rate: float) -> Tensor:  # noqa: E741
    """I_i + rate * sum_{k: i in S_k} R_k p_i (1 - p_i), R_k = exp(-L_k) - mean_j exp(-L_j), p = sigmoid(I)."""
    gains = torch.tensor(losses, dtype=I.dtype).neg().exp()
    rewards = gains - gains.mean()
    slope = I.sigmoid() * (1 - I.sigmoid())
    updated = I.clone()
    for S, reward in zip(sets, rewards, strict=True):
        updated[list(S)] += rate * reward * slope[list(S)]
    return updated


class SparseTuning(TrainerCallback):
    """Before each optimizer step: run trials where due, and choose the blocks to train. Afterwards: unfreeze all.

    Args:
        model: the model with its adapters.
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
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        if step > 0 and step % options["interval"] == 0 and not options["random"]:
            self._run_trials(given["train_dataloader"], generator)
        weights = torch.ones_like(self._scores) if options["random"] else (-self._scores).sigmoid()
        chosen = draw_blocks(weights, self._count("update_share"), generator)
        for index, block in enumerate(self._blocks):
            _set_trainable(block, index in chosen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make all adapters trainable again, for code that looks at the model between steps."""
        for block in self._blocks:
            _set_trainable(block, True)

    def _count(self, share: str) -> int:
        return max(1, int(self._options[share] * len(self._blocks)))

    def _run_trials(self, loader: Any, generator: torch.Generator) -> None:
        """One round of trials, on rows drawn for it."""
        sets = draw_candidates(self._scores, self._options["candidates"], self._count("suppress_share"), generator)
        rows = torch.randperm(len(loader.dataset), generator=generator)[: self._options["rows"]].tolist()
        device = next(self._model.parameters()).device
        batch = loader.collate_fn([loader.dataset[row] for row in rows])
        batch = {name: value.to(device) for name, value in batch.items()}
        was_training = self._model.training
        self._model.eval()
        losses: list[float] = []
        for S in sets:
            with torch.no_grad(), suppressed([self._blocks[i] for i in S], self._options["suppression"]):
                losses.append(float(self._model(**batch).loss))
        self._model.train(was_training)
        if torch.tensor(losses).isfinite().all():
            self._scores.copy_(updated_scores(self._scores, sets, losses, self._options["rate"]))


@contextmanager
def suppressed(blocks: Sequence[AdaptedBlock], factor: float) -> Generator[None]:
    """A context in which the scaling of these blocks' adapters is multiplied by `factor`."""
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
    match = _BLOCK.match(name)
    return match.group(1) if match else None


def _set_trainable(block: AdaptedBlock, wanted: bool) -> None:
    for parameter in block.parameters:
        parameter.requires_grad_(wanted)


METHOD = Ist()
