"""Activation moments: literal means, text that the model writes itself, and a model that is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from kasatune import KasaConfig, calibrate
from kasatune.errors import InputError, ModelError
from kasatune.kasa.truncation.measure_activations import measure, measure_generated
from kasatune.kasa.truncation.self_written_text import LENGTH, SEQUENCES
from kasatune.weights.quantized_weight import weight_of


def llama(**changes):
    torch.manual_seed(3)
    options = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**options, **changes}))


def linear_layers(model):
    return {
        name: weight_of(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def inputs_of(model, name, batch):
    """What the layer reads, by a hook of the test's own."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj"])
def test_moments_are_the_means_over_tokens_without_padding(name):
    model = llama().eval()
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    weight = weight_of(model.get_submodule(name))
    moment = measure(model, {name: weight}, [batch]).moments[name]
    x = inputs_of(model, name, batch)[mask.bool()].double()
    values = x if weight.shape[0] > weight.shape[1] else x @ weight.read().double().T
    assert moment.tokens == 18
    torch.testing.assert_close(moment.moments, values.T @ values / 18, rtol=1e-5, atol=1e-8)
    assert moment.mean_square == pytest.approx(float(x.square().mean()), rel=1e-5)


def test_two_batches_weigh_by_their_tokens_and_a_bias_is_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4))
    layers = {"0": weight_of(model[0])}
    first, second = torch.randn(3, 5), torch.randn(600, 5)
    moment = measure(model, layers, [{"input": first}, {"input": second}]).moments["0"]
    y = (torch.cat([first, second]) @ model[0].weight.T).double().detach()
    torch.testing.assert_close(moment.moments, y.T @ y / 603, rtol=1e-5, atol=1e-7)


def test_generated_text_gives_the_moments_of_reading_it():
    model = llama().eval()
    name = "model.layers.1.self_attn.v_proj"
    layers = {name: weight_of(model.get_submodule(name))}
    written = []
    generate = model.generate
    model.generate = lambda *args, **kwargs: written.append(generate(*args, **kwargs))
    moment = measure_generated(model, layers, seed=4)
    assert written[0].shape == (SEQUENCES, LENGTH)
    assert set(written[0][:, 0].tolist()) == {1}
    assert 2 not in written[0]
    again = measure(model, layers, [{"input_ids": written[0][:, :-1]}])
    torch.testing.assert_close(moment.moments[name].moments, again.moments[name].moments, rtol=1e-4, atol=1e-6)
    assert (moment.source, moment.tokens, moment.seed) == ("generated", SEQUENCES * (LENGTH - 1), 4)


def test_one_seed_gives_one_text_whatever_the_settings_of_the_model():
    name = "model.layers.1.mlp.down_proj"
    model, other = llama(), llama()
    other.generation_config.do_sample = False
    other.generation_config.max_new_tokens = 3
    moments = [
        measure_generated(each, linear_layers(each), seed=seed).moments[name].moments
        for each, seed in ((model, 1), (model, 1), (other, 1), (model, 2))
    ]
    assert torch.equal(moments[0], moments[1])
    assert torch.equal(moments[0], moments[2])
    assert not torch.equal(moments[0], moments[3])


def test_the_model_is_left_as_it_was():
    model = llama(attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    settings = copy.deepcopy(model.generation_config.to_dict())
    weights = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    measure_generated(model, linear_layers(model))
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_encoder_reads_random_tokens():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    result = measure_generated(model, linear_layers(model))
    assert (result.source, result.tokens) == ("random", SEQUENCES * 18)


def test_models_that_cannot_calibrate_themselves_are_refused_with_the_remedy():
    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=30, d_model=16, d_ff=24, num_layers=1, num_heads=2, d_kv=8))
    with pytest.raises(InputError, match=r"encoder-decoder.*calibrate\(base, config, batches\)"):
        measure_generated(t5, linear_layers(t5))
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InputError, match="does not read tokens"):
        measure_generated(plain, {"0": weight_of(plain[0])})
    with torch.device("meta"):
        empty = llama()
    with pytest.raises(ModelError, match="meta device"):
        measure_generated(empty, linear_layers(empty))


def test_no_batches_and_layers_that_never_run_are_refused_by_name():
    model = llama()
    layers = linear_layers(model)
    with pytest.raises(InputError, match=r"layers never ran, first model\.layers\.0"):
        measure(model, layers, [])


def test_layers_that_share_an_input_have_its_own_mean_square():
    model = llama().eval()
    layers = linear_layers(model)
    ids = torch.randint(3, 40, (2, 7))
    inputs = {}
    hooks = [
        weight.layer.register_forward_hook(lambda module, args, output, name=name: inputs.update({name: args[0]}))
        for name, weight in layers.items()
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    measured = measure(model, layers, [{"input_ids": ids}]).moments
    for name, x in inputs.items():
        assert measured[name].mean_square == pytest.approx(float(x.double().square().mean()), rel=1e-6), name


def test_without_tails_the_inputs_alone_are_measured():
    model = llama().eval()
    layers = linear_layers(model)
    batches = [{"input_ids": torch.randint(3, 40, (2, 7))}]
    everything = measure(model, layers, batches, inputs=True)
    alone = measure(model, layers, batches, inputs=True, tails=False)
    assert everything.moments
    assert not alone.moments
    assert alone.tokens == everything.tokens == 14
    assert alone.inputs.keys() == everything.inputs.keys() == layers.keys()
    for name, inputs in alone.inputs.items():
        for part in ("rows", "moments"):
            assert_same(getattr(inputs, part), getattr(everything.inputs[name], part))


def assert_same(one: torch.Tensor | None, other: torch.Tensor | None) -> None:
    assert (one is None) == (other is None)
    assert one is None or torch.equal(one, other)


def test_a_drop_that_grows_after_calibration_is_refused():
    model = llama()
    config = calibrate(model, KasaConfig.akasa(r=2, target_modules=["v_proj"]))
    config.drop = 2
    with pytest.raises(InputError, match=r"calibrated with drop=0.*drop is now 2: call calibrate again"):
        get_peft_model(model, config)
