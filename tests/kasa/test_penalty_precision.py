"""Half precision: the penalty under a loss scale, and in float32 where the adapter is not."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from peft import get_peft_model

from kasatune import KasaConfig, regularization
from kasatune.kasa import KasaLayer
from kasatune.kasa.functional import Factors, penalty_gradients
from tests.kasa.penalty_probe import (
    BETA,
    GAMMA,
    Probe,
    adapted,
    assert_penalized_once,
    batch,
    bert,
    expected_penalty,
    no_warning,
    scatter,
    train,
    trainable,
)

OPTIMIZERS = {
    "plain": lambda parameters: torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, foreach=False, fused=False),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, foreach=True),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True),
}


@pytest.fixture(autouse=True)
def accelerate_starts_afresh():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train_scaled(model, kind, *, unscale=False, wrap=False, steps=2, overflow_at=None):
    """Two steps in float16 autocast under a GradScaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    inner = OPTIMIZERS[kind](trainable(model))
    probe = Probe(model, inner)
    optimizer = inner
    if wrap:
        Accelerator(cpu=True)
        optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    for step in range(steps):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(**batch(seed=step)).loss
        scaler.scale(loss * (float("inf") if step == overflow_at else 1.0)).backward()
        if unscale:
            scaler.unscale_(inner)
            torch.nn.utils.clip_grad_norm_(trainable(model), 0.5)
        if wrap:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return probe.steps


@pytest.mark.parametrize("unscale", [False, True], ids=["as it comes", "unscaled and clipped before"])
@pytest.mark.parametrize("wrap", [False, True], ids=["", "accelerate"])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_the_loss_scale_does_not_scale_the_penalty(kind, wrap, unscale):
    with no_warning():
        seen = train_scaled(adapted(), kind, unscale=unscale, wrap=wrap)
    task = train_scaled(adapted(penalty="none"), kind, unscale=unscale, wrap=wrap)
    if unscale:
        norms = [torch.stack([g.norm() for g in step.gradients.values()]).norm() for step in task]
        assert all(norm <= 0.5 + 1e-5 for norm in norms)
    assert_penalized_once(seen, task)


@pytest.mark.parametrize("wrap", [False, True], ids=["", "accelerate"])
@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_step_that_overflowed_is_skipped_and_the_next_one_penalized_once(kind, wrap):
    model = adapted()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_scaled(model, kind, wrap=wrap, steps=1, overflow_at=0)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    seen = train_scaled(model, kind, wrap=wrap, steps=2, overflow_at=0)[-1:]
    task = train_scaled(adapted(penalty="none"), kind, wrap=wrap, steps=2, overflow_at=0)[-1:]
    assert_penalized_once(seen, task)


def test_a_fused_optimizer_goes_where_the_plain_one_goes():
    models = {}
    for kind in ("plain", "fused"):
        models[kind] = adapted()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.AdamW(trainable(models[kind]), lr=1e-2, fused=kind == "fused")
        for step in range(4):
            scaler.scale(models[kind](**batch(seed=step)).loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    for (name, plain), fused in zip(models["plain"].named_parameters(), models["fused"].parameters(), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalty_of_a_half_precision_adapter_is_computed_in_float32(dtype):
    model = adapted().to(dtype)
    layers = [layer.factors("default") for layer in model.modules() if isinstance(layer, KasaLayer)]
    assert all(factor.dtype == dtype for factors in layers for factor in factors)
    wide = [Factors(*(f.detach().float() for f in factors)) for factors in layers]
    exact = regularization(model)
    assert exact.dtype == torch.float32
    reference = BETA * sum(f.sigma.double().square().sum() for f in wide)
    for f in wide:
        A, B = f.A.double(), f.B.double()
        for gram in (A @ A.T, B.T @ B):
            reference = reference + GAMMA * (gram - torch.eye(2, dtype=torch.float64)).norm()
    assert exact.item() == pytest.approx(reference.item(), rel=1e-6)

    torch.optim.SGD(trainable(model), lr=0.0).step()
    for factors, wanted in zip(layers, penalty_gradients(wide, BETA, GAMMA, "paper"), strict=True):
        for factor, gradient in zip(factors, wanted, strict=True):
            assert torch.equal(factor.grad, gradient.to(dtype))


def test_sigma_acts_in_float32_in_a_bfloat16_adapter():
    model = adapted(lora_alpha=3).to(torch.bfloat16)
    layer = next(layer for layer in model.modules() if isinstance(layer, KasaLayer))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        A, sigma, B = layer.factors("default")
        A[0, 0], B[0, 0], sigma[0] = 1.5, 1.0, 1.0078125
        out = layer(torch.eye(1, layer.in_features, dtype=torch.bfloat16))
    # 1.5 sigma = 1.51171875 takes more bits than bfloat16 has; rounded first, it would give 2.28125.
    assert out[0, 0].item() == 2.265625 == torch.tensor(1.5 * 1.5 * 1.0078125, dtype=torch.bfloat16).item()
    assert out.dtype == torch.bfloat16


def test_an_adapter_in_the_dtype_of_a_bfloat16_base_keeps_sigma_wide_and_its_penalty():
    def make(penalty):
        config = KasaConfig(r=2, beta=BETA, gamma=GAMMA, target_modules=["query"], penalty=penalty)
        model = get_peft_model(bert().to(torch.bfloat16), config, autocast_adapter_dtype=False)
        scatter(model)
        return model

    dtypes = {n.split(".")[-2]: p.dtype for n, p in make("step").named_parameters() if "kasa_" in n}
    assert dtypes["kasa_sigma"] == dtypes["kasa_tail_U"] == dtypes["kasa_tail_V"] == torch.float32
    assert dtypes["kasa_A"] == dtypes["kasa_B"] == torch.bfloat16
    seen, task = train(make("step")), train(make("none"))
    for step, reference in zip(seen, task, strict=True):
        for name, penalty in expected_penalty(step.values).items():
            # A sum in bfloat16 rounds once more.
            rtol = 1e-5 if "sigma" in name else 2**-7
            torch.testing.assert_close(step.gradients[name], reference.gradients[name] + penalty, rtol=rtol, atol=rtol)
