"""Choose the device of a run from the recipe's `training` section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kasatune.errors import RecipeError

if TYPE_CHECKING:
    from kasatune.recipes.schema import TrainingSection


def find_device(section: TrainingSection) -> torch.device:
    """The device that `training.device` names; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        RecipeError: this machine does not have the device, or the device does not support the precision.
    """
    kind, _, number = section.device.partition(":")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if kind == "cpu" or (kind == "auto" and accelerator is None):
        device = torch.device("cpu")
    elif accelerator is None or kind not in ("auto", accelerator.type):
        raise RecipeError([f"training.device: {section.device} is not available on this machine; use auto or cpu"])
    elif int(number or 0) > 0:
        raise RecipeError(
            [
                f"training.device: {section.device}: the Trainer uses the first visible GPU; "
                f"set the environment variable CUDA_VISIBLE_DEVICES={number} and use cuda"
            ]
        )
    else:
        device = accelerator
    if section.precision == "float16" and device.type == "cpu":
        raise RecipeError(["training.precision: float16 needs a GPU and the run uses the CPU; use float32 or bfloat16"])
    return device
