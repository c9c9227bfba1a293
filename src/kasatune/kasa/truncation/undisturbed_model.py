"""Run a model for calibration and leave it as it was: modes, adapters, random states, which parameters are trained."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

_Adapted = BaseTunerLayer | AuxiliaryTrainingWrapper
"""What an adapter changes: its layers, and modules that are trained in full."""


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Evaluation mode, adapters switched off, no autocast; afterwards everything is as before.

    Restored are the training mode of each module, the flags of adapters and parameters, and the random states.
    """
    training = {module: module.training for module in model.modules()}
    disabled: dict[_Adapted, bool] = {
        module: module.disable_adapters for module in model.modules() if isinstance(module, _Adapted)
    }
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with ExitStack() as stack:
        stack.callback(_restore, training, disabled, trained)
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        model.eval()
        _set_disabled(dict.fromkeys(disabled, True))
        stack.enter_context(torch.autocast(device_of(model).type, enabled=False))
        yield


@contextmanager
def seeded(model: nn.Module, seed: int) -> Generator[None]:
    """A context in which random numbers come from `seed`; the random states are restored afterwards."""
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        yield


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's inputs: that of its first parameter that is not on the meta device.

    The CPU if all of them are offloaded; the hooks that load them move the inputs.
    """
    devices = (parameter.device for parameter in model.parameters() if not parameter.is_meta)
    return next(devices, torch.device("cpu"))


def on_device(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A batch with its tensors on the model's device."""
    device = device_of(model)
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({parameter.device for parameter in model.parameters() if parameter.is_cuda})


def _restore(
    training: Mapping[nn.Module, bool],
    disabled: Mapping[_Adapted, bool],
    trained: Mapping[nn.Parameter, bool],
) -> None:
    for module, was_training in training.items():
        module.training = was_training
    _set_disabled(disabled)
    for parameter, was_trained in trained.items():
        parameter.requires_grad = was_trained


def _set_disabled(flags: Mapping[_Adapted, bool]) -> None:
    """Set PEFT's flag by itself; `enable_adapters` would change requires_grad as well."""
    for layer, disabled in flags.items():
        layer._disable_adapters = disabled  # pyright: ignore[reportPrivateUsage]
