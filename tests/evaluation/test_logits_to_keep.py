"""Logits of the learnt tokens alone: the same loss and gradients as from all logits, and which models cannot do it."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
)

from kasatune import KasaConfig
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.evaluation.causal_loss import (
    kept_row_losses,
    learnt_tokens,
    next_tokens,
    predicting,
    row_losses,
    summed_cross_entropy,
    text_loss,
    token_losses,
)
from kasatune.evaluation.logits_to_keep import kept_logits, logits_to_keep

SHAPE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, **HEADS),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "gemma2, soft-capped": Gemma2Config(**SHAPE, **HEADS, head_dim=8, final_logit_softcapping=0.05),
    "cohere, scaled": CohereConfig(**SHAPE, **HEADS, logit_scale=0.1),
    "granite, scaled": GraniteConfig(**SHAPE, **HEADS, logits_scaling=3.0),
    "biogpt": BioGptConfig(**SHAPE, num_attention_heads=2, max_position_embeddings=32),
}


def batch():
    """Three padded rows of which parts are learnt, nothing of the last one."""
    torch.manual_seed(3)
    ids = torch.randint(1, 40, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = torch.where(mask.bool(), ids, IGNORED)
    labels[0, :4] = labels[1, :2] = labels[2] = IGNORED
    return {"input_ids": ids, "attention_mask": mask}, labels


def model_of(name, **changes):
    torch.manual_seed(0)
    config = CONFIGS[name]
    for key, value in changes.items():
        setattr(config, key, value)
    return AutoModelForCausalLM.from_config(config)


def loss_and_gradients(model, *, keep):
    inputs, labels = batch()
    model.zero_grad()
    torch.manual_seed(1)
    if keep:
        with logits_to_keep(model, predicting(labels)):
            logits = model(**inputs).logits
        assert logits.shape[:2] == (1, learnt_tokens(labels))
        loss = token_losses(logits, labels) / learnt_tokens(labels)
    else:
        logits = model(**inputs).logits
        targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model):
    expected, gradients = loss_and_gradients(model, keep=False)
    loss, kept = loss_and_gradients(model, keep=True)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    assert kept.keys() == gradients.keys() and kept
    for name, gradient in gradients.items():
        torch.testing.assert_close(kept[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_all_logits(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(model_of(name).eval())


@pytest.mark.parametrize("config", [KasaConfig, LoraConfig])
def test_an_adapter_on_the_output_layer_counts(config):
    torch.manual_seed(2)
    base = model_of("llama")
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    model = get_peft_model(base, config(r=2, target_modules=["lm_head", "q_proj"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    assert_equal(model)
    _, gradients = loss_and_gradients(model, keep=True)
    assert any("lm_head" in name and gradient.abs().sum() > 0 for name, gradient in gradients.items())


def test_gradient_checkpointing_and_16_bits():
    model = model_of("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(model.train())
    model = model_of("llama").to(torch.bfloat16)
    expected, _ = loss_and_gradients(model, keep=False)
    loss, _ = loss_and_gradients(model, keep=True)
    torch.testing.assert_close(loss, expected, rtol=0, atol=2e-2)


def test_nothing_learnt_gives_a_loss_of_zero_that_has_a_gradient():
    model = model_of("llama")
    inputs, labels = batch()
    labels[:] = IGNORED
    with logits_to_keep(model, predicting(labels)):
        loss = token_losses(model(**inputs).logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in model.parameters())


class Chunked(torch.nn.Module):
    """A model whose output layer looks at several positions at once, so that positions cannot be selected before it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.calls = 0
        inner.lm_head.register_forward_hook(lambda module, _, output: output + output.mean(1, keepdim=True))

    def get_output_embeddings(self):
        return self.inner.lm_head

    def forward(self, **inputs):
        self.calls += 1
        return self.inner(**inputs)


class Headless(Chunked):
    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize("kind", [Chunked, Headless])
def test_a_model_that_cannot_do_it_computes_all_logits_and_says_so_once(kind):
    model = kind(model_of("llama"))
    inputs, labels = batch()
    with pytest.warns(UserWarning, match=f"^{kind.__name__} computes the logits of all tokens"):
        logits = kept_logits(model, inputs, predicting(labels))
    torch.testing.assert_close(logits, model(**inputs).logits[predicting(labels)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = model.calls
        with logits_to_keep(model, predicting(labels)):
            assert model(**inputs).logits.shape[:2] == labels.shape
    assert model.calls == before + 1


def test_the_trial_changes_neither_modes_nor_random_numbers():
    model = model_of("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    keep = predicting(batch()[1])
    state = torch.get_rng_state()
    with logits_to_keep(model, keep):
        pass
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_row_losses_of_evaluation_are_those_of_all_logits():
    model = model_of("llama").eval()
    inputs, labels = batch()
    with torch.no_grad():
        expected = row_losses(model(**inputs).logits, labels)
        kept = kept_row_losses(kept_logits(model, inputs, predicting(labels)), next_tokens(labels))
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)
    ids = inputs["input_ids"]
    rows = [{"input_ids": ids[i].tolist(), "labels": labels[i].tolist()} for i in range(len(ids))]
    rows[1] = {key: value[:6] for key, value in rows[1].items()}

    def collate(chosen):
        width = max(len(row["input_ids"]) for row in chosen)
        fill = {"input_ids": 0, "labels": IGNORED}
        return {k: torch.tensor([row[k] + [fill[k]] * (width - len(row[k])) for row in chosen]) for k in fill}

    found = text_loss(model, Examples(rows, frozenset()), collate, 2)
    assert found.sums == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.tokens == [5, 4, 0]


def test_the_summed_cross_entropy_equals_pytorchs(monkeypatch):
    monkeypatch.setattr("kasatune.evaluation.causal_loss._SummedCrossEntropy._BLOCK_BYTES", 4 * 50 * 4)
    logits = torch.randn(11, 50) * 8
    targets = torch.randint(0, 50, (11,))
    own, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = summed_cross_entropy(own, targets)
    expected = functional.cross_entropy(other, targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-6)
    again = summed_cross_entropy(own, targets)
    again.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward pass ran twice"):
        again.backward()
