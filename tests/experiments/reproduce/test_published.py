"""The published figures: consistent among themselves and with the recipes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kasatune.data.tasks.table import TASKS
from kasatune.experiments.compare.variants import parse_variants
from kasatune.experiments.reproduce.published.catalogue import EXPERIMENTS
from kasatune.experiments.reproduce.published.schema import AVERAGE
from kasatune.methods.table import METHODS
from kasatune.recipes.catalogue import find_recipe
from kasatune.recipes.schema import load_recipe

MODELS = [(one, model) for one in EXPERIMENTS.values() for model in one.models]


@pytest.mark.parametrize(("experiment", "model"), MODELS, ids=lambda one: one.name)
def test_every_figure_belongs_to_a_task_a_method_and_a_recipe(experiment, model):
    for recipe in model.recipes.values():
        loaded = load_recipe(find_recipe(recipe))
        assert TASKS[loaded.task.name]
        assert loaded.method.name == "kasa"
    for figure in model.figures:
        run, _ = experiment.run_of(figure.task)
        assert figure.task == AVERAGE or run in model.recipes
        assert figure.source
        for method in filter(None, (figure.method, figure.minus)):
            assert parse_variants(method)[0].method in METHODS


@pytest.mark.parametrize("model", EXPERIMENTS["glue"].models, ids=lambda one: one.name)
def test_the_papers_average_is_that_of_the_logs(model):
    logs = [one.log for one in model.figures if one.method == "kasa" and one.minus is None and one.task != AVERAGE]
    mean = next(one for one in model.figures if one.task == AVERAGE and one.method == "kasa" and one.minus is None)
    assert sum(log.best for log in logs) / 6 == pytest.approx(mean.log.best, abs=0.0051)
    assert sum(log.last for log in logs) / 6 == pytest.approx(mean.log.last, abs=0.0051)
    assert mean.paper == pytest.approx(mean.log.best, abs=0.07)


@pytest.mark.parametrize("model", EXPERIMENTS["glue"].models, ids=lambda one: one.name)
def test_the_best_epoch_lies_within_the_epochs_of_the_recipe(model):
    for figure in model.figures:
        if figure.log and figure.log.epoch is not None:
            epochs = load_recipe(find_recipe(model.recipes[figure.task])).training.epochs
            assert 0 <= figure.log.epoch <= epochs
            assert (figure.log.last_ten is None) == (epochs <= 10) or epochs == 20


def test_the_recipes_have_the_settings_of_the_authors_logs():
    recipe = load_recipe(find_recipe("glue-roberta-base/cola"))
    assert (recipe.method.r, recipe.method.alpha, recipe.method.core, recipe.method.convention) == (
        8,
        16,
        "dense",
        "authors",
    )
    assert (recipe.training.epochs, recipe.training.learning_rate, recipe.method.beta) == (100, 4e-4, 1e-4)
    # a penalty summed over 48 layers, stated as the mean
    large = load_recipe(find_recipe("glue-roberta-large/cola")).method
    assert (large.beta / 48, large.gamma / 48) == (pytest.approx(0.01), pytest.approx(1e-5))


def test_the_figures_import_nothing_heavy():
    code = (
        "import sys; import kasatune.experiments.reproduce.published.catalogue; "
        "print([name for name in ('torch', 'transformers', 'peft', 'pandas') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
