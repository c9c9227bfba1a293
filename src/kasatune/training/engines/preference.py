"""The engine "preference": TRL's DPOTrainer, with the log-probabilities of the reference computed before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn

from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import CHOSEN, PROMPT, REFERENCE_CHOSEN, REFERENCE_REJECTED, REJECTED
from kasatune.errors import MissingExtraError
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.engines.pairs import (
    PairMeanLoss,
    PairRunTrainer,
    keep_dtypes,
    require_unsharded,
)
from kasatune.training.engines.trl_engine import TrlEngine, require_plain_output_layer

try:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
except ImportError as fault:
    raise MissingExtraError("the task preference", "sft") from fault

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe


class PreferenceRunTrainer(PairRunTrainer, PairMeanLoss, DPOTrainer):
    """TRL's DPOTrainer for a run; the losses are TRL's.

    For a PeftModel, TRL would add a second adapter as its reference, which for methods that change the base would also
    change the policy. So TRL is given the model inside the PeftModel, which computes the same, and the rows hold the
    log-probabilities of the reference. The forward of the model, which TRL replaces, is restored after training.
    """

    def __init__(self, *, model: Any, args: DPOConfig, **further: Any) -> None:
        self._bare = model.get_base_model() if isinstance(model, PeftModel) else model
        self._forward = vars(self._bare).get("forward")
        before = [(parameter, parameter.data) for parameter in trainable(model).values()]
        with _adapters_known(self._bare, isinstance(model, PeftModel)):
            super().__init__(model=self._bare, args=args, **further)
        self.model = self.model_wrapped = self.callback_handler.model = model
        keep_dtypes(before)

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The rows as they are. Private in TRL, which would compute what they hold already."""
        return dataset

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the model's original forward is restored afterwards."""
        try:
            return super().train(*args, **kwargs)
        finally:
            vars(self._bare).pop("forward", None)
            if self._forward is not None:
                self._bare.forward = self._forward


class _adapters_known:  # noqa: N801 - a context manager
    """Tell transformers for a moment that a model has adapters: it refuses to train a quantized one without."""

    def __init__(self, model: Any, has_adapters: bool) -> None:
        self._model, self._applies = model, has_adapters

    def __enter__(self) -> None:
        if self._applies:
            self._model._hf_peft_config_loaded = True

    def __exit__(self, *_: object) -> None:
        if self._applies:
            del self._model._hf_peft_config_loaded


def _dataset(examples: Examples) -> Dataset:
    columns = (PROMPT, CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED)
    return Dataset.from_dict({name: [row[name] for row in examples.rows] for name in columns})


class PreferenceEngine(TrlEngine):
    """TRL's DPOTrainer; see `Engine`. `training.batch_size` counts pairs. Dropout is off in training."""

    trainer_class = PreferenceRunTrainer
    dataset = staticmethod(_dataset)

    def training_arguments(self, recipe: Recipe, checkpoints: Path, device: torch.device) -> DPOConfig:
        """See `Engine`."""
        require_unsharded(recipe)
        preference = recipe.preference
        assert preference is not None  # a validated recipe of this task has the section
        return training_arguments(
            recipe.training,
            checkpoints,
            device,
            DPOConfig,
            loss_type=[*preference.losses],
            loss_weights=None if preference.loss_weights is None else list(preference.loss_weights),
            beta=preference.beta,
            label_smoothing=preference.label_smoothing,
            f_divergence_type=preference.divergence,
            f_alpha_divergence_coef=preference.alpha_coefficient,
            discopop_tau=preference.discopop_tau,
            ld_alpha=preference.ld_alpha,
            use_weighting=preference.weighting,
            precompute_ref_log_probs=True,
            max_length=recipe.task.max_length,
            gradient_checkpointing=recipe.training.gradient_checkpointing,
        )

    def check_model(self, model: nn.Module) -> None:
        """Reject an adapted output layer, which TRL would bypass.

        Raises:
            RecipeError: the output layer is adapted.
        """
        require_plain_output_layer(model, "preference")


ENGINE = PreferenceEngine()
