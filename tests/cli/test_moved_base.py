"""A base model that is no longer where the recipe says: `--base MODEL`, and messages that name where it was sought."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.text_toys import make_llama
from tests.toys import At, make_recipe

RECIPE = """
model: {name: base}
task: {name: text-generation, train: rows.jsonl, validation: 0.5, prompt: p, completion: c, max_length: 32}
method: {r: 2, alpha: 4}
training: {epochs: 1, batch_size: 2, eval_batch_size: 2, device: cpu}
generation: {max_new_tokens: 4}
output: run
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run in `run`, whose base `base` has moved to `elsewhere`; `other` is another model."""
    import os
    from pathlib import Path

    from kasatune.cli.main import run

    folder, before = tmp_path_factory.mktemp("moved"), Path.cwd()
    make_llama(folder / "base")
    make_llama(folder / "other", initializer_range=0.3)
    rows = [{"p": f"name : {word} |", "c": f" {word} say one"} for word in ("red", "blue", "green", "two")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(RECIPE)
    os.chdir(folder)
    try:
        assert run(["train", "recipe.yaml"]) == 0
    finally:
        os.chdir(before)
    (folder / "base").rename(folder / "elsewhere")
    return folder


@pytest.fixture
def work(folder, monkeypatch, no_network):
    monkeypatch.chdir(folder)
    return folder


COMMANDS = [
    ("predict", "run", "--text", "name : red |"),
    ("evaluate", "run"),
    ("verify", "run"),
    ("export", "run", "--out", "new/lora", "--to", "gguf"),
    ("merge", "run", "--out", "new/merged"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_the_base_every_command_says_where_it_was_looked_for(work, kasatune, command):
    done = kasatune(*command)
    assert done.status == (1 if command[0] == "verify" else 2)
    shown = " ".join((done.out + done.err).split())
    assert f"{work / 'base'} is not a folder" in shown
    assert "--base" in shown
    assert "UserWarning" not in done.err
    assert not (work / "new").exists()


@pytest.mark.parametrize("command", [*COMMANDS, ("inspect", "run")], ids=lambda command: command[0])
def test_every_command_takes_the_base_where_it_is(work, kasatune, command):
    done = kasatune(*command, "--base", "elsewhere")
    shutil.rmtree(work / "new", ignore_errors=True)
    assert done.status == 0, done.err
    assert "FAIL" not in done.out


def test_the_scores_and_predictions_are_those_of_the_run(work, kasatune):
    kept = json.loads((work / "run" / "metrics.json").read_text())
    again = json.loads(kasatune("evaluate", "run", "--base", "elsewhere", "--json").out)
    assert [again[key] for key in ("metrics", "recipe_sha256", "model")] == [
        kept[key] for key in ("metrics", "recipe_sha256", "model")
    ]


def test_verify_scores_the_run_on_the_moved_base(work, kasatune):
    checks = {
        check["name"]: check for check in json.loads(kasatune("verify", "run", "--base", "elsewhere", "--json").out)
    }
    assert checks["scores"]["passed"]
    assert checks["base model"]["passed"]


@pytest.mark.parametrize("command", COMMANDS[:2], ids=lambda command: command[0])
def test_another_model_is_refused(work, kasatune, command):
    done = kasatune(*command, "--base", "other")
    assert done.status == 2
    assert "--base: other is another model than base" in done.err


@pytest.mark.parametrize("base", ["", "missing", "./missing", "recipe.yaml", "package:missing_model"])
def test_a_wrong_base_is_named_as_the_option(work, kasatune, base):
    done = kasatune("predict", "run", "--text", "x", "--base", base)
    assert done.status == 2
    assert "error: --base: " in done.err
    assert "model.name" not in done.err.rpartition("error:")[2]


def test_a_stopped_run_is_resumed_on_the_moved_base(bert, tmp_path, monkeypatch):
    from transformers import AutoModel

    from kasatune.errors import InputError, ModelError
    from kasatune.training.train import train
    from tests.training.test_resume import ctrl_c, files

    recipe = make_recipe(bert, tmp_path, epochs=2)
    base = tmp_path / "base"
    shutil.copytree(bert, base)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(base)})})
    whole = files(train(recipe, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=At(2, ctrl_c))
    base.rename(tmp_path / "elsewhere")
    other = AutoModel.from_pretrained(tmp_path / "elsewhere")
    other.get_input_embeddings().weight.data += 1.0
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="only for a run that is resumed"):
        train(recipe, tmp_path / "new", base=str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError, match=r"base: .*missing"):
        train(recipe, tmp_path / "run", resume=True, base=str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="another model than the one with which the run"):
        train(recipe, tmp_path / "run", resume=True, base=str(tmp_path / "other"))
    train(recipe, tmp_path / "run", resume=True, base=str(tmp_path / "elsewhere"))
    assert files(tmp_path / "run") == whole


def test_the_option_of_train_is_for_resume(work, kasatune):
    done = kasatune("train", "recipe.yaml", "--out", "fresh", "--base", "elsewhere")
    assert done.status == 2
    assert "set model.name=MODEL" in done.err
    assert not (work / "fresh").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("evaluate", "run", "--split", "nope"), "has no split 'nope'"),
        (("evaluate", "run", "--scores", "nope"), "not an optional score"),
        (("predict", "run", "--text", " "), "text 1 is empty"),
        (("predict", "run", "--text", "\ud800"), "half of a surrogate pair"),
        (("shrink", "run", "--out", "new"), "give either a rank or an energy"),
        (("shrink", "run", "--out", "new", "--rank", "0"), "rank"),
        (("shrink", "run", "--out", "new", "--energy", "2"), "energy"),
        (("export", "run", "--out", "new", "--to", "lora", "--rank", "0"), "rank"),
        (("export", "run", "--out", "new", "--to", "kasa", "--rank", "1"), "keeps the trained rank"),
        (("export", "run", "--out", "new", "--to", "onnx"), "is not a known adapter format"),
        (("merge", "run", "--out", "run"), "is not empty"),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(work, kasatune, monkeypatch, command, words):
    def load(*_, **__):
        pytest.fail("a model was loaded")

    for place in ("evaluation.task_model", "adapter_tools.resolve"):
        monkeypatch.setattr(f"kasatune.{place}.load_base", load)
    done = kasatune(*command, "--base", "elsewhere")
    assert done.status == 2
    assert words in done.err
    assert not (work / "new").exists()
