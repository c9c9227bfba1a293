"""Digests and sketches of base models: stored values never change, and each digest sees what it claims to see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kasatune.errors import AdapterError
from kasatune.weights import fingerprint
from kasatune.weights.fingerprint import (
    model_files_sha256,
    parameters_sha256,
    sampled_parameters_sha256,
    sketch_distance,
    sketch_tolerance,
    weight_sketch,
    weight_values_sha256,
)

W = (torch.arange(600, dtype=torch.float32).reshape(20, 30) - 300) / 64


def model():
    layers = nn.ModuleDict({"body": nn.Linear(30, 20), "head": nn.Linear(20, 2)})
    with torch.no_grad():
        layers["body"].weight.copy_(W)
        layers["body"].bias.copy_(W[:, 0])
        layers["head"].weight.copy_(W[:2, :20])
        layers["head"].bias.fill_(0.5)
    return layers


def named(layers, *names):
    return [(name, layers.get_parameter(name)) for name in names]


def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


# Digests that are stored in adapters, certificates, caches and run ids of earlier versions.
STORED = {
    "values": "e90a0da6d6779638a81fb5bc0e6dbca32483a8c57c497671da18e1db14e5fabf",
    "values, float64": "f58b377766521bcbe9d13a3daaf0a0911f1b0ef8da66dc091a51f3a472cf26e0",
    "sampled": "c4cc02a407a457ea017cab4cae016430c7784e1e13eff6b88f0598298a72db66",
    "sampled, without the head": "319c181d1d41a95c5cbd673f0c564def5494df24e22508f1236cfff25bc83355",
    "all parameters": "399d2856a4ed5808eb0c1fb339f5946a67283d3fbd9aaac919fdbb361f4baa86",
    "two parameters": "aabc69c44ffbbf4d0926bd44927c6a3902dff6562c5685b75bd46a4d9d99d4f3",
    "a parameter in bfloat16": "d7c77b84d991bd04bba1592baaee1fd61b29dab89f26c023ecb29cb3ac43acdc",
}


def test_digests_equal_those_stored_by_earlier_versions():
    layers = model()
    digests = {
        "values": weight_values_sha256(W),
        "values, float64": weight_values_sha256(W.double()),
        "sampled": sampled_parameters_sha256(layers),
        "sampled, without the head": sampled_parameters_sha256(layers, ["head"]),
        "all parameters": parameters_sha256(sorted(layers.named_parameters())),
        "two parameters": parameters_sha256(named(layers, "head.weight", "body.bias")),
        "a parameter in bfloat16": parameters_sha256(named(layers.to(torch.bfloat16), "head.weight")),
    }
    assert digests == STORED


def test_the_digest_of_a_model_folder_equals_the_stored_one_and_ignores_other_files(tmp_path):
    stored = "01bc6c1702a9b32d6b9061ed0eb3affd27bda353323ba4eb22c4ab021fb9246d"
    assert model_files_sha256(folder(tmp_path)) == stored
    (tmp_path / "README.md").write_text("about the model")
    assert model_files_sha256(tmp_path) == stored
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert model_files_sha256(tmp_path) != stored


def test_a_sketch_equals_the_stored_one():
    sketch = weight_sketch(W, bits=4)
    assert (sketch["shape"], sketch["bits"]) == ([20, 30], 4)
    assert sketch["sample"].startswith("AACNwACAksAAAHXAAABiwAAAbsAAAD3AAAArwAAAGMAA")
    assert sketch_distance(W, sketch) == 0


def test_the_digest_of_values_is_the_same_for_a_weight_and_its_wider_copy():
    narrow = torch.randn(40, 24, dtype=torch.bfloat16)
    assert weight_values_sha256(narrow) == weight_values_sha256(narrow.float())
    assert weight_values_sha256(narrow) == weight_values_sha256(narrow.T.contiguous().T)
    others = [narrow.T, narrow.float() + 1e-6, narrow.double(), narrow.reshape(24, 40)]
    assert len({weight_values_sha256(other) for other in [narrow, *others]}) == 5


def test_the_digest_of_values_does_not_depend_on_the_chunk_size(monkeypatch):
    whole = weight_values_sha256(W)
    monkeypatch.setattr(fingerprint, "_ENTRIES_AT_ONCE", 70)
    assert weight_values_sha256(W) == whole


@pytest.mark.parametrize("name", ["body.weight", "head.bias"])
def test_every_change_of_a_parameter_changes_the_digest_of_parameters(name):
    layers = model()
    before = parameters_sha256(layers.named_parameters())
    with torch.no_grad():
        layers.get_parameter(name).view(-1)[-1] += 1
    assert parameters_sha256(layers.named_parameters()) != before


def test_the_sampled_digest_sees_training_and_ignores_modules_left_out():
    layers = model()
    before, without_head = sampled_parameters_sha256(layers), sampled_parameters_sha256(layers, ["head"])
    with torch.no_grad():
        layers["head"].weight.add_(1)
    assert sampled_parameters_sha256(layers) != before
    assert sampled_parameters_sha256(layers, ["head"]) == without_head


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, None), (torch.bfloat16, None)])
def test_a_rounded_weight_is_within_the_tolerance_and_another_weight_is_not(dtype, bits):
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    limit = sketch_tolerance(dtype, bits)
    assert sketch_distance(weight.to(dtype), weight_sketch(weight)) <= limit
    assert sketch_distance(torch.randn(50, 40), weight_sketch(weight)) > limit
    assert sketch_distance(weight.T, weight_sketch(weight)) is None


@pytest.mark.parametrize("sketch", [{}, {"shape": [20, 30], "sample": "AAAA"}, {"shape": 3, "sample": None}])
def test_a_damaged_sketch_raises_adapter_error(sketch):
    with pytest.raises(AdapterError, match="base_fingerprint"):
        sketch_distance(W, sketch)
