"""`MixtureMethod`: shared code of the methods that are mixtures of LoRA experts (kasatune/mixtures)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kasatune.errors import InputError
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.mixtures.balance import forward_pass_of, record_routing, routers, sum_choices_over_processes
from kasatune.mixtures.forward_pass import labels_of_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MixtureMethod(AdapterMethod):
    """A mixture of LoRA experts whose balance loss is added in every micro-batch, see `ForwardLoss`."""

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        forward_pass_of(wrapped).adds_to_loss = False  # the engine adds `forward_loss`
        return wrapped

    def forward_loss(self, model: nn.Module) -> Tensor | None:
        """The weighted balance loss of the last forward pass."""
        return forward_pass_of(model).take_loss()

    def batch_labels(self, model: nn.Module, labels: Tensor | None) -> AbstractContextManager[Any]:
        """See `Method.batch_labels`: which tokens count in the balance loss, and where a prompt ends."""
        return labels_of_batch(model, labels)

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """The choices of all processes decide the balance loss of the next step."""
        return [*super().callbacks(model, settings), _SumChoices(model)]

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The shares f of the last optimizer step, on which the next balance loss depends, and totals for reports."""
        return {f"{name}.{key}": value for name, load in routers(model) for key, value in load.state().items()}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See `Method.restore_training_state`."""
        for name, load in routers(model):
            load.restore({key: state[f"{name}.{key}"] for key in load.STATE if f"{name}.{key}" in state})

    def routing(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """See `Method.routing`."""
        statistics = {name: load.statistics() for name, load in routers(model)}
        for _, load in routers(model):
            load.reset()
        return {name: entry for name, entry in statistics.items() if entry is not None}

    def recorded_routing(self, model: nn.Module) -> AbstractContextManager[dict[str, dict[str, Any]]]:
        """See `Method.recorded_routing`."""
        return record_routing(model)

    def reads_parameters_in_training(self, settings: MethodSettings) -> bool:
        """False: a checkpoint holds loads besides the parameters."""
        return False


class _SumChoices(TrainerCallback):
    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        sum_choices_over_processes(self._model)


def lora_fields(settings: MethodSettings, targets: list[str] | str | None) -> dict[str, Any]:
    """The fields that the configurations of all mixtures share with LoRA's."""
    return {
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.use_rslora,
        "target_modules": targets,
    }


def top_k_fields(settings: MethodSettings) -> dict[str, Any]:
    """The fields of a router that chooses experts.

    Raises:
        InputError: more experts are chosen than there are.
    """
    options = settings.options
    if options["top_k"] > options["experts"]:
        raise InputError(
            f"method.options.top_k: {options['top_k']} received, more than the {options['experts']} experts of a layer"
            "; lower it, or raise method.options.experts"
        )
    return {
        "num_experts": options["experts"],
        "top_k": options["top_k"],
        "balance_weight": options["balance_weight"],
    }
