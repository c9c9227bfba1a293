from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from kasatune.errors import InputError
from kasatune.methods.lora import ADAPTER_NAME
from kasatune.methods.shared.computed_lora import ComputedLinear, ComputedLora
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class DyLora(ComputedLora):
    """y = W x + s B_b A_b drop(x), b ~ U{1, ..., r} drawn at each training step; s = alpha / r.

    A_b = sqrt(r / b) times the first b rows of A, B_b = sqrt(r / b) times the first b columns of B: every rank up to r
    is trained, and the adapter can be cut to any of them afterwards. With `frozen`, as in the authors' GLUE runs, only
    row b of A and column b of B get a gradient; those before them are constant during the step. `rank` is the rank that
    the model has outside training steps and is saved with; null means r. Trained parameters: r (in + out) a layer, as
    LoRA.

    Chosen here where the authors' code offers several ways: one b for all layers and all micro-batches of an optimizer
    step, as in their GLUE runs. Weight decay and momentum also move the frozen rows, as in their code.

    Source: Valipour et al., arXiv 2210.07558, section 4; PEFT's LoRA layers, their factors computed by kasatune.
    """

    info = METHODS["dylora"]

    def reform(self, layer: Any, settings: MethodSettings) -> None:
        """See `ComputedLora.reform`.

        Raises:
            InputError: `rank` is above r.
        """
        rank = settings.options["rank"]
        if rank is not None and rank > settings.r:
            raise InputError(f"method.options.rank: {rank} received, above method.r = {settings.r}: lower it")
        for factors, dim in ((layer.lora_A, 0), (layer.lora_B, 1)):
            weight = factors[ADAPTER_NAME].weight
            factors[ADAPTER_NAME] = Nested(weight, dim, rank or settings.r, frozen=settings.options["frozen"])

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """Draw b at every step."""
        return [_DrawRank(model, settings.r)]


class Nested(ComputedLinear):
    """sqrt(r / b) times the first b rows (dim 0) or columns (dim 1) of a factor; the others are replaced by zeros.

    Args:
        factor: A (r, in) or B (out, r).
        dim: the dimension of length r.
        rank: b outside training steps.
        frozen: in a training step only row or column b gets a gradient.
    """

    def __init__(self, factor: nn.Parameter, dim: int, rank: int, *, frozen: bool) -> None:
        super().__init__()
        self.factor = factor
        self.dim = dim
        self.rank = rank
        self.frozen = frozen
        self.drawn: int | None = None

    @property
    def weight(self) -> Tensor:
        """The factor cut to b."""
        r = self.factor.shape[self.dim]
        b = self.rank if self.drawn is None else self.drawn
        if b == r and self.drawn is None:
            return self.factor
        before, last, after = self.factor.split([b - 1, 1, r - b], dim=self.dim)
        if self.frozen and self.drawn is not None:
            before = before.detach()
        return math.sqrt(r / b) * torch.cat([before, last, torch.zeros_like(after)], dim=self.dim)


class _DrawRank(TrainerCallback):
    """Draws b ~ U{1, ..., r} for each optimizer step, from the recipe's seed and the step number only."""

    def __init__(self, model: nn.Module, r: int) -> None:
        self._factors = [module for module in model.modules() if isinstance(module, Nested)]
        self._r = r

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Set the same b in every layer."""
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + state.global_step)
        self._set(1 + int(torch.randint(self._r, (), generator=draw)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the rank that the model is evaluated and saved with."""
        self._set(None)

    def _set(self, b: int | None) -> None:
        for factor in self._factors:
            factor.drawn = b


METHOD = DyLora()
