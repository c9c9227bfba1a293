"""`model.adapter`: training continues from the adapter of an earlier run, by instruction tuning and by preference."""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import nullcontext

import pytest
import torch

from kasatune.adapter_tools.export import convert_adapter
from kasatune.adapter_tools.verify import verify
from kasatune.data.tasks import load_task
from kasatune.errors import AdapterError, InputError, ModelError, RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.starting_adapter import check_base, prepare
from kasatune.evaluation.task_model import TaskModel
from kasatune.experiments.compare.spec import make_spec
from kasatune.experiments.compare.variants import parse_variants
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.methods.table import METHODS
from kasatune.recipes.schema import Recipe, to_yaml
from kasatune.runs.metrics import read_metrics
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.text_toys import make_llama
from tests.toys import At, Recorder
from tests.training.preference_rows import pair_recipe
from tests.training.test_instruction_runs import events
from tests.training.test_instruction_runs import recipe as instruction_recipe
from tests.training.test_resume import ctrl_c, files

pytest.importorskip("trl")

LN2 = math.log(2)
CONTINUED = [info.name for info in METHODS.values() if info.continues]
WAYS = [
    *[{"name": name} for name in CONTINUED],
    {"name": "lora", "use_rslora": True},
    {"name": "kasa", "truncation": "fold", "core": "dense"},
    {"name": "kasa", "truncate_by": "activation", "drop": 1},
    {"name": "kasa", "orthonormal": True, "target_modules": ["q_proj", "down_proj"]},
    {"name": "kasa", "convention": "authors", "options": {"sigma": "one"}},
]


def with_adapter(recipe: Recipe, adapter, **method) -> Recipe:
    """The recipe with `model.adapter`, and with other settings of its method."""
    content = recipe.model_dump()
    content["model"]["adapter"] = str(adapter)
    content["method"] |= method
    return Recipe.model_validate(content)


@pytest.fixture(scope="module")
def first(llama, tmp_path_factory):
    """An instruction run with KaSA."""
    folder = tmp_path_factory.mktemp("first")
    return train(instruction_recipe(llama, folder / "data", epochs=2), folder / "run")


