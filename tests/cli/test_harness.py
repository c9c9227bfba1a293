"""`kasatune evaluate --harness`: lm-eval on a run's stock adapter, with a local task and local rows."""

from __future__ import annotations

import json

import pytest

from kasatune.runs.recipe import Recipe
from kasatune.runs.train import train
from kasatune.tasks.commonsense_prompts import read_instruction
from tests.runs.text_toys import make_llama
from tests.runs.toys import make_bert, make_recipe
from tests.tasks.commonsense_toys import write_commonsense

TASK = """
task: toys
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with an adapter that changes what the model says, and its test rows as a task of lm-eval."""
    folder = tmp_path_factory.mktemp("harness")
    data = write_commonsense(folder / "data")
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(make_llama(folder / "llama"))},
            "task": {"name": "commonsense/openbookqa", "data": str(data), "max_length": 56},
            "method": {"name": "kasa", "r": 4},
            "training": {"max_steps": 8, "batch_size": 4, "learning_rate": 3e-2, "device": "cpu"},
            "generation": {"max_new_tokens": 4},
            "output": "unused",
        }
    )
    train(recipe, folder / "run")
    rows = []
    for one in json.loads((data / "openbookqa" / "test.json").read_text(encoding="utf-8")):
        question = read_instruction(one["instruction"])
        assert question is not None
        gold = question.answers.index(one["answer"])
        rows.append({"question": question.text, "options": list(question.options), "gold": gold})
    (folder / "tasks").mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "tasks" / "toys.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"), encoding="utf-8")
    return folder


def test_lm_eval_scores_the_trained_model_as_we_do(run, kasatune):
    pytest.importorskip("lm_eval")
    ours = kasatune("evaluate", run / "run", "--split", "test", "--json")
    assert ours.status == 0, ours.err
    done = kasatune("evaluate", run / "run", "--harness", "toys", "--harness-path", run / "tasks", "--json")
    assert done.status == 0, done.err
    theirs, expected = json.loads(done.out), json.loads(ours.out)["metrics"]
    assert theirs["metrics"] == {"toys acc": expected["acc"], "toys acc_norm": expected["acc_norm"]}
    assert theirs["harness"]["standard_errors"].keys() == {"toys acc", "toys acc_norm"}
    assert theirs["harness"]["rows"]["toys"]["effective"] == 6
    shown = kasatune(
        "evaluate", run / "run", "--harness", "toys", "--harness-path", run / "tasks", "--harness-limit", "2"
    )
    assert shown.status == 0 and "toys acc" in shown.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--harness", "toyz", "--harness-path", "tasks"), "'toyz' is not a task of lm-eval"),
        (("--harness", "toys", "--harness-path", "nowhere"), "no such folder"),
        (("--harness-path", "tasks"), "belong to --harness"),
        (("--harness", "toys", "--split", "test"), "leave them out with --harness"),
    ],
)
def test_faults_are_told(run, kasatune, monkeypatch, options, words):
    if "toyz" in options:
        pytest.importorskip("lm_eval")
    monkeypatch.chdir(run)
    done = kasatune("evaluate", "run", *options)
    assert done.status == 2 and words in done.err and "Traceback" not in done.err


def test_a_classifier_is_refused_and_a_missing_package_named(run, kasatune, tmp_path, monkeypatch):
    bert = make_bert(tmp_path / "bert")
    classifier = train(make_recipe(bert, tmp_path / "data", epochs=1, max_steps=1), tmp_path / "classifier")
    done = kasatune("evaluate", classifier, "--harness", "boolq")
    assert done.status == 2 and "language models" in done.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = kasatune("evaluate", run / "run", "--harness", "boolq")
    assert done.status == 2 and "kasatune[harness]" in done.err
