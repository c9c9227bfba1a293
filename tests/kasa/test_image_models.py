"""KaSA on image models through `peft.inject_adapter_in_model`: convolutions with attention, and models of diffusers."""

from __future__ import annotations

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn

from kasatune import KasaConfig, export_adapter, regularization
from kasatune.errors import ModelError
from kasatune.kasa import KasaLayer

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
DIFFUSERS = "diffusers is not installed: pip install diffusers"


class Attention(nn.Module):
    """With the names of diffusers' attention."""

    def __init__(self, width):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x):
        return self.to_out[0](nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


class Denoiser(nn.Module):
    """A convolution of kernel 3, one of kernel 1, and attention over the pixels."""

    def __init__(self, width=12):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.attention = Attention(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        hidden = self.proj_in(self.conv_in(x).relu())
        pixels = hidden.flatten(2).transpose(1, 2)
        return self.conv_out(hidden + self.attention(pixels).transpose(1, 2).reshape(hidden.shape))


def denoiser():
    torch.manual_seed(0)
    return Denoiser()


def images(channels=3, size=6):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def config(**settings):
    return KasaConfig(r=2, lora_alpha=4, **{"target_modules": [*ATTENTION, "proj_in"], **settings})


def step(model, loss, rate=0.1):
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss.backward()
    torch.optim.SGD(trained.values(), lr=rate).step()
    return {name: p.detach().clone() for name, p in trained.items()}


def injected(**settings):
    model = denoiser()
    torch.manual_seed(2)
    return inject_adapter_in_model(config(**settings), model)


def test_an_injected_adapter_trains_on_attention_and_convolutions_of_kernel_1_with_the_penalty():
    model, unpenalized = injected(beta=0.5, gamma=0.0), injected(beta=0.5, gamma=0.0, penalty="none")
    assert isinstance(model, Denoiser)
    assert [name for name, module in model.named_modules() if isinstance(module, KasaLayer)] == [
        "proj_in",
        *(f"attention.{name}" for name in ATTENTION),
    ]
    sigma = {name: p.detach().clone() for name, p in model.named_parameters() if "kasa_sigma" in name}
    torch.testing.assert_close(regularization(model), 0.5 * sum(s.square().sum() for s in sigma.values()))
    with_penalty, without = (step(m, m(images()).square().mean()) for m in (model, unpenalized))
    assert all(".kasa_" in name for name in with_penalty)
    for name, value in with_penalty.items():
        expected = without[name] - 0.1 * 2 * 0.5 * sigma[name] if name in sigma else without[name]
        torch.testing.assert_close(value, expected)


def test_an_injected_adapter_is_saved_and_loaded_by_its_tensors():
    model = injected()
    step(model, model(images()).square().mean())
    saved = get_peft_model_state_dict(model)
    fresh = inject_adapter_in_model(config(), denoiser(), state_dict=saved)
    outcome = set_peft_model_state_dict(fresh, saved)
    assert not outcome.unexpected_keys
    torch.testing.assert_close(fresh.eval()(images()), model.eval()(images()), rtol=0, atol=0)


def test_convolutions_of_other_kernels_are_refused_by_name():
    with pytest.raises(
        ModelError, match=r"conv_in is a Conv2d \(convolution\) of kernel \[3, 3\].*conv_out is a Conv2d"
    ):
        inject_adapter_in_model(config(target_modules=["conv_in", "conv_out", "to_q"]), denoiser())


def unet():
    diffusers = pytest.importorskip("diffusers", reason=DIFFUSERS)
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def denoised(model):
    texts = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(3))
    return model(images(4, 8), timestep=torch.tensor([5, 9]), encoder_hidden_states=texts).sample


def test_diffusers_add_adapter_on_a_unet():
    model = unet()
    with torch.no_grad():
        base = denoised(model)
    model.add_adapter(config(target_modules=ATTENTION))
    step(model.train(), denoised(model).square().mean())
    tuned = denoised(model.eval()).detach()
    assert not torch.allclose(tuned, base, atol=1e-4)
    saved = get_peft_model_state_dict(model)
    fresh = inject_adapter_in_model(config(target_modules=ATTENTION), unet(), state_dict=saved)
    set_peft_model_state_dict(fresh, saved)
    torch.testing.assert_close(denoised(fresh.eval()), tuned, rtol=0, atol=0)
    model.disable_adapters()
    torch.testing.assert_close(denoised(model), base, rtol=0, atol=0)


def test_diffusers_loads_the_exported_lora_of_a_unet(tmp_path):
    model = unet()
    tuned = get_peft_model(model, config(target_modules=ATTENTION))
    step(tuned.train(), denoised(tuned).square().mean())
    export_adapter(tuned, tmp_path / "lora", to="lora")
    fresh = unet()
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    fresh.load_lora_adapter(weights, prefix="base_model.model")
    assert all(isinstance(settings, LoraConfig) for settings in fresh.peft_config.values())
    torch.testing.assert_close(denoised(fresh), denoised(tuned.eval()), rtol=1e-4, atol=1e-5)


def test_diffusers_inject_adapter_in_a_dit():
    diffusers = pytest.importorskip("diffusers", reason=DIFFUSERS)
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()

    def predicted():
        return model(images(4, 8), timestep=torch.tensor([5, 9]), class_labels=torch.tensor([0, 1])).sample

    base = predicted().detach()
    inject_adapter_in_model(config(target_modules=[*ATTENTION, "ff.net.2"]), model)
    step(model, predicted().square().mean())
    assert not torch.allclose(predicted(), base, atol=1e-4)
