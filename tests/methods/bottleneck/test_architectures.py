"""Bottleneck adapters in every architecture: places, switching off, files and parameter counts."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers as tf

from kasatune.errors import InputError, ModelError
from kasatune.methods.bottleneck import BottleneckConfig, BottleneckLayer
from kasatune.methods.bottleneck.places import KINDS
from tests.methods.bottleneck.models import ARCHITECTURES, BLOCKS, IDS, WIDTH, make


def adapted(architecture, kind="houlsby", **fields):
    torch.manual_seed(0)
    return peft.get_peft_model(make(architecture), BottleneckConfig(r=4, kind=kind, **fields)).eval()


def shaken(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_starts_as_the_base_and_restores_it_when_off(architecture, kind):
    base = logits(make(architecture))
    model = adapted(architecture, kind)
    assert torch.equal(logits(model), base)
    shaken(model)
    assert float((logits(model) - base).abs().max()) > 1e-4
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model.unload()), base)


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_is_adapted_the_same_number_of_times(kind):
    for architecture in ARCHITECTURES:
        model = adapted(architecture, kind)
        blocks = [layer.block for layer in model.modules() if isinstance(layer, BottleneckLayer)]
        assert {block: blocks.count(block) for block in blocks} == dict.fromkeys(
            range(BLOCKS), len(blocks) // BLOCKS
        ), architecture


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_alone_loads_the_saved_adapter(architecture, kind, tmp_path):
    model = shaken(adapted(architecture, kind))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    again = peft.PeftModel.from_pretrained(make(architecture), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    quick = peft.PeftModel.from_pretrained(make(architecture), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(logits(quick), logits(model))


def test_post_layer_norm_decides_where_pfeiffer_reads():
    places = {
        name: adapted(name, "pfeiffer").peft_config["default"].places for name in ("bert", "gpt2", "opt-post-norm")
    }
    assert set(places["bert"].items()) >= {("bert.encoder.layer.0.output.LayerNorm", "norm")}
    assert set(places["opt-post-norm"].values()) == {"norm"}
    assert places["gpt2"] == {f"transformer.h.{index}": "output" for index in range(BLOCKS)}


def test_an_adapted_block_keeps_its_attributes():
    block = adapted("qwen2", "lin").base_model.model.model.layers[1]
    assert isinstance(block, BottleneckLayer)
    assert block.self_attn is block.base_layer.self_attn
    with pytest.raises(AttributeError):
        _ = block.nothing_like_it


def test_two_adapters_on_one_model():
    model = shaken(adapted("bert"))
    first = logits(model)
    model.add_adapter("second", BottleneckConfig(r=2, kind="lin"))
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), logits(make("bert")), rtol=0, atol=0)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)


def test_generation_with_a_cache_agrees_with_one_pass():
    model = shaken(adapted("llama", "lin"))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **options), model.generate(IDS, use_cache=False, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    found = []
    for checkpointing in (False, True):
        model = shaken(adapted("bert", kind)).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_on_a_16_bit_base_the_adapter_is_float32_and_the_outputs_16_bit():
    torch.manual_seed(0)
    model = peft.get_peft_model(make("bert").to(torch.bfloat16), BottleneckConfig(r=4)).eval()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(shaken(model)).dtype == torch.bfloat16
    assert torch.isfinite(logits(model)).all()


def test_an_unknown_architecture_is_refused_by_name():
    config = tf.MPNetConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match=r"'mpnet' is not supported; supported are: bert.*roberta"):
        peft.get_peft_model(tf.MPNetForSequenceClassification(config), BottleneckConfig(kind="lin"))


def test_places_support_an_unknown_architecture():
    config = tf.MPNetConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    places = {"mpnet.encoder.layer.0.output.dense": "output"}
    model = peft.get_peft_model(tf.MPNetForSequenceClassification(config), BottleneckConfig(r=4, places=places))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * WIDTH * 4 + 4 + WIDTH


def test_merging_is_refused():
    model = adapted("bert")
    with pytest.raises(ModelError, match="not linear"):
        model.merge_and_unload()
    with pytest.raises(ModelError, match="not linear"):
        model.merge_adapter()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"r": 0}, "r must be"),
        ({"kind": "other"}, "kind must be one of houlsby"),
        ({"activation": "bump"}, "activation"),
        ({"adapter_dropout": 1.0}, "adapter_dropout"),
        ({"target_modules": ["query"]}, "places"),
    ],
)
def test_a_setting_out_of_its_range_is_named(fields, named):
    with pytest.raises(InputError, match=named):
        BottleneckConfig(**fields)


def test_first_block_past_the_last_block_is_refused():
    with pytest.raises(ModelError, match="first_block: 3 received"):
        adapted("bert", first_block=BLOCKS)
