"""push: what is listed, what is uploaded, and what is refused; against a local stand-in for the hub."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kasatune import KasaConfig, export_adapter
from tests.kasa.models import llama, shaken
from tests.upload_hub import TOKEN, upload_hub

BASE = "someone/tiny-llama"


@pytest.fixture
def hub():
    with upload_hub() as hub:
        yield hub


@pytest.fixture
def adapter(place):
    """A LoRA adapter in ./lora, exported from KaSA, of a base in ./base."""
    llama().save_pretrained("base")
    base = AutoModelForCausalLM.from_pretrained("base")
    torch.manual_seed(5)
    model = shaken(get_peft_model(base, KasaConfig(r=4, task_type="CAUSAL_LM")))
    export_adapter(model, "lora", to="lora")
    (place / "lora" / "optimizer.pt").write_bytes(b"not for the hub")
    return place / "lora"


def matter_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_without_yes_the_files_and_the_card_are_printed_and_nothing_is_sent(kasatune, hub, adapter):
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    done = kasatune("push", "lora", "me/tiny", "--base", BASE, "--license", "apache-2.0")
    assert done.status == 0
    assert "adapter_model.safetensors" in done.out
    assert f"base_model: {BASE}" in done.out
    assert "license: apache-2.0" in done.out
    assert "nothing was sent" in done.err
    assert "left out: optimizer.pt" in done.err
    assert not hub.posted
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


def test_yes_uploads_an_adapter_that_names_its_base_on_the_hub(kasatune, hub, adapter, place):
    done = kasatune("push", "lora", "me/tiny", "--base", BASE, "--private", "--yes", "--json")
    assert done.status == 0, done.err
    record = json.loads(done.out)
    files = hub.repositories["me/tiny"]
    assert set(record["files"]) == set(files)
    assert "optimizer.pt" not in files
    assert hub.private == {"me/tiny"}
    assert files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert matter_of(files["README.md"].decode())["base_model"] == BASE
    assert str(place) not in files["README.md"].decode() + files["certificate.json"].decode()
    # what was uploaded passes verification by its own hashes
    (place / "down").mkdir()
    for name, content in files.items():
        (place / "down" / name).write_bytes(content)
    checks = json.loads(kasatune("verify", "down", "--base", "base", "--json").out)
    assert {check["name"]: check["passed"] for check in checks}["hashes of down"]


def test_files_of_a_repository_are_replaced_only_on_request(kasatune, hub, adapter):
    hub.repositories["me/tiny"] = {"adapter_model.safetensors": b"other", "README.md": b"other"}
    done = kasatune("push", "lora", "me/tiny", "--base", BASE, "--yes")
    assert done.status == 2
    assert "me/tiny already holds adapter_model.safetensors; --update replaces them" in done.err
    assert hub.repositories["me/tiny"]["README.md"] == b"other"
    assert kasatune("push", "lora", "me/tiny", "--base", BASE, "--yes", "--update").status == 0
    assert hub.repositories["me/tiny"]["adapter_model.safetensors"] != b"other"


def test_a_base_on_this_machine_is_refused_with_the_remedy(kasatune, hub, adapter):
    done = kasatune("push", "lora", "me/tiny", "--base", "base", "--yes")
    assert done.status == 2
    assert "name the model on the hub with --base ORG/NAME" in done.err
    assert not hub.repositories


@pytest.mark.parametrize("name", ["tiny", "me/tiny/deep", "me/ti ny", "../x/y", ""])
def test_a_name_that_is_no_repository_is_refused(kasatune, adapter, name):
    done = kasatune("push", "lora", name, "--base", BASE)
    assert done.status == 2
    assert "give ORG/NAME" in done.err


def test_a_refused_token_is_named_with_the_remedy(kasatune, hub, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}-of-somebody-else")
    done = kasatune("push", "lora", "me/tiny", "--base", BASE, "--yes")
    assert done.status == 1
    assert "hf auth login" in done.err
    assert TOKEN not in done.err


def test_a_hub_that_cannot_be_reached(kasatune, adapter, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    done = kasatune("push", "lora", "me/tiny", "--base", BASE, "--yes")
    assert done.status == 1
    assert "could not be reached" in done.err


def test_an_adapter_that_peft_saved_gets_metadata_and_keeps_its_card(kasatune, hub, place):
    llama().save_pretrained("base")
    base = AutoModelForCausalLM.from_pretrained("base")
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM")).save_pretrained("stock")
    (place / "stock" / "README.md").write_text(
        "---\nlanguage: en\nbase_model: base\ntags: ['base_model:adapter:base', base]\n---\n# A base for all\n`base`\n"
    )
    done = kasatune("push", "stock", "me/tiny", "--base", BASE, "--yes")
    assert done.status == 0, done.err
    card = hub.repositories["me/tiny"]["README.md"].decode()
    assert card.endswith(f"# A base for all\n`{BASE}`\n")
    tags = [f"base_model:adapter:{BASE}", "base"]
    assert matter_of(card) == {"base_model": BASE, "library_name": "peft", "language": "en", "tags": tags}


def test_a_damaged_adapter_is_not_uploaded(kasatune, hub, adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    done = kasatune("push", "lora", "me/tiny", "--base", BASE, "--yes")
    assert done.status == 2
    assert not hub.posted
