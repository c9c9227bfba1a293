"""Attach a method to a tiny base and train it with the trainer of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from kasatune.data.tokenize import Examples
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import MethodSection, TrainingSection
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.engines.run_trainer import RunHooks
from kasatune.training.engines.trainer import MeanLossTrainer
from tests.contract.bases import HEAD, collate, tiny_model, tiny_rows
from tests.contract.facts import ALPHA, FACTS, R


@dataclass(frozen=True)
class Case:
    """A method on a base.

    Attributes:
        method: the method.
        base: "bert", "gpt2" or "llama".
    """

    method: Method
    base: str

    @property
    def settings(self) -> MethodSection:
        """The settings of the method in all laws."""
        name = self.method.info.name
        return MethodSection(name=name, r=R, alpha=ALPHA, options=dict(FACTS[name].options))

    @property
    def new_modules(self) -> Sequence[str]:
        """The head."""
        return (HEAD[self.base],)

    def attached(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        """The method on a fresh base, prepared, in evaluation mode; all random numbers come from `seed`."""
        set_seed(seed)
        model = self.method.attach(tiny_model(self.base, dtype), self.settings, "classification", self.new_modules)
        self.method.prepare(model.eval(), self.settings, [collate(tiny_rows()[:4]), collate(tiny_rows()[4:])])
        return model.eval()

    def shaken(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """`attached`, with every trained parameter changed, as training does."""
        model = self.attached(dtype)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trainable(model).values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    def saved_and_loaded(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model that `load` builds from the files of `save` on an untouched base, with another random state."""
        with tempfile.TemporaryDirectory() as folder:
            self.method.save(model, Path(folder), "some/base")
            torch.manual_seed(99)
            return self.method.load(tiny_model(self.base, dtype), Path(folder), self.settings).eval()


@dataclass(frozen=True)
class Trained:
    """The result of training.

    Attributes:
        model: after training.
        before: all parameters before training, by name.
        first: the gradients of the first step by name, those of the step penalty included.
        reached: names of the parameters with a nonzero gradient in some step.
    """

    model: nn.Module
    before: dict[str, Tensor]
    first: dict[str, Tensor]
    reached: frozenset[str]


def trained(case: Case, *, pieces: int = 1, steps: int = 1, seed: int = 0) -> Trained:
    """`steps` optimizer steps of all eight rows, each computed in `pieces`, by the run's own trainer."""
    model = case.attached(seed=seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    gradients: list[dict[str, Tensor]] = []

    def keep(optimizer: Any, *_: Any) -> None:
        every = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients.append({names[id(p)]: p.grad.clone() for p in every if p.grad is not None})

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(case, model, Path(folder), pieces, steps, seed)
        create = trainer.create_optimizer

        def create_and_watch(*args: Any) -> torch.optim.Optimizer:
            optimizer = create(*args)
            optimizer.register_step_pre_hook(keep)  # after the hook that adds the step penalty's gradient
            return optimizer

        trainer.create_optimizer = create_and_watch
        trainer.train()
    reached = {name for step in gradients for name, value in step.items() if bool(value.any())}
    return Trained(model, before, gradients[0], frozenset(reached))


def _trainer(case: Case, model: nn.Module, folder: Path, pieces: int, steps: int, seed: int) -> MeanLossTrainer:
    section = TrainingSection(
        batch_size=8,
        gradient_accumulation=pieces,
        max_steps=steps,
        learning_rate=1e-2,
        schedule="constant",
        warmup_ratio=0.0,
        device="cpu",
        seed=seed,
    )
    arguments = training_arguments(section, folder, torch.device("cpu"))
    arguments.eval_strategy = arguments.save_strategy = "no"  # type: ignore[assignment]
    rows = Examples(tiny_rows(), frozenset())
    return MeanLossTrainer(
        hooks=RunHooks(
            method=case.method,
            settings=case.settings,
            new_modules=case.new_modules,
            head_learning_rate=None,
            evaluate=dict,
            progress=dict,
        ),
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        callbacks=case.method.callbacks(model, case.settings),
    )


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """The logits of all rows, float32."""
    batch = collate([{key: value for key, value in row.items() if key != "labels"} for row in tiny_rows()])
    return model(**batch).logits.float()
