"""A base in a GGUF file through every command: plan, train, resume, scores, text, decompose, exports, merge, verify."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kasatune.adapters.load import load_adapter
from kasatune.io.model_location import find_model
from kasatune.models.load import load_base
from kasatune.recipes.schema import ModelSection

pytest.importorskip("gguf", reason="the gguf package is not installed (kasatune[gguf])")

from tests.gguf_models import TEMPLATE, write_gguf_model

RECIPE = """
model: {name: models, gguf_file: tiny.gguf}
task: {name: instruction, train: train.jsonl, validation: train.jsonl, max_length: 48}
method: {r: 2, alpha: 4, target_modules: [q_proj, down_proj]}
training: {epochs: 1, batch_size: 2, eval_batch_size: 2, device: cpu, learning_rate: 0.02}
generation: {max_new_tokens: 4}
output: out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a base in models/tiny.gguf and a run on it in out."""
    from kasatune.cli.main import run

    folder = tmp_path_factory.mktemp("gguf")
    write_gguf_model(folder / "models" / "tiny.gguf")
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("the", "in", "er", "x")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    (folder / "recipe.yaml").write_text(RECIPE.replace("validation: train", "validation: valid"))
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(["train", "recipe.yaml"])
    finally:
        os.chdir(before)
    assert status == 0, err.getvalue()
    return folder


@pytest.fixture
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_plan_scores_and_text(work, kasatune):
    assert "LlamaForCausalLM" in kasatune("plan", "recipe.yaml").out
    scores = json.loads(kasatune("evaluate", "out", "--json").out)
    assert scores["metrics"] == json.loads(Path("out/metrics.json").read_text())["metrics"]
    (answer,) = json.loads(kasatune("predict", "out", "--text", "say the", "--json").out)
    assert answer["prediction"]["text"] is not None
    assert json.loads(Path("out/metrics.json").read_text())["model"]["name"] == "models/tiny.gguf"


def test_the_adapter_names_the_file_so_that_it_verifies_alone(work, kasatune):
    config = json.loads(Path("out/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/tiny.gguf"
    for directory in ("out", "out/adapter"):
        done = kasatune("verify", directory)
        assert done.status == 0, done.out + done.err
        assert "fail" not in done.out


def test_a_merge_is_a_plain_checkpoint_with_tokenizer_template_and_generation_config(work, kasatune):
    assert kasatune("merge", "out", "--out", "merged").status == 0
    names = {path.name for path in Path("merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.endswith(".gguf") for name in names)
    merged = AutoModelForCausalLM.from_pretrained("merged")
    tokenizer = AutoTokenizer.from_pretrained("merged")
    assert tokenizer.chat_template == TEMPLATE
    assert json.loads(Path("merged/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert json.loads(Path("merged/generation_config.json").read_text())["eos_token_id"] == 2
    base = load_base(ModelSection(name="models/tiny.gguf"), kind="generation", label_names=None, seed=0, max_length=8)
    text = "the inner <|im_end|> text"
    assert tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    ids = tokenizer(text, return_tensors="pt").input_ids
    adapted = load_adapter(base.model, "out/adapter")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=1e-5)


def test_exports_shrink_and_inspect(work, kasatune):
    for to in ("lora", "kasa", "gguf"):
        done = kasatune("export", "out", "--to", to, "--out", f"exported-{to}", "--base", "models/tiny.gguf")
        assert done.status == 0, done.err
    assert kasatune("shrink", "out", "--rank", "1", "--out", "small").status == 0
    report = json.loads(kasatune("inspect", "out/adapter", "--json").out)
    assert report["base"] == "models/tiny.gguf"
    assert all("base" in layer for layer in report["layers"])


def test_an_export_for_ollama_names_base_template_and_parameters(work, kasatune):
    done = kasatune("export", "out", "--to", "ollama", "--out", "tuned")
    assert done.status == 0, done.err
    text = Path("tuned/Modelfile").read_text()
    lines = text.splitlines()
    assert lines[:2] == [f"FROM {work / 'models' / 'tiny.gguf'}", "ADAPTER ./adapter.gguf"]
    assert '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}{{ else }}' in text
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER num_predict 4" in lines
    assert {path.name for path in Path("tuned").iterdir()} == {"Modelfile", "adapter.gguf", "certificate.json"}


def test_tails_computed_from_the_file_are_used_in_training(work, kasatune, decompositions):
    options = ("--rank", "2", "--target", "q_proj", "--target", "down_proj", "--out", "tails")
    done = kasatune("decompose", "models/tiny.gguf", *options)
    assert done.status == 0, done.err
    done = kasatune("train", "recipe.yaml", "method.tails=tails", "output=with-tails")
    assert done.status == 0, done.err
    assert decompositions == []


@pytest.mark.parametrize("method", ["full", "lora", "pissa"])
def test_other_methods_train_and_reload(work, kasatune, method):
    done = kasatune("train", "recipe.yaml", f"method.name={method}", f"output=by-{method}")
    assert done.status == 0, done.err
    assert kasatune("evaluate", f"by-{method}").status == 0


def test_a_base_that_moved_is_named_by_its_new_place(work, kasatune, tmp_path):
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(Path("models/tiny.gguf").read_bytes())
    assert find_model(str(moved)).gguf_file == "moved.gguf"
    assert kasatune("verify", "out/adapter", "--base", moved).status == 0
    write_gguf_model(tmp_path / "other.gguf", _other())
    done = kasatune("verify", "out/adapter", "--base", tmp_path / "other.gguf")
    assert done.status == 1, done.out


def _other():
    from tests.gguf_models import tiny_llama

    return tiny_llama(seed=9)