def saved(recipe: Recipe, folder):
    """An adapter of a recipe, changed as by training, in `folder`; returns its model too."""
    task_model = TaskModel.for_training(recipe, load_task(recipe.task))
    prepare(task_model, task_model.batches(task_model.encode(load_task(recipe.task), "train")))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(task_model.model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    task_model.method.save(task_model.model, folder, recipe.model.base_name)
    return task_model


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_training_starts_from_what_the_adapter_computes(llama, tmp_path, way):
    recipe = pair_recipe(llama, tmp_path / "data", method=way, number=4)
    trained = saved(recipe, tmp_path / "adapter")
    data = load_task(recipe.task)
    rows = trained.encode(data, "train")
    folder = tmp_path / "adapter" / trained.method.folder
    continued = TaskModel.for_training(with_adapter(recipe, folder), data)
    fresh = continued.log_probabilities(rows)
    assert "training continues" in prepare(continued, continued.batches(rows))
    loaded = trained.method.load(TaskModel.for_base(recipe, None).model, tmp_path / "adapter", recipe.method)
    expected = TaskModel(recipe, continued.base, continued.method, loaded).log_probabilities(rows)
    values = continued.log_probabilities(rows)
    assert values.chosen == pytest.approx(expected.chosen, abs=1e-5)
    assert values.rejected == pytest.approx(expected.rejected, abs=1e-5)
    assert values.chosen != pytest.approx(fresh.chosen, abs=1e-2)
    assert set(trainable(continued.model)) == set(trainable(trained.model))


def test_preference_continues_a_run_from_plan_to_export(first, llama, tmp_path):
    recipe = with_adapter(pair_recipe(llama, tmp_path / "data", epochs=2), first)
    plan = make_plan(recipe)
    assert not plan.problems
    assert f"training continues the adapter in {first / 'kasa'}" in plan.notes
    display = Recorder()
    run = train(recipe, tmp_path / "run", display=display)
    assert f"training continues the adapter in {first / 'kasa'}" in display.messages
    assert not [message for message in display.messages if "warning" in message]
    assert events(run, "train")[0]["loss"] == pytest.approx(LN2, abs=1e-4)
    metrics = read_metrics(run)
    assert metrics["adapter"]["name"] == str(first)
    assert len(metrics["adapter"]["sha256"]) == 64
    before = TaskModel.for_saved_run(recipe, None, first)
    data = load_task(recipe.task)
    reference = json.loads((run / "reference.json").read_text())["validation"]
    assert reference["chosen"] == pytest.approx(
        before.log_probabilities(before.encode(data, "validation")).chosen, abs=1e-4
    )
    assert evaluate(run)["metrics"] == metrics["metrics"]
    other = evaluate(run, data=str(tmp_path / "data" / "train.json"))  # whose reference is computed again
    assert other["metrics"]["accuracy"] >= 0
    assert not [check for check in verify(run) if check.passed is False]
    convert_adapter(run, tmp_path / "lora", "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    third = with_adapter(instruction_recipe(llama, tmp_path / "more"), run)
    assert not make_plan(third).problems


def test_a_continued_run_is_resumed_and_its_adapter_must_be_the_same(first, llama, tmp_path):
    adapter = shutil.copytree(first / "kasa", tmp_path / "earlier")
    recipe = with_adapter(instruction_recipe(llama, tmp_path / "data", epochs=2), adapter, dropout=0.1, beta=0.0)
    whole = files(train(recipe, tmp_path / "whole"))
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, stopped, display=At(1, ctrl_c))
    other = shutil.copytree(stopped, tmp_path / "other")
    assert files(train(recipe, stopped, resume=True)) == whole

    weights = adapter / "adapter_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(ModelError, match="has changed since the run"):
        train(recipe, other, resume=True)


DIFFERENT = {
    "r": ({"r": 3}, "method.r: 3 received; the adapter in .* has 2"),
    "alpha": ({"alpha": 8}, "method.alpha: 8 received; the adapter in .* has 4"),
    "scaling": ({"use_rslora": True}, "method.use_rslora: true received; the adapter in .* has false"),
    "core": ({"core": "dense"}, 'method.core: "dense" received; the adapter in .* has "diagonal"'),
    "convention": ({"convention": "authors"}, 'method.convention: "authors" received'),
    "drop": ({"drop": 1}, "method.drop: 1 received; the adapter in .* has 2"),
    "akasa": ({"name": "akasa", "options": {}}, "method.drop: 0 received; the adapter in .* has 2"),
    "by": ({"truncate_by": "activation"}, 'method.truncate_by: "activation" received'),
    "orthonormal": ({"orthonormal": True}, "method.orthonormal: true received"),
    "layers": ({"target_modules": ["q_proj"]}, r"has 4 layers, and the recipe selects 2: .*\[q_proj, v_proj\]"),
    "lora": ({"name": "lora", "options": {}}, "use kasa or akasa, or name its export .*adapter as model.adapter"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_settings_that_differ_from_those_of_the_adapter_are_refused_by_name(first, llama, tmp_path, case):
    changes, message = DIFFERENT[case]
    recipe = with_adapter(instruction_recipe(llama, tmp_path / "data"), first, **changes)
    assert any(re.search(message, problem) for problem in make_plan(recipe).problems)
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_lora_of_a_run_is_continued_with_lora(first, llama, tmp_path):
    settings = {"name": "lora", "r": 4, "alpha": 4, "options": {}}
    recipe = with_adapter(instruction_recipe(llama, tmp_path / "data"), first / "adapter", **settings)
    assert not make_plan(recipe).problems
    wrong = with_adapter(instruction_recipe(llama, tmp_path / "data"), first / "adapter")
    assert "use lora" in make_plan(wrong).problems[0]
    dora = with_adapter(instruction_recipe(llama, tmp_path / "data"), first / "adapter", **settings | {"name": "dora"})
    assert "no DoRA adapter; use lora" in make_plan(dora).problems[0]


def test_an_adapter_with_more_than_a_recipe_trains_is_refused(first, llama, tmp_path):
    folder = shutil.copytree(first / "adapter", tmp_path / "edited")
    settings = {"name": "lora", "r": 4, "alpha": 4, "options": {}}
    recipe = with_adapter(instruction_recipe(llama, tmp_path / "data"), folder, **settings)
    config = json.loads((folder / "adapter_config.json").read_text())
    for changes, message in (
        ({"bias": "all"}, "also trains bias"),
        ({"modules_to_save": ["lm_head"]}, "also trains modules_to_save"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "changes the base when it is loaded.*export .* --to lora"),
        ({"use_qalora": True}, "QALoRA"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        assert any(re.search(message, problem) for problem in make_plan(recipe).problems), message


def test_another_base_is_refused(first, tmp_path):
    other = make_llama(tmp_path / "other", initializer_range=0.3)
    recipe = with_adapter(instruction_recipe(other, tmp_path / "data"), first)
    with pytest.raises(InputError, match=r"model.name: .* is another base than that of the adapter in .*kasa"):
        train(recipe, tmp_path / "run")


def test_a_lora_run_on_another_base_is_refused_by_its_fingerprint(llama, tmp_path):
    settings = {"name": "lora", "options": {}}
    run = train(instruction_recipe(llama, tmp_path / "data", method=settings, max_steps=1), tmp_path / "run")
    other = make_llama(tmp_path / "other", initializer_range=0.3)
    for model, problem in ((llama, False), (other, True)):
        recipe = with_adapter(instruction_recipe(model, tmp_path / "data", max_steps=1), run, **settings)
        base = TaskModel.for_base(recipe, None).base
        with (
            pytest.raises(AdapterError, match="the fingerprints of their weights differ") if problem else nullcontext()
        ):
            check_base(recipe, base)


def test_another_chat_template_is_named(first, llama, tmp_path):
    display = Recorder()
    recipe = with_adapter(instruction_recipe(llama, tmp_path / "data", task={"template": "gemma"}), first)
    train(recipe, tmp_path / "run", display=display)
    assert any("another chat template" in message and "task.template" in message for message in display.messages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "full"}}, 'method.name: "full" received with model.adapter; .* kasa, akasa, lora'),
        ({"method": {"name": "eva", "options": {}}}, "is continued with lora"),
        ({"method": {"anneal": 0.5}}, "method.anneal: 0.5 received"),
        ({"method": {"init": "gradient"}}, 'method.init: "gradient" received'),
        ({"task": {"name": "demo"}}, "model.adapter: .* demo generates no text"),
    ],
)
def test_recipes_that_cannot_continue_are_refused(llama, tmp_path, changes, message):
    content = instruction_recipe(llama, tmp_path / "data").model_dump()
    content["model"]["adapter"] = "somewhere"
    if "task" in changes:
        content.pop("generation")
        content["task"] = changes["task"]
    content["method"] |= changes.get("method", {})
    with pytest.raises(RecipeError, match=message):
        Recipe.model_validate(content)


def test_a_directory_without_an_adapter_is_named(llama, tmp_path):
    content = with_adapter(instruction_recipe(llama, tmp_path / "data"), tmp_path / "nothing").model_dump()
    with pytest.raises(RecipeError, match=r"model.adapter: .* holds no adapter"):
        Recipe.model_validate(content, check_inputs=True)
    assert any("holds no adapter" in problem for problem in make_plan(Recipe.model_validate(content)).problems)


def test_a_recipe_without_the_key_is_written_as_before(llama, tmp_path):
    assert "adapter" not in to_yaml(instruction_recipe(llama, tmp_path / "data")).partition("task:")[0]


def test_a_comparison_starts_every_method_from_the_base(first, llama, tmp_path):
    recipe = with_adapter(instruction_recipe(llama, tmp_path / "data"), first)
    with pytest.raises(RecipeError, match=r"model.adapter: .* a comparison trains all methods from the base"):
        make_spec([(tmp_path / "recipe.yaml", recipe)], parse_variants("kasa,lora"), [0])
