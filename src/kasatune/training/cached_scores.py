"""Scores that were measured in training, taken over for the saved files where these hold the same model bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kasatune.data.tokenize import Examples
from kasatune.evaluation.scoring import Scores, batches
from kasatune.evaluation.task_model import Prepared
from kasatune.methods.base import trainable


@dataclass(frozen=True)
class Scored:
    """What a state of a model scored.

    Attributes:
        scores: of every row.
        names: of the parameters that training changes.
        digest: SHA-256 of their values.
    """

    scores: Scores
    names: tuple[str, ...]
    digest: str | None

    @classmethod
    def of(cls, model: nn.Module, scores: Scores) -> Scored:
        """`scores`, just measured of `model` as it is."""
        names = tuple(trainable(model))
        return cls(scores, names, parameter_digest(model, names))

    def holds_for(self, prepared: Prepared, examples: Examples) -> bool:
        """Whether a model that was loaded from files is the one that was scored: scoring it again would give the same.

        Every trained parameter must be equal bit for bit, and so must the logits of one batch, the cheapest, which go
        through all that was not trained.

        Args:
            prepared: the loaded model.
            examples: the rows that were scored.
        """
        known = self.scores.logits
        if known is None or self.digest is None or parameter_digest(prepared.model, self.names) != self.digest:
            return False
        cheapest = batches(examples, prepared.recipe.training.eval_batch_size)[-1]
        found = prepared.logits(Examples([examples[index] for index in cheapest], frozenset()))
        return bool(np.array_equal(found, known[cheapest]))


def parameter_digest(model: nn.Module, names: Iterable[str]) -> str | None:
    """SHA-256 over name, dtype, shape and bytes of parameters; None where the model lacks one."""
    parameters = dict(model.named_parameters())
    digest = hashlib.sha256()
    for name in names:
        if name not in parameters:
            return None
        tensor = parameters[name].detach()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
