"""What saves memory in training changes nothing of it: three steps with each are those without."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from accelerate import cpu_offload
from peft import get_peft_model
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from kasatune import KasaConfig
from tests.kasa.penalty_probe import TARGETS, batch, llama, scatter, trainable

STEPS = 3


def trained(model, around=nullcontext):
    """The losses of three steps with the penalty, and every trained parameter after them."""
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    model.train()
    losses = []
    for step in range(STEPS):
        with around():
            loss = model(**batch(llama, seed=step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def fresh(dropout=0.0, place=lambda base: base):
    """The same at every call, with the same draws to come; `place` puts the base where it is to lie."""
    config = KasaConfig(r=2, lora_alpha=4, lora_dropout=dropout, beta=0.1, gamma=0.1, target_modules=TARGETS[llama])
    model = get_peft_model(place(llama()), config)
    scatter(model)
    torch.manual_seed(5)
    return model


def assert_same(found, wanted, rounding=0.0):
    """Bit for bit, or up to a few roundings of float32."""
    assert len({*wanted[0]}) == STEPS
    assert found[0] == pytest.approx(wanted[0], rel=rounding, abs=0)
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=rounding, atol=rounding, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_checkpointed_blocks_are_computed_again_to_the_same_values(dropout):
    model, calls = fresh(dropout), []
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda *_: calls.append(0))
    found = trained(model)
    assert len(calls) == 2 * STEPS
    assert_same(found, trained(fresh(dropout)))


def test_an_offloaded_base_trains_the_same_adapter():
    model = fresh(place=lambda base: cpu_offload(base, torch.device("cpu")))
    kept = model.get_base_model().model.layers[0].self_attn.o_proj.weight
    assert kept.is_meta
    assert_same(trained(model), trained(fresh()), rounding=1e-6)  # a hooked layer is called by itself, and added to
    assert kept.is_meta


PACKED: list[int] = []


@contextmanager
def copied():
    """What backward needs waits as a copy."""

    def pack(tensor):
        PACKED.append(tensor.numel())
        return tensor.clone()

    with saved_tensors_hooks(pack, lambda kept: kept):
        yield


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("saver", [save_on_cpu, copied])
def test_activations_that_wait_elsewhere_give_the_same_gradients(saver, dropout):
    wanted = trained(fresh(dropout))
    PACKED.clear()
    assert_same(trained(fresh(dropout), saver), wanted)
    assert saver is save_on_cpu or PACKED
