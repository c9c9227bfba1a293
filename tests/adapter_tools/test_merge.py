"""Merging: a plain checkpoint that gives the adapted model's outputs, made with one tensor in memory at a time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from kasatune import KasaConfig, export_adapter
from kasatune.adapter_tools.merge import merge
from kasatune.errors import AdapterError, InputError, ModelError, OutputError
from tests.kasa.models import bert, gpt2, llama, shaken, token_ids
from tests.shared_data import shared

CAUSAL, CLASSIFIER = AutoModelForCausalLM, AutoModelForSequenceClassification


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def trained(folder, base, **options):
    """A base saved in `folder`/base, an adapter of it in `folder`/adapter, and the outputs of both together."""
    torch.manual_seed(5)
    model = base()
    model.save_pretrained(folder / "base", max_shard_size=options.pop("max_shard_size", "1GB"))
    model = type(model).from_pretrained(folder / "base")
    adapted = shaken(get_peft_model(model, KasaConfig(**{"r": 4, **options})))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "kasa_" not in name:
                parameter.add_(0.2)
    adapted.save_pretrained(folder / "adapter")
    return adapted, logits(adapted)


@pytest.mark.parametrize(
    ("base", "kind", "options"),
    [
        (llama, CAUSAL, {}),
        (llama, CAUSAL, {"max_shard_size": "20KB", "core": "dense", "target_modules": "all-linear"}),
        (gpt2, CAUSAL, {"target_modules": ["c_attn", "c_proj"]}),
        (bert, CLASSIFIER, {"task_type": "SEQ_CLS", "bias": "all", "modules_to_save": ["pooler"]}),
        (lambda: bert(labels=3), CLASSIFIER, {"task_type": "SEQ_CLS"}),
    ],
    ids=["llama", "llama in shards", "gpt2", "bert with biases", "bert with three labels"],
)
def test_the_merged_checkpoint_gives_the_adapted_outputs_with_plain_transformers(tmp_path, base, kind, options):
    adapted, expected = trained(tmp_path, base, **options)
    done = merge(tmp_path / "adapter", tmp_path / "merged")
    merged, report = kind.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    close(logits(merged), expected)
    assert done.layers == len(adapted.targeted_module_names)
    names = [path.name for path in (tmp_path / "base").iterdir()]
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {*names, "certificate.json"}


def test_a_merge_is_that_of_the_loaded_model_bit_for_bit(tmp_path):
    adapted, _ = trained(tmp_path, llama)
    merge(tmp_path / "adapter", tmp_path / "merged")
    expected = adapted.merge_and_unload().state_dict()
    found = CAUSAL.from_pretrained(tmp_path / "merged").state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7)
    assert torch.equal(found["model.norm.weight"], expected["model.norm.weight"])


@pytest.mark.parametrize("to", ["lora", "peft-kasa"])
def test_adapters_of_other_formats_are_merged_too(tmp_path, to):
    adapted, expected = trained(tmp_path, llama)
    export_adapter(adapted, tmp_path / "other", to=to)
    merge(tmp_path / "other", tmp_path / "merged", base=str(tmp_path / "base"))
    close(logits(CAUSAL.from_pretrained(tmp_path / "merged")), expected)


def test_a_head_is_added_to_a_body_that_was_saved_without_prefix_or_head(tmp_path):
    torch.manual_seed(5)
    model = bert(labels=3)
    model.bert.save_pretrained(tmp_path / "base")
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "base" / "model.safetensors")
    adapted = shaken(get_peft_model(model, KasaConfig(r=4, task_type="SEQ_CLS")))
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", base=str(tmp_path / "base"))
    merged, report = CLASSIFIER.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert merged.config.num_labels == 3
    assert merged.config.architectures == ["BertForSequenceClassification"]
    close(logits(merged), expected)
    assert isinstance(BertModel.from_pretrained(tmp_path / "merged"), BertModel)


@pytest.mark.parametrize("what", ["target the head", "train the head", "train the embedding"])
def test_tied_weights_are_cut_apart_where_one_of_them_changes(tmp_path, what):
    options = {
        "target the head": {"target_modules": ["lm_head", "q_proj"]},
        "train the head": {"modules_to_save": ["lm_head"]},
        "train the embedding": {"modules_to_save": ["embed_tokens"]},
    }[what]
    _, expected = trained(tmp_path, lambda: llama(tied=True), **options)
    assert "lm_head.weight" not in load_file(tmp_path / "base" / "model.safetensors")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = CAUSAL.from_pretrained(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is False
    close(logits(merged), expected)


def test_tied_weights_stay_tied_where_neither_changes(tmp_path):
    _, expected = trained(tmp_path, lambda: llama(tied=True))
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = CAUSAL.from_pretrained(tmp_path / "merged")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    close(logits(merged), expected)


def test_sixteen_bits_stay_sixteen_bits_and_the_rounding_is_stated(tmp_path):
    trained(tmp_path, lambda: llama(torch.bfloat16))
    done = merge(tmp_path / "adapter", tmp_path / "merged")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    record = json.loads((tmp_path / "merged" / "certificate.json").read_text())
    assert record["rounding"]["largest_relative_difference"] == done.rounding
    assert 1e-4 < done.rounding < 0.2


def test_the_rounding_of_float32_is_measured_and_not_assumed(tmp_path):
    trained(tmp_path, llama)
    assert 1e-9 < merge(tmp_path / "adapter", tmp_path / "merged").rounding < 1e-5


def test_tokenizer_template_and_configurations_are_kept(tmp_path):
    base = shared("models/stories260K-hf")
    model = get_peft_model(CAUSAL.from_pretrained(base), KasaConfig(r=4, task_type="CAUSAL_LM"))
    shaken(model).save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", base=str(base))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "tokenizer.model"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer("Once upon a time", return_tensors="pt")
    merged = CAUSAL.from_pretrained(tmp_path / "merged").generate(**ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(merged, model.eval().generate(**ids, max_new_tokens=12, do_sample=False))


# Refused


def test_another_base_is_refused_by_its_fingerprint_and_nothing_is_left(tmp_path):
    trained(tmp_path, llama)
    path = tmp_path / "base" / "model.safetensors"
    other = {name: 1.1 * tensor for name, tensor in load_file(path).items()}
    save_file(other, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"another base model.*q_proj"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_quantized_a_pickled_and_an_unnamed_base_are_refused(tmp_path):
    trained(tmp_path, llama)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(ModelError, match="is quantized"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are not read"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="--base"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path):
    trained(tmp_path, llama, max_shard_size="20KB")
    path = tmp_path / "base" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: f"../base/{file}" for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="which is not in the same folder"):
        merge(tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
def test_a_base_that_was_cut_is_refused(tmp_path, cut):
    trained(tmp_path, llama)
    path = tmp_path / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_an_occupied_directory_is_refused_before_anything_is_read(tmp_path):
    trained(tmp_path, llama)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("mine")
    with pytest.raises(OutputError):
        merge(tmp_path / "adapter", tmp_path / "merged")


def test_a_lora_that_peft_trained_is_merged_as_peft_merges_it(tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    lora = get_peft_model(base, LoraConfig(r=3, lora_alpha=7, use_rslora=True, init_lora_weights=False))
    expected = logits(lora)
    lora.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "merged", base=str(tmp_path / "base"))
    close(logits(CAUSAL.from_pretrained(tmp_path / "merged")), expected)


# Memory

PEAK = """
import resource, sys
from pathlib import Path
from kasatune.adapter_tools.merge import merge
import torch
torch.set_num_threads(1)
(torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)).float().norm()
from transformers import AutoModelForCausalLM, LlamaForCausalLM
merge(Path(sys.argv[2]), Path(sys.argv[3] + "-warm"), sys.argv[1] + "-small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(Path(sys.argv[2] + "-large"), Path(sys.argv[3]), sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_ten_shards_are_merged_in_less_memory_than_two(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 97, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    torch.manual_seed(0)
    for name, layers in (("base", 10), ("base-small", 1)):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, num_key_value_heads=8, **shape))
        model.save_pretrained(tmp_path / name, max_shard_size="17MB")
        suffix = "-large" if name == "base" else ""
        adapter = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        adapter.save_pretrained(tmp_path / f"adapter{suffix}")
    shards = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) >= 10
    arguments = [str(tmp_path / name) for name in ("base", "adapter", "merged")]
    output = subprocess.run([sys.executable, "-c", PEAK, *arguments], check=True, capture_output=True, text=True)
    peak = int(output.stdout.split()[-1])
    assert peak < 2 * max(path.stat().st_size for path in shards)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == len(shards)
