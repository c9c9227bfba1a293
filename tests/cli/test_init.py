"""`kasatune init`: a commented recipe that validates, and never overwrites anything."""

from __future__ import annotations

import io

import pytest

from kasatune.recipes.schema import load_recipe


@pytest.fixture
def files(place):
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    (place / "rows.csv").write_text("id,Sentence,class\n1,x,a\n2,y,b\n")
    (place / "chat.jsonl").write_text('{"instruction": "x", "output": "y"}\n')
    (place / "qa.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    (place / "two.csv").write_text("verdict,review\na,x\nb,y\n")
    (place / "answers.csv").write_text("why,answer\nx,y\n")
    (place / "docs").mkdir()
    (place / "docs" / "a.txt").write_text("text")
    (place / "RTE").mkdir()
    return place


@pytest.mark.parametrize(
    ("options", "task"),
    [
        (("--task", "classification", "--data", "rows.csv"), {"text": "Sentence", "label": "class", "validation": 0.1}),
        (("--task", "instruction", "--data", "chat.jsonl"), {"train": "chat.jsonl"}),
        (("--task", "instruction", "--data", "hub:a/b:train"), {"train": "hub:a/b:train"}),
        (("--task", "text-generation", "--data", "qa.jsonl"), {"prompt": "question", "completion": "answer"}),
        (("--task", "glue/rte", "--data", "RTE"), {"data": "RTE"}),
        (("--task", "glue/rte"), {"data": None}),
        (("--task", "classification", "--data", "two.csv"), {"text": "review", "label": "verdict"}),
        (("--task", "text-generation", "--data", "answers.csv"), {"prompt": "why", "completion": "answer"}),
        (("--task", "rag-qa", "--data", "qa.jsonl", "--corpus", "docs"), {"corpus": "docs"}),
        (("--task", "demo"), {"train": None}),
        (("--task", "demo", "--method", "lora"), {}),
    ],
)
def test_the_recipe_validates_and_is_commented(files, kasatune, options, task):
    done = kasatune("init", "--model", "model", *options, "--out", "new/mine.yaml")
    assert done.status == 0, done.err
    recipe = load_recipe(files / "new" / "mine.yaml", check_inputs=True)
    assert recipe.model.name == "model"
    assert {key: getattr(recipe.task, key) for key in task} == task
    text = (files / "new" / "mine.yaml").read_text()
    assert "  # batch_size: 32" in text
    assert "Examples per optimizer step" in text


@pytest.mark.parametrize(
    ("options", "method"),
    [
        (("--task", "classification", "--data", "rows.csv"), ("kasa", "default")),
        (("--task", "instruction", "--data", "chat.jsonl"), ("akasa", "all-linear")),
        (("--task", "preference", "--data", "pairs.jsonl"), ("akasa", "all-linear")),
        (("--task", "reward", "--data", "pairs.jsonl"), ("akasa", "all-linear")),
        (("--task", "instruction", "--data", "chat.jsonl", "--method", "kasa"), ("kasa", "default")),
    ],
)
def test_language_models_start_with_akasa(files, kasatune, options, method):
    (files / "pairs.jsonl").write_text('{"prompt": "x", "chosen": "y", "rejected": "z"}\n')
    done = kasatune("init", "--model", "model", *options)
    assert done.status == 0, done.err
    section = load_recipe(files / "recipe.yaml").method
    assert (section.name, section.target_modules) == method


def test_a_commented_key_is_the_default(files, kasatune):
    kasatune("init", "--model", "model", "--task", "demo")
    lines = (files / "recipe.yaml").read_text().splitlines()
    plain = load_recipe(files / "recipe.yaml")
    uncommented = [
        line.replace("  # ", "  ", 1).partition("   ")[0] if line.startswith("  # ") else line for line in lines
    ]
    (files / "recipe.yaml").write_text("\n".join(uncommented))
    assert load_recipe(files / "recipe.yaml") == plain


def test_a_file_is_never_overwritten(files, kasatune):
    (files / "recipe.yaml").write_text("mine")
    done = kasatune("init", "--model", "model", "--task", "demo")
    assert done.status == 2
    assert "recipe.yaml exists and is not overwritten" in done.err
    assert (files / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--task: missing"),
        (("--task", "demo"), "--model: missing"),
        (("--task", "classification", "--model", "model"), "--data: missing"),
        (("--task", "classifcation", "--model", "model"), "did you mean classification?"),
        (("--task", "demo", "--model", "./nowhere"), "no such folder"),
        (("--task", "demo", "--model", "model", "--data", "rows.csv"), "makes its own rows"),
        (("--task", "demo", "--model", "model", "--validation", "rows.csv"), "leave it out"),
        (("--task", "demo", "--model", "model", "--method", "loraa"), "did you mean lora?"),
        (("--task", "classification", "--model", "model", "--data", "nowhere.csv"), "nowhere.csv"),
        (("--task", "classification", "--model", "model", "--data", "chat.jsonl"), "no column looks like the"),
        (
            ("--task", "classification", "--model", "model", "--data", "rows.csv", "--validation", "no.csv"),
            "no such file",
        ),
    ],
)
def test_faults_are_named_and_nothing_is_written(files, kasatune, monkeypatch, options, words):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    done = kasatune("init", *options)
    assert done.status == 2
    assert words in done.err
    assert not (files / "recipe.yaml").exists()


def test_three_questions_are_asked_on_a_terminal(files, kasatune, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("classification\nmodel\nrows.csv\n"))
    done = kasatune("init")
    assert done.status == 0, done.err
    assert done.err.count("?") == 3
    assert load_recipe(files / "recipe.yaml").task.label == "class"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "instruction", "--data", "qa.jsonl"), "instruction rows have messages, conversations"),
        (("--task", "preference", "--data", "qa.jsonl"), "chosen"),
        (("--task", "classification", "--data", "qa.jsonl", "--corpus", "docs"), "--corpus: 'docs' received"),
        (("--task", "rag-qa", "--data", "qa.jsonl"), "--corpus: missing"),
        (("--task", "classification", "--data", "three.csv"), "no column looks like the text (columns: a, b, c)"),
    ],
)
def test_files_without_the_columns_of_the_task_are_refused(files, kasatune, options, words):
    (files / "three.csv").write_text("a,b,c\n1,2,3\n")
    done = kasatune("init", "--model", "model", *options)
    assert done.status == 2
    assert words in done.err
    assert not (files / "recipe.yaml").exists()
