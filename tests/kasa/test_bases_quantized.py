"""KaSA on quantized bases: really active, trained, saved, loaded, switched off, merged and exported."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from kasatune import KasaConfig, export_adapter, load_adapter, tail_svd
from kasatune.errors import ModelError
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.truncation import compute_tails
from tests.kasa.models import shaken
from tests.kasa.quantized import (
    CAN_MERGE,
    KINDS,
    LOOSE,
    bert_folder,
    distance,
    linear_task,
    llama_folder,
    loaded,
    logits,
)
from tests.peft_versions import needs_merge_of_quantized

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("bert"))


def adapted(base, **settings):
    torch.manual_seed(1)
    return get_peft_model(base, KasaConfig(r=4, lora_alpha=8, target_modules=TARGETS, **settings))


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, KasaLayer)}


def held(model):
    """The bits of every tensor that the base holds."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "kasa_" in name:
            continue
        parts = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
        found.update({f"{name}.{part}": getattr(tensor, part).detach().clone() for part in parts})
        if not parts:
            found[name] = tensor.detach().clone()
    return found


def task_loss(model):
    ids = torch.arange(60).reshape(6, 10) % 7
    return model(input_ids=ids, labels=ids).loss


def trained(model, steps=8):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = task_loss(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_the_tail_of_the_dequantized_weight_is_removed(folder, kind, monkeypatch):
    base = loaded(folder, kind, monkeypatch)
    before = logits(base)
    model = adapted(base, tail_source="dequantized")
    assert len(layers(model)) == 6
    for layer in layers(model).values():
        assert layer.quantization_backend is not None
        W = layer.original_weight()
        expected = tail_svd(W, 4)
        exact = (expected.U * expected.S) @ expected.Vh
        assert distance(layer.tail("default"), exact) < 1e-4
        assert isinstance(layer.kasa_sigma["default"], nn.Parameter)
    assert distance(logits(model), before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_computes_its_equation(folder, kind, monkeypatch):
    model = shaken(adapted(loaded(folder, kind, monkeypatch)))
    layer = layers(model)["base_model.model.model.layers.0.mlp.down_proj"]
    x = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(5))
    A, sigma, B = (f.detach() for f in layer.factors("default"))
    layer.train()
    expected = layer.base_layer(x) + x @ (2.0 * (B * sigma) @ A - layer.tail("default")).mT
    torch.testing.assert_close(layer(x.requires_grad_()), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_moves_sigma(folder, kind, monkeypatch):
    model = adapted(loaded(folder, kind, monkeypatch))
    weights = held(model)
    start = {name: layer.kasa_sigma["default"].detach().clone() for name, layer in layers(model).items()}
    losses = trained(model, steps=10)
    assert losses[-1] < 0.7 * losses[0]
    for name, layer in layers(model).items():
        assert not torch.equal(layer.kasa_sigma["default"], start[name]), name
    assert all(torch.equal(tensor, weights[name]) for name, tensor in held(model).items())


@pytest.mark.parametrize("family", ["folder", "biased"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_after_an_evaluation_gets_the_same_gradient(family, kind, monkeypatch, request):
    """Some kernels rearrange a weight at the first evaluation, and have no gradient from then on."""
    where = request.getfixturevalue(family)
    names = TARGETS if family == "folder" else ["query", "value"]

    def gradients(evaluated):
        base = loaded(where, kind, monkeypatch, linear_task(where))
        torch.manual_seed(1)
        model = shaken(get_peft_model(base, KasaConfig(r=4, lora_alpha=8, target_modules=names)))
        if evaluated:
            logits(model)
        model.train()
        outputs = model(input_ids=torch.arange(60).reshape(6, 10) % 7)
        outputs.logits.float().pow(2).mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "kasa_" in name}

    fresh, again = gradients(False), gradients(True)
    assert fresh.keys() == again.keys() and len(fresh) in (12, 18)
    # The kernels before and after compute in 32 and in 16 bits; a gradient that is lost differs by its whole norm.
    for kind_of in ("kasa_A", "kasa_B", "kasa_sigma"):
        before, after = (torch.cat([g.flatten() for n, g in of.items() if kind_of in n]) for of in (fresh, again))
        assert distance(after, before) < 0.15, kind_of


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_deleted_and_unloaded_it_is_the_base_bit_for_bit(folder, kind, monkeypatch):
    base = loaded(folder, kind, monkeypatch)
    before = logits(base)
    model = adapted(base)
    trained(model, steps=2)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model.unload()), before)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_gives_equal_bits_without_decomposing(folder, kind, monkeypatch, tmp_path):
    model = adapted(loaded(folder, kind, monkeypatch))
    trained(model, steps=2)
    expected = logits(model)
    model.save_pretrained(tmp_path)

    def never(*args, **kwargs):
        raise AssertionError("loading decomposed a weight")

    monkeypatch.setattr(compute_tails, "tail_svd_many", never)
    again = PeftModel.from_pretrained(loaded(folder, kind, monkeypatch), tmp_path)
    # A weight that was trained with and one that was evaluated first go through different kernels.
    assert distance(logits(again), expected) < max(1e-6, LOOSE.get(kind, 0.0)) or torch.equal(logits(again), expected)
    assert again.peft_config["default"].tail_source_used == model.peft_config["default"].tail_source_used


@needs_merge_of_quantized
@pytest.mark.parametrize("kind", CAN_MERGE)
def test_merging_quantizes_again_and_unmerging_brings_the_same_object_back(folder, kind, monkeypatch):
    base = loaded(folder, kind, monkeypatch)
    before = logits(base)
    model = shaken(adapted(base))
    expected = logits(model)
    bases = {name: layer.base_layer for name, layer in layers(model).items()}
    weights = held(model)
    model.merge_adapter()
    merged = logits(model)
    assert distance(merged, expected) < 0.75 * distance(before, expected)
    for name, layer in layers(model).items():
        assert distance(layer.base.read() - layer.original_weight(), layer.change("default")) < 1.0, name
    model.unmerge_adapter()
    for name, layer in layers(model).items():
        assert layer.base_layer is bases[name]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in held(model).items())
    assert torch.equal(logits(model), expected)
    for layer in layers(model).values():
        # A weight that forgot that it is quantized would be quantized again here.
        layer.base_layer.to("cpu")
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


