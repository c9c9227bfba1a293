"""`kasatune evaluate --harness`: lm-eval on a run's stock adapter, with a local task and local rows."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from kasatune.data.chat_template import prompt_of_chat
from kasatune.data.tasks.commonsense_prompts import read_instruction
from kasatune.recipes.schema import Recipe
from kasatune.training.train import train
from tests.data.tasks.commonsense_toys import write_commonsense
from tests.text_toys import make_llama
from tests.toys import make_bert, make_recipe

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


IFEVAL_LIKE = """
task: obeyed
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: "{{{{prompt}}}}"
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    """A run on instructions, of a model without a chat template, and a task of lm-eval in IFEval's form."""
    folder = tmp_path_factory.mktemp("instructed")
    rows = [{"instruction": f"say {word}", "output": word} for word in ("red", "blue", "green", "one")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(make_llama(folder / "llama"))},
            "task": {"name": "instruction", "train": str(folder / "rows.jsonl"), "validation": 0.5, "max_length": 32},
            "method": {"name": "kasa", "r": 2},
            "training": {"max_steps": 1, "batch_size": 2, "device": "cpu"},
            "generation": {"max_new_tokens": 2},
            "output": "unused",
        }
    )
    train(recipe, folder / "run")
    (folder / "asked.jsonl").write_text(json.dumps({"prompt": "say red"}) + "\n", encoding="utf-8")
    (folder / "obeyed.yaml").write_text(IFEVAL_LIKE.format(rows=folder / "asked.jsonl"), encoding="utf-8")
    return folder


def test_an_instruction_run_is_asked_as_it_was_trained(instructed, kasatune, monkeypatch):
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    asked = []
    write = HFLM._model_generate

    def watched(self, context, *args, **options):
        asked.append(self.tokenizer.decode(context[0]))
        return write(self, context, *args, **options)

    monkeypatch.setattr(HFLM, "_model_generate", watched)
    command = ("evaluate", instructed / "run", "--harness", "obeyed", "--harness-path", instructed, "--json")
    done = kasatune(*command)
    assert done.status == 0, done.err
    assert json.loads(done.out)["harness"]["chat_template"] is True
    expected = prompt_of_chat(AutoTokenizer.from_pretrained(instructed / "llama"), [("user", "say red")])
    assert asked == [AutoTokenizer.from_pretrained(instructed / "llama").decode(expected)]


def test_rows_that_cannot_be_reached_are_one_message(instructed, kasatune, monkeypatch, tmp_path):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    task = (instructed / "obeyed.yaml").read_text().splitlines()
    remote = [line.replace("json", "google/IFEval") for line in task if not line.startswith("dataset_kwargs")]
    (tmp_path / "obeyed.yaml").write_text("\n".join(remote))
    done = kasatune("evaluate", instructed / "run", "--harness", "obeyed", "--harness-path", tmp_path, "--json")
    assert done.status == 1 and done.out == ""
    assert done.err.splitlines()[-1].startswith("error: lm-eval failed on obeyed: ConnectionError: Couldn't reach")
    assert "check the network" in done.err and "Traceback" not in done.err


def test_a_package_that_a_task_needs_is_named(instructed, kasatune, tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "utils.py").write_text("import langdetect_of_nobody\n\n\ndef scored(doc, results): ...\n")
    task = (instructed / "obeyed.yaml").read_text()
    (tmp_path / "obeyed.yaml").write_text(f"{task}process_results: !function utils.scored\n")
    done = kasatune("evaluate", instructed / "run", "--harness", "obeyed", "--harness-path", tmp_path)
    assert done.status == 1 and "langdetect_of_nobody" in done.err and "pip install 'kasatune[harness]'" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--harness", "toyz", "--harness-path", "tasks"), "'toyz' is not a task of lm-eval"),
        (("--harness", "toys", "--harness-path", "nowhere"), "no such folder"),
        (("--harness-path", "tasks"), "need --harness TASK"),
        (("--harness", "toys", "--split", "test"), "omit them with --harness"),
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
