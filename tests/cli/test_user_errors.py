"""Wrong input through the real entry: status 2, one message, no traceback, nothing written, nothing loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GOOD = """
model: {name: model}
task: {name: classification, train: train.csv, validation: validation.csv, text: text, label: label, max_length: 32}
method: {r: 2, target_modules: [query, value]}
training: {epochs: 1, batch_size: 8, device: cpu}
output: out
"""


@pytest.fixture
def work(place):
    """A current directory with a good recipe: a model by its configuration alone, and two small files of rows."""
    from tests.toys import make_bert, rows, write_csv

    make_bert(place / "model")
    (place / "model" / "model.safetensors").unlink()
    write_csv(place / "train.csv", rows(12, 2, seed=1))
    write_csv(place / "validation.csv", rows(6, 2, seed=2))
    (place / "good.yaml").write_text(GOOD)
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(kasatune, folder: Path, *argv: str) -> str:
    before = contents(folder)
    done = kasatune(*argv)
    assert (done.status, done.out) == (2, ""), done
    assert done.err.startswith("error: ")
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert contents(folder) == before
    return done.err


def test_the_good_recipe_is_good(kasatune, work):
    assert kasatune("plan", "good.yaml").status == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("- a\n- b", "not a recipe"),
        ("model: [", "line 1"),
        ("model:\n\tname: x", "indent with spaces"),
        (GOOD + "output: other", "given twice"),
        (GOOD.replace("method:", "metod:"), "did you mean method?"),
        (GOOD.replace("r: 2", "rank: 2"), "rank: not a key of method"),
        (GOOD.replace("r: 2", "r: 0"), "at least 1"),
        (GOOD.replace("r: 2", "r: two"), "whole number"),
        (GOOD.replace("batch_size: 8", "batch_size: 8, gradient_accumulation: 3"), "must divide"),
        (GOOD.replace("classification", "clasification"), "did you mean classification?"),
        (GOOD.replace("train: train.csv", "train: nowhere.csv"), "no such file"),
        (GOOD.replace("train: train.csv", "train: model"), "must end in"),
        (GOOD.replace("train: train.csv, ", ""), "task.train: missing"),
        (GOOD.replace("name: model}", "name: ./nowhere}"), "no such folder"),
        (GOOD.replace("name: model}", "name: package:no_such_thing}"), "pip install"),
        (GOOD.replace("classification", "glue/rte"), "does not read it"),
        ("a: &a [x]\nb: [*a, *a]", "alias"),
        ("x: " + "[" * 5000, "deep"),
        ("#" * 70_000, "larger than"),
    ],
)
def test_malformed_recipes(kasatune, work, content, words):
    (work / "bad.yaml").write_text(content)
    assert words in refused(kasatune, work, "train", "bad.yaml")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "nowhere.yaml"], "no such file"),
        (["train", "glue-minilm/rtte"], "did you mean the built-in recipe glue-minilm/rte?"),
        (["train", "model"], "folder"),
        (["train", "good.yaml", "seed"], "section.key=value"),
        (["train", "good.yaml", "training.sed=1"], "did you mean seed?"),
        (["train", "good.yaml", "training.seed=x"], "whole number"),
        (["train", "good.yaml", "task.text=[a"], "not YAML"),
        (["train", "good.yaml", "task.label=lable"], "lable"),
        (["train", "good.yaml", "task.text=sentence"], "sentence"),
        (["train", "good.yaml", "method.r=32"], "min(out, in) = 32"),
        (["train", "good.yaml", "method.target_modules=[query, valeu]"], "valeu"),
        (["train", "good.yaml", "task.max_length=1000"], "64 positions"),
        (["train", "good.yaml", "training.device=cuda:7"], "training.device"),
        (["train", "good.yaml", "--resume", "--overwrite"], "--resume and --overwrite"),
        (["train", "good.yaml", "--out", "good.yaml"], "is a file"),
        (["train", "good.yaml", "--out", "model"], "model is not empty"),
        (["train", "good.yaml", "--out", "good.yaml/below"], "not a directory"),
        (["train", "good.yaml", "--out", "x" * 300], "File name too long"),
        (["train", "good.yaml", "--out", "model", "--resume"], "no run to resume"),
        (["evaluate", "nowhere"], "not a run directory"),
        (["evaluate", "model"], "not a run directory"),
        (["predict", "nowhere", "--text", "x"], "not a run directory"),
        (["predict", "model"], "--text and --file"),
        (["predict", "model", "--text", "x", "--file", "good.yaml"], "both"),
        (["predict", "model", "--file", "nowhere.txt"], "no such file"),
        (["export", "model", "--out", "new"], "holds no adapter"),
        (["export", "nowhere", "--out", "new"], "no such directory"),
        (["demo", "--out", "model"], "no demo wrote"),
        (["demo", "--out", "good.yaml"], "is a file"),
        (["demo", "--out", "x" * 300], "File name too long"),
    ],
)
def test_wrong_arguments(kasatune, work, argv, words):
    assert words in refused(kasatune, work, *argv)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"text,label\n", "row"),
        (b"text,label\ngood,\nbad,no\n", "label"),
        (b"text,label\n\xff\xfe,x\n", "UTF-8"),
        (b"text,label\ngood,yes\nfine,yes\n", "yes"),
    ],
)
def test_malformed_data(kasatune, work, content, words):
    (work / "train.csv").write_bytes(content)
    assert words in refused(kasatune, work, "train", "good.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(kasatune, work):
    (work / "locked").mkdir(mode=0o500)
    assert "write" in refused(kasatune, work, "train", "good.yaml", "--out", "locked/run")


def test_files_for_predict_that_hold_nothing(kasatune, work):
    (work / "nothing.txt").touch()
    assert "is empty" in refused(kasatune, work, "predict", "model", "--file", "nothing.txt")
    (work / "binary.txt").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused(kasatune, work, "predict", "model", "--file", "binary.txt")


def test_an_interrupted_run_is_not_evaluated_without_its_scores(kasatune, work):
    (work / "begun").mkdir()
    (work / "begun" / "recipe.yaml").write_text(GOOD)
    assert "metrics.json" in refused(kasatune, work, "evaluate", "begun")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("list", "x"), "Invalid value for 'kind': 'x' is not one of"),
        (
            ("decompose", "m", "--rank", "1", "--out", "d", "--dtype", "x"),
            "'--dtype': 'x' is not one of",
        ),
        (("shrink", "run", "--out", "x", "--rank", "1.5"), "must be a whole number; '1.5' received"),
        (("shrink", "run", "--out", "x", "--energy", "x"), "must be a number; 'x' received"),
        (("evaluate", "run", "--harness-limit", "0"), "must be at least 1; '0' received"),
    ],
)
def test_wrong_values_of_options_are_named_in_plain_words(place, kasatune, command, words):
    done = kasatune(*command)
    assert done.status == 2
    assert words in done.err
    assert "Value error" not in done.err
    assert "Input should" not in done.err
