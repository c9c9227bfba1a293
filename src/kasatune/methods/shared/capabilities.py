"""What a method may do beyond attach, save and load: one small class for each capability.

A method overrides what it has; each default does nothing, or refuses by name. `kasatune.methods.shared.method.Method`
has all of them, so that a run can ask any method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.methods.info import MethodInfo
from kasatune.methods.shared.settings import MethodSettings

if TYPE_CHECKING:
    import numpy as np
    from transformers import TrainerCallback


@dataclass(frozen=True)
class CalibrationNeeds:
    """What a method measures on its base before the first step.

    Attributes:
        source: "generated" (text of the base) or "task" (training rows).
        rows: number of training rows.
        drop: rank of the component chosen in each layer; 0 for none.
        protect: share of the input directions of each layer.
        gradients: whether the rows' loss and its gradients are measured too.
    """

    source: str
    rows: int
    drop: int
    protect: float
    gradients: bool


class PreparationPass:
    """Something to compute from training data before the first step, such as covariances of activations."""

    def prepare(
        self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]
    ) -> str | None:
        """Prepare the attached model for training.

        Called once after `attach`, with the model on its device, and again when a run is resumed. Random numbers come
        from the recipe's seed.

        Args:
            model: as returned by `attach`, in evaluation mode; changed in place.
            settings: the `method` section of the recipe.
            batches: collated training rows with `labels`, on the model's device, made on demand; each row once, in an
                order that the recipe's seed determines.

        Returns:
            One line for the user about what was prepared, from what, and in how many seconds; None for nothing.
        """

    def calibration(self, settings: MethodSettings, *, generates: bool) -> CalibrationNeeds | None:
        """What `prepare` will measure, for an estimate of its cost; None for nothing.

        Args:
            settings: the `method` section of the recipe.
            generates: whether the base can generate text.
        """
        return None


class ForwardLoss:
    """A loss that depends on activations, such as the load-balancing loss of a mixture's router."""

    def forward_loss(self, model: nn.Module) -> Tensor | None:
        """The loss of the last forward pass, a scalar with gradient; None if there is none.

        Read after the forward pass of every micro-batch in training and added to the task loss. The value is a mean
        over the items of the micro-batch: its examples, or, for tasks that generate text, the tokens in the task loss.
        Like the task loss it is weighted by n / N, n the items of the micro-batch and N those of the optimizer step, so
        that for a loss which is a mean over items the gradient does not depend on `gradient_accumulation`. The sum over
        the step is logged in history.jsonl as `forward_loss`.
        """
        return None

    def batch_labels(self, model: nn.Module, labels: Tensor | None) -> AbstractContextManager[Any]:
        """The context of a forward pass in training, for a method that needs the labels of the micro-batch in it."""
        return nullcontext()


class StepPenalty:
    """A penalty on the weights alone, which acts once per optimizer step."""

    def step_penalty(self, model: nn.Module, settings: MethodSettings) -> Tensor | None:
        """The penalty, a scalar with gradient; None if there is none.

        Its gradient is added to that of the task loss just before the optimizer step, once per step whatever the
        number of micro-batches, after gradient clipping.
        """
        return None

    def penalty_terms(self, model: nn.Module) -> dict[str, float]:
        """The weighted penalty terms whose gradient joins that of the task loss, by their name in history.jsonl.

        A penalty that acts by other means than `step_penalty` is reported here too.
        """
        return {}


class TrainingCallbacks:
    """Something to do at certain points of training."""

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """Callbacks of transformers' Trainer.

        From `on_train_begin` on, `state.max_steps` is the number of optimizer steps of the complete run. In
        `on_optimizer_step` the gradients of the step still exist, in `on_step_end` they do not.
        """
        return []


class LearningRates:
    """Learning rates that differ between parameters."""

    def learning_rate_factor(self, name: str, settings: MethodSettings) -> float:
        """The factor on the learning rate of the trained parameter `name`, outside newly initialized modules."""
        return 1.0


class BilevelTraining:
    """Parameters that are trained on held-back rows, in optimizer steps of their own (training/engines/bilevel.py)."""

    def held_back(self, settings: MethodSettings) -> float:
        """The share of the optimizer steps, and so of the training rows, that train the outer parameters.

        At most 0.5; 0 trains all parameters on all rows. Not for a method with a step penalty.
        """
        return 0.0

    def is_outer(self, name: str) -> bool:
        """Whether the trained parameter `name` is an outer one."""
        return False


class ResumableState:
    """Training state besides parameters and optimizer, such as running averages."""

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors that a checkpoint must hold besides the trained parameters and the optimizer."""
        return {}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Restore the state returned by `training_state`; called after `prepare`, before the first callback."""


class ClosedFormFit:
    """Weights computed in one step instead of by gradient descent; `info.fitted` is true."""

    info: ClassVar[MethodInfo]

    def fit(
        self, model: nn.Module, features: np.ndarray, labels: Sequence[int] | Sequence[float], seed: int
    ) -> Mapping[str, Any]:
        """Compute the trained weights.

        Args:
            model: as returned by `attach`; changed in place.
            features: (examples, hidden), which the attached model returned as its logits.
            labels: one for each example.
            seed: the recipe's.

        Returns:
            What the fit chose (regularization, iterations), for metrics.json.
        """
        raise NotImplementedError(f"{self.info.name} is trained by gradient steps")


class SwitchOff:
    """Restoring the base's outputs while the method stays attached."""

    info: ClassVar[MethodInfo]

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which `model`, from `attach` or `load`, computes what the base does, its new modules included.

        Raises:
            ModelError: the method cannot be switched off; `info.disable` says why.
        """
        raise ModelError(f"{self.info.name} cannot be switched off: {self.info.disable or 'it is part of the model'}")


class MergeIntoBase:
    """Adding what was learned to the base's own weights."""

    info: ClassVar[MethodInfo]

    def merge(self, model: nn.Module) -> nn.Module:
        """A plain transformers model that computes what `model` does; `model` may be changed.

        Raises:
            ModelError: there is none; `info.merge` says why.
        """
        if self.info.merge:
            raise ModelError(f"{self.info.name} cannot be merged into the base: {self.info.merge}")
        return model


class Spectra:
    """Singular values for charts and reports."""

    def singular_values(self, model: nn.Module) -> dict[str, list[float]]:
        """The learned singular values of each adapted layer, by layer name; {} if the method learns none."""
        return {}

    def spectrum(self, model: nn.Module, initial: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
        """The layers of spectrum.json; [] if the method learns no singular values.

        Args:
            model: the trained model.
            initial: `singular_values` at the start of training.
        """
        return []


class RoutingStatistics:
    """What the routers of a mixture choose, for reports."""

    def routing(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """By router: `load`, the share of each expert, and `entropy` in nats, since the last call; {} for none."""
        return {}

    def recorded_routing(self, model: nn.Module) -> AbstractContextManager[dict[str, dict[str, Any]]] | None:
        """A context that yields a mapping, at its end that of `routing` for the passes inside; None without routers."""
        return None


CAPABILITIES: tuple[type, ...] = (
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
)
