"""GGUF adapters: names, rows and scaling as llama.cpp reads them. That it does is measured in docs/serving.md."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from kasatune import KasaConfig, export_adapter
from kasatune.adapters.adapter_files import read_tensors
from kasatune.adapters.gguf_export import permuted_rows, write_gguf
from kasatune.adapters.load import read_checked
from kasatune.errors import InputError, MissingExtraError
from tests.kasa.models import gpt2, llama, shaken

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed (kasatune[gguf])")


def exported(folder, base=llama, **options):
    torch.manual_seed(5)
    model = shaken(get_peft_model(base(), KasaConfig(**{"r": 4, **options})))
    export_adapter(model, folder / "lora")
    return model, read_tensors(read_checked(folder / "lora")[0])


def read(path):
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return tensors, fields


def test_names_fields_and_updates_are_those_of_llama_cpp(tmp_path):
    model, files = exported(tmp_path, target_modules=["v_proj", "down_proj"])
    write_gguf(files, model.config.to_dict(), tmp_path / "adapter.gguf")
    tensors, fields = read(tmp_path / "adapter.gguf")
    assert fields["general.architecture"] == "llama"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 8
    for name, module in (("attn_v", "self_attn.v_proj"), ("ffn_down", "mlp.down_proj")):
        change = model.get_base_model().get_submodule(f"model.layers.1.{module}").change("default")
        A, B = tensors[f"blk.1.{name}.weight.lora_a"], tensors[f"blk.1.{name}.weight.lora_b"]
        assert (A.shape[0], B.shape[1]) == (8, 8)
        torch.testing.assert_close(B @ A, change, rtol=0, atol=1e-5)


def test_rows_of_q_and_k_go_with_the_permuted_weights(tmp_path):
    model, files = exported(tmp_path, target_modules=["q_proj", "k_proj"])
    write_gguf(files, model.config.to_dict(), tmp_path / "adapter.gguf")
    tensors, _ = read(tmp_path / "adapter.gguf")
    for name, module, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        layer = model.get_base_model().model.layers[0].self_attn.get_submodule(module)
        change = tensors[f"blk.0.{name}.weight.lora_b"] @ tensors[f"blk.0.{name}.weight.lora_a"]
        torch.testing.assert_close(change, permuted_rows(layer.change("default"), heads), rtol=0, atol=1e-5)
        assert not torch.allclose(change, layer.change("default"), atol=1e-3)


def test_permuting_interleaves_the_two_halves_of_each_head():
    rows = torch.arange(8.0)[:, None]
    assert permuted_rows(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_one_alpha_for_several_ranks_is_zero_which_means_scaling_one(tmp_path):
    model, files = exported(tmp_path, rank_pattern={"v_proj": 2})
    write_gguf(files, model.config.to_dict(), tmp_path / "adapter.gguf")
    assert read(tmp_path / "adapter.gguf")[1]["adapter.lora.alpha"] == 0


def test_what_a_gguf_adapter_cannot_hold_is_refused_by_name(tmp_path):
    model, files = exported(tmp_path, modules_to_save=["lm_head"])
    with pytest.raises(InputError, match=r"no trained heads or biases.*lm_head"):
        write_gguf(files, model.config.to_dict(), tmp_path / "adapter.gguf")
    with pytest.raises(InputError, match="'gpt2' cannot have a GGUF adapter"):
        write_gguf(files, gpt2().config.to_dict(), tmp_path / "adapter.gguf")
    tied = get_peft_model(llama(tied=True), LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    tied.save_pretrained(tmp_path / "tied", save_embedding_layers=False)
    files = read_tensors(read_checked(tmp_path / "tied")[0])
    with pytest.raises(InputError, match="no separate weight for lm_head"):
        write_gguf(files, tied.config.to_dict(), tmp_path / "adapter.gguf")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    model, files = exported(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"kasatune\[gguf\]"):
        write_gguf(files, model.config.to_dict(), tmp_path / "adapter.gguf")


def test_the_command_writes_file_and_certificate(tmp_path):
    from kasatune.adapter_tools.export import convert_adapter

    base = llama()
    base.save_pretrained(tmp_path / "base")
    shaken(get_peft_model(base, KasaConfig(r=4, task_type="CAUSAL_LM"))).save_pretrained(tmp_path / "adapter")
    record = convert_adapter(tmp_path / "adapter", tmp_path / "out", "gguf", base=str(tmp_path / "base"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter.gguf", "certificate.json"]
    assert record["gguf"]["largest_relative_difference"] < 1e-6
    assert record["outputs"]["largest_difference"] <= record["outputs"]["limit"]
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["to"] == "gguf"


def test_a_base_without_a_gguf_form_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    from kasatune.adapter_tools import export as convert

    base = gpt2()
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, KasaConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(convert, "load_base_model", lambda source: pytest.fail("the base was loaded"))
    with pytest.raises(InputError, match="'gpt2' cannot have a GGUF adapter"):
        convert.convert_adapter(tmp_path / "adapter", tmp_path / "out", "gguf", base=str(tmp_path / "base"))
    assert not (tmp_path / "out").exists()
