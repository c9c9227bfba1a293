"""Adapters that go anywhere: every format that can hold one gives its outputs, and the others refuse it."""

from __future__ import annotations

import json
import logging

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.errors import InputError
from kasatune.kasa import KasaLayer
from tests.kasa.models import bert, gpt2, llama, shaken, token_ids
from tests.peft_versions import needs_peft_kasa
from tests.shared_data import shared

MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}
WEIGHTS = "adapter_model.safetensors"
PEFT_KASA = pytest.param("peft-kasa", marks=needs_peft_kasa)
FORMATS = ("lora", "kasa", PEFT_KASA, "authors")


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def trained(base=bert, **options):
    torch.manual_seed(5)
    return shaken(get_peft_model(base(), KasaConfig(**{"r": 4, **options})))


def certificate(directory):
    return json.loads((directory / "certificate.json").read_text())


def pefts_own(base, **options):
    """An adapter that PEFT made, with everything it trains moved."""
    torch.manual_seed(7)
    model = get_peft_model(base(), peft.LoraConfig(r=4, kasa_config=peft.KasaConfig(), **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


# Round trips


@pytest.mark.parametrize("base", MODELS)
@pytest.mark.parametrize(("core", "truncation"), [("diagonal", "fold"), ("dense", "attach")])
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_that_holds_an_adapter_gives_its_outputs(tmp_path, base, core, truncation, to):
    if (base, to) in [("gpt2", "peft-kasa"), ("llama", "authors")]:
        pytest.skip("refused: see the tests of refusals")
    model = trained(MODELS[base], core=core, truncation=truncation, lora_alpha=8, use_rslora=True)
    expected = logits(model)
    export_adapter(model, tmp_path / "out", to=to)
    assert torch.equal(logits(model), expected), "exporting changed the model"
    loaded = load_adapter(MODELS[base](), tmp_path / "out")
    close(logits(loaded), expected)
    assert loaded.kasatune_format == to
    outputs = certificate(tmp_path / "out")["outputs"]
    assert outputs["largest_difference"] <= outputs["limit"]
    assert outputs["dtype"] == "float32"


@pytest.mark.parametrize("to", ["lora", PEFT_KASA])
def test_peft_alone_reads_what_is_written_for_it(tmp_path, to):
    model = trained(llama, rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"v_proj": 3})
    export_adapter(model, tmp_path / "out", to=to)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "out")
    assert not any(isinstance(module, KasaLayer) for module in loaded.modules())
    close(logits(loaded), logits(model))


@needs_peft_kasa
@pytest.mark.parametrize("base", [bert, llama])
@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"q_proj": 2, "query": 2}}]
)
def test_an_adapter_that_peft_trained_gives_pefts_outputs_here(tmp_path, base, options, caplog):
    model = pefts_own(base, **options)
    model.save_pretrained(tmp_path)
    untouched = logits(base())
    with caplog.at_level(logging.INFO, logger="kasatune"):
        loaded = load_adapter(base(), tmp_path)
    assert "a KaSA adapter of PEFT of 4 layers" in caplog.text
    close(logits(loaded), logits(model))
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), untouched)