@needs_merge_of_quantized
@pytest.mark.parametrize("kind", CAN_MERGE)
def test_merging_keeps_a_bias(biased, kind, monkeypatch):
    base = loaded(biased, kind, monkeypatch, linear_task(biased))
    torch.manual_seed(1)
    model = get_peft_model(base, KasaConfig(r=2, target_modules=["query"]))
    layer = base.bert.encoder.layer[0].attention.self.query
    bias = layer.base_layer.bias.detach().clone()
    assert bias.any()
    expected = logits(model)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, KasaLayer) for module in merged.modules())
    assert distance(logits(merged), expected) < 0.3
    attention = merged.bert.encoder.layer[0].attention.self
    assert type(attention.query) is type(attention.key)
    assert torch.equal(attention.query.bias, bias)


def test_a_backend_without_merging_refuses_by_name_and_changes_nothing(folder, monkeypatch):
    model = shaken(adapted(loaded(folder, "forward-only", monkeypatch)))
    expected = logits(model)
    with pytest.raises(ModelError, match=r"gptq \(ForwardOnly\) layer cannot take a merged weight.*export_adapter"):
        model.merge_adapter()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", CAN_MERGE)
def test_the_exported_lora_gives_the_same_outputs_on_the_same_quantized_base(folder, kind, monkeypatch, tmp_path):
    model = adapted(loaded(folder, kind, monkeypatch))
    trained(model, steps=3)
    expected = logits(model)
    export_adapter(model, tmp_path / "lora", to="lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 8
    lora = PeftModel.from_pretrained(loaded(folder, kind, monkeypatch), tmp_path / "lora")
    assert distance(logits(lora), expected) < max(1e-4, LOOSE.get(kind, 0.0))
    with lora.disable_adapter():
        assert distance(logits(lora), expected) > 0.05


@pytest.mark.parametrize("kind", CAN_MERGE)
def test_exporting_from_files_leaves_a_base_that_was_never_evaluated_as_it_is(folder, kind, monkeypatch, tmp_path):
    """The first forward pass moves what belongs to some weights elsewhere: a copy must not take it from the base."""
    shaken(adapted(loaded(folder, kind, monkeypatch))).save_pretrained(tmp_path / "kasa")
    expected = logits(loaded(folder, kind, monkeypatch))
    base = loaded(folder, kind, monkeypatch)
    export_adapter(tmp_path / "kasa", tmp_path / "lora", base=base)
    assert torch.equal(logits(base), expected)


@pytest.mark.parametrize("kind", CAN_MERGE)
def test_an_exported_lora_is_loaded_onto_a_base_that_was_evaluated_before(folder, kind, monkeypatch, tmp_path):
    model = shaken(adapted(loaded(folder, kind, monkeypatch)))
    export_adapter(model, tmp_path / "lora")
    base = loaded(folder, kind, monkeypatch)
    before = logits(base)
    lora = load_adapter(base, tmp_path / "lora")
    # The two go through different kernels, which compute in 32 and in 16 bits.
    assert distance(logits(lora), logits(model)) < max(1e-3, LOOSE.get(kind, 0.0))
    assert torch.equal(logits(lora.unload()), before)


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao-int8"])
def test_folding_a_quantized_weight_is_refused(folder, kind, monkeypatch):
    with pytest.raises(ModelError, match=r"q_proj: a quantized weight cannot be folded; use truncation='attach'"):
        adapted(loaded(folder, kind, monkeypatch), truncation="fold")


def test_weights_quantized_by_hand_with_torchao_train_and_refuse_to_merge(folder, monkeypatch):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    torchao.quantize_(base, torchao.Int8WeightOnlyConfig())
    model = adapted(base)
    losses = trained(model, steps=6)
    assert losses[-1] < losses[0]
    with pytest.raises(ModelError, match=r"torchao .* cannot take a merged weight"):
        model.merge_adapter()


def test_a_layer_that_is_no_linear_map_is_refused(folder, monkeypatch):
    base = loaded(folder, "forward-only", monkeypatch)
    layer = base.model.layers[1].mlp.down_proj
    plain = layer.forward
    layer.forward = lambda x: plain(x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6))
    with pytest.raises(ModelError, match=r"gptq \(ForwardOnly\) layer does more than W x \+ b"):
        adapted(base)


