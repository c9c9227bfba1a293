from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from kasatune import methods
from kasatune.methods.base import Method, MethodSettings, TaskKind
from kasatune.methods.importance import SparseTuning, adapted_blocks
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OVER = "ist_over"
_SCORES = "ist_scores"


class Ist(Method):
    """Importance-aware sparse tuning of any adapter: at each step the adapters of a few blocks are trained, no others.

    U ~ draw of n_upd = update_share * N blocks without replacement, with weights sigmoid(-I), I = 0 at the start.
    Every `interval` steps, for k = 1..candidates: S_k ~ draw of n_sup = suppress_share * N blocks with weights
    sigmoid(I), all different; L_k = loss of `rows` training rows with the scaling of S_k's adapters times
    `suppression`, in evaluation mode; R_k = exp(-L_k) - mean_j exp(-L_j); I_i += rate * R_k * p_i (1 - p_i) for i in
    S_k, p = sigmoid(I) of before. A block that can be switched down without harm has a high I, and is trained less.

    Adapters outside the blocks, and newly made modules, are trained at every step. Trained parameters: as the method
    `over`, whose files it writes too.

    Open in the source, chosen here: shares are rounded down, to one block at least; draws come from the recipe's seed
    and the number of the step alone; the loss is the model's own, and a round whose losses are not finite is left out.

    Source: Yao et al., arXiv 2410.11772, and the authors' ist.py, which says what the signs are; computed by kasatune.
    """

    info = METHODS["ist"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = _over(settings).attach(model, _inner(settings), kind, new_modules)
        setattr(wrapped, _OVER, settings.options["over"])
        setattr(wrapped, _SCORES, torch.zeros(len(adapted_blocks(wrapped)), dtype=torch.float64, device="cpu"))
        return wrapped

    def prepare(self, model: nn.Module, settings: MethodSettings, batches: Any) -> None:
        """See `Method.prepare`."""
        _over(settings).prepare(model, _inner(settings), batches)

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """The one that chooses blocks, after those of the method underneath."""
        inner = _over(settings).callbacks(model, _inner(settings))
        return [*inner, SparseTuning(model, getattr(model, _SCORES), settings.options)]

    def auxiliary_loss(self, model: nn.Module, settings: MethodSettings) -> Tensor | None:
        """See `Method.auxiliary_loss`."""
        return _over(settings).auxiliary_loss(model, _inner(settings))

    def learning_rate_factor(self, name: str, settings: MethodSettings) -> float:
        """See `Method.learning_rate_factor`."""
        return _over(settings).learning_rate_factor(name, _inner(settings))

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The scores I, beside what the method underneath needs."""
        return {**_under(model).training_state(model), _SCORES: getattr(model, _SCORES)}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See `Method.restore_training_state`."""
        getattr(model, _SCORES).copy_(state[_SCORES])
        _under(model).restore_training_state(model, {k: v for k, v in state.items() if k != _SCORES})

    def trained_parameters(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> int | None:
        """As the method underneath: every adapter is trained at some step."""
        return _over(settings).trained_parameters(model, _inner(settings), kind, new_modules)

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """See `Method.stored_numbers`: the files are those of the method underneath."""
        return _over(settings).stored_numbers(trained, shapes, _inner(settings))

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        _under(model).save(model, run_dir, base_name)

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        model = _over(settings).load(base, run_dir, _inner(settings))
        setattr(model, _OVER, settings.options["over"])
        return model

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """See `Method.disabled`."""
        return _under(model).disabled(model)

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`: what the method underneath does."""
        return _under(model).merge(model)

    def penalties(self, model: nn.Module) -> dict[str, float]:
        """See `Method.penalties`."""
        return _under(model).penalties(model)

    def singular_values(self, model: nn.Module) -> dict[str, list[float]]:
        """See `Method.singular_values`."""
        return _under(model).singular_values(model)

    def spectrum(self, model: nn.Module, initial: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        """See `Method.spectrum`."""
        return _under(model).spectrum(model, initial)


class _Named:
    """Settings under another method's name, with the defaults of its own options."""

    def __init__(self, settings: MethodSettings, name: str) -> None:
        self.name = name
        self.options: Mapping[str, Any] = METHODS[name].complete({})
        self._settings = settings

    def __getattr__(self, key: str) -> Any:
        return getattr(self._settings, key)


def _inner(settings: MethodSettings) -> MethodSettings:
    """The settings of the method underneath."""
    return cast(MethodSettings, _Named(settings, settings.options["over"]))


def _over(settings: MethodSettings) -> Method:
    return methods.load(settings.options["over"])


def _under(model: nn.Module) -> Method:
    return methods.load(getattr(model, _OVER))


METHOD = Ist()
