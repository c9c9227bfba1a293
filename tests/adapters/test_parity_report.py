"""Reports of a conversion, and the refusal to write a wrong one."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from kasatune import KasaConfig, export_adapter
from kasatune.adapters import format_conversion, lora_export, reduce_rank
from kasatune.errors import CheckError, InputError, OutputError
from tests.kasa.models import bert, llama, shaken, token_ids
from tests.peft_versions import needs_peft_kasa


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def trained(base=bert, **options):
    torch.manual_seed(5)
    return shaken(get_peft_model(base(), KasaConfig(**{"r": 4, **options})))


def certificate(directory):
    return json.loads((directory / "certificate.json").read_text())


def test_a_certificate_holds_figures_files_base_and_versions(tmp_path):
    export_adapter(trained(), tmp_path / "out")
    record = certificate(tmp_path / "out")
    assert (record["from"], record["to"], record["exact"]) == ("kasa", "lora", True)
    assert 0 <= record["outputs"]["mean_difference"] <= record["outputs"]["largest_difference"] < 1e-5
    assert record["outputs"]["inputs"] == {"seed": 0, "shape": [2, 16]}
    assert record["updates"]["largest_relative_difference"] < 1e-6
    for name, digest in record["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert record["base"]["class"] == "BertForSequenceClassification"
    assert set(record["versions"]) == {"kasatune", "peft", "python", "torch", "transformers"}


def test_the_base_s_digest_is_that_of_the_untouched_weights_and_knows_one_from_another(tmp_path):
    found = []
    for number, (base, options) in enumerate(
        [(bert, {}), (bert, {"truncation": "fold", "r": 6}), (lambda: bert(dtype=torch.float64), {})]
    ):
        export_adapter(trained(base, **options), tmp_path / str(number))
        found.append(certificate(tmp_path / str(number))["base"]["sha256"])
    assert found[0] == found[1] != found[2]


def test_equal_conversions_have_equal_files(tmp_path):
    for name in "ab":
        export_adapter(trained(), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("with_base", [True, False])
def test_a_wrong_conversion_fails_with_its_figure_and_writes_nothing(tmp_path, monkeypatch, with_base):
    model = trained()
    model.save_pretrained(tmp_path / "native")
    original = lora_export.stack

    def wrong(layer, scaling):
        lora = original(layer, scaling)
        return lora_export.StackedLora(lora.A, lora.B * 1.001)

    monkeypatch.setattr(lora_export, "stack", wrong)
    with pytest.raises(CheckError, match=r"changes the update of bert.* by 0\.001"):
        export_adapter(tmp_path / "native", tmp_path / "out", base=bert() if with_base else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native"]


def test_outputs_that_differ_fail_even_where_the_updates_agree(tmp_path, monkeypatch):
    original = format_conversion.to_lora

    def wrong(source):
        made = original(source)
        made.config["bias"] = "lora_only"
        name = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias"
        made.tensors[name] = torch.full((32,), 0.5)
        return made

    monkeypatch.setitem(format_conversion._WRITERS, "lora", wrong)
    with pytest.raises(CheckError, match=r"changes the model's outputs by .*, more than float32 explains"):
        export_adapter(trained(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sixteen_bits_are_given_what_sixteen_bits_explain(tmp_path):
    for dtype in (torch.bfloat16, torch.float16):
        model = trained(lambda dtype=dtype: llama(dtype))
        export_adapter(model, tmp_path / str(dtype))
        outputs = certificate(tmp_path / str(dtype))["outputs"]
        assert outputs["dtype"] == str(dtype).removeprefix("torch.")
        assert outputs["largest_difference"] <= outputs["limit"]


def test_a_model_that_takes_no_tokens_is_measured_by_its_updates_and_says_so(tmp_path):
    model = shaken(get_peft_model(nn.Sequential(nn.Linear(16, 16)), KasaConfig(r=2, target_modules=["0"])))
    export_adapter(model, tmp_path / "out")
    record = certificate(tmp_path / "out")
    assert record["outputs"]["measured"] is False
    assert "no input embeddings" in record["outputs"]["reason"]
    assert record["updates"]["largest_relative_difference"] < 1e-6


@needs_peft_kasa
def test_exporting_leaves_a_training_model_as_it_was(tmp_path):
    model = trained(lora_dropout=0.5, task_type="SEQ_CLS").train()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    export_adapter(model, tmp_path / "out", to="peft-kasa")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_merged_model_stays_merged(tmp_path):
    model = trained()
    model.merge_adapter()
    expected = logits(model)
    export_adapter(model, tmp_path / "out")
    assert torch.equal(logits(model), expected)
    model.unmerge_adapter()


# Smaller ranks


def best_of_rank(model, rank):
    """||dW - best of that rank|| over all layers, relative: from the dense matrices."""
    lost = whole = 0.0
    for layer in (m for m in model.modules() if hasattr(m, "change")):
        S = torch.linalg.svdvals(layer.change("default").double())
        lost, whole = lost + float((S[rank:] ** 2).sum()), whole + float((S**2).sum())
    return (lost / whole) ** 0.5


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_smaller_rank_is_the_nearest_one_and_its_error_is_stated(tmp_path, rank):
    model = trained(llama)
    export_adapter(model, tmp_path / "out", rank=rank)
    record = certificate(tmp_path / "out")
    assert record["exact"] is False
    assert record["relative_error"] == pytest.approx(best_of_rank(model, rank), rel=1e-4)
    assert {layer["rank"] for layer in record["layers"].values()} == {rank}
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "out")
    for name, module in loaded.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            change = model.get_base_model().get_submodule(name).change("default")
            error = float((module.get_delta_weight("default") - change).norm() / change.norm())
            assert error == pytest.approx(record["layers"][name]["relative_error"], rel=1e-3)
    assert record["updates"]["largest_relative_difference"] == pytest.approx(
        max(layer["relative_error"] for layer in record["layers"].values()), rel=1e-3
    )


def test_a_rank_that_is_large_enough_loses_nothing(tmp_path):
    model = trained(llama)
    export_adapter(model, tmp_path / "out", rank=64)
    record = certificate(tmp_path / "out")
    assert record["relative_error"] < 1e-6
    assert {layer["rank"] for layer in record["layers"].values()} == {8}
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(llama(), tmp_path / "out")), logits(model), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("rank", [0, -1, 2.5, True])
def test_a_rank_that_is_none_is_refused(tmp_path, rank):
    with pytest.raises(InputError, match="must be a whole number of at least 1"):
        export_adapter(trained(), tmp_path / "out", rank=rank)


def test_a_smaller_rank_that_loses_more_than_it_says_is_not_written(tmp_path, monkeypatch):
    original = reduce_rank.lora_files

    def worse(config, layers, *further):
        return original(config, {name: lora._replace(B=0.9 * lora.B) for name, lora in layers.items()}, *further)

    monkeypatch.setattr(reduce_rank, "lora_files", worse)
    with pytest.raises(CheckError, match="loses"):
        export_adapter(trained(), tmp_path / "out", rank=3)
    assert not (tmp_path / "out").exists()


def test_only_lora_takes_a_rank(tmp_path):
    with pytest.raises(InputError, match="requires to='lora'"):
        export_adapter(trained(), tmp_path / "out", to="kasa", rank=2)


def test_an_occupied_directory_and_a_dangling_link_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for name in ("link", "file", "full"):
        with pytest.raises(OutputError):
            export_adapter(trained(), tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "mine").read_text() == "mine"
