"""Padding: a batch gives the scores of its rows alone, whatever the checkpoint's configuration says of padding."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    XLNetConfig,
    XLNetModel,
)

from kasatune.adapter_tools.merge import merge
from kasatune.adapter_tools.verify import verify
from kasatune.data.collate import CausalCollator, LabelledCollator
from kasatune.data.prompt_completion import IGNORED, encode_rows
from kasatune.errors import ModelError
from kasatune.models.load import load_base
from kasatune.recipes.schema import ModelSection
from tests.text_toys import make_llama, save_tokenizer

SIZE = 24
TEXTS = ["say red", "say one two three pub cafe"]


def section(name: Path) -> ModelSection:
    return ModelSection(name=str(name))


def load(folder: Path) -> Any:
    return load_base(section(folder), kind="classification", label_names=("no", "yes"), seed=0, max_length=16)


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def decoder(folder: Path, architecture: str, *, padding: bool, pad_token_id: int | None, side: str) -> Path:
    torch.manual_seed(3)
    if architecture == "gpt2":
        config = GPT2Config(vocab_size=SIZE, n_positions=32, n_embd=16, n_layer=2, n_head=2, pad_token_id=pad_token_id)
        GPT2Model(config).save_pretrained(folder)
    else:
        LlamaModel(
            LlamaConfig(
                vocab_size=SIZE,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=32,
                pad_token_id=pad_token_id,
                initializer_range=0.3,
            )
        ).save_pretrained(folder)
    save_tokenizer(folder, padding=padding)
    edit(folder / "tokenizer_config.json", padding_side=side)
    return folder


@torch.no_grad()
def scores(base: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of every text alone, and in one batch."""
    collate = LabelledCollator(base.tokenizer)
    rows = [dict(base.tokenizer(text)) for text in TEXTS]
    alone = torch.cat([base.model(**collate([row])).logits for row in rows])
    return alone, base.model(**collate(rows)).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("padding", "pad_token_id"),
    [(True, None), (True, 3), (True, 2), (False, None), (False, 2), (True, 0)],
    ids=["absent", "equal", "another", "neither", "of the model only", "an ordinary token"],
)
def test_a_classifier_on_a_decoder_scores_a_text_alike_alone_and_in_a_batch(
    architecture, side, padding, pad_token_id, tmp_path
):
    base = load(decoder(tmp_path / "base", architecture, padding=padding, pad_token_id=pad_token_id, side=side))
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id == (3 if padding else 1)
    alone, batch = scores(base)
    torch.testing.assert_close(alone, batch, rtol=1e-4, atol=1e-5)
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3


def test_an_ordinary_token_that_the_configuration_calls_padding_is_learnt(tmp_path):
    base = load(decoder(tmp_path / "base", "llama", padding=True, pad_token_id=5, side="right"))
    batch = LabelledCollator(base.tokenizer)([dict(base.tokenizer(text)) for text in ("blue red", "say one two")])
    assert 5 in batch["input_ids"]
    base.model(**batch).logits.sum().backward()
    gradient = base.model.get_input_embeddings().weight.grad
    assert float(gradient[5].abs().max()) > 0
    assert float(gradient[3].abs().max()) == 0


def test_a_model_that_reads_the_last_position_is_padded_on_the_left(tmp_path):
    torch.manual_seed(3)
    XLNetModel(XLNetConfig(vocab_size=SIZE, d_model=16, n_layer=2, n_head=2, d_inner=24)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, padding=True)
    edit(tmp_path / "tokenizer_config.json", padding_side="left")
    alone, batch = scores(load(tmp_path))
    torch.testing.assert_close(alone, batch, rtol=1e-4, atol=1e-5)


def test_a_padding_token_without_an_embedding_is_refused_by_name(tmp_path):
    folder = decoder(tmp_path / "base", "llama", padding=True, pad_token_id=None, side="right")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[MORE]"})
    for number in range(SIZE):
        tokenizer.add_tokens(f"extra{number}")
    tokenizer.add_special_tokens({"pad_token": "[LAST]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"pads with '\[LAST\]', number \d+, but the model has only {SIZE}"):
        load(folder)


def test_a_configuration_that_pads_with_a_number_outside_the_vocabulary_is_no_obstacle(tmp_path):
    folder = decoder(tmp_path / "base", "llama", padding=True, pad_token_id=None, side="right")
    edit(folder / "config.json", pad_token_id=99)
    alone, batch = scores(load(folder))
    torch.testing.assert_close(alone, batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pad_token_id", [1, 3])
def test_a_model_that_counts_positions_by_its_padding_token_keeps_it(pad_token_id, tmp_path):
    torch.manual_seed(3)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = RobertaConfig(vocab_size=SIZE, pad_token_id=pad_token_id, initializer_range=0.3, **options)
    RobertaModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, padding=True)
    edit(tmp_path / "tokenizer_config.json", padding_side="left")
    base = load(tmp_path)
    assert base.model.config.pad_token_id == pad_token_id
    alone, batch = scores(base)
    torch.testing.assert_close(alone, batch, rtol=1e-4, atol=1e-5)


def test_an_end_of_text_that_also_pads_is_learnt_where_it_ends_a_text(tmp_path):
    base = load_base(section(make_llama(tmp_path)), kind="generation", label_names=None, seed=0, max_length=16)
    end = base.tokenizer.eos_token_id
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id == end
    examples = encode_rows(base.tokenizer, ["say :", "say one two :"], ["red", "blue green one"], 16)
    batch = CausalCollator(base.tokenizer)(examples.rows)
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        assert ids[length - 1] == labels[length - 1] == end
        assert (labels[length:] == IGNORED).all()


def adapted(base: Any, folder: Path, out: Path) -> Any:
    """A LoRA that is not zero, saved to `out`."""
    model = get_peft_model(base.model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(out)
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "padding", "pad_token_id", "side"),
    [("llama", True, 2, "left"), ("gpt2", False, None, "left"), ("gpt2", True, 99, "right")],
)
def test_a_merged_classifier_scores_a_batch_as_its_rows_alone_with_plain_transformers(
    architecture, padding, pad_token_id, side, tmp_path
):
    folder = decoder(tmp_path / "base", architecture, padding=padding, pad_token_id=None, side=side)
    edit(folder / "config.json", pad_token_id=pad_token_id)
    base = load(folder)
    model = adapted(base, folder, tmp_path / "adapter")
    expected, _ = scores(SimpleNamespace(model=model, tokenizer=base.tokenizer))
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        batch = merged(**tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)).logits
    assert merged.config.pad_token_id == tokenizer.pad_token_id
    torch.testing.assert_close(batch, expected, rtol=1e-4, atol=1e-5)
    checks = {check.name: check for check in verify(tmp_path / "adapter")}
    assert checks["padded batch"].passed, checks["padded batch"].figure
    assert checks["merge"].passed, checks["merge"].figure


def test_verify_finds_a_model_whose_padding_is_not_that_of_its_tokenizer(tmp_path, monkeypatch):
    folder = decoder(tmp_path / "base", "llama", padding=True, pad_token_id=2, side="right")
    adapted(load(folder), folder, tmp_path / "adapter")
    monkeypatch.setattr("kasatune.adapter_tools.resolve.set_padding", lambda *_, **__: None)
    monkeypatch.setattr("kasatune.adapter_tools.merged_files._set_padding", lambda *_: None)
    checks = {check.name: check for check in verify(tmp_path / "adapter")}
    assert checks["padded batch"].passed is False
    assert checks["merge"].passed is False
    assert "a padded batch gives other outputs" in checks["merge"].figure
