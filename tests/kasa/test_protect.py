"""KasaConfig(protect=...): A stays out of the strongest input directions, and the saved adapter is an ordinary one."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import kasatune
from kasatune import KasaConfig, calibrate, export_adapter
from kasatune.errors import InputError, ModelError
from kasatune.kasa import KasaLayer
from kasatune.kasa.calibration import calibrate_adapter
from kasatune.linalg.leading_directions import InputMoments, direction_count, leading_directions

IDS = torch.arange(3, 33).reshape(3, 10)


def llama():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def config(**changes):
    return KasaConfig(**{"r": 4, "target_modules": "all-linear", "protect": 0.2, "drop": 0, **changes})


def layers(model):
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, KasaLayer)}


def leak(model, adapter="default"):
    """The largest entry of A K over the layers, relative to A."""
    return max(
        float((A @ layer.protected[adapter].float()).norm() / A.norm())
        for layer in layers(model).values()
        for A in [layer.kasa_A[adapter].detach()]
    )


def steps(model, count=3, optimizer=None):
    """Train for some steps, with a large learning rate."""
    optimizer = optimizer or torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(count):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("tokens", [200, 5])
def test_directions_are_the_leading_eigenvectors_of_the_second_moments(tokens):
    X = torch.randn(tokens, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 12)
    eigenvalues, vectors = torch.linalg.eigh((X.double().T @ X.double()) / tokens)
    moments = InputMoments(X, None, tokens) if tokens < 12 else InputMoments(None, X.double().T @ X.double(), tokens)

    leading = leading_directions(moments, 3)

    expected = vectors[:, -3:]
    assert torch.allclose(leading.K.double() @ leading.K.double().T, expected @ expected.T, atol=1e-6)
    assert leading.energy == pytest.approx(float(eigenvalues[-3:].sum() / eigenvalues.sum()), rel=1e-6)


def test_directions_are_as_many_as_the_inputs_have():
    X = torch.zeros(5, 12)
    X[:, :2] = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))

    assert leading_directions(InputMoments(X, None, 5), 4).K.shape == (12, 2)


@pytest.mark.parametrize(("share", "width", "count"), [(0, 30, 0), (0.1, 30, 3), (0.02, 576, 12), (1e-6, 8, 1)])
def test_a_share_of_the_directions_rounds_up(share, width, count):
    assert direction_count(share, width) == count


def test_A_stays_out_of_the_protected_directions_through_training():
    base = llama()
    calibrated = calibrate(base, config())
    model = get_peft_model(base, copy.deepcopy(calibrated))
    assert leak(model) < 1e-3
    before = {name: layer.kasa_A["default"].detach().clone() for name, layer in layers(model).items()}

    steps(model)

    assert leak(model) < 1e-3
    for name, layer in layers(model).items():
        leading = leading_directions(calibrated.activations.inputs[name], layer.settings["default"].protect)
        assert (leading.K.T @ layer.protected["default"].float()).abs().diagonal().min() > 0.999
        assert not torch.equal(layer.kasa_A["default"], before[name])


def test_without_protection_A_uses_these_directions():
    """The control of the test above: the same training leaves a large part of A in them."""
    base = llama()
    K = {name: layer.protected["default"] for name, layer in layers(get_peft_model(llama(), config())).items()}
    model = steps(get_peft_model(base, config(protect=0.0)))

    for name, layer in layers(model).items():
        layer.protected["default"] = K[name]
    assert leak(model) > 0.1


def test_layers_that_read_one_tensor_share_their_directions():
    model = steps(get_peft_model(llama(), config()), 1)
    block = "model.layers.1."
    K = {
        name.removeprefix(block): m.protected["default"] for name, m in layers(model).items() if name.startswith(block)
    }

    assert K["self_attn.q_proj"] is K["self_attn.k_proj"] is K["self_attn.v_proj"]
    assert K["mlp.gate_proj"] is K["mlp.up_proj"]
    assert len({k.data_ptr() for k in K.values()}) == 4
    assert {k.dtype for k in K.values()} == {torch.float16}


def test_gradients_of_two_micro_batches_and_another_optimizer_are_projected_too():
    model = get_peft_model(llama(), config(r=3))
    A = [p for name, p in model.named_parameters() if "kasa_A" in name]
    rest = [p for name, p in model.named_parameters() if "kasa_A" not in name and p.requires_grad]
    both = [torch.optim.SGD(A, lr=1.0), torch.optim.AdamW(rest, lr=0.1)]
    for _ in range(2):
        model(input_ids=IDS, labels=IDS).loss.backward()
        for optimizer in both:
            optimizer.step()

    assert leak(model) < 1e-3


def test_the_saved_and_the_exported_adapter_are_ordinary(tmp_path):
    model = steps(get_peft_model(llama(), config(truncate_by="activation", drop=2))).eval()
    model.save_pretrained(tmp_path / "kasa")
    export_adapter(model, tmp_path / "lora", to="lora")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        for folder in ("kasa", "lora"):
            loaded = PeftModel.from_pretrained(llama(), tmp_path / folder)
            assert torch.allclose(loaded(input_ids=IDS).logits, expected, atol=1e-5)
    saved = KasaConfig.from_pretrained(tmp_path / "kasa")
    assert saved.protect == 0.2
    used = saved.calibration_used["layers"]["model.layers.0.mlp.down_proj"]
    assert used["protected"] == 5 and 0 < used["energy"] <= 1 and len(used["cut"]) == 2
    assert not [key for key in model.state_dict() if "protected" in key]


def test_training_of_a_loaded_adapter_needs_its_directions_again(tmp_path):
    model = steps(get_peft_model(llama(), config()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    with pytest.warns(UserWarning, match=r"Call kasatune.protect\(model\)"):
        steps(loaded, 1)

    loaded = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    before = {name: layer.kasa_A["default"].detach().clone() for name, layer in layers(loaded).items()}
    kasatune.protect(loaded)
    for name, layer in layers(loaded).items():
        assert torch.allclose(layer.kasa_A["default"], before[name], atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        steps(loaded)
    assert leak(loaded) < 1e-3


def test_an_adapter_is_calibrated_after_it_was_attached():
    """As a run does with rows of its task: the result is that of calibrating first."""
    batches = [{"input_ids": IDS}, {"input_ids": IDS.flip(1)}]
    torch.manual_seed(0)
    first = get_peft_model(llama(), calibrate(llama(), config(truncate_by="activation", drop=2), batches))
    later = config(truncate_by="activation", drop=2)
    later.calibrate_later = True
    torch.manual_seed(0)
    model = get_peft_model(llama(), later)
    assert not any(layer.kasa_tail_U["default"].any() for layer in layers(model).values())

    calibrate_adapter(model, batches)

    for name, layer in layers(model).items():
        other = layers(first)[name]
        assert torch.allclose(layer.tail("default"), other.tail("default"), atol=1e-6)
        assert torch.allclose(layer.kasa_A["default"], other.kasa_A["default"], atol=1e-3)
    used = [m.peft_config["default"].calibration_used for m in (first, model)]
    assert used[0]["tokens"] == used[1]["tokens"] == 60 and used[0]["layers"].keys() == used[1]["layers"].keys()


def test_a_deleted_or_replaced_adapter_leaves_no_directions():
    model = get_peft_model(llama(), config())
    model.add_adapter("other", config(protect=0.0, target_modules=["q_proj", "up_proj"]))
    model.set_adapter("other")
    steps(model, 1)
    model.delete_adapter("default")
    assert not any(layer.protected for layer in layers(model).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protect": 1}, r"protect must be at least 0 and below 1, got 1"),
        ({"protect": -0.1}, r"protect must be at least 0 and below 1"),
        ({"protect": "2%"}, r"protect must be at least 0 and below 1, got '2%'"),
        ({"convention": "authors", "drop": None}, r"leave protect and sigma_init at their defaults"),
        ({"sigma_init": "two"}, r"sigma_init must be one of normal, one"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_too_few_directions_for_the_rank_are_refused():
    with pytest.raises(ModelError, match=r"closes 15 of 16 input directions and leaves fewer than rank 4"):
        get_peft_model(llama(), config(protect=0.9))


def test_protect_needs_an_adapter_that_was_created_with_it():
    with pytest.raises(InputError, match=r"no layer of the model has an adapter 'default'.*protect="):
        kasatune.protect(get_peft_model(llama(), config(protect=0.0)))


def test_sigma_starts_at_one():
    for core, expected in (("diagonal", torch.ones(4)), ("dense", torch.eye(4))):
        model = get_peft_model(llama(), config(sigma_init="one", core=core, protect=0.0))
        assert all(torch.equal(layer.kasa_sigma["default"].data, expected) for layer in layers(model).values())
