"""Text with tokens that the model has no embedding for is refused, whatever is done with the text."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from kasatune import predict, train
from kasatune.data.prompt_completion import encode_rows
from kasatune.errors import ModelError
from kasatune.evaluation.known_tokens import only_known_tokens, require_known_tokens
from kasatune.evaluation.lm_eval import harness
from kasatune.evaluation.loglikelihood import log_likelihoods
from kasatune.recipes.schema import Recipe
from tests.text_toys import make_llama, make_text_recipe

UNKNOWN = r"gives '\[NAME\]' the id 17, but the model has only 17 embeddings"
TASK = """
task: named
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: prompt
doc_to_choice: ["red", "blue"]
doc_to_target: 0
{settings}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama whose tokenizer has one token more than the model."""
    folder = make_llama(tmp_path_factory.mktemp("model") / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[NAME]"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["text-generation", "instruction"])
def run(request, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    if request.param == "text-generation":
        return train(make_text_recipe(model, folder, max_steps=1), folder / "run")
    pytest.importorskip("trl")
    rows = [{"instruction": f"say {word}", "output": word} for word in ("red", "blue", "green", "one")]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    recipe = {
        "model": {"name": str(model)},
        "task": {"name": "instruction", "train": str(folder / "rows.json"), "validation": 0.5, "max_length": 32},
        "method": {"name": "kasa", "r": 2},
        "training": {"max_steps": 1, "batch_size": 2, "device": "cpu"},
        "generation": {"max_new_tokens": 2},
    }
    return train(Recipe.model_validate(recipe), folder / "run")


def test_predict_refuses_the_text_and_answers_others(run):
    with pytest.raises(ModelError, match=UNKNOWN):
        predict(run, ["say red :", "say [NAME] :"])
    assert predict(run, ["say red :"])[0]["prediction"]["text"] is not None


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("multiple_choice", "metric_list: [{metric: acc}]"),
        ("generate_until", "generation_kwargs: {until: [], max_gen_toks: 2}\nmetric_list: [{metric: exact_match}]"),
    ],
)
def test_lm_eval_refuses_the_text(run, kind, settings, tmp_path):
    pytest.importorskip("lm_eval")
    if (kind == "multiple_choice") != ("text-generation" in (run / "recipe.yaml").read_text(encoding="utf-8")):
        pytest.skip("choices are asked of the one run, texts of the other")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "say [NAME] :"}) + "\n", encoding="utf-8")
    task = TASK.format(rows=tmp_path / "rows.jsonl", kind=kind, settings=settings)
    (tmp_path / "named.yaml").write_text(task, encoding="utf-8")
    with pytest.raises(ModelError, match=UNKNOWN):
        harness(run, ["named"], path=tmp_path)


def test_training_and_ranking_refuse_the_text(model, tmp_path):
    recipe = make_text_recipe(model, tmp_path / "data", max_steps=1)
    rows = [{"question": "say [NAME] :", "answer": "red"}] * 4
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ModelError, match=UNKNOWN):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    with pytest.raises(ModelError, match=UNKNOWN):
        log_likelihoods(loaded, tokenizer, [("say", " [NAME]")], batch_size=1)


def test_an_adapted_embedding_is_counted_and_the_hook_is_removed(model):
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([tokenizer("[NAME]")["input_ids"]])
    with only_known_tokens(loaded, tokenizer), pytest.raises(ModelError, match=UNKNOWN):
        loaded(ids)
    with pytest.raises(IndexError):
        loaded(ids)
    wrapper = nn.Module()
    wrapper.base_layer = loaded.get_input_embeddings()
    loaded.set_input_embeddings(wrapper)
    with pytest.raises(ModelError, match=UNKNOWN):
        require_known_tokens(loaded, tokenizer, ids.tolist())


def test_a_tokenizer_without_an_unknown_token_is_named():
    words = Tokenizer(models.WordLevel({"red": 0, "</s>": 1}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    with pytest.raises(ModelError, match=r"cannot read a text: .*; give the tokenizer that belongs to the model"):
        encode_rows(tokenizer, ["red"], ["blue"], 8)
