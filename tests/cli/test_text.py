"""A data-to-text task through the real entry: plan, train, scores again, text for new facts, and the adapter's ways."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest

RECIPE = """
model: {name: model}
task: {name: e2e, data: e2e, max_length: 32}
method: {r: 2, alpha: 4}
training: {epochs: 1, batch_size: 4, eval_batch_size: 2, device: cpu}
generation: {max_new_tokens: 4, num_beams: 2}
output: out
"""
FACTS = ("name : red | Type : pub", "name : blue | Type : cafe", "name : green | Type : pub")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of RECIPE in `out`, and what training printed."""
    from kasatune.cli.main import run
    from tests.text_toys import make_llama

    folder = tmp_path_factory.mktemp("text")
    make_llama(folder / "model")
    (folder / "e2e").mkdir()
    lines = "".join(f"{facts}||{facts.split()[2]} say {word} .\n" for facts in FACTS for word in ("one", "two"))
    for name in ("train", "valid", "test"):
        (folder / "e2e" / f"{name}.txt").write_text(lines)
    (folder / "recipe.yaml").write_text(RECIPE)
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(["train", "recipe.yaml"])
    finally:
        os.chdir(before)
    assert status == 0, err.getvalue()
    return folder, out.getvalue()


@pytest.fixture
def work(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    return trained[0]


def test_the_scores_are_shown(trained):
    _, out = trained
    for name in ("BLEU", "NIST", "ROUGE-L", "CIDEr", "perplexity"):
        assert name in out


def test_evaluate_scores_each_meaning_once(work, kasatune):
    again = json.loads(kasatune("evaluate", "out", "--json").out)
    assert again["metrics"] == json.loads((work / "out" / "metrics.json").read_text())["metrics"]
    assert json.loads(kasatune("evaluate", "out", "--split", "test", "--json").out)["split"] == "test"
    kept = json.loads((work / "out" / "predictions.json").read_text())
    assert kept["inputs"] == [f"### Context : {facts}\n### Completion : " for facts in FACTS]
    assert [len(references) for references in kept["labels"]] == [2, 2, 2]


def test_predict_puts_the_prompt_around_the_facts(work, kasatune):
    kept = json.loads((work / "out" / "predictions.json").read_text())
    found = json.loads(kasatune("predict", "out", "--json", *(f"--text={facts}" for facts in FACTS)).out)
    assert found == [
        {"input": facts, "prediction": {"text": text}} for facts, text in zip(FACTS, kept["predictions"], strict=True)
    ]
    shown = kasatune("predict", "out", "--text", FACTS[0]).out
    assert shown.split("\n")[0].split() == ["input", "generated"]
    assert FACTS[0].split(" | ")[0] in shown


def test_a_text_that_is_cut_is_told(work, kasatune):
    done = kasatune("predict", "out", "--text", "name : " + "red " * 40)
    assert "longer than the maximum length of training, beginnings cut: 1 of 1 text" in done.err


@pytest.mark.parametrize(
    "command",
    [
        ("plan", "recipe.yaml"),
        ("inspect", "out"),
        ("verify", "out"),
        ("export", "out", "--to", "lora", "--out", "lora"),
        ("merge", "out", "--out", "merged"),
        ("shrink", "out", "--rank", "1", "--out", "small"),
    ],
    ids=lambda command: command[0],
)
def test_what_is_done_with_runs_is_done_with_these(work, kasatune, command):
    done = kasatune(*command)
    assert done.status == 0, done.err


def test_a_rest_of_the_run_is_not_asked_for_twice(work, kasatune):
    assert "already finished" in kasatune("train", "recipe.yaml", "--resume").err
