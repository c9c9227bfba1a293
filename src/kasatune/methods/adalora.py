from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import AdaLoraConfig, PeftConfig
from torch import Tensor, nn
from transformers import TrainerCallback

from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

_UNKNOWN_STEPS = 10**9  # the configuration needs a number before the trainer knows the number of steps
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PATTERN = "rank_pattern"


class AdaLora(AdapterMethod):
    """y = W x + (alpha / r0) P diag(E) Q drop(x); the least important singular values E are set to 0 during training.

    Every layer starts with rank r0, and the average rank at the end is r. PEFT's rank allocator is called after every
    optimizer step, before the gradients are cleared. The penalty `orthogonality` * mean(||Q Q^T - I||_F,
    ||P^T P - I||_F) over all factors is a step penalty; PEFT adds it to the model's own loss, which a trainer with
    another loss function does not read.

    The schedule is given as shares of the run; the paper sets steps by hand for each task.

    Source: Zhang et al., arXiv 2303.10512; computed by PEFT.
    """

    info = METHODS["adalora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's AdaLoraConfig; the number of steps is set when training begins."""
        options = settings.options
        initial = options["initial_r"]
        return AdaLoraConfig(
            target_r=settings.r,
            init_r=round(1.5 * settings.r) if initial is None else max(initial, settings.r),
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - PEFT computes with floats too
            lora_dropout=settings.dropout,
            target_modules=targets,
            deltaT=options["interval"],
            beta1=options["beta1"],
            beta2=options["beta2"],
            orth_reg_weight=options["orthogonality"],
            total_step=_UNKNOWN_STEPS,
            **common,
        )

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        for name, parameter in wrapped.named_parameters():
            if ".ranknum." in name:  # the divisor r0, which PEFT makes trainable if it converts it to 16 bits
                parameter.requires_grad_(False)
        return wrapped

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """Call the rank allocator."""
        return [_Allocate(model, settings)]

    def step_penalty(self, model: nn.Module, settings: MethodSettings) -> Tensor:
        """The orthogonality penalty, see the class."""
        return _orthogonality(model)

    def penalty_terms(self, model: nn.Module) -> dict[str, float]:
        """See `Method.penalty_terms`: the orthogonality penalty, weighted."""
        with torch.no_grad():
            return {"penalty_orthogonality": float(_orthogonality(model))}

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The allocator's running averages of importance, and which singular values are kept."""
        allocator = _tuner(model).rankallocator
        state = {f"{kind}/{name}": value for kind in _AVERAGES for name, value in getattr(allocator, kind).items()}
        pattern = _tuner(model).peft_config["default"].rank_pattern or {}
        return state | {f"{_PATTERN}/{name}": torch.tensor(mask) for name, mask in pattern.items()}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """See `Method.restore_training_state`."""
        tuner = _tuner(model)
        device = next(model.parameters()).device
        pattern = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == _PATTERN:
                pattern[name] = value.tolist()
            else:
                getattr(tuner.rankallocator, kind)[name] = value.to(device)
        tuner.peft_config["default"].rank_pattern = pattern or None

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`; saves the singular values that are not 0, with their vectors."""
        config = _tuner(model).peft_config["default"]
        before = config.rank_pattern
        # The allocator's pattern is that of the last step; the saved state may be an earlier one.
        masks = {name: (value != 0).flatten().tolist() for name, value in _singular_values(model).items()}
        config.rank_pattern = {name: mask for name, mask in masks.items() if any(mask)} or None
        try:
            super().save(model, run_dir, base_name)
        finally:
            config.rank_pattern = before


class _Allocate(TrainerCallback):
    """Sets the length of the run for PEFT's rank allocator, and calls it after every optimizer step."""

    def __init__(self, model: nn.Module, settings: MethodSettings) -> None:
        self._tuner = _tuner(model)
        self._shares = settings.options["initial_share"], settings.options["final_share"]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        config = self._tuner.peft_config["default"]
        config.total_step = state.max_steps
        config.tinit, config.tfinal = (int(share * state.max_steps) for share in self._shares)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        config, allocator, step = self._tuner.peft_config["default"], self._tuner.rankallocator, state.global_step + 1
        if not allocator.ipt and step == config.total_step - config.tfinal:  # the run was too short for an earlier call
            allocator.update_ipt(self._tuner.model)
        self._tuner.update_and_allocate(step)


def _tuner(model: nn.Module) -> Any:
    return model.base_model


def _singular_values(model: nn.Module) -> dict[str, Tensor]:
    """E of every layer, (r0, 1), by the name that PEFT's rank pattern uses."""
    inner = _tuner(model).model
    return {name: value.detach() for name, value in inner.named_parameters() if ".lora_E." in name}


def _orthogonality(model: nn.Module) -> Tensor:
    defects = []
    for name, factor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            wide = (factor if ".lora_A." in name else factor.T).float()
            identity = torch.eye(len(wide), device=wide.device)
            defects.append(torch.linalg.matrix_norm(wide @ wide.T - identity))
    return _tuner(model).peft_config["default"].orth_reg_weight * torch.stack(defects).mean()


METHOD = AdaLora()
