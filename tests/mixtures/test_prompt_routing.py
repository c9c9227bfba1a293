"""milora-moe: one decision for a prompt, from its tokens alone, kept while the answer is written."""

from __future__ import annotations

import copy

import pytest
import torch

from kasatune.errors import InputError, ModelError
from kasatune.mixtures import labels_of_batch
from kasatune.mixtures.balance import forward_pass_of
from kasatune.mixtures.milora_moe import DENOMINATOR, NUMERATOR, MiloraMoeLayer, PromptRouter, pool, rational
from kasatune.mixtures.prompt_pass import PromptPass
from tests.mixtures.models import adapted, base, batch, config, part, shake

PROMPTS = [[5, 6, 7, 8, 9], [11, 12, 13], [21]]


def gates(model) -> torch.Tensor:
    """The gates of the last pass, (rows, blocks, experts)."""
    return torch.stack([decision.gates for decision in forward_pass_of(model).decisions.values()], 1)


def router(model) -> PromptRouter:
    return next(module for module in model.modules() if isinstance(module, PromptRouter))


def padded(side: str) -> dict[str, torch.Tensor]:
    fill = [[0] * (5 - len(prompt)) for prompt in PROMPTS]
    rows = [f + p if side == "left" else p + f for f, p in zip(fill, PROMPTS, strict=True)]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_decision(pooling, side):
    model = adapted("milora-moe", pooling=pooling, top_k=3)
    model(**padded(side))
    together = gates(model)
    for row, prompt in enumerate(PROMPTS):
        model(input_ids=torch.tensor([prompt]))
        torch.testing.assert_close(together[row], gates(model)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "last"])
def test_an_answer_does_not_change_a_decision(pooling):
    """Neither in training, nor where an evaluation gives the labels outside the model."""
    model, data = adapted("milora-moe", pooling=pooling, top_k=2), batch()
    other = {**data, "input_ids": torch.where(data["labels"] != -100, 7, data["input_ids"])}
    model(**data)
    first = gates(model)
    model(**other)
    torch.testing.assert_close(gates(model), first, atol=1e-6, rtol=1e-5)
    inputs = {key: other[key] for key in ("input_ids", "attention_mask")}
    with labels_of_batch(model, data["labels"]):
        model(**inputs)
    torch.testing.assert_close(gates(model), first, atol=1e-6, rtol=1e-5)
    model(**inputs)
    assert not torch.allclose(gates(model), first, atol=1e-4)


def routing_is_fixed_over_a_text(model) -> None:
    """Every token of a text is computed with the decision for its prompt."""
    data, seen = padded("left"), []
    handle = model.base_model.model.register_forward_hook(lambda *_: seen.append(gates(model)))
    text = model.generate(**data, max_new_tokens=6, do_sample=False, eos_token_id=-1, use_cache=True)
    handle.remove()
    assert len(seen) == 6
    for later in seen[1:]:
        torch.testing.assert_close(later, seen[0], atol=1e-6, rtol=1e-5)
    labels = torch.cat([torch.full_like(data["input_ids"], -100), text[:, 5:]], 1)
    mask = torch.cat([data["attention_mask"], torch.ones_like(text[:, 5:])], 1)
    logits = model(input_ids=text, attention_mask=mask, labels=labels).logits
    assert torch.equal(logits[:, 4:-1].argmax(-1), text[:, 5:]), "scoring agrees with generation"


def test_routing_is_fixed_over_a_text():
    routing_is_fixed_over_a_text(adapted("milora-moe"))


def test_a_router_that_decides_again_for_each_token_fails_that_law(monkeypatch):
    plain = PromptPass.begin

    def begin(self, *arguments):
        plain(self, *arguments)
        self.is_cached = False

    monkeypatch.setattr(PromptPass, "begin", begin)
    monkeypatch.setattr(PromptPass, "prompt", lambda self, rows, tokens, device, **_: torch.ones(rows, tokens).bool())
    with pytest.raises(AssertionError):
        routing_is_fixed_over_a_text(adapted("milora-moe"))


@torch.no_grad()
def test_two_conversations_at_once_keep_their_own_decisions():
    model = adapted("milora-moe")
    token = torch.tensor([[30]])
    caches, decisions = [], []
    for prompt in PROMPTS[:2]:
        caches.append(model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values)
        decisions.append(gates(model))
    copied = copy.deepcopy(caches[0])
    for cache, expected in zip([*caches, copied], [*decisions, decisions[0]], strict=True):
        model(input_ids=token, past_key_values=cache)
        assert torch.equal(gates(model), expected)
    with model.disable_adapter():
        foreign = model(input_ids=torch.tensor([[5, 6]]), use_cache=True).past_key_values
    with pytest.raises(InputError, match="the cache holds a text that the adapter 'default' has not read"):
        model(input_ids=token, past_key_values=foreign)
    two = model(input_ids=torch.tensor([[5, 6], [7, 8]]), use_cache=True).past_key_values
    with pytest.raises(InputError, match="the batch has 3 rows, and the cache was made for 2 prompts"):
        model(input_ids=token.expand(3, 1), past_key_values=two)


def test_experts_that_no_row_selects_are_not_computed(monkeypatch):
    model, computed = adapted("milora-moe", top_k=2), []
    plain = MiloraMoeLayer.add_update
    monkeypatch.setattr(MiloraMoeLayer, "add_update", lambda self, *a: computed.append(self.place) or plain(self, *a))
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert len(computed) == 2 * 2
    chosen = [[int(i) for i in row.nonzero()] for row in gates(model)[0]]
    assert sorted(place["default"][1] for place in computed[:2]) == chosen[0]


