"""Finding and loading the base model of a recipe."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from kasatune.errors import ModelError
from kasatune.io.environment import reset_peak_memory
from kasatune.io.model_location import find_model
from kasatune.models.load import load_base
from kasatune.recipes.schema import ModelSection
from tests.text_toys import make_llama


def load(name, *, labels=("no", "yes"), kind="classification", seed=0, max_length=16, **section):
    return load_base(
        ModelSection(name=str(name), **section), kind=kind, label_names=labels, seed=seed, max_length=max_length
    )


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch, bert):
    package = tmp_path / "site" / "toy_model_package"
    shutil.copytree(bert, package / "deep" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_model("package:toy_model_package") == (str(package / "deep" / "model"), None)
    assert "toy_model_package" not in sys.modules


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("package:no_such_package_here", "pip install 'no-such-package-here'"),
        ("package:json", "no transformers model"),
        ("package:not a name", "not installed"),
        ("./no/such/folder", "no such folder"),
        ("one/two/three", "no such folder"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_a_remedy(name, reason):
    with pytest.raises(ModelError, match=reason):
        find_model(name)


def test_a_folder_or_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        find_model(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        find_model(str(tmp_path / "config.json"))


def test_the_head_fits_the_task_and_its_weights_come_from_the_seed(bert):
    first, again, other = load(bert, labels=("a", "b", "c")), load(bert, labels=("a", "b", "c")), load(bert, seed=1)
    assert first.new_modules == ("classifier",)
    assert first.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert first.model.classifier.weight.shape == (3, 32)
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    assert not torch.equal(first.model.classifier.weight[:2], other.model.classifier.weight)
    assert not first.model.training


def test_a_regression_has_one_output_and_the_body_is_the_checkpoints(bert):
    base = load(bert, kind="regression", labels=None)
    assert base.model.classifier.weight.shape == (1, 32)
    assert base.model.config.problem_type == "regression"
    stored = BertModel.from_pretrained(bert).state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in base.model.bert.state_dict().items())


def test_a_pooler_that_the_checkpoint_lacks_is_new_too(bert, tmp_path):
    BertModel.from_pretrained(bert, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    for path in bert.glob("*"):
        if "token" in path.name or "vocab" in path.name:
            shutil.copy(path, tmp_path / "bare")
    assert load(tmp_path / "bare").new_modules == ("bert.pooler", "classifier")


def test_a_head_of_another_size_is_made_anew(bert, tmp_path):
    five = load(bert, labels=tuple("abcde"))
    five.model.save_pretrained(tmp_path / "five")
    five.tokenizer.save_pretrained(tmp_path / "five")
    assert load(tmp_path / "five").model.classifier.weight.shape == (2, 32)
    same = load(tmp_path / "five", labels=tuple("vwxyz"), seed=9)
    assert torch.equal(same.model.classifier.weight, five.model.classifier.weight)
    assert same.new_modules == ("classifier",)


def test_a_head_of_several_layers_is_one_new_module(bert, tmp_path):
    config = RobertaConfig(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "roberta")
    load(bert).tokenizer.save_pretrained(tmp_path / "roberta")
    assert load(tmp_path / "roberta").new_modules == ("classifier",)


def test_dropout_zero_reaches_every_dropout_module(bert):
    own, none = load(bert), load(bert, dropout=0.0)
    rates = [{m.p for m in base.model.modules() if isinstance(m, torch.nn.Dropout)} for base in (own, none)]
    assert rates == [{0.1}, {0.0}]
    assert none.model.config.attention_probs_dropout_prob == 0.0
    assert none.model.config.classifier_dropout == 0.0


def test_a_decoder_without_padding_token_pads_with_its_end_of_text(bert, tmp_path):
    folder = tmp_path / "gpt2"
    GPT2Model(GPT2Config(vocab_size=13, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=load(bert).tokenizer.backend_tokenizer, eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    base = load(folder)
    assert base.new_modules == ("score",)
    assert base.tokenizer.pad_token == "[SEP]"
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id
    PreTrainedTokenizerFast(tokenizer_object=base.tokenizer.backend_tokenizer).save_pretrained(folder)
    with pytest.raises(ModelError, match="neither a padding nor an EOS token"):
        load(folder)


def test_damaged_weights_are_a_fault_of_the_model(bert, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(bert, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_an_architecture_without_text_classification_is_refused(bert, tmp_path):
    folder = tmp_path / "vision"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_weights_of_another_model_are_not_taken_for_new_modules(bert, tmp_path):
    folder = tmp_path / "deeper"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks 16 weights of the body, e\.g\. bert\.encoder\.layer\.2"):
        load(folder)


def test_a_text_longer_than_the_model_takes_is_refused(bert):
    load(bert, max_length=64)
    with pytest.raises(ModelError, match=r"task\.max_length: 65 tokens.*at most 64"):
        load(bert, max_length=65)


def test_mixed_precision_keeps_the_head_in_float32(bert):
    section = ModelSection(name=str(bert), dtype="bfloat16")
    for float32_head, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        base = load_base(
            section, kind="classification", label_names=("a", "b"), seed=0, max_length=8, float32_head=float32_head
        )
        assert base.model.classifier.weight.dtype == dtype
        assert base.model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux for the memory of a process")
@pytest.mark.parametrize(("dtype", "copied"), [("float32", 0.0), ("bfloat16", 0.5)])
def test_weights_in_the_dtype_of_their_files_are_mapped_and_not_copied(dtype, copied, tmp_path):
    """The processes of a node then share them."""
    folder = make_llama(tmp_path, vocab_size=10_000, hidden_size=512, intermediate_size=512, tie_word_embeddings=False)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 40 * 2**20
    load(folder, kind="generation", dtype="float32")  # with all that is imported for it
    before = own_memory()
    base = load(folder, kind="generation", dtype=dtype)
    assert (own_memory() - before) / size == pytest.approx(copied, abs=0.1)
    assert base.model.lm_head.weight.sum().isfinite()


def own_memory():
    """Bytes of this process that lie in no file, after memory that is free has gone back to the system."""
    reset_peak_memory()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def test_a_hub_that_cannot_be_reached_is_told_as_such(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no-such-owner/no-such-model cannot be loaded"):
        load("no-such-owner/no-such-model")
