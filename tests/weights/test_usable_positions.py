"""Usable positions of models whose position tables begin with rows of the padding, and the limits that follow."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaModel,
)

from kasatune import train
from kasatune.errors import InputError
from kasatune.evaluation.generate import cut_prompts
from kasatune.evaluation.loglikelihood import log_likelihoods
from kasatune.recipes.schema import GenerationSection
from kasatune.training.plan import make_plan
from kasatune.weights.usable_positions import usable_positions
from tests.text_toys import save_tokenizer
from tests.toys import make_recipe

ROWS = 34
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
ENCODERS = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text", "luke", "ibert", "bert")


@pytest.mark.parametrize("model_type", [*ENCODERS, "gpt2", "opt", "bart"])
@torch.no_grad()
def test_the_longest_input_that_a_model_runs_on_is_the_limit(model_type):
    further = {"attention_window": [4]} if model_type == "longformer" else {}
    if model_type == "luke":
        further = {"entity_vocab_size": 5, "entity_emb_size": 16}
    sizes = {} if model_type in ("gpt2", "opt", "bart") else SIZES
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2} if model_type == "gpt2" else {}
    if model_type in ("opt", "bart"):
        small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 16, "num_attention_heads": 2}
        small |= {"hidden_size": 16, "num_hidden_layers": 1, "word_embed_proj_dim": 16, "vocab_size": 40}
    config = AutoConfig.for_model(model_type, max_position_embeddings=ROWS, **sizes, **small, **further)
    family = AutoModelForCausalLM if model_type in ("gpt2", "opt") else AutoModelForSequenceClassification
    model = family.from_config(config).eval()
    limit = usable_positions(model)
    assert limit == (ROWS - 2 if model_type in ENCODERS[:-1] else ROWS)
    ids = torch.full((1, limit + 1), 7)
    ids[:, -2:] = config.eos_token_id if model_type == "bart" else 7
    model(input_ids=ids[:, -limit:])
    with pytest.raises((IndexError, RuntimeError, AssertionError)):
        model(input_ids=ids)


def test_another_padding_token_takes_other_rows_and_the_meta_device_will_do():
    with torch.device("meta"):
        model = RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=ROWS, pad_token_id=5))
    assert usable_positions(model) == ROWS - 6


def test_a_model_without_a_limit_has_none():
    assert usable_positions(torch.nn.Linear(2, 2)) is None


@pytest.fixture
def roberta(tmp_path):
    folder = tmp_path / "roberta"
    save_tokenizer(folder, padding=True)
    RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=ROWS, pad_token_id=3)).save_pretrained(folder)
    return folder


def test_plan_and_train_refuse_longer_rows_and_leave_nothing(roberta, tmp_path):
    usable = ROWS - 4
    recipe = make_recipe(roberta, tmp_path / "data", task={"max_length": usable + 1}, method={"r": 1})
    assert f"the model has {usable} positions" in "".join(make_plan(recipe).problems)
    with pytest.raises(InputError, match=f"task.max_length: {usable + 1} .* {usable} positions"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fitting = make_recipe(roberta, tmp_path / "data", task={"max_length": usable}, method={"r": 1}, max_steps=1)
    assert train(fitting, tmp_path / "run").joinpath("metrics.json").is_file()


def test_generation_and_ranking_stay_within_the_usable_positions(tmp_path):
    tokenizer = save_tokenizer(tmp_path, padding=True)
    config = RobertaConfig(**SIZES, max_position_embeddings=ROWS, pad_token_id=3, is_decoder=True)
    model = RobertaForCausalLM(config).eval()
    long = "red " * 50
    (prompt,) = cut_prompts(model, tokenizer, [long], GenerationSection(max_new_tokens=5), max_length=99)
    assert len(prompt) == ROWS - 4 - 5
    assert log_likelihoods(model, tokenizer, [(long, " blue one")], batch_size=1)[0] < 0
