"""Adapters that also change embeddings: resized vocabularies, tied heads saved in full, trained tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.adapter_tools.merge import merge
from kasatune.adapter_tools.shrink import shrink_adapter
from kasatune.adapter_tools.verify import verify
from kasatune.errors import AdapterError
from tests.text_toys import make_llama

IDS = torch.tensor([[0, 5, 7, 9, 3, 11]])
BOTH = ["embed_tokens", "lm_head"]
CHANGES: dict[str, tuple[int | None, dict[str, Any]]] = {
    "the embedding saved": (None, {"modules_to_save": ["embed_tokens"]}),
    "the head saved": (None, {"modules_to_save": ["lm_head"]}),
    "both saved": (None, {"modules_to_save": BOTH}),
    "both saved and kept tied": (None, {"modules_to_save": BOTH, "ensure_weight_tying": True}),
    "the embedding saved and kept tied": (None, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "trained tokens": (None, {"trainable_token_indices": [5, 7]}),
    "trained tokens of the head": (None, {"trainable_token_indices": {"lm_head": [5, 7]}}),
    "trained tokens of both": (None, {"trainable_token_indices": {"embed_tokens": [5, 7], "lm_head": [5, 7]}}),
    "other tokens of the head": (None, {"trainable_token_indices": {"embed_tokens": [5, 7], "lm_head": [3]}}),
    "more tokens": (24, {}),
    "fewer tokens": (14, {}),
    "more tokens, embedding saved": (24, {"modules_to_save": ["embed_tokens"]}),
    "more tokens, both saved and kept tied": (24, {"modules_to_save": BOTH, "ensure_weight_tying": True}),
    "more tokens, some trained": (24, {"trainable_token_indices": [5, 22]}),
}


def read(folder: Path, vocabulary: int | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    if vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


def save(folder: Path, *, tied: bool, vocabulary: int | None, config: Any) -> torch.Tensor:
    """A base, and an adapter of it that PEFT saved, in two folders; the outputs of both as PEFT reads them again."""
    make_llama(folder / "base", tie_word_embeddings=tied)
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(read(folder / "base", vocabulary), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder / "adapter")
        return logits(PeftModel.from_pretrained(read(folder / "base", vocabulary), folder / "adapter"))


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "v_proj"], **options})


def close(outputs: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(outputs, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("change", "tied"),
    [*((change, True) for change in CHANGES), ("both saved", False), ("trained tokens", False), ("more tokens", False)],
)
@pytest.mark.filterwarnings("ignore")
def test_a_merge_and_a_loaded_adapter_give_the_outputs_of_peft(change, tied, tmp_path):
    vocabulary, options = CHANGES[change]
    expected = save(tmp_path, tied=tied, vocabulary=vocabulary, config=lora(**options))
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    close(logits(merged), expected)
    assert merged.config.vocab_size == merged.get_input_embeddings().weight.shape[0] == expected.shape[-1]
    same = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert merged.config.tie_word_embeddings is same
    close(logits(load_adapter(read(tmp_path / "base", vocabulary), tmp_path / "adapter")), expected)


@pytest.mark.parametrize("change", ["both saved and kept tied", "trained tokens", "more tokens, some trained"])
@pytest.mark.filterwarnings("ignore")
def test_exports_keep_what_an_adapter_changes_in_embeddings_and_it_is_verified(change, tmp_path):
    vocabulary, options = CHANGES[change]
    expected = save(tmp_path, tied=True, vocabulary=vocabulary, config=lora(**options))
    base = read(tmp_path / "base", vocabulary)
    before = logits(base)
    shrink_adapter(tmp_path / "adapter", tmp_path / "small", rank=2)
    close(logits(PeftModel.from_pretrained(read(tmp_path / "base", vocabulary), tmp_path / "small")), expected)
    export_adapter(tmp_path / "adapter", tmp_path / "lora", base=base)
    assert torch.equal(logits(base), before)  # the base that was lent is unchanged
    checks = verify(tmp_path / "adapter")
    assert [check for check in checks if check.passed is False] == []
    assert {"reload", "export to lora", "merge"} <= {check.name for check in checks if check.passed}
    assert "heads or biases" in next(check.figure for check in checks if check.name == "export to gguf")


@pytest.mark.parametrize(
    ("vocabulary", "options", "tied"),
    [(24, {}, True), (None, {"modules_to_save": BOTH}, True), (24, {"modules_to_save": ["embed_tokens"]}, False)],
)
@pytest.mark.filterwarnings("ignore")
def test_a_kasa_adapter_that_changes_embeddings_is_converted_and_merged(vocabulary, options, tied, tmp_path):
    config = KasaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], **options)
    expected = save(tmp_path, tied=tied, vocabulary=vocabulary, config=config)
    base = read(tmp_path / "base", vocabulary)
    merge(tmp_path / "adapter", tmp_path / "merged")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)
    export_adapter(tmp_path / "adapter", tmp_path / "lora", base=base)
    close(logits(PeftModel.from_pretrained(read(tmp_path / "base", vocabulary), tmp_path / "lora")), expected)
    model = load_adapter(base, tmp_path / "adapter")
    close(logits(model), expected)
    export_adapter(model, tmp_path / "again")  # from a live model, which holds the new rows too
    close(logits(PeftModel.from_pretrained(read(tmp_path / "base", vocabulary), tmp_path / "again")), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_that_was_saved_with_the_adapter_goes_into_the_merge(tmp_path):
    save(tmp_path, tied=True, vocabulary=20, config=lora())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["extra"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged("extra")["input_ids"] == tokenizer("extra")["input_ids"]
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["pad_token_id"] == merged.pad_token_id == tokenizer.pad_token_id


@pytest.mark.filterwarnings("ignore")
def test_an_adapted_head_of_a_resized_vocabulary_is_loaded_and_refused_by_that_reason_elsewhere(tmp_path):
    config = lora(target_modules=["q_proj", "lm_head"])
    expected = save(tmp_path, tied=True, vocabulary=24, config=config)
    close(logits(load_adapter(read(tmp_path / "base", 24), tmp_path / "adapter")), expected)
    with pytest.raises(AdapterError, match="lm_head of a vocabulary that was resized to 24 tokens"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    export_adapter(tmp_path / "adapter", tmp_path / "lora", base=read(tmp_path / "base", 24))
    close(logits(PeftModel.from_pretrained(read(tmp_path / "base", 24), tmp_path / "lora")), expected)


@pytest.mark.filterwarnings("ignore")
def test_trained_tokens_of_a_vocabulary_that_only_the_training_script_knew_are_refused(tmp_path):
    save(tmp_path, tied=True, vocabulary=None, config=lora(trainable_token_indices=[5, 7]))
    path = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for ids, message in (([5, 70], "trains token 70"), ([5], "names 1 token"), ("5", "must be a list of token ids")):
        path.write_text(json.dumps(content | {"trainable_token_indices": ids}), encoding="utf-8")
        with pytest.raises(AdapterError, match=message):
            merge(tmp_path / "adapter", tmp_path / "merged")
        with pytest.raises(AdapterError):
            load_adapter(read(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_without_the_rows_of_its_trained_tokens_is_refused(tmp_path):
    save(tmp_path, tied=True, vocabulary=None, config=lora(trainable_token_indices=[5, 7]))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "trainable_tokens" not in key}, path)
    with pytest.raises(AdapterError, match="the adapter holds no rows of them"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(AdapterError, match="the adapter holds no rows of them"):
        shrink_adapter(tmp_path / "adapter", tmp_path / "small", rank=1)
    with pytest.raises(AdapterError, match="the adapter holds no rows of them"):
        load_adapter(read(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore")
def test_loading_onto_a_base_of_another_vocabulary_names_the_remedy(tmp_path):
    save(tmp_path, tied=True, vocabulary=24, config=lora())
    with pytest.raises(AdapterError, match=r"resize_token_embeddings\(24\)"):
        load_adapter(read(tmp_path / "base"), tmp_path / "adapter")