def gptq_layer(linear, bits=4, group=32):
    """The layer as gptqmodel packs it, scales by rounding to the nearest."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    rows, columns = linear.weight.shape
    groups = linear.weight.detach().float().reshape(rows, columns // group, group)
    scales = groups.abs().amax(-1) / (2 ** (bits - 1) - 1)
    made = TorchLinear(
        bits=bits, group_size=group, sym=True, desc_act=False, in_features=columns, out_features=rows, bias=False
    )
    made.pack(linear, scales, torch.full_like(scales, 2 ** (bits - 1)), g_idx=(torch.arange(columns) // group).int())
    made.post_init()
    return made.eval()


def test_layers_of_gptqmodel_are_adapted(folder, tmp_path):
    pytest.importorskip("gptqmodel", reason="gptqmodel is not installed")
    from transformers import AutoModelForCausalLM

    def made():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name, module in list(base.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                parent, _, child = name.rpartition(".")
                setattr(base.get_submodule(parent), child, gptq_layer(module))
        return base.requires_grad_(False).eval()

    base = made()
    before = logits(base)
    model = adapted(base, tail_source="dequantized")
    assert {layer.quantization_backend.backend_name for layer in layers(model).values()} == {"gptq"}
    losses = trained(model)
    assert losses[-1] < 0.7 * losses[0]
    expected = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    with pytest.raises(ModelError, match=r"gptq \(TorchLinear\) layer cannot take a merged weight"):
        model.merge_adapter()
    export_adapter(model, tmp_path / "lora")
    assert distance(logits(PeftModel.from_pretrained(made(), tmp_path / "lora")), expected) < 1e-4
