"""The table of the training engines, and a run on an engine that is added to it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType
from typing import get_args

import pytest
from transformers import Trainer

from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import EngineName
from kasatune.errors import InputError, RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.training import engines
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.engines.run_trainer import RunTrainer
from kasatune.training.engines.trainer import mean_loss
from kasatune.training.train import train
from tests.toys import make_recipe


class ToyTrainer(RunTrainer, Trainer):
    def __init__(self, **arguments):
        super().__init__(compute_loss_func=mean_loss, **arguments)
        self.steps = []

    def training_step(self, *args, **kwargs):
        self.steps.append(self.state.global_step)
        return super().training_step(*args, **kwargs)


class ToyEngine:
    """The methods of `Engine`; `refuse` makes it refuse every model."""

    def __init__(self, *, refuse=False):
        self.refuse = refuse
        self.trainer = None

    def training_arguments(self, recipe, checkpoints, device):
        return training_arguments(recipe.training, checkpoints, device)

    def check_model(self, model):
        if self.refuse:
            raise RecipeError(["method.name: not with the toy engine"])

    def make_trainer(self, task_model, examples, arguments, hooks, callbacks):
        self.trainer = ToyTrainer(
            hooks=hooks,
            callbacks=callbacks,
            model=task_model.model,
            args=arguments,
            train_dataset=examples["train"],
            eval_dataset=examples["validation"],
            data_collator=task_model.collate,
        )
        return self.trainer


@pytest.fixture
def train_with(monkeypatch):
    """Makes the task classification train on an engine called "toy"."""

    def register(engine):
        module = ModuleType("toy_engine")
        module.ENGINE = engine
        monkeypatch.setitem(sys.modules, "toy_engine", module)
        monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, "toy": "toy_engine"})
        use_engine(monkeypatch, "toy")
        return engine

    return register


def use_engine(monkeypatch, name):
    row = replace(TASKS["classification"], engine=name)
    monkeypatch.setattr("kasatune.training.preflight.TASKS", {**TASKS, row.name: row})


def test_the_table_names_every_engine_of_a_task():
    assert {info.engine for info in TASKS.values()} <= set(engines.ENGINES)
    assert set(engines.ENGINES) == set(get_args(EngineName))


@pytest.mark.parametrize("name", sorted(engines.ENGINES))
def test_every_module_of_the_table_holds_an_engine(name):
    if name != "trainer":
        pytest.importorskip("trl")
    engine = engines.load_engine(name)
    assert all(callable(getattr(engine, method)) for method in ("training_arguments", "check_model", "make_trainer"))


def test_a_run_trains_on_an_engine_that_is_added_to_the_table(bert, tmp_path, train_with):
    engine = train_with(ToyEngine())
    run = train(make_recipe(bert, tmp_path / "data", max_steps=2), tmp_path / "run")
    assert engine.trainer.steps == [0, 1]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["last"]["step"] == 2
    assert evaluate(run)["metrics"] == metrics["metrics"]


def test_a_model_that_the_engine_refuses_stops_the_run_before_anything_is_written(bert, tmp_path, train_with):
    train_with(ToyEngine(refuse=True))
    with pytest.raises(RecipeError, match="not with the toy engine"):
        train(make_recipe(bert, tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_engine_that_is_not_in_the_table_is_refused_with_the_names_that_are(bert, tmp_path, monkeypatch):
    use_engine(monkeypatch, "toy")
    with pytest.raises(
        InputError, match=r"engine 'toy' does not exist; TaskInfo\.engine is one of: trainer, sft, preference, reward;"
    ):
        train(make_recipe(bert, tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
