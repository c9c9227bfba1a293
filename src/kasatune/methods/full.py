from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kasatune.errors import AdapterError
from kasatune.io.run_layout import CHECKPOINT
from kasatune.methods.shared.method import Method, MethodSettings, TaskKind
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Full(Method):
    """W <- W - step for every parameter W of the model; the result is a complete checkpoint that needs no base."""

    info = METHODS["full"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        model.requires_grad_(True)
        return model

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        pretrained: Any = model  # the PreTrainedModel of `attach`
        pretrained.save_pretrained(run_dir / CHECKPOINT)

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        folder = run_dir / CHECKPOINT
        if not (folder / "config.json").is_file():
            raise AdapterError(f"{folder} holds no config.json; give the run directory of a finished run")
        try:
            model: Any = type(base).from_pretrained(str(folder), dtype="auto")
            return model.to(base.device)
        except Exception as fault:  # safetensors and transformers raise many unrelated types for a damaged file
            raise AdapterError(f"{folder} cannot be loaded: {fault}") from fault


METHOD = Full()