def test_an_adapter_of_the_authors_code_gives_the_authors_outputs(tmp_path):
    tensors = load_file(shared("goldens/authors_query_value.safetensors"))
    settings = json.loads(shared("goldens/authors_query_value.json").read_text())
    base = bert()
    base.load_state_dict({key.removeprefix("base."): t for key, t in tensors.items() if key.startswith("base.")})
    saved = {key.removeprefix("final."): t for key, t in tensors.items() if key.startswith("final.")}
    rewrite(tmp_path, {k.replace(".modules_to_save", "").replace(".default", ""): t for k, t in saved.items()})
    config = {key: settings[key] for key in ("r", "lora_alpha", "target_modules")}
    config |= {"peft_type": "LORA", "task_type": "SEQ_CLS", "modules_to_save": ["classifier"], "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = load_adapter(base, tmp_path)
    assert loaded.kasatune_format == "authors"
    with torch.no_grad():
        found = loaded(input_ids=tensors["input_ids"]).logits
    torch.testing.assert_close(found, tensors["logits_final"], rtol=0, atol=2e-6)


def test_the_authors_rule_of_what_is_dropped_goes_with_their_form(tmp_path):
    model = trained(llama, convention="authors", target_modules=["q_proj", "v_proj", "up_proj"])
    export_adapter(model, tmp_path / "out", to="authors")
    loaded = load_adapter(llama(), tmp_path / "out")
    assert loaded.peft_config["default"].convention == "authors"
    close(logits(loaded), logits(model))


def test_a_core_of_r_by_r_of_the_authors_published_runs_is_read_as_dense(tmp_path):
    model = trained(core="dense", convention="authors")
    export_adapter(model, tmp_path / "flat", to="authors")
    dense = load_file(tmp_path / "flat" / "adapter_model.safetensors")
    for key in [key for key in dense if key.endswith("lora_diag")]:
        name = key.removesuffix(".lora_diag").removeprefix("base_model.model.")
        layer = model.get_base_model().get_submodule(name)
        A, sigma, B = layer.factors("default")
        stem = key.removesuffix(".lora_diag")
        dense |= {key: sigma.detach(), f"{stem}.lora_A.weight": A.detach(), f"{stem}.lora_B.weight": B.detach()}
    rewrite(tmp_path / "flat", dense)
    loaded = load_adapter(bert(), tmp_path / "flat")
    assert loaded.peft_config["default"].core == "dense"
    close(logits(loaded), logits(model))


@needs_peft_kasa
def test_forms_without_tails_pass_into_one_another_without_a_base(tmp_path):
    model = trained()
    export_adapter(model, tmp_path / "peft", to="peft-kasa")
    export_adapter(tmp_path / "peft", tmp_path / "authors", to="authors")
    close(logits(load_adapter(bert(), tmp_path / "authors")), logits(model))
    parity = certificate(tmp_path / "authors")
    assert parity["outputs"] == {"measured": False, "reason": "no base model was given"}
    assert parity["updates"]["includes_what_is_dropped"] is False


@needs_peft_kasa
def test_the_tail_comes_from_the_base_that_is_given(tmp_path):
    model = pefts_own(llama)
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(InputError, match="'lora' needs the base model"):
        export_adapter(tmp_path / "peft", tmp_path / "out", to="lora")
    base = llama()
    untouched = logits(base)
    export_adapter(tmp_path / "peft", tmp_path / "out", to="lora", base=base)
    assert torch.equal(logits(base), untouched)
    close(logits(PeftModel.from_pretrained(llama(), tmp_path / "out")), logits(model))


# What an adapter carries beside its layers


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_trained_bias_and_a_head_are_carried(tmp_path, to, bias):
    model = trained(bias=bias, task_type="SEQ_CLS", modules_to_save=["pooler"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "kasa_" not in name:
                parameter.add_(0.3)
    expected = logits(model)
    export_adapter(model, tmp_path / "out", to=to)
    close(logits(load_adapter(bert(), tmp_path / "out")), expected)


def test_a_stock_lora_has_scaling_one_in_every_layer_whatever_the_rank(tmp_path):
    model = trained(llama, rank_pattern={"layers.1.self_attn.q_proj": 2}, lora_alpha=11, use_rslora=True)
    export_adapter(model, tmp_path / "out")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "out")
    scalings = [m.scaling["default"] for m in loaded.modules() if hasattr(m, "lora_A")]
    assert scalings == [1.0] * 4
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.1.self_attn.q_proj": 4}
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 8, "LORA")


def test_equal_ranks_pad_with_zeros_and_keep_every_update(tmp_path):
    model = trained(llama, rank_pattern={"layers.1.self_attn.q_proj": 2, "layers.0.self_attn.v_proj": 7})
    export_adapter(model, tmp_path / "out", equal_ranks=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (14, 14, {}, {})
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.shape[key.endswith("lora_B.weight")] for key, tensor in tensors.items()} == {14}
    assert certificate(tmp_path / "out")["exact"] is True
    close(logits(PeftModel.from_pretrained(llama(), tmp_path / "out")), logits(model))
    export_adapter(model, tmp_path / "small", rank=5, equal_ranks=True)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (5, {})
    with pytest.raises(InputError, match="equal_ranks requires to='lora'"):
        export_adapter(model, tmp_path / "kasa", to="kasa", equal_ranks=True)


def test_layers_whose_names_end_alike_keep_their_own_ranks(tmp_path):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.q = torch.nn.Linear(16, 16)
            self.y = torch.nn.ModuleDict({"q": torch.nn.Linear(16, 16)})
            self.z = torch.nn.ModuleDict({"q": torch.nn.Linear(16, 16)})

        def forward(self, x):
            return self.z["q"](self.y["q"](self.q(x)))

    x = torch.randn(3, 16)
    model = shaken(get_peft_model(Pair(), KasaConfig(r=2, target_modules=["q"], rank_pattern={"^q": 5})))
    export_adapter(model, tmp_path / "out")
    torch.testing.assert_close(PeftModel.from_pretrained(Pair(), tmp_path / "out")(x), model(x))
    assert "no input embeddings" in certificate(tmp_path / "out")["outputs"]["reason"]


@needs_peft_kasa
@pytest.mark.parametrize("to", ["peft-kasa", "authors"])
def test_a_tied_head_is_refused_by_formats_whose_reader_changes_the_embedding_with_it(tmp_path, to):
    model = trained(lambda: llama(tied=True), target_modules=["lm_head"])
    with pytest.raises(InputError, match=r"lm_head .*tied"):
        export_adapter(model, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()
    pefts_own(lambda: llama(tied=True), target_modules=["lm_head"]).save_pretrained(
        tmp_path / "pefts", save_embedding_layers=False
    )
    with pytest.raises(InputError, match=r"lm_head .*tied"):
        load_adapter(llama(tied=True), tmp_path / "pefts")


@pytest.mark.parametrize("to", ["lora", "kasa"])
def test_an_adapted_output_embedding_whose_weight_peft_saves_along(tmp_path, to):
    model = trained(lambda: llama(tied=True), target_modules=["lm_head", "q_proj"])
    model.save_pretrained(tmp_path / "native")
    assert any(key.endswith("lm_head.base_layer.weight") for key in load_file(tmp_path / "native" / WEIGHTS))
    close(logits(load_adapter(llama(tied=True), tmp_path / "native")), logits(model))
    export_adapter(tmp_path / "native", tmp_path / "out", to=to, base=llama(tied=True))
    assert not any("base_layer" in key for key in load_file(tmp_path / "out" / WEIGHTS))
    close(logits(load_adapter(llama(tied=True), tmp_path / "out")), logits(model))


def test_conv1d_layers_are_known_from_the_saved_directory_alone(tmp_path):
    model = trained(gpt2)
    model.save_pretrained(tmp_path / "native")
    export_adapter(tmp_path / "native", tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    close(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "lora")), logits(model))


# What a format cannot hold


def test_conv1d_has_no_form_in_peft_and_the_layers_are_named(tmp_path):
    trained(gpt2).save_pretrained(tmp_path / "native")
    with pytest.raises(InputError, match=r"Conv1D layers \(transformer\.h\.0\.attn\.c_attn"):
        export_adapter(tmp_path / "native", tmp_path / "out", to="peft-kasa")
    assert not (tmp_path / "out").exists()


def test_other_triplets_dropped_are_refused_with_the_layers_and_the_counts(tmp_path):
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.v_proj \(4 here, 0 there\)"):
        export_adapter(trained(llama), tmp_path / "out", to="authors")
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.v_proj \(0 here, 4 there\)"):
        export_adapter(trained(llama, convention="authors"), tmp_path / "out", to="peft-kasa")


def test_a_quantized_base_has_no_form_in_peft_or_the_authors_code(tmp_path):
    model = trained()
    fingerprint = model.peft_config["default"].base_fingerprint
    next(iter(fingerprint.values()))["held_as"] = "bnb4bit"
    for to in ("peft-kasa", "authors"):
        with pytest.raises(InputError, match=r"no KaSA on quantized layers \(bert\.encoder\.layer\.0"):
            export_adapter(model, tmp_path / "out", to=to)


def test_a_lora_adapter_does_not_become_a_kasa_adapter(tmp_path):
    export_adapter(trained(), tmp_path / "lora")
    for to in ("kasa", "peft-kasa", "authors"):
        with pytest.raises(InputError, match="a LoRA adapter cannot be converted"):
            export_adapter(tmp_path / "lora", tmp_path / "out", to=to)


def rewrite(folder, tensors):
    from safetensors.torch import save_file

    save_file({key: t.contiguous() for key, t in tensors.items()}, folder / "adapter_model.safetensors")
