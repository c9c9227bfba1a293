"""llama.cpp with a base and an exported adapter, both GGUF files, writes the tokens that transformers writes."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kasatune import KasaConfig
from kasatune.adapter_tools.export import convert_adapter
from kasatune.models.load import load_base
from kasatune.recipes.schema import ModelSection
from tests.kasa.models import shaken

pytest.importorskip("gguf", reason="the gguf package is not installed (kasatune[gguf])")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")

from benchmarks.llama_cpp import LlamaCpp

from tests.gguf_models import SPECIAL, tiny_llama, write_gguf_model

PROMPTS = ("the", "in the end", "x", "inner thing", "1 2 3", "er", "<|im_start|>user\nthe<|im_end|>\n", "A b, c.")
NEW = 24


def by_transformers(model, prompts):
    texts = []
    for tokens in prompts:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=None,
                suppress_tokens=[0, 2],  # the two ends of a text, which ignore_eos excludes in llama.cpp
            )
        texts.append(written[0, len(tokens) :].tolist())
    return texts


def ascii_llama():
    """A model that never writes a part of a character, which llama.cpp would not show as a token."""
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    with torch.no_grad():
        for place, byte in enumerate(bytes_to_unicode(), start=len(SPECIAL)):
            if byte > 127:
                model.model.embed_tokens.weight[place] = 0
    return model


def test_greedy_tokens_are_equal_with_and_without_the_adapter(tmp_path):
    file = write_gguf_model(tmp_path / "base.gguf", ascii_llama())
    base = load_base(ModelSection(name=str(file)), kind="generation", label_names=None, seed=0, max_length=64)
    prompts = [base.tokenizer(text)["input_ids"] for text in PROMPTS]
    expected = {"base": by_transformers(base.model, prompts)}
    torch.manual_seed(3)
    config = KasaConfig(r=4, target_modules="all-linear", rank_pattern={"down_proj": 6}, task_type="CAUSAL_LM")
    model = shaken(get_peft_model(base.model, config))
    expected["tuned"] = by_transformers(model, prompts)
    assert expected["base"] != expected["tuned"]
    model.save_pretrained(tmp_path / "adapter")
    convert_adapter(tmp_path / "adapter", tmp_path / "exported", "gguf", base=str(file))
    for adapter, tokens in ((None, "base"), (tmp_path / "exported" / "adapter.gguf", "tuned")):
        runtime = LlamaCpp(file, adapter)
        assert [runtime.greedy(prompt, NEW) for prompt in prompts] == expected[tokens]
