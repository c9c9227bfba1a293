"""The engine "reward": TRL's RewardTrainer, for reward models (Bradley-Terry) on pairs of answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import CHOSEN, PROMPT, REJECTED
from kasatune.errors import MissingExtraError
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.engines.pairs import PairMeanLoss, PairRunTrainer, keep_dtypes, require_unsharded
from kasatune.training.engines.trl_engine import TrlEngine

try:
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer
except ImportError as fault:
    raise MissingExtraError("the task reward", "sft") from fault

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe


class RewardRunTrainer(PairRunTrainer, PairMeanLoss, RewardTrainer):
    """TRL's RewardTrainer for a run; the loss, -log sigmoid(reward of chosen - reward of rejected), is TRL's."""

    def __init__(self, *, model: Any, args: RewardConfig, **further: Any) -> None:
        before = [(parameter, parameter.data) for parameter in trainable(model).values()]
        super().__init__(model=model, args=args, **further)
        keep_dtypes(before)


def _dataset(examples: Examples) -> Dataset:
    rows = examples.rows
    return Dataset.from_dict({name: [[*row[PROMPT], *row[name]] for row in rows] for name in (CHOSEN, REJECTED)})


class RewardEngine(TrlEngine):
    """TRL's RewardTrainer; see `Engine`. `training.batch_size` counts pairs. Dropout is off in training."""

    trainer_class = RewardRunTrainer
    dataset = staticmethod(_dataset)

    def training_arguments(self, recipe: Recipe, checkpoints: Path, device: torch.device) -> RewardConfig:
        """See `Engine`."""
        require_unsharded(recipe)
        return training_arguments(
            recipe.training,
            checkpoints,
            device,
            RewardConfig,
            max_length=None,  # longer rows are cut, not left out
            gradient_checkpointing=recipe.training.gradient_checkpointing,
        )

    def check_model(self, model: nn.Module) -> None:
        """Accept every model."""


ENGINE = RewardEngine()
