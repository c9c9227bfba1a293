"""Scores that were measured in training, taken over for the saved files where these hold the same model bit for bit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from torch import nn

from kasatune.data.tokenize import Examples
from kasatune.evaluation.batches import batches_by_length, token_counts
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.weights.fingerprint import parameters_sha256


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
        return cls(scores, names, trained_sha256(model, names))

    def holds_for(self, prepared: TaskModel, examples: Examples) -> bool:
        """Whether a model that was loaded from files is the one that was scored: scoring it again would give the same.

        Every trained parameter must be equal bit for bit, and so must the logits of one batch, the cheapest, which go
        through all that was not trained.

        Args:
            prepared: the loaded model.
            examples: the rows that were scored.
        """
        known = self.scores.logits
        if known is None or self.digest is None or trained_sha256(prepared.model, self.names) != self.digest:
            return False
        cheapest = batches_by_length(token_counts(examples.rows), prepared.recipe.training.eval_batch_size)[-1]
        found = prepared.logits(Examples([examples[index] for index in cheapest], frozenset()))
        return bool(np.array_equal(found, known[cheapest]))


def trained_sha256(model: nn.Module, names: Collection[str]) -> str | None:
    """SHA-256 of the named parameters, see `parameters_sha256`; None if the model lacks one of them."""
    parameters = dict(model.named_parameters())
    if any(name not in parameters for name in names):
        return None
    return parameters_sha256((name, parameters[name]) for name in names)
