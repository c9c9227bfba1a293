"""Adapters that are cut, edited or hostile: refused with one clear message, and the base as it was, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import struct

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from kasatune import KasaConfig, KasatuneError, export_adapter, load_adapter
from kasatune.errors import AdapterError, InputError
from tests.kasa.models import bert, shaken, token_ids

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def config_with(**values):
    def change(folder):
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


def config_bytes(content):
    return lambda folder: (folder / CONFIG).write_bytes(content)


def weights_bytes(change):
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def tensors(change):
    def rewrite(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(
            {key: t.clone(memory_format=torch.contiguous_format) for key, t in found.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )

    return rewrite


def tensor(part, change):
    key = f"{QUERY}.{part}"
    return tensors(lambda found: found.update({key: change(found[key])}))


def renamed(old, new):
    return tensors(lambda found: found.update({new: found.pop(old)}))


def header_with(**entry):
    """A safetensors file whose header claims what its bytes do not hold."""

    def change(content):
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        header[f"{QUERY}.kasa_A"] |= entry
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return weights_bytes(change)


def linked(name):
    def change(folder):
        outside = folder.parent / f"elsewhere-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return change


def in_place_of(name, make):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


def fingerprint(change):
    def rewrite(folder):
        config = json.loads((folder / CONFIG).read_text())
        change(config["base_fingerprint"])
        (folder / CONFIG).write_text(json.dumps(config))

    return rewrite


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("the-pickle-was-run",))


DAMAGE = {
    # The configuration
    "config missing": lambda folder: (folder / CONFIG).unlink(),
    "config empty": config_bytes(b""),
    "config cut": config_bytes(b'{"peft_type": "KASA", "r": 4'),
    "config not UTF-8": config_bytes(b'{"peft_type": "\xff\xfe"}'),
    "config a list": config_bytes(b'["KASA"]'),
    "config nested": config_bytes(b"[" * 200_000),
    "config huge": config_bytes(b'{"peft_type": "' + b"A" * 17 * 2**20 + b'"}'),
    "config NaN": config_bytes(b'{"peft_type": "KASA", "r": 4, "lora_alpha": NaN}'),
    "config digits": config_bytes(b'{"peft_type": "KASA", "r": ' + b"9" * 5000 + b"}"),
    "config without a type": config_bytes(b'{"r": 4}'),
    "type unknown": config_with(peft_type="VERA"),
    "type a number": config_with(peft_type=4),
    "rank larger": config_with(r=5),
    "rank giant": config_with(r=10**9),
    "rank zero": config_with(r=0),
    "rank a text": config_with(r="4"),
    "rank true": config_with(r=True),
    "alpha infinite": config_bytes(b'{"peft_type": "KASA", "r": 4, "lora_alpha": 1e999}'),
    "alpha negative": config_with(lora_alpha=-1),
    "alpha a text": config_with(lora_alpha="16"),
    "stabilization a text": config_with(use_rslora="yes"),
    "rank_pattern a list": config_with(rank_pattern=[4]),
    "rank_pattern wrong": config_with(rank_pattern={"query": 3}),
    "rank_pattern explodes": config_with(rank_pattern={r"((\w+)+\.)+x": 4}),
    "rank_pattern no expression": config_with(rank_pattern={"(": 4}),
    "targets a number": config_with(target_modules=7),
    "targets match nothing": config_with(target_modules=["nowhere"]),
    "targets match more": config_with(target_modules=["query", "value", "key"]),
    "targets explode": config_with(target_modules=r"(a|a)*b"),
    "convention unknown": config_with(convention="mine"),
    "core unknown": config_with(core="sparse"),
    "core dense": config_with(core="dense"),
    "beta a text": config_with(beta="much"),
    "dropout two": config_with(lora_dropout=2.0),
    "saved modules a number": config_with(modules_to_save=3),
    "saved modules unknown": config_with(modules_to_save=["classifier", "pooler"]),
    "base of other weights": fingerprint(lambda f: f[next(iter(f))].update(sample="AAAAAAAA" * 21 + "AAA=")),
    "base of other shape": fingerprint(lambda f: f[next(iter(f))].update(shape=[64, 64])),
    "fingerprint damaged": fingerprint(lambda f: f[next(iter(f))].update(sample="????")),
    # The tensors
    "weights missing": lambda folder: (folder / WEIGHTS).unlink(),
    "weights empty": weights_bytes(lambda content: b""),
    "weights cut in half": weights_bytes(lambda content: content[: len(content) // 2]),
    "weights cut in the header": weights_bytes(lambda content: content[:100]),
    "weights with a tail": weights_bytes(lambda content: content + b"\0" * 64),
    "weights noise": weights_bytes(lambda content: bytes(range(256)) * 8),
    "header giant": weights_bytes(lambda content: b"\xff" * 8 + content[8:]),
    "tensor beyond the file": header_with(data_offsets=[0, 10**12]),
    "tensor claims more": header_with(shape=[10**6, 10**6]),
    "tensor of no known type": header_with(dtype="X9"),
    "weights a pickle": weights_bytes(lambda content: pickle.dumps(Bomb())),
    "no tensors": tensors(lambda found: found.clear()),
    "A missing": tensors(lambda found: found.pop(f"{QUERY}.kasa_A")),
    "tail missing": tensors(lambda found: found.pop(f"{QUERY}.kasa_tail_V")),
    "A wider": tensor("kasa_A", lambda t: torch.zeros(4, 33)),
    "A a vector": tensor("kasa_A", lambda t: torch.zeros(4)),
    "A a number": tensor("kasa_A", lambda t: torch.zeros(())),
    "B transposed": tensor("kasa_B", lambda t: t.T),
    "sigma shorter": tensor("kasa_sigma", lambda t: t[:3]),
    "sigma dense": tensor("kasa_sigma", torch.diag),
    "tail of another rank": tensor("kasa_tail_U", lambda t: t[:, :3]),
    "NaN": tensor("kasa_sigma", lambda t: t * float("nan")),
    "infinity": tensor("kasa_tail_U", lambda t: t / 0),
    "whole numbers": tensor("kasa_A", lambda t: t.to(torch.int32)),
    "a layer of nowhere": tensors(lambda f: f.update({k.replace("layer.0", "layer.9"): t for k, t in f.items()})),
    "a layer named as a path": renamed(f"{QUERY}.kasa_A", "base_model.model.../../../../etc/passwd.kasa_A"),
    "a layer named with control characters": renamed(f"{QUERY}.kasa_A", "base_model.model.\x1b[2J\n.kasa_A"),
    "a key without prefix": renamed(f"{QUERY}.kasa_A", "query.kasa_A"),
    "an unknown part": tensors(lambda f: f.update({f"{QUERY}.kasa_C": torch.zeros(4)})),
    "a weight of the base": tensors(lambda f: f.update({f"{QUERY}.base_layer.weight": torch.zeros(32, 32)})),
    "an embedding": tensors(
        lambda f: f.update({"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(97, 32)})
    ),
    "a bias nobody trained": tensors(lambda f: f.update({f"{QUERY}.base_layer.bias": torch.ones(32)})),
    "head missing": tensors(lambda f: f.pop("base_model.model.classifier.weight")),
    "head of three labels": tensors(lambda f: f.update({"base_model.model.classifier.weight": torch.zeros(3, 32)})),
    "head NaN": tensors(lambda f: f["base_model.model.classifier.bias"].fill_(float("nan"))),
    # The files themselves
    "config linked out": linked(CONFIG),
    "weights linked out": linked(WEIGHTS),
    "weights a folder": in_place_of(WEIGHTS, lambda path: path.mkdir()),
    "config a pipe": in_place_of(CONFIG, os.mkfifo),
    "weights linked to themselves": in_place_of(WEIGHTS, lambda path: path.symlink_to(path.name)),
}

# What PEFT's own loader cannot know, or reads in its own way before it comes to us.
NOT_PEFTS_BUSINESS = {
    *("config huge", "config linked out", "weights linked out", "config a pipe", "rank_pattern explodes"),
    *("targets explode", "stabilization a text", "a weight of the base", "an embedding", "a bias nobody trained"),
    *("a key without prefix", "an unknown part", "rank_pattern wrong", "a layer of nowhere"),
    *("base of other weights", "head NaN", "config nested", "saved modules unknown"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    model = shaken(get_peft_model(bert(), KasaConfig(r=4, task_type="SEQ_CLS")))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(good, tmp_path, request):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((good / name).read_bytes())
    DAMAGE[request.param](folder)
    return folder


def untouched(base, before):
    return (
        torch.equal(logits(base), logits(bert()))
        and [type(module) for module in base.modules()] == before
        and all(parameter.requires_grad for parameter in base.parameters())
        and all(torch.equal(one, other) for one, other in zip(base.parameters(), bert().parameters(), strict=True))
        and not hasattr(base, "peft_config")
    )


def test_there_are_at_least_forty_kinds_of_damage():
    assert len(DAMAGE) >= 40


def test_the_good_adapter_loads(good):
    assert load_adapter(bert(), good).kasatune_format == "kasa"


@pytest.mark.parametrize("damaged", DAMAGE, indirect=True)
def test_a_damaged_adapter_is_refused_and_the_base_is_as_it_was(damaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = bert()
    before = [type(module) for module in base.modules()]
    with pytest.raises((AdapterError, InputError)) as caught:
        load_adapter(base, damaged)
    assert untouched(base, before)
    message = str(caught.value)
    assert len(message) < 1500
    assert message.isprintable()
    assert not (tmp_path / "the-pickle-was-run").exists()


@pytest.mark.parametrize("damaged", sorted(set(DAMAGE) - NOT_PEFTS_BUSINESS), indirect=True)
def test_pefts_loader_leaves_no_half_adapter_that_is_ours(damaged):
    base = bert()
    before = [type(module) for module in base.modules()]
    with pytest.raises(Exception) as caught:
        PeftModel.from_pretrained(base, damaged)
    if isinstance(caught.value, KasatuneError):
        assert torch.equal(logits(base), logits(bert()))
        assert [type(module) for module in base.modules()] == before


@pytest.mark.parametrize("name", ["A missing", "NaN", "rank larger", "sigma shorter", "a weight of the base"])
def test_a_damaged_adapter_is_not_exported_either(good, tmp_path, name):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (CONFIG, WEIGHTS):
        (folder / file).write_bytes((good / file).read_bytes())
    DAMAGE[name](folder)
    with pytest.raises(AdapterError):
        export_adapter(folder, tmp_path / "out", base=bert())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


# Stock LoRA, where PEFT by itself would load half and say little

LORA_DAMAGE = {
    "B missing": lambda f: f.pop(f"{QUERY}.lora_B.weight"),
    "layer missing": lambda f: [f.pop(f"{QUERY}.lora_{part}.weight") for part in "AB"],
    "stray layer": lambda f: [f.update({k.replace("query", "key"): t for k, t in list(f.items()) if "query" in k})],
    "weight of the base": lambda f: f.update({"base_model.model.classifier.weight": torch.zeros(2, 32)}),
    "another rank": lambda f: f.update({k: t[:5] for k, t in f.items() if "lora_A" in k}),
    "NaN": lambda f: f[f"{QUERY}.lora_A.weight"].fill_(float("nan")),
    "another shape": lambda f: f.update({f"{QUERY}.lora_B.weight": torch.zeros(64, 8)}),
}


@pytest.mark.parametrize("name", LORA_DAMAGE)
def test_a_damaged_lora_is_refused_and_the_base_is_as_it_was(tmp_path, name):
    torch.manual_seed(0)
    options = {"target_modules": ["query", "value"], "init_lora_weights": False}
    get_peft_model(bert(), peft.LoraConfig(**options)).save_pretrained(tmp_path)
    tensors(LORA_DAMAGE[name])(tmp_path)
    base = bert()
    before = [type(module) for module in base.modules()]
    with pytest.raises(AdapterError):
        load_adapter(base, tmp_path)
    assert untouched(base, before)


def test_a_lora_that_was_made_here_knows_its_base_by_the_certificate(tmp_path):
    model = shaken(get_peft_model(bert(), KasaConfig(r=4)))
    export_adapter(model, tmp_path / "lora")
    other = bert()
    with torch.no_grad():
        other.bert.encoder.layer[1].attention.self.value.weight.mul_(1.2)
    with pytest.raises(AdapterError, match=r"another base model.*layer\.1\.attention\.self\.value"):
        load_adapter(other, tmp_path / "lora")
    with pytest.warns(UserWarning, match="check_base=False"):
        load_adapter(other, tmp_path / "lora", check_base=False)


def test_files_of_the_hub_cache_are_links_and_are_read(good, tmp_path):
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "abc"
    blobs = tmp_path / "models--me--mine" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        (blobs / name).write_bytes((good / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert load_adapter(bert(), snapshot).kasatune_format == "kasa"


def test_an_adapted_base_is_refused(good):
    with pytest.raises(InputError, match="has an adapter already"):
        load_adapter(load_adapter(bert(), good), good)
