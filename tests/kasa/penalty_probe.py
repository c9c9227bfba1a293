"""Tiny models with a strong KaSA penalty, and what an optimizer sees of it."""

import warnings
from contextlib import contextmanager
from typing import NamedTuple

import peft
import torch
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from kasatune import KasaConfig
from kasatune.kasa.functional import Factors, penalty_gradients

BETA, GAMMA = 100.0, 10.0
PARTS = {"kasa_A": "A", "kasa_sigma": "sigma", "kasa_B": "B"}


def bert(seed=0, **config):
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
            **config,
        )
    )


def gpt2(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def llama(seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
    )


TARGETS = {bert: ["query", "value"], gpt2: ["c_attn"], llama: ["q_proj", "k_proj", "down_proj"]}


def adapted(make=bert, seed=0, **config):
    """A tiny model with an adapter whose factors are all away from their start (B = 0 has no penalty gradient)."""
    settings = {"r": 2, "lora_alpha": 4, "beta": BETA, "gamma": GAMMA, "target_modules": TARGETS[make], **config}
    model = peft.get_peft_model(make(seed), KasaConfig(**settings))
    scatter(model)
    return model


@torch.no_grad()
def scatter(model, seed=1):
    """Draw all factors anew, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(f".{part}." in name for part in PARTS):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def rows(count=8, length=6, seed=0):
    """Examples that any of the models can learn from: a list of dicts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (count, length), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]


def batch(make=bert, count=8, seed=0):
    """One batch with labels."""
    ids = torch.stack([row["input_ids"] for row in rows(count, seed=seed)])
    return {"input_ids": ids, "labels": ids if make is not bert else ids[:, 0] % 2}


class Seen(NamedTuple):
    """What an optimizer saw in one step: its parameters and their gradients, by name."""

    values: dict
    gradients: dict


class Probe:
    """Records every step of the optimizers that it watches; hooks of an instance run after the global ones."""

    def __init__(self, model, *optimizers):
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.steps = []
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self.record)

    def record(self, optimizer, args, kwargs):
        scale = getattr(optimizer, "grad_scale", None)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = {
            self.names[id(p)]: plain(p.grad).clone() / (1 if scale is None else scale)
            for p in held
            if p.grad is not None
        }
        self.steps.append(Seen({self.names[id(p)]: plain(p).clone() for p in held}, gradients))


def plain(tensor):
    """A tensor detached, and whole where it was sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(model, make=bert, steps=2, accumulation=1, lr=0.0, set_to_none=True, optimizer=None):
    """A plain loop; returns what the optimizer saw."""
    optimizer = optimizer or torch.optim.SGD(trainable(model), lr=lr)
    probe = Probe(model, optimizer)
    model.train()
    for step in range(steps):
        pieces = [batch(make, count=8 // accumulation, seed=10 * step + i) for i in range(accumulation)]
        for piece in pieces:
            (model(**piece).loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    return probe.steps


def expected_penalty(values, beta=BETA, gamma=GAMMA, convention="paper"):
    """The closed-form gradient of the penalty, by parameter name, at the given values of all factors."""
    layers = {}
    for name, value in values.items():
        for part, field in PARTS.items():
            if f".{part}." in name:
                layers.setdefault(name.replace(f".{part}.", ".{}."), {})[field] = value
    gradients = penalty_gradients([Factors(**layer) for layer in layers.values()], beta, gamma, convention)
    return {
        name.format(part): getattr(gradient, field)
        for name, gradient in zip(layers, gradients, strict=True)
        for part, field in PARTS.items()
    }


def assert_penalized_once(penalized, task, convention="paper", rtol=1e-5, beta=BETA, gamma=GAMMA):
    """Every step: gradient seen = task gradient + penalty gradient, which for sigma is 2 beta sigma.

    Args:
        penalized: what the optimizer saw.
        task: the same, of the same training with penalty="none".
    """
    assert len(penalized) == len(task) > 0
    for step, reference in zip(penalized, task, strict=True):
        penalty = expected_penalty(step.values, beta, gamma, convention)
        assert penalty
        if convention == "paper":
            for name in penalty:
                if ".kasa_sigma." in name:
                    torch.testing.assert_close(penalty[name], 2 * beta * step.values[name])
        assert step.gradients.keys() == reference.gradients.keys() | penalty.keys()
        for name, seen in step.gradients.items():
            torch.testing.assert_close(step.values[name], reference.values[name], rtol=0, atol=0)
            wanted = reference.gradients.get(name, torch.zeros_like(seen)) + penalty.get(name, 0)
            torch.testing.assert_close(seen, wanted, rtol=rtol, atol=rtol / 10 * float(wanted.abs().max()), msg=name)


@contextmanager
def no_warning():
    """Any warning of kasatune inside is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*KaSA.*")
        warnings.filterwarnings("ignore", message="KaSA: the component dropped")  # random weights have strong tails
        yield


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]
