"""A task of another package: one module and one row, found by an entry point, used by every part of kasatune."""

from __future__ import annotations

import importlib
import json
import sys
from textwrap import dedent

import pytest
from scripts import reference_pages

from kasatune.cli.commands.listing import Kind, command
from kasatune.data.tasks import table
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError, InputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.experiments.compare.spec import Search, make_spec
from kasatune.experiments.compare.variants import parse_variants
from kasatune.recipes.schema import Recipe, recipe_json_schema
from kasatune.reports.card import write_card
from kasatune.reports.run_page import write_report
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.experiments.compare.toys import run as run_comparison

ROWS = """
    from kasatune.data.tasks.task_info import TaskInfo

    MOOD = TaskInfo(
        name="toy-mood",
        title="moods of toy sentences",
        kind="classification",
        metrics=("accuracy", "f1"),
        primary="accuracy",
        paper_metric=None,
        source="a file of `sentence = mood` lines as `data`",
        module="toy_task.mood",
        keys=("data",),
        label_names=("bad", "good"),
    )
    ECHO = TaskInfo(
        name="toy-echo",
        title="repeating a word",
        kind="generation",
        metrics=("repeated",),
        primary="loss",
        paper_metric=None,
        source="made up",
        module="toy_task.echo",
        keys=(),
        rows="completion",
        prompt="Repeat {} :",
        scorer="toy_task.echo:score",
        decoding={"max_new_tokens": 3},
    )
"""
MOOD = '''
    """Sentences with a mood, one `sentence = mood` a line."""

    from pathlib import Path

    from kasatune.data.tasks.dataset import Rows, make_task_data
    from kasatune.errors import DataError


    def read(info, path):
        lines = [line.split(" = ") for line in Path(path).read_text().splitlines()]
        for number, (_, mood) in enumerate(lines, start=1):
            if mood not in info.label_names:
                raise DataError(f"{path}, line {number}: {mood!r} is not a mood")
        return Rows([text for text, _ in lines], None, [info.label_names.index(mood) for _, mood in lines])


    def load(info, settings):
        rows = read(info, settings.data)
        splits = {"train": rows.pick(range(0, len(rows), 2)), "validation": rows.pick(range(1, len(rows), 2))}
        return make_task_data(info, settings, splits, label_names=info.label_names, source=settings.data)


    def load_evaluation(info, settings, data, label_names):
        return make_task_data(info, settings, {"validation": read(info, data)}, label_names=label_names, source=data)
'''
ECHO = '''
    """Words to be repeated."""

    from kasatune.data.tasks.dataset import Rows, make_task_data
    from kasatune.evaluation.text_scores import TextScores


    def load(info, settings):
        words = ["good", "bad", "fine", "sad"]
        rows = Rows([info.render(word) for word in words], None, words)
        return make_task_data(info, settings, {"train": rows, "validation": rows}, source="made up")


    def load_evaluation(info, settings, data, label_names):
        raise AssertionError("a task without keys has no other data")


    def score(info, generated, log_likelihoods):
        pairs = [(prompt, f" {own[0]}") for prompt, own in zip(generated.prompts, generated.references)]
        right = [text in own for text, own in zip(generated.texts, generated.references)]
        return TextScores({"repeated": sum(right) / len(right)}, [round(value, 3) for value in log_likelihoods(pairs)])
'''
SENTENCES = "".join(
    f"{start} {word} = {mood}\n"
    for start in ("good", "nice", "the", "a", "so", "very", "not", "film")
    for word, mood in (("good", "good"), ("bad", "bad"), ("fine", "good"), ("awful", "bad"), ("nice", "good"))
)


def install(folder, points):
    """The files of an installed package with entry points."""
    (folder / "toy_task").mkdir(parents=True)
    (folder / "toy_task" / "__init__.py").touch()
    for name, content in {"rows": ROWS, "mood": MOOD, "echo": ECHO}.items():
        (folder / "toy_task" / f"{name}.py").write_text(dedent(content), encoding="utf-8")
    info = folder / "toy_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-task\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[kasatune.tasks]\n{points}\n", encoding="utf-8")


@pytest.fixture
def table_of_kasatune(monkeypatch):
    """Restores the table of tasks after the test, and forgets the toy package."""
    before = dict(table._tasks)
    yield
    table._tasks.clear()
    table._tasks.update(before)
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_task"]:
        del sys.modules[name]


