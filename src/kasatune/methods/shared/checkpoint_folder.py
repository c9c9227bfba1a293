"""The folder checkpoint/ of a run directory: trained tensors that are not a PEFT adapter, and what they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kasatune.errors import AdapterError
from kasatune.io.run_layout import CHECKPOINT
from kasatune.methods.shared.method import Method, MethodSettings
from kasatune.methods.shared.trained_parameters import trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TENSORS = "trained.safetensors"
_CONFIG = "checkpoint.json"


class CheckpointMethod(Method):
    """A method that trains some of the base model's own parameters, and saves these."""

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        save_tensors(run_dir, self.info.name, base_name, trainable(model))

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        put_tensors(base, load_tensors(run_dir), run_dir)
        return base


def save_tensors(
    run_dir: Path, method: str, base_name: str, tensors: Mapping[str, torch.Tensor], **details: Any
) -> None:
    """Write `tensors`, named as in the base model, and a JSON file with the base, the method and `details`."""
    folder = run_dir / CHECKPOINT
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
        folder / _TENSORS,
        metadata={"format": "pt"},
    )
    config = {"base_model_name_or_path": base_name, "method": method, "tensors": sorted(tensors), **details}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Read the tensors that `save_tensors` wrote.

    Raises:
        AdapterError: the file is missing or damaged.
    """
    path = run_dir / CHECKPOINT / _TENSORS
    if not path.is_file():
        raise AdapterError(f"{path} is missing; give the run directory of a finished run")
    try:
        return load_file(path)
    except SafetensorError as fault:
        raise AdapterError(f"{path} is damaged ({fault}); copy it again from its source") from fault


def put_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Copy `tensors` into the parameters with these names, converted to their dtypes.

    Raises:
        AdapterError: a parameter does not exist or has another shape, so the tensors belong to another base.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            shape = f"shape {tuple(parameters[name].shape)}" if name in parameters else "no such parameter"
            raise AdapterError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, the base model has {shape}; "
                "load it on the base that checkpoint.json names"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