@pytest.mark.parametrize("gate", ["probability", "straight-through", "hard"])
def test_the_update_and_who_gets_a_gradient(gate):
    model = adapted("milora-moe", top_k=2, gate=gate, balance_weight=1.0).train()
    forward_pass_of(model).adds_to_loss = False
    data = part(batch(), 0, 1)
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, MiloraMoeLayer):
            module.register_forward_hook(lambda m, args, out, n=name: inputs.update({n: (m, args[0], out)}))
    model(**data).loss.backward()
    for layer, x, out in inputs.values():
        block, expert = layer.place["default"]
        weight = forward_pass_of(model).decisions[block].gates[0, expert]
        change = 2 * weight * (x @ layer.mixture_A["default"].T @ layer.mixture_B["default"].T)
        torch.testing.assert_close(out, layer.base_layer(x) + change, atol=1e-5, rtol=1e-4)
        assert bool(layer.mixture_B["default"].grad.any()) == bool(weight != 0), "only selected experts get a gradient"
    gradient = router(model).mixture_router["default"].grad
    assert (gradient is not None and bool(gradient.any())) == (gate != "hard")
    if gate != "probability":
        assert set(gates(model).detach().unique().tolist()) == {0.0, 1.0}


def gradients_of_unselected_layers_are_zero(model) -> None:
    """Of the seven layers of a block, those that a prompt selects get a gradient, and no others."""
    model.train()(**part(batch(), 0, 1)).loss.backward()
    for layer in model.modules():
        if isinstance(layer, MiloraMoeLayer):
            block, expert = layer.place["default"]
            selected = bool(forward_pass_of(model).decisions[block].gates[0, expert] != 0)
            for parameters in (layer.mixture_A, layer.mixture_B):
                assert bool(parameters["default"].grad.any()) == selected


def test_layers_that_are_not_selected_get_no_gradient():
    gradients_of_unselected_layers_are_zero(adapted("milora-moe", top_k=3))


def test_a_router_that_leaks_into_other_layers_fails_that_law(monkeypatch):
    plain = MiloraMoeLayer.add_update

    def add_update(self, adapter_name, x, result):
        own = plain(self, adapter_name, x, result)
        return own + 1e-3 * (x @ self.mixture_A[adapter_name].T @ self.mixture_B[adapter_name].T)

    monkeypatch.setattr(MiloraMoeLayer, "add_update", add_update)
    with pytest.raises(AssertionError):
        gradients_of_unselected_layers_are_zero(adapted("milora-moe", top_k=3))


def test_pooling_and_activation_written_out():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 4, 3, generator=generator)
    prompt = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    w = torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(pool(states, prompt, "last"), torch.stack([states[0, 2], states[1, 3]]))
    torch.testing.assert_close(pool(states, prompt, "mean")[0], states[0, 1:3].mean(0))
    torch.testing.assert_close(pool(states, prompt, "max")[0], states[0, 1:3].amax(0))
    weights = (states[0, 1:3] @ w).softmax(0)
    torch.testing.assert_close(pool(states, prompt, "attention", w)[0], weights @ states[0, 1:3])
    x = torch.linspace(-3, 3, 61)
    a, b = torch.tensor(NUMERATOR), torch.tensor(DENOMINATOR)
    assert float((rational(x, a, b) - torch.nn.functional.gelu(x)).abs().max()) < 0.04
    a, b = torch.arange(1.0, 8.0), torch.arange(-2.0, 3.0)
    expected = sum(a[j] * x**j for j in range(7)) / (1 + sum(b[i] * x ** (i + 1) for i in range(5)).abs())
    torch.testing.assert_close(rational(x, a, b), expected)


def test_packed_rows_and_rows_without_a_prompt_are_refused():
    model, data = adapted("milora-moe"), batch()
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]])
    ids = data["input_ids"][:1]
    with pytest.raises(InputError, match="packed rows: a router of prompts decides once"):
        model(input_ids=ids, position_ids=positions)
    model(input_ids=ids, position_ids=torch.arange(11)[None])
    with model.disable_adapter():
        model(input_ids=ids, position_ids=positions)
    labels = torch.where(torch.arange(8)[:, None] == 2, data["input_ids"], data["labels"])
    model(**{**data, "labels": labels})
    alone = gates(model)[2]
    model(input_ids=data["input_ids"][2:3, :1])
    torch.testing.assert_close(alone, gates(model)[0], msg="without a prompt, the first token decides")
    with pytest.raises(InputError, match="row 2 of the batch has no prompt"):
        model.train()(**{**data, "labels": labels})


def test_targets_that_no_router_can_serve_are_refused():
    with pytest.raises(
        ModelError, match=r"top_k: 3 received, more than the experts of model\.layers\.0, which has 2 adapted layers"
    ):
        adapted("milora-moe", top_k=3, target_modules=["q_proj", "v_proj"])
    with pytest.raises(ModelError, match="lm_head is in no block"):
        adapted("milora-moe", target_modules=["q_proj", "lm_head"])


def test_a_second_adapter_has_its_own_router_and_experts():
    model = adapted("milora-moe")
    model(**batch())
    first = gates(model)
    model.add_adapter("two", config("milora-moe", target_modules=["q_proj", "v_proj"]))
    model.set_adapter("two")
    shake(model, 5)
    model.eval()(**batch())
    assert gates(model).shape[-1] == 2
    model.delete_adapter("default")
    model(**batch())
    assert set(router(model).mixture_router) == {"two"}
    assert first.shape[-1] == 7
    assert type(base()) is type(model.unload())
