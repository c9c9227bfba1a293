"""Reading a base's safetensors files: which files, which tensors, under which names; and writing such files."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BertModel

from kasatune.errors import ModelError
from kasatune.weights.checkpoint_files import INDEX, SINGLE
from kasatune.weights.safetensors_reader import (
    Checkpoint,
    ModelCheckpoint,
    find_checkpoint,
)
from kasatune.weights.safetensors_writer import PlannedTensor, write_safetensors
from tests.kasa.models import bert, gpt2, llama


@pytest.fixture
def sharded(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    return model, tmp_path / "base"


def test_all_tensors_of_all_shards_are_read(sharded):
    model, folder = sharded
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.shards) > 2
    assert checkpoint.tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensors[name].read(), tensor)


def test_the_order_within_a_file_is_that_of_the_bytes(tmp_path):
    planned = [PlannedTensor(key, "F32", (2,), compute=lambda: torch.zeros(2)) for key in ("b", "c", "a")]
    write_safetensors(tmp_path / SINGLE, planned)
    assert list(Checkpoint.open(tmp_path).tensors) == ["b", "c", "a"]


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 100, (10**12).to_bytes(8, "little") + b"{}"])
def test_a_damaged_file_raises_model_error(tmp_path, content):
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        Checkpoint.open(tmp_path)


# Names


def test_a_body_saved_alone_gets_the_names_of_the_model_around_it(tmp_path):
    model = bert(labels=3)
    model.bert.save_pretrained(tmp_path)
    checkpoint = ModelCheckpoint(Checkpoint.open(tmp_path), model)
    known = {name for name, _ in model.named_parameters()}
    assert set(checkpoint.names.values()) <= known
    stored = checkpoint.weight("bert.encoder.layer.0.attention.self.query")
    assert torch.equal(stored.read(), model.bert.encoder.layer[0].attention.self.query.weight)
    assert checkpoint.weight("classifier") is None


def test_a_model_saved_with_a_head_gets_the_names_of_the_body(tmp_path):
    model = bert(labels=3)
    model.save_pretrained(tmp_path)
    checkpoint = ModelCheckpoint(Checkpoint.open(tmp_path), BertModel(model.config))
    assert checkpoint.weight("encoder.layer.0.attention.self.query") is not None
    assert checkpoint.names["classifier.weight"] == "classifier.weight"


def test_old_names_of_layer_norms_are_recognized(tmp_path):
    model = bert(labels=3)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    save_file(old, tmp_path / SINGLE)
    checkpoint = ModelCheckpoint(Checkpoint.open(tmp_path), model)
    assert set(checkpoint.names.values()) == set(model.state_dict())


def test_a_tied_weight_is_found_under_the_name_of_its_partner(tmp_path):
    model = llama(tied=True)
    model.save_pretrained(tmp_path)
    checkpoint = ModelCheckpoint(Checkpoint.open(tmp_path), model)
    assert "lm_head.weight" not in checkpoint.tensors
    assert checkpoint.weight("lm_head") is checkpoint.tensors["model.embed_tokens.weight"]


def test_conv1d_weights_are_stored_transposed(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path)
    checkpoint = ModelCheckpoint(Checkpoint.open(tmp_path), model)
    assert checkpoint.is_transposed("transformer.h.0.attn.c_attn")
    assert not checkpoint.is_transposed("lm_head")


def test_candidates_match_the_shape_and_come_in_both_orientations_when_square(tmp_path):
    save_file({"layer.weight": torch.randn(4, 4), "other.weight": torch.randn(3, 4)}, tmp_path / SINGLE)
    checkpoint = ModelCheckpoint(Checkpoint.open(tmp_path), nn.Module())
    W = checkpoint.tensors["layer.weight"].read()
    square = list(checkpoint.candidates("layer", (4, 4)))
    assert len(square) == 2 and torch.equal(square[0], W) and torch.equal(square[1], W.T)
    assert [tuple(W.shape) for W in checkpoint.candidates("other", (4, 3))] == [(4, 3)]
    assert not list(checkpoint.candidates("other", (5, 4)))


def test_a_model_without_a_folder_has_no_checkpoint():
    checkpoint, looked_for = find_checkpoint(nn.Linear(2, 2), None)
    assert checkpoint is None
    assert "no name_or_path" in looked_for
    checkpoint, looked_for = find_checkpoint(nn.Linear(2, 2), "no such/model at all")
    assert checkpoint is None
    assert SINGLE in looked_for


def test_the_checkpoint_of_a_wrapped_model_is_found(tmp_path):
    llama().save_pretrained(tmp_path)
    wrapped = nn.ModuleDict({"inner": AutoModelForCausalLM.from_pretrained(tmp_path)})
    checkpoint, _ = find_checkpoint(wrapped, None)
    assert checkpoint is not None and checkpoint.folder == tmp_path
    q_proj = wrapped["inner"].model.layers[0].self_attn.q_proj.weight
    first = next(checkpoint.candidates("inner.model.layers.0.self_attn.q_proj", tuple(q_proj.shape)))
    assert torch.equal(first, q_proj)


# Writing


def test_copies_of_every_dtype_keep_their_bytes(tmp_path):
    tensors = {
        "bf16": torch.randn(3, 5).to(torch.bfloat16),
        "int": torch.tensor([1, -2, 3]),
        "bool": torch.tensor([[True], [False]]),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / SINGLE)
    stored = Checkpoint.open(tmp_path).tensors
    planned = [PlannedTensor(f"new.{key}", s.dtype, s.shape, source=s) for key, s in stored.items()]
    digest = write_safetensors(tmp_path / "copy.safetensors", planned)
    assert digest == hashlib.sha256((tmp_path / "copy.safetensors").read_bytes()).hexdigest()
    copies = load_file(tmp_path / "copy.safetensors")
    for key, tensor in tensors.items():
        copy = copies[f"new.{key}"]
        assert copy.dtype == tensor.dtype and copy.shape == tensor.shape
        assert torch.equal(copy.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_integers_are_not_read_as_weights(tmp_path):
    save_file({"codes": torch.zeros(2, 2, dtype=torch.int32)}, tmp_path / SINGLE)
    with pytest.raises(ModelError, match="stored as I32"):
        Checkpoint.open(tmp_path).tensors["codes"].read()


def test_a_file_damaged_after_it_was_opened_raises_model_error(sharded):
    _, folder = sharded
    stored = next(iter(Checkpoint.open(folder).tensors.values()))
    stored.path.write_bytes(stored.path.read_bytes()[:200])
    with pytest.raises(ModelError, match=f"the tensor {stored.key} cannot be read"):
        stored.read()


def test_a_computed_tensor_of_another_shape_is_refused(tmp_path):
    planned = [PlannedTensor("w", "F32", (2, 2), compute=lambda: torch.zeros(3))]
    with pytest.raises(ModelError, match="but planned as"):
        write_safetensors(tmp_path / "new.safetensors", planned)


def test_the_index_names_are_read_from_the_files_themselves(sharded):
    """An index that lists too few tensors hides none: transformers reads whole files, too."""
    model, folder = sharded
    index = json.loads((folder / INDEX).read_text())
    files = set(index["weight_map"].values())
    index["weight_map"] = {f"any.{position}": file for position, file in enumerate(sorted(files))}
    (folder / INDEX).write_text(json.dumps(index))
    assert Checkpoint.open(folder).tensors.keys() == model.state_dict().keys()
