"""verify, inspect, shrink and export on a run and on adapters alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from kasatune import KasaConfig
from kasatune.adapter_tools.export import convert_adapter
from kasatune.adapter_tools.inspect import inspect
from kasatune.adapter_tools.shrink import shrink_adapter
from kasatune.adapter_tools.verify import verify
from kasatune.errors import InputError, ModelError
from kasatune.linalg import energy_share, singular_values
from kasatune.training.train import train
from tests.kasa.models import bert, gpt2, llama, shaken
from tests.toys import make_bert, make_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A finished run on a toy, made once; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("work")
    model = make_bert(folder / "bert")
    method = {"target_modules": ["query", "value"], "r": 3}
    train(make_recipe(model, folder / "data", labels=3, method=method), folder / "run")
    return folder


@pytest.fixture
def run(work, tmp_path):
    return shutil.copytree(work / "run", tmp_path / "run")


def adapter(folder, base, **options):
    """A base and an adapter of it, saved."""
    torch.manual_seed(5)
    model = base()
    model.save_pretrained(folder / "base")
    model = type(model).from_pretrained(folder / "base")
    adapted = shaken(get_peft_model(model, KasaConfig(**{"r": 4, **options})))
    adapted.save_pretrained(folder / "adapter")
    return adapted


def line(checks, name):
    return next(check for check in checks if check.name == name)


# verify


def test_every_line_of_a_good_run_passes_with_its_figure(run):
    checks = verify(run)
    assert [check.name for check in checks if check.passed is False] == []
    passed = {check.name for check in checks if check.passed}
    assert {"reload", "merge", "base untouched"} <= passed
    assert {f"{what} of {form}" for what in ("files", "hashes", "base") for form in ("kasa", "adapter")} <= passed
    assert "'bert' cannot have a GGUF adapter" in line(checks, "export to gguf").figure
    assert {f"export to {to}" for to in ("lora", "kasa", "peft-kasa", "authors")} <= passed
    assert "adapter gives the same outputs" in passed
    assert all(check.figure for check in checks)


def test_verifying_leaves_nothing_behind(run):
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    verify(run)
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before


def change(folder, key_part, value):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(key for key in sorted(tensors) if key_part in key)
    tensors[key] = tensors[key] + value
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_number_that_was_changed_is_found_by_hash_and_by_outputs(run):
    change(run / "adapter", "lora_B", 0.3)
    checks = verify(run)
    assert line(checks, "hashes of adapter").passed is False
    assert "adapter_model.safetensors" in line(checks, "hashes of adapter").figure
    assert line(checks, "adapter gives the same outputs").passed is False
    assert line(checks, "reload").passed


def test_a_number_of_the_native_adapter_that_was_changed_is_found_by_its_hash(run):
    change(run / "kasa", "kasa_B", 1e-6)
    checks = verify(run)
    failed = {check.name for check in checks if check.passed is False}
    assert "hashes of kasa" in failed
    assert failed <= {"hashes of kasa", "scores"}  # so small a change may leave the last digit of the loss as it was


def test_a_gguf_adapter_of_a_llama_is_verified_too(tmp_path):
    pytest.importorskip("gguf", reason="the gguf package is not installed (kasatune[gguf])")
    adapter(tmp_path, llama, task_type="CAUSAL_LM")
    checks = verify(tmp_path / "adapter")
    assert line(checks, "export to gguf").passed
    assert "of their norm" in line(checks, "export to gguf").figure
    assert not any(check.passed is False for check in checks)


def test_a_number_that_is_none_ends_the_verification(run):
    change(run / "kasa", "kasa_sigma", float("nan"))
    checks = verify(run)
    assert (checks[-1].name, checks[-1].passed) == ("files of kasa", False)
    assert "NaN" in checks[-1].figure


def test_another_base_is_found(work, tmp_path):
    run = shutil.copytree(work / "run", tmp_path / "run")
    other = make_bert(tmp_path / "other", initializer_range=0.21)
    checks = verify(run, base=str(other))
    assert line(checks, "base of adapter").passed is False
    assert (checks[-1].name, checks[-1].passed) == ("reload", False)
    assert "another base model" in checks[-1].figure


def test_a_base_of_which_one_unadapted_weight_differs_is_found_by_its_digest(work, run, tmp_path):
    other = shutil.copytree(work / "bert", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    checks = verify(run, base=str(other))
    assert line(checks, "base of adapter").passed is False
    assert line(checks, "reload").passed


def test_what_cannot_be_held_is_said_and_is_no_failure(tmp_path):
    adapter(tmp_path, gpt2, task_type="CAUSAL_LM")
    checks = verify(tmp_path / "adapter")
    refused = line(checks, "export to peft-kasa")
    assert refused.passed is None
    assert "Conv1D" in refused.figure
    assert not any(check.passed is False for check in checks)
    assert line(checks, "merge").passed


# export of runs


def test_a_run_is_exported_with_outputs_measured_on_its_own_base(run, tmp_path):
    record = convert_adapter(run, tmp_path / "out", "peft-kasa")
    assert record["outputs"]["largest_difference"] <= record["outputs"]["limit"]
    assert record["base"]["class"] == "BertForSequenceClassification"


def test_without_the_base_the_updates_are_measured_and_a_base_that_was_named_must_load(run, work, tmp_path):
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(work / "bert"), str(work / "gone")))
    record = convert_adapter(run, tmp_path / "out", "lora")
    assert record["outputs"]["measured"] is False
    with pytest.raises(ModelError, match="gone"):
        convert_adapter(run, tmp_path / "other", "lora", base=str(work / "gone"))


def test_the_certificate_beside_a_run_s_adapter_knows_outputs_and_base(run):
    record = json.loads((run / "adapter" / "certificate.json").read_text())
    assert record["outputs"]["largest_difference"] <= record["outputs"]["limit"]
    assert len(record["base"]["sha256"]) == 64


# shrink


def test_a_smaller_adapter_of_a_run_comes_with_the_run_s_own_scores(run, tmp_path):
    record = shrink_adapter(run, tmp_path / "small", rank=2)
    before = json.loads((run / "metrics.json").read_text())
    assert record["scores"]["before"] == before["metrics"]
    assert record["scores"]["split"] == before["split"]
    assert set(record["scores"]["after"]) == set(before["metrics"])
    assert record["scores"]["after"]["loss"] != before["metrics"]["loss"]
    stored = load_file(tmp_path / "small" / "adapter_model.safetensors")
    assert {t.shape[0] for key, t in stored.items() if "lora_A" in key} == {2}
    assert json.loads((tmp_path / "small" / "certificate.json").read_text())["scores"] == record["scores"]


def test_shrinking_to_the_full_rank_leaves_the_scores(run, tmp_path):
    record = shrink_adapter(run, tmp_path / "same", rank=6)
    for name, value in record["scores"]["before"].items():
        assert record["scores"]["after"][name] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_each_layer_keeps_the_share_asked_for_and_no_rank_more(tmp_path, energy):
    adapted = adapter(tmp_path, llama, task_type="CAUSAL_LM")
    record = shrink_adapter(tmp_path / "adapter", tmp_path / "small", energy=energy)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "small")
    for name, layer in record["layers"].items():
        S = singular_values(adapted.get_base_model().get_submodule(name).change("default"))
        assert energy_share(S, 0, layer["rank"]) >= energy - 1e-6
        assert layer["rank"] == 1 or energy_share(S, 0, layer["rank"] - 1) < energy
        assert loaded.get_base_model().get_submodule(name).r["default"] == layer["rank"]
        assert loaded.get_base_model().get_submodule(name).scaling["default"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "either a rank or an energy"), ({"rank": 1, "energy": 0.5}, "either"), ({"energy": 0.0}, "above 0"),
     ({"energy": 1.5}, "at most 1"), ({"rank": 0}, "at least 1"), ({"energy": float("nan")}, "above 0")],
)  # fmt: skip
def test_a_rank_or_a_share_out_of_range_is_refused(tmp_path, options, said):
    adapter(tmp_path, llama)
    with pytest.raises(InputError, match=said):
        shrink_adapter(tmp_path / "adapter", tmp_path / "small", **options)
    assert not (tmp_path / "small").exists()


# inspect


def test_a_layer_in_figures_is_what_its_matrices_say(tmp_path):
    adapted = adapter(tmp_path, llama, task_type="CAUSAL_LM")
    found = inspect(tmp_path / "adapter")
    assert (found["format"], len(found["layers"])) == ("kasa", 4)
    for layer in found["layers"]:
        module = adapted.get_base_model().get_submodule(layer["name"])
        W = module.original_weight().double()
        S = torch.linalg.svdvals(W)
        update = (module.change("default") + module.tail("default")).double()
        assert layer["shape"] == list(W.shape)
        assert layer["base"]["singular_values"] == pytest.approx(S.tolist(), rel=1e-5)
        assert layer["update"]["norm"] == pytest.approx(float(update.norm()), rel=1e-5)
        assert layer["base"]["update_share"] == pytest.approx(float(update.norm() / W.norm()), rel=1e-5)
        assert layer["dropped"]["energy"] == pytest.approx(float((S[-4:] ** 2).sum() / (S**2).sum()), rel=1e-4)
        assert layer["sigma"] == pytest.approx(module.kasa_sigma["default"].tolist(), rel=1e-5)
        A = module.kasa_A["default"].double()
        assert layer["orthogonality"]["A"] == pytest.approx(float((A @ A.T - torch.eye(4)).norm()), rel=1e-5)
        assert layer["base"]["alignment"]["chance"] == pytest.approx((4 / W.shape[0] + 4 / W.shape[1]) / 2)


def test_directions_that_are_put_back_are_counted_and_seen_at_the_bottom(tmp_path):
    adapted = adapter(tmp_path, bert, lora_alpha=4)
    layer = adapted.get_base_model().bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        # The update is made to be the tail itself, but for the last of its four directions.
        S = layer.kasa_tail_U["default"].norm(dim=0)
        layer.kasa_B["default"].copy_(layer.kasa_tail_U["default"] / S)
        layer.kasa_A["default"].copy_(layer.kasa_tail_V["default"])
        layer.kasa_sigma["default"].copy_(S * torch.tensor([1.0, 1.0, 0.6, 0.4]))
    adapted.save_pretrained(tmp_path / "adapter")
    found = {entry["name"]: entry for entry in inspect(tmp_path / "adapter")["layers"]}
    returned = found["bert.encoder.layer.0.attention.self.query"]
    assert returned["dropped"]["come_back"] == 3
    assert returned["base"]["alignment"]["bottom"] == pytest.approx(1, abs=1e-4)
    assert returned["base"]["alignment"]["top"] == pytest.approx(0, abs=1e-4)
    assert returned["orthogonality"] == pytest.approx({"A": 0, "B": 0}, abs=1e-4)
    other = found["bert.encoder.layer.0.attention.self.value"]
    assert other["base"]["alignment"]["bottom"] < 0.6


def test_an_update_that_is_zero_points_nowhere(tmp_path):
    base = bert()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    get_peft_model(base, KasaConfig(r=4)).save_pretrained(tmp_path / "adapter")
    for layer in inspect(tmp_path / "adapter")["layers"]:
        assert layer["base"]["alignment"] is None
        assert layer["update"]["effective_rank"] == layer["dropped"]["come_back"] == 0


def test_conv1d_and_dense_cores_and_plain_lora_are_inspected_too(tmp_path):
    adapted = adapter(tmp_path, gpt2, core="dense")
    layer = inspect(tmp_path / "adapter")["layers"][0]
    module = adapted.get_base_model().transformer.h[0].attn.c_attn
    assert layer["shape"] == [96, 32]
    assert layer["sigma"] == pytest.approx(torch.linalg.svdvals(module.kasa_sigma["default"]).tolist(), rel=1e-4)
    convert_adapter(tmp_path / "adapter", tmp_path / "lora", "lora")
    plain = inspect(tmp_path / "lora")["layers"][0]
    assert "sigma" not in plain
    assert plain["update"]["norm"] == pytest.approx(float(module.change("default").norm()), rel=1e-5)


def test_without_the_base_what_needs_it_is_left_out(tmp_path):
    adapter(tmp_path, llama)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    found = inspect(tmp_path / "adapter")
    assert found["base"] is None
    assert "base" not in found["layers"][0]
    assert inspect(tmp_path / "adapter", base=str(tmp_path / "elsewhere"))["layers"][0]["base"]["norm"] > 0
