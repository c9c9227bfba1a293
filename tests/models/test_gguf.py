"""Base models in GGUF files: loaded as plain float models, from a file, a folder, a package or the hub."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from kasatune.errors import KasatuneError, MissingExtraError, ModelError, RecipeError
from kasatune.io.model_location import find_model
from kasatune.models.gguf import fast_reading
from kasatune.models.load import download_gguf, find_commit, find_pretrained, load_base
from kasatune.recipes.schema import ModelSection, Recipe, to_yaml
from kasatune.runs.provenance import recipe_sha256
from kasatune.training.plan import make_plan
from tests.text_toys import make_text_recipe

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed (kasatune[gguf])")

from tests.gguf_models import TEMPLATE, tiny_llama, write_gguf_model  # noqa: E402 - imports gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf_model(tmp_path_factory.mktemp("models") / "tiny.F32.gguf")


def load(name, kind="generation", labels=None, **section):
    section = ModelSection(name=str(name), **section)
    return load_base(section, kind=kind, label_names=labels, seed=0, max_length=16)


def test_the_weights_tokenizer_and_template_are_those_in_the_file(file):
    base = load(file)
    original = dict(tiny_llama().named_parameters())
    assert {name for name, _ in base.model.named_parameters()} == set(original)
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, original[name]), name
    assert base.tokenizer.chat_template == TEMPLATE
    assert base.tokenizer.convert_ids_to_tokens(base.tokenizer("the x<|im_end|>")["input_ids"])[-1] == "<|im_end|>"
    assert base.tokenizer.eos_token_id == base.model.generation_config.eos_token_id == 2
    assert base.new_modules == ()


@pytest.mark.parametrize("weights", ["Q4_1", "Q8_0", "F16"])
def test_a_quantized_file_gives_a_plain_float_model_that_trains_and_saves(tmp_path, weights):
    path = write_gguf_model(tmp_path / "m.gguf", weights=gguf.GGMLQuantizationType[weights])
    base = load(path, dtype="bfloat16" if weights == "F16" else "float32")
    assert {parameter.dtype for parameter in base.model.parameters()} == {base.model.dtype}
    assert getattr(base.model, "hf_quantizer", None) is None
    assert not getattr(base.model, "is_quantized", False)
    assert "quantization_config" not in base.model.config.to_dict()
    weight = base.model.model.layers[0].self_attn.q_proj.weight
    exact = tiny_llama().model.layers[0].self_attn.q_proj.weight.detach()
    assert (
        0 < float((weight.detach() - exact).norm() / exact.norm()) < {"Q4_1": 0.1, "Q8_0": 0.01, "F16": 0.01}[weights]
    )
    base.model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.model.layers[0].self_attn.q_proj.weight, weight)


def test_a_classifier_of_a_gguf_base_gets_a_new_head(file):
    base = load(file, kind="classification", labels=("a", "b", "c"))
    assert base.new_modules == ("score",)
    assert base.model.score.weight.shape[0] == 3
    assert float(base.model.score.weight.detach().std()) > 0
    assert torch.equal(base.model.model.embed_tokens.weight, tiny_llama().model.embed_tokens.weight)


def test_the_fast_reader_reads_what_the_reader_of_the_package_reads(file):
    with fast_reading(find_model(str(file))), fast_reading(find_model(str(file))):
        fast = gguf.GGUFReader(str(file))
        assert gguf.GGUFReader(str(file)) is fast
    plain = gguf.GGUFReader(str(file))
    assert type(plain) is not type(fast)
    assert list(fast.fields) == list(plain.fields)
    for name, field in plain.fields.items():
        assert fast.fields[name].contents() == field.contents(), name
        assert fast.fields[name].types == field.types, name
    assert [(tensor.name, tensor.data_offset) for tensor in fast.tensors] == [
        (tensor.name, tensor.data_offset) for tensor in plain.tensors
    ]


def test_a_folder_needs_the_name_of_the_file_and_prefers_it_over_safetensors(tmp_path, file, llama):
    folder = shutil.copytree(llama, tmp_path / "both")
    shutil.copy(file, folder / "other.gguf")
    assert load(folder).model.config.vocab_size != load(folder, gguf_file="other.gguf").model.config.vocab_size
    with pytest.raises(ModelError, match=r"no such file; the folder contains other\.gguf"):
        load(folder, gguf_file="otter.gguf")


def test_a_file_of_the_same_name_in_the_current_directory_is_not_read(tmp_path, file, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    write_gguf_model(tmp_path / "elsewhere" / file.name, tiny_llama(seed=6))
    monkeypatch.chdir(tmp_path / "elsewhere")
    weight = load(file.parent, gguf_file=file.name).model.model.embed_tokens.weight
    assert torch.equal(weight, tiny_llama().model.embed_tokens.weight)


def test_a_gguf_file_of_the_hub_is_read_from_its_snapshot(tmp_path, file, monkeypatch):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    (snapshot / "q4").mkdir(parents=True)
    shutil.copy(file, snapshot / "q4" / "m.gguf")
    asked = []

    def cached_file(name, path, revision):
        asked.append((name, path, revision))
        return str(snapshot / path)

    monkeypatch.setattr("kasatune.models.load.cached_file", cached_file)
    section = ModelSection(name="owner/name", gguf_file="q4/m.gguf", revision="main")
    assert find_commit(find_model(section.base_name), "main") == "0123abc"
    assert download_gguf(find_model(section.base_name), "main") == (str(snapshot), "q4/m.gguf")
    pretrained = find_pretrained(section)
    assert (pretrained.revision, pretrained.config.hidden_size) == ("0123abc", 32)
    assert set(asked) == {("owner/name", "q4/m.gguf", "main")}


def test_a_plan_reads_the_header_alone(tmp_path, file):
    whole = file.read_bytes()
    reader = gguf.GGUFReader(str(file))
    start = min(tensor.data_offset for tensor in reader.tensors)
    hollow = tmp_path / "hollow.gguf"
    hollow.write_bytes(whole[:start] + bytes(len(whole) - start))
    recipe = make_text_recipe(hollow, tmp_path / "data")
    plan = make_plan(recipe)
    assert plan.model["architecture"] == "LlamaForCausalLM"
    assert plan.model["parameters"] == sum(parameter.numel() for parameter in tiny_llama().parameters())
    assert {layer.shape for layer in plan.layers} == {(32, 32), (16, 32)}
    assert not plan.problems


def test_recipes_without_a_gguf_file_keep_their_hash_and_text(tmp_path):
    recipe = make_text_recipe("owner/name", tmp_path)
    assert "gguf_file" not in to_yaml(recipe)
    named = Recipe.model_validate({**recipe.model_dump(), "model": {"name": "owner/name", "gguf_file": "m.gguf"}})
    assert "gguf_file: m.gguf" in to_yaml(named)
    assert recipe_sha256(named) != recipe_sha256(recipe)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"name": "m.gguf", "gguf_file": "m.gguf"}, "model.name is a GGUF file already"),
        ({"name": "owner/name", "gguf_file": "m.safetensors"}, "must name a .gguf file"),
        ({"name": "owner/name", "gguf_file": "m.gguf", "quantization": "nf4"}, "cannot be quantized again; use none"),
        ({"name": "m.gguf", "quantization": "int8"}, "cannot be quantized again; use none"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(tmp_path, model, reason):
    recipe = make_text_recipe("owner/name", tmp_path).model_dump()
    with pytest.raises(RecipeError, match=reason):
        Recipe.model_validate({**recipe, "model": model})


def test_a_package_that_holds_a_gguf_file_is_not_quantized_either(tmp_path, file, monkeypatch):
    package = tmp_path / "site" / "toy_quantized_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import no_such_dependency")
    shutil.copy(file, package)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert load("package:toy_quantized_package").model.config.hidden_size == 32
    with pytest.raises(ModelError, match="cannot be quantized again"):
        load("package:toy_quantized_package", quantization="nf4")


@pytest.mark.parametrize("size", [4, 20, 200, 3000])
def test_a_file_cut_short_is_refused(tmp_path, file, size):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:size])
    with pytest.raises(KasatuneError, match=r"cut\.gguf.*copy it again"):
        load(tmp_path / "cut.gguf")


def test_a_missing_reader_is_named_with_its_extra(file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"kasatune\[gguf\]"):
        find_pretrained(ModelSection(name=str(file)))
