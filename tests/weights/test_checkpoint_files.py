"""The files that hold a model's weights: those that transformers reads, or a refusal where the files disagree."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kasatune.errors import ModelError
from kasatune.weights.checkpoint_files import INDEX, SINGLE, has_weight_files, weight_files
from kasatune.weights.safetensors_reader import Checkpoint, ModelCheckpoint
from tests.kasa.models import llama

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model as one file, the same in shards, and another model as one file."""
    folder = tmp_path_factory.mktemp("saved")
    model = llama()
    model.save_pretrained(folder / "single")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(folder / "other")
    return folder


def place(saved, folder, kind):
    shutil.copytree(saved / kind, folder, dirs_exist_ok=True)
    return folder


def name_in_config(folder, name):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))


def pickles(folder):
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        (folder / name).write_bytes(b"not read")


def rename(folder, old, new):
    (folder / old).rename(folder / new)


LAYOUTS = {
    "a single file": ("single", lambda saved, folder: None),
    "shards": ("shards", lambda saved, folder: None),
    "a single file and shards of the same weights": ("shards", lambda saved, folder: place(saved, folder, "single")),
    "a single file and an index of the same tensors without its shards": (
        "single",
        lambda saved, folder: shutil.copy(saved / "shards" / INDEX, folder / INDEX),
    ),
    "a single file and pickles": ("single", lambda saved, folder: pickles(folder)),
    "shards and pickles": ("shards", lambda saved, folder: pickles(folder)),
    "a single file and a variant": (
        "single",
        lambda saved, folder: shutil.copy(saved / "other" / SINGLE, folder / "model.fp16.safetensors"),
    ),
    "shards and a file that the index does not name": (
        "shards",
        lambda saved, folder: shutil.copy(saved / "other" / SINGLE, folder / "model-00009-of-00009.safetensors"),
    ),
    "a file that the configuration names, beside others": (
        "single",
        lambda saved, folder: (
            shutil.copy(saved / "other" / SINGLE, folder / "mine.safetensors"),
            name_in_config(folder, "mine.safetensors"),
        ),
    ),
    "an index that the configuration names": (
        "shards",
        lambda saved, folder: (
            rename(folder, INDEX, "mine.safetensors.index.json"),
            shutil.copy(saved / "other" / SINGLE, folder / SINGLE),
            name_in_config(folder, "mine.safetensors.index.json"),
        ),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_those_that_transformers_reads(saved, tmp_path, layout):
    kind, change = LAYOUTS[layout]
    folder = place(saved, tmp_path / "model", kind)
    change(saved, folder)
    expected = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).state_dict()
    stored = Checkpoint.open(folder).tensors
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name].read(), tensor) for name, tensor in expected.items())
    assert has_weight_files(folder)


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def stale_copy(folder):
    """Put the first tensor of the last shard into the first shard too, with other values."""
    first, last = weight_files(folder)[0], weight_files(folder)[-1]
    key, tensor = next(iter(load_file(last).items()))
    save_file({**load_file(first), key: tensor + 1}, first, metadata={"format": "pt"})


REFUSED = {
    "shards of other weights beside a single file": (
        "shards",
        lambda saved, folder: shutil.copy(saved / "other" / SINGLE, folder / SINGLE),
        "differ in .* remove the one that is out of date",
    ),
    "an index of other tensors beside a single file": (
        "single",
        lambda saved, folder: (
            shutil.copy(saved / "shards" / INDEX, folder / INDEX),
            edit_index(folder, lambda weight_map: weight_map.pop(EMBEDDING)),
        ),
        f"differ in '{EMBEDDING}'",
    ),
    "an index that names a missing file": (
        "shards",
        lambda saved, folder: weight_files(folder)[1].unlink(),
        "names 'model-00002.* which is missing",
    ),
    "two shards with different tensors of one name": (
        "shards",
        lambda saved, folder: stale_copy(folder),
        "hold different tensors",
    ),
    "variants alone": (
        "single",
        lambda saved, folder: rename(folder, SINGLE, "model.fp16.safetensors"),
        "model.fp16.safetensors is a variant",
    ),
    "pickles alone": (
        "single",
        lambda saved, folder: ((folder / SINGLE).unlink(), pickles(folder)),
        "pickled weights are not read",
    ),
    "an adapter beside the model": (
        "single",
        lambda saved, folder: (folder / "adapter_config.json").write_text("{}"),
        "move the files of the adapter",
    ),
    "a configuration that names a missing file": (
        "single",
        lambda saved, folder: name_in_config(folder, "mine.safetensors"),
        "names 'mine.safetensors', which is missing",
    ),
    "a configuration that names a file elsewhere": (
        "single",
        lambda saved, folder: name_in_config(folder, "../mine.safetensors"),
        "in the same folder",
    ),
    "a configuration that names a pickle": (
        "single",
        lambda saved, folder: name_in_config(folder, "mine.bin"),
        "not the name of a safetensors file",
    ),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_files_that_disagree_are_refused(saved, tmp_path, layout):
    kind, change, message = REFUSED[layout]
    folder = place(saved, tmp_path / "model", kind)
    change(saved, folder)
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[1]", "not an index"),
        ('{"weight_map": 3}', "not an index"),
        ('{"weight_map": {"a": ["b"]}}', "not an index"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "not in the same folder"),
        ('{"weight_map": {"a": "b.safetensors"}}', "is missing"),
    ],
)
def test_a_damaged_index_raises_model_error(tmp_path, index, message):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ModelError, match=message):
        weight_files(tmp_path)


def test_two_spellings_of_one_parameter_are_refused(saved, tmp_path):
    folder = place(saved, tmp_path / "model", "single")
    tensors = load_file(folder / SINGLE)
    tensors["embed_tokens.weight"] = tensors[EMBEDDING] + 1
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="two tensors of the same parameter"):
        ModelCheckpoint(Checkpoint.open(folder), llama()).weight("lm_head")
