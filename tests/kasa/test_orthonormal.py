"""KasaConfig(orthonormal=True): orthonormal factors through training, and an ordinary adapter in its files."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel, get_peft_model

from kasatune import KasaConfig, export_adapter, regularization
from kasatune.errors import InputError
from kasatune.kasa.layer import kasa_layers
from kasatune.kasa.orthonormal import polar_rows
from tests.kasa.models import llama, token_ids


def config(**changes):
    return KasaConfig(
        **{"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "drop": 0, "orthonormal": True, **changes}
    )


def steps(model, number=3, rate=0.05, **settings):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, **settings)
    for _ in range(number):
        model(token_ids()).logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def defect(model):
    """The largest entry of A A^T - I and B^T B - I."""
    worst = 0.0
    for _, layer in kasa_layers(model):
        A, _, B = layer.factors("default")
        for gram in (A @ A.T, B.T @ B):
            worst = max(worst, float((gram - torch.eye(len(gram))).abs().max()))
    return worst


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_polar_rows_are_the_polar_factor(spread):
    generator = torch.Generator().manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(5, 4, 20, generator=generator, dtype=torch.float64), full_matrices=False)
    S = torch.exp(spread * torch.linspace(-0.5, 0.5, 4, dtype=torch.float64))
    torch.testing.assert_close(polar_rows(3 * U * S @ Vh), U @ Vh, atol=1e-6, rtol=0)
    assert polar_rows((U * S @ Vh).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("core", ["diagonal", "dense"])
def test_training_starts_as_the_base_and_factors_stay_orthonormal(core):
    base = llama()
    expected = logits(base)
    model = get_peft_model(base, config(core=core))
    torch.testing.assert_close(logits(model), expected)
    assert defect(model) < 1e-6
    steps(model.train(), weight_decay=0.1)
    assert defect(model) < 1e-5
    assert (logits(model) - expected).abs().max() > 1e-3
    assert all(bool(layer.kasa_sigma["default"].any()) for _, layer in kasa_layers(model))


def test_the_scale_is_the_root_mean_square_of_the_singular_values():
    base = llama()
    model = get_peft_model(base, config(lora_alpha=8, alpha_pattern={"q_proj": 12}))
    for name, layer in kasa_layers(model):
        W = layer.original_weight()
        alpha = 12 if name.endswith("q_proj") else 8
        assert layer.scaling["default"] == pytest.approx(alpha / 4 * float(W.norm()) / math.sqrt(min(W.shape)))


def test_a_configuration_that_is_used_twice_is_scaled_once():
    given = config()
    first = get_peft_model(llama(), given)
    second = get_peft_model(llama(), given)
    scales = [[layer.scaling["default"] for _, layer in kasa_layers(model)] for model in (first, second)]
    assert scales[0] == scales[1]


def test_the_gamma_term_is_left_out():
    model = get_peft_model(llama(), config(gamma=10.0, beta=0.0))
    steps(model.train())
    assert float(regularization(model)) == 0


def test_protected_directions_stay_closed():
    model = steps(get_peft_model(llama(), config(protect=0.2)).train())
    assert defect(model) < 1e-5
    for _, layer in kasa_layers(model):
        assert float((layer.kasa_A["default"] @ layer.protected["default"].float()).abs().max()) < 2e-3


def test_only_stepped_adapters_are_retracted():
    model = get_peft_model(llama(), config())
    other = torch.nn.Linear(2, 2)
    with torch.no_grad():
        for _, layer in kasa_layers(model):
            layer.kasa_A["default"].mul_(2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.ones(2)).sum().backward()
    optimizer.step()
    assert defect(model) == pytest.approx(3, abs=1e-4)


def test_saved_loaded_exported_and_trained_on(tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    model = steps(get_peft_model(base, config(drop=2)).train())
    expected = logits(model)
    model.save_pretrained(tmp_path / "kasa")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "kasa", is_trainable=True)
    torch.testing.assert_close(logits(loaded), expected)
    assert defect(steps(loaded.train())) < 1e-5
    export_adapter(tmp_path / "kasa", tmp_path / "lora", to="lora")
    lora = PeftModel.from_pretrained(llama(), tmp_path / "lora")
    torch.testing.assert_close(logits(lora), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"orthonormal": "yes"}, r"orthonormal must be True or False, got 'yes'"),
        ({"sigma_init": "one"}, r"orthonormal=True starts sigma at 0"),
        ({"convention": "authors", "drop": None}, r"leave convention and sigma_init"),
    ],
)
def test_settings_that_contradict_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        config(**wrong)


def test_configurations_without_it_are_written_as_before():
    assert "orthonormal" not in KasaConfig(r=4).to_dict()
    assert config().to_dict()["orthonormal"] is True
