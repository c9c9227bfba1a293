"""What every fine-tuning method offers to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.methods.table import MethodInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


TaskKind = Literal["classification", "regression", "generation"]


class MethodSettings(Protocol):
    """The `method` section of a recipe, read only; a method ignores the fields that it has no use for."""

    @property
    def name(self) -> str:
        """The method's name."""
        ...

    @property
    def r(self) -> int:
        """The rank of the update."""
        ...

    @property
    def alpha(self) -> float:
        """The numerator of the scaling s."""
        ...

    @property
    def dropout(self) -> float:
        """The dropout probability on the path of A."""
        ...

    @property
    def use_rslora(self) -> bool:
        """True: s = alpha / sqrt(r); false: s = alpha / r."""
        ...

    @property
    def target_modules(self) -> str | Sequence[str]:
        """Targets: "default", "all-linear", a regular expression, or a list of name endings."""
        ...

    @property
    def convention(self) -> str:
        """The reading: "paper" or "authors"."""
        ...

    @property
    def core(self) -> str:
        """The form of sigma: "diagonal" or "dense"."""
        ...

    @property
    def truncation(self) -> str:
        """How the tail is held: "attach" or "fold"."""
        ...

    @property
    def beta(self) -> float:
        """The weight of sum(sigma^2)."""
        ...

    @property
    def gamma(self) -> float:
        """The weight of the orthogonality term."""
        ...


class Method(ABC):
    """A way to fine-tune: what is trained, how it is saved, how it is loaded again.

    A method holds no state of a run: everything that is learnt lives in the model. Its files are written by `save` into
    a folder that the run renames into place, and `load` needs the base model and those files alone.

    Attributes:
        info: its row of the table.
        fitted: true where the weights come from `fit` in one go rather than from gradient steps.
    """

    info: ClassVar[MethodInfo]
    fitted: ClassVar[bool] = False

    @abstractmethod
    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """Make `model` ready to train: every parameter that `requires_grad` afterwards is trained, no other.

        Args:
            model: the base with its head; changed in place.
            settings: the recipe's `method` section.
            kind: what the task asks of the model.
            new_modules: names of the modules that were newly made, the head among them; trained and saved whole.

        Returns:
            The model to train, which may wrap `model`.

        Raises:
            ModelError: a layer cannot be adapted, or a target matches nothing.
        """

    @abstractmethod
    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """Write what `load` needs below `run_dir`; `base_name` is the base as the recipe gives it."""

    @abstractmethod
    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """The trained model, from an untouched `base` and the files that `save` wrote.

        Raises:
            AdapterError: a file is missing, damaged or of another base.
        """

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """What the trainer must call for this method; nothing for most."""
        return []

    def fit(
        self, model: nn.Module, features: np.ndarray, labels: Sequence[int] | Sequence[float], seed: int
    ) -> Mapping[str, Any]:
        """Compute the trained weights from `features` (examples, hidden), what the attached model gave as its logits.

        Returns:
            What was chosen on the way (regularisation, iterations), for metrics.json.
        """
        raise NotImplementedError(f"{self.info.name} is trained by gradient steps")

    def penalties(self, model: nn.Module) -> dict[str, float]:
        """Values that join the task loss in the gradient, weighted, by their name in history.jsonl; {} for most."""
        return {}

    def singular_values(self, model: nn.Module) -> dict[str, list[float]]:
        """The learnt sigma of each adapted layer, by layer name; {} for methods without one."""
        return {}

    def spectrum(self, model: nn.Module, initial: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        """The layers of spectrum.json, given the sigma that training began with; [] for methods without one."""
        return []


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def head_name(model: PreTrainedModel) -> str:
    """The name of the module that turns features into logits: the last child with parameters beside the body.

    Raises:
        ModelError: the model has no head.
    """
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    heads = [name for name in children if name != model.base_model_prefix]
    if not heads:
        raise ModelError(f"{type(model).__name__} has no head beside its body; use a model for sequence classification")
    return heads[-1]
