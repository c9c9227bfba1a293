"""`Method`: the interface of a fine-tuning method. Required: attach, save, load. Optional: `capabilities.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from kasatune.io.run_layout import CHECKPOINT
from kasatune.methods.info import MethodInfo, TaskKind
from kasatune.methods.shared.capabilities import (
    BilevelTraining,
    ClosedFormFit,
    ForwardLoss,
    LearningRates,
    MergeIntoBase,
    PreparationPass,
    ResumableState,
    RoutingStatistics,
    Spectra,
    StepPenalty,
    SwitchOff,
    TrainingCallbacks,
)
from kasatune.methods.shared.settings import MethodSettings
from kasatune.methods.shared.trained_parameters import count_trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Method", "MethodSettings", "TaskKind"]


class Method(
    PreparationPass,
    ForwardLoss,
    StepPenalty,
    TrainingCallbacks,
    LearningRates,
    BilevelTraining,
    ResumableState,
    ClosedFormFit,
    SwitchOff,
    MergeIntoBase,
    Spectra,
    RoutingStatistics,
    ABC,
):
    """A way to fine-tune: which parameters are trained, and how the result is saved and loaded.

    A method holds no state of a run: everything that is learned lives in the model. `save` writes into a folder that
    the run renames into place; `load` needs only the base model and these files. The module of a method ends with
    `METHOD = ItsClass()`.

    Attributes:
        info: the method's row in the table.
    """

    info: ClassVar[MethodInfo]

    @abstractmethod
    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """Make `model` ready to train: afterwards exactly the parameters with `requires_grad` are trained.

        Args:
            model: the base with its head; changed in place.
            settings: the `method` section of the recipe.
            kind: the kind of task.
            new_modules: names of newly initialized modules, such as the head, which are trained and saved completely.

        Returns:
            The model to train, which may wrap `model`.

        Raises:
            ModelError: a layer cannot be adapted, or a target matches nothing.
        """

    @abstractmethod
    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """Write the files that `load` needs below `run_dir`; `base_name` is the name of the base in the recipe."""

    @abstractmethod
    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """The trained model, from an untouched `base` and the files that `save` wrote.

        Raises:
            AdapterError: a file is missing, damaged or belongs to another base.
        """

    def reads_parameters_in_training(self, settings: MethodSettings) -> bool:
        """Whether callbacks or checkpoints of the method access its parameters, which ZeRO-3 partitions.

        Args:
            settings: the `method` section of the recipe.
        """
        return any(getattr(type(self), name) is not getattr(Method, name) for name in ("callbacks", "training_state"))

    def trained_parameters(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> int | None:
        """The number of parameters that training changes outside `new_modules`, computed from shapes alone.

        None if it depends on the weights.

        Args:
            model: a fresh model on the meta device; changed.
            settings: see `attach`.
            kind: see `attach`.
            new_modules: see `attach`.

        Raises:
            ModelError: see `attach`.
        """
        with torch.device("meta"):
            attached = self.attach(model, settings, kind, new_modules)
        outside, _ = count_trained(attached, new_modules)
        return outside

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """How many numbers each folder of the run directory holds, new modules excluded, by folder.

        Args:
            trained: as counted by `trained_parameters`.
            shapes: (out, in) of the targeted layers.
            settings: the `method` section of the recipe.
        """
        return {CHECKPOINT: trained}
