"""What every fine-tuning method offers to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.methods.info import MethodInfo

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

    @property
    def tails(self) -> str | None:
        """The directory of tails that were decomposed before; None for none."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """The method's own settings, every option of its row of the table present and checked."""
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

    def trained_parameters(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> int | None:
        """The number of parameters that training would change outside `new_modules`, from shapes alone.

        None where it follows from the weights.

        Args:
            model: a fresh one on the meta device; changed.
            settings: see `attach`.
            kind: see `attach`.
            new_modules: see `attach`.

        Raises:
            ModelError: see `attach`.
        """
        with torch.device("meta"):
            attached = self.attach(model, settings, kind, new_modules)
        return sum(p.numel() for name, p in trainable(attached).items() if not within(name, new_modules))

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """How many numbers each folder of files holds beside the newly made modules, by folder.

        Args:
            trained: as `trained_parameters` counts.
            shapes: (out, in) of the targeted layers.
            settings: the recipe's `method` section.
        """
        return {"checkpoint": trained}

    def prepare(  # noqa: B027 - most need nothing
        self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
    ) -> None:
        """What needs training data before the first step: nothing for most.

        Called once `attach` is done and the model is on its device, at a resumed run's start too; draws come from the
        recipe's seed.

        Args:
            model: as `attach` gave it, in evaluation mode; changed in place.
            settings: the recipe's `method` section.
            batches: collated training rows, `labels` among them, on the model's device; made as they are asked for, in
                an order that the recipe's seed decides, each row once.
        """

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """What the trainer must call for this method; nothing for most.

        From `on_train_begin` on, `state.max_steps` is the number of optimizer steps of the whole run. An
        `on_optimizer_step` finds the gradients of the step still there, `on_step_end` does not.
        """
        return []

    def auxiliary_loss(self, model: nn.Module, settings: MethodSettings) -> Tensor | None:
        """A term of the objective beside the task's loss, a scalar with gradient; None for most.

        Its gradient is added once per optimizer step, in however many pieces the step is computed, after any clipping.
        """
        return None

    def learning_rate_factor(self, name: str, settings: MethodSettings) -> float:
        """What the learning rate of the trained parameter `name`, outside newly made modules, is multiplied by."""
        return 1.0

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What a resumed run needs beside trained parameters and optimizer: {} for most."""
        return {}

    def restore_training_state(  # noqa: B027 - most need nothing
        self, model: nn.Module, state: Mapping[str, Tensor]
    ) -> None:
        """Take back what `training_state` gave; called after `prepare`, before the first callback."""

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which `model`, as `attach` or `load` gave it, answers as the base does, newly made modules too.

        Raises:
            ModelError: the method cannot be switched off; `info.disable` says why.
        """
        raise ModelError(f"{self.info.name} cannot be switched off: {self.info.disable or 'it is part of the model'}")

    def merge(self, model: nn.Module) -> nn.Module:
        """The plain transformers model that computes what `model` does, with what was learnt in its own weights.

        Raises:
            ModelError: there is none; `info.merge` says why.
        """
        if self.info.merge:
            raise ModelError(f"{self.info.name} cannot be merged into the base: {self.info.merge}")
        return model

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


def within(parameter: str, modules: Sequence[str]) -> bool:
    """Whether a parameter, of a model that PEFT may have wrapped, belongs to one of `modules`."""
    name = parameter.removeprefix("module.").removeprefix("base_model.")  # PEFT's prompts wrap without a tuner between
    return any(name.removeprefix("model.").startswith(f"{m}.") or name.startswith(f"{m}.") for m in modules)


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
