"""export, merge, shrink, verify and inspect through the real entry."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kasatune import KasaConfig
from tests.kasa.models import llama, shaken, token_ids


@pytest.fixture
def trained(place):
    """A base in ./base, a native adapter in ./adapter, and the outputs of both together."""
    llama().save_pretrained("base")
    base = AutoModelForCausalLM.from_pretrained("base")
    torch.manual_seed(5)
    model = shaken(get_peft_model(base, KasaConfig(r=4, task_type="CAUSAL_LM")))
    model.save_pretrained("adapter")
    return logits(model)


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_export_says_how_near_it_comes(kasatune, trained, place):
    done = kasatune("export", "adapter", "--to", "lora", "--out", "lora", "--base", "base")
    assert done.status == 0
    assert done.out.startswith("lora: lora adapter; outputs differ by at most ")
    close(logits(PeftModel.from_pretrained(llama(), "lora")), trained)
    record = json.loads(kasatune("export", "adapter", "--to", "peft-kasa", "--out", "peft", "--json").out)
    assert record == json.loads((place / "peft" / "certificate.json").read_text())


def test_export_to_a_smaller_rank_says_what_is_lost(kasatune, trained):
    done = kasatune("export", "adapter", "--out", "small", "--rank", "3")
    assert done.status == 0
    assert "relative error 0." in done.out


def test_export_refuses_a_rank_that_the_server_does_not_allow(kasatune, trained, place):
    done = kasatune("export", "adapter", "--out", "small", "--max-rank", "7")
    assert done.status == 2 and not (place / "small").exists()
    assert "has rank 8, above max_rank=7; let the server allow rank 8 (--max-lora-rank" in done.err
    assert "--rank 7" in done.err
    assert kasatune("export", "adapter", "--out", "exact", "--max-rank", "8").status == 0
    assert json.loads((place / "exact" / "adapter_config.json").read_text())["r"] == 8
    assert kasatune("export", "adapter", "--out", "small", "--max-rank", "7", "--rank", "7").status == 0
    assert json.loads((place / "small" / "adapter_config.json").read_text())["r"] == 7


def test_merge_makes_a_plain_checkpoint(kasatune, trained):
    done = kasatune("merge", "adapter", "--out", "merged")
    assert (done.status, done.err) == (0, "")
    assert "4 layers merged" in done.out
    close(logits(AutoModelForCausalLM.from_pretrained("merged")), trained)


def test_shrink_says_ranks_and_loss(kasatune, trained):
    done = kasatune("shrink", "adapter", "--energy", "0.9", "--out", "small")
    assert done.status == 0
    assert "ranks " in done.out
    record = json.loads(kasatune("shrink", "adapter", "--rank", "2", "--out", "two", "--json").out)
    assert {layer["rank"] for layer in record["layers"].values()} == {2}


def test_verify_passes_a_good_adapter_and_fails_a_bad_one_with_status_one(kasatune, trained, place):
    done = kasatune("verify", "adapter")
    assert done.status == 0
    assert "FAIL" not in done.out
    assert "export to peft-kasa" in done.out
    assert re.search(r"base of adapter +pass +samples of 4 weights differ by at most 0 of the norm", done.out)
    kasatune("export", "adapter", "--out", "lora")
    path = place / "lora" / "adapter_model.safetensors"
    save_file({key: 1.01 * tensor for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    done = kasatune("verify", "lora", "--json")
    assert done.status == 1
    assert {check["name"] for check in json.loads(done.out) if check["passed"] is False} == {"hashes of lora"}


def test_inspect_prints_a_table_json_and_a_picture(kasatune, trained, place):
    done = kasatune("inspect", "adapter", "--picture", "layers.svg")
    assert done.status == 0
    assert done.out.splitlines()[0] == "kasa adapter"
    assert len(done.out.splitlines()) == 2 + 4
    assert (place / "layers.svg").read_text(encoding="utf-8").startswith("<svg xmlns=")
    found = json.loads(kasatune("inspect", "adapter", "--json").out)
    assert {layer["name"] for layer in found["layers"]} >= {"model.layers.0.self_attn.q_proj"}


def test_an_inspection_of_plain_lora_and_of_no_base_is_drawn_too(kasatune, trained, place):
    kasatune("export", "adapter", "--out", "lora")
    (place / "base").rename(place / "elsewhere")
    done = kasatune("inspect", "lora", "--picture", "lora.svg")
    assert done.status == 0
    assert "--base MODEL" in done.err
    assert (place / "lora.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "adapter", "--to", "onnx", "--out", "new"], "not a known adapter format"),
        (["export", "adapter", "--to", "authors", "--out", "new"], "4 here, 0 there"),
        (["export", "adapter", "--to", "kasa", "--rank", "2", "--out", "new"], "requires to='lora'"),
        (["export", "adapter", "--to", "kasa", "--max-rank", "8", "--out", "new"], "max_rank=8 requires to='lora'"),
        (["export", "adapter", "--to", "gguf", "--equal-ranks", "--out", "new"], "equal_ranks requires to='lora'"),
        (["export", "adapter", "--max-rank", "0", "--out", "new"], "max_rank is 0, must be"),
        (["export", "adapter", "--max-rank", "2", "--rank", "3", "--out", "new"], "has rank 3, above max_rank=2"),
        (["export", "adapter", "--out", "base"], "not empty"),
        (["export", "adapter", "--out", "new", "--base", "./nowhere"], "--base: ./nowhere: no such folder"),
        (["export", "adapter", "--to", "gguf", "--rank", "0", "--out", "new"], "at least 1"),
        (["merge", "adapter", "--out", "new", "--base", "./nowhere"], "no such folder"),
        (["merge", "base", "--out", "new"], "holds no adapter"),
        (["merge", "nowhere", "--out", "new"], "no such directory"),
        (["shrink", "adapter", "--out", "new"], "either a rank or an energy"),
        (["shrink", "adapter", "--energy", "2", "--out", "new"], "at most 1"),
        (["verify", "nowhere"], "no such directory"),
        (["inspect", "adapter", "--base", "./nowhere"], "no such folder"),
        (["inspect", "adapter", "--picture", "no/such/folder.svg"], "its directory does not exist"),
        (["inspect", "adapter", "--picture", "layers.png"], "use a name that ends in .svg"),
        (["inspect", "adapter", "--picture", "."], "is a directory"),
    ],
)
def test_a_wrong_input_is_one_message_and_status_two(kasatune, trained, place, arguments, said):
    before = sorted(path.name for path in place.iterdir())
    done = kasatune(*arguments)
    assert done.status == 2
    assert said in done.err
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_base_that_moved_is_told_by_where_its_name_stands(kasatune, trained, place):
    (place / "base").rename(place / "elsewhere")
    config = json.loads((place / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "./base"
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    done = kasatune("merge", "adapter", "--out", "new")
    assert done.status == 2
    assert "the adapter's base_model_name_or_path: ./base: no such folder" in done.err
    assert "--base" in done.err
    assert "Traceback" not in done.err
    assert not (place / "new").exists()