@pytest.fixture
def toy_tasks(table_of_kasatune, tmp_path, monkeypatch) -> tuple[TaskInfo, TaskInfo]:
    folder = tmp_path / "site-packages"
    install(folder, "mood = toy_task.rows:MOOD\necho = toy_task.rows:ECHO")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    table.register_installed_tasks()
    return table.TASKS["toy-mood"], table.TASKS["toy-echo"]


@pytest.fixture
def mood_recipe(toy_tasks, bert, tmp_path) -> Recipe:
    (tmp_path / "moods.txt").write_text(SENTENCES, encoding="utf-8")
    return Recipe.model_validate(
        {
            "model": {"name": str(bert)},
            "task": {"name": "toy-mood", "data": str(tmp_path / "moods.txt"), "max_length": 16},
            "method": {"name": "kasa", "r": 2},
            "training": {"epochs": 1, "batch_size": 8, "device": "cpu"},
            "output": "unused",
        }
    )


def test_an_installed_task_is_planned_trained_scored_and_reported(mood_recipe, tmp_path):
    assert make_plan(mood_recipe).rows == 20
    run = train(mood_recipe, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["metrics"]) == {"accuracy", "f1", "loss"} and metrics["label_names"] == ["bad", "good"]
    assert evaluate(run)["metrics"] == metrics["metrics"]
    (tmp_path / "other.txt").write_text("good = good\nbad = bad\n", encoding="utf-8")
    assert 0 <= evaluate(run, data=str(tmp_path / "other.txt"))["metrics"]["accuracy"] <= 1
    assert predict(run, ["good fine"])[0]["prediction"]["label"] in ("bad", "good")
    write_report(run)
    write_card(run)
    assert "moods of toy sentences" in (run / "report.html").read_text(encoding="utf-8").lower()


def test_an_installed_task_takes_part_in_comparisons(mood_recipe, tmp_path):
    recipes = [(tmp_path / "mood.yaml", mood_recipe)]
    comparison, _ = run_comparison(
        make_spec(recipes, parse_variants("kasa,lora"), (0,), search=Search("grid", 1)), tmp_path / "compared"
    )
    (task,) = comparison["tasks"]
    assert task["name"] == "toy-mood" and len(task["results"]) == 3


def test_an_installed_task_generates_and_scores_text_its_own_way(toy_tasks, llama, tmp_path):
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(llama)},
            "task": {"name": "toy-echo", "max_length": 32},
            "method": {"name": "kasa", "r": 2},
            "training": {"max_steps": 1, "batch_size": 4, "device": "cpu"},
            "output": "unused",
        }
    )
    assert recipe.generation is not None and recipe.generation.max_new_tokens == 3
    run = train(recipe, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert 0 <= metrics["repeated"] <= 1 and evaluate(run)["metrics"] == metrics
    saved = json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    assert saved["inputs"][0] == "Repeat good :" and len(saved["scores"]) == 4 and max(saved["scores"]) < 0
    assert set(predict(run, ["nice"])[0]["prediction"]) == {"text"}
    with pytest.raises(DataError, match=r"toy-echo makes its own rows \(made up\) and takes no other data"):
        evaluate(run, data="rows.txt")


def test_an_installed_task_is_listed_documented_and_in_the_schema(toy_tasks, capsys):
    command(Kind.TASKS, json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["toy-mood"]["title"] == "moods of toy sentences" and rows["toy-mood"]["keys"] == ["data"]
    command(Kind.TASKS)
    assert "toy-echo" in capsys.readouterr().out
    assert "moods of toy sentences" in reference_pages.tasks()
    assert "toy-mood" in recipe_json_schema()["$defs"]["TaskSection"]["properties"]["name"]["enum"]


def test_a_taken_name_is_refused(toy_tasks):
    table.register_task(toy_tasks[0])
    with pytest.raises(InputError, match=r"'glue/rte' of other\.module: the name belongs to kasatune"):
        table.register_task(TaskInfo("glue/rte", "x", "classification", ("f1",), "f1", None, "x", "other.module"))
    with pytest.raises(ValueError, match="kind 'generation' with rows 'labelled'; expected classification or"):
        TaskInfo("x", "x", "generation", ("f1",), "loss", None, "x", "x")


@pytest.mark.parametrize(
    ("points", "fault"),
    [
        ("toy = toy_task.missing:ROW", r"toy_task\.missing:ROW of the group kasatune\.tasks cannot be imported"),
        ("toy = toy_task.rows:TaskInfo", r"is a type, not a TaskInfo"),
    ],
)
def test_a_broken_entry_point_is_named(table_of_kasatune, tmp_path, monkeypatch, points, fault):
    install(tmp_path, points)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=fault):
        table.register_installed_tasks()
