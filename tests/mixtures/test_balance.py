"""The balance loss of the routers: once for each micro-batch, the same gradient for any accumulation."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from kasatune.errors import InputError
from kasatune.mixtures import balance_loss, record_routing
from kasatune.mixtures.balance import RouterLoad, forward_pass_of, routers
from kasatune.mixtures.forward_pass import ForwardPass, token_weights
from tests.mixtures.models import BALANCED, KINDS, adapted, base, batch, part, trained

WEIGHT = 50.0


def second_step(model, pieces: int, rows: int = 8) -> dict[str, torch.Tensor]:
    """The gradients of the second optimizer step, in `pieces` micro-batches; the first has uniform shares."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for step in range(2):
        optimizer.zero_grad()
        data = batch(rows, seed=step)
        number = data["labels"].ne(-100).sum()
        for start in range(0, rows, rows // pieces):
            model(**part(data, start, start + rows // pieces), num_items_in_batch=number).loss.backward()
        gradients = {name: p.grad.clone() for name, p in trained(model).items()}
        optimizer.step()
    return gradients


def the_gradient_does_not_depend_on_the_accumulation(make) -> None:
    """1 x 32, 2 x 16 and 4 x 8 rows."""
    reference = second_step(make(), 1, rows=32)
    for pieces in (2, 4):
        for name, gradient in second_step(make(), pieces, rows=32).items():
            torch.testing.assert_close(gradient, reference[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", BALANCED)
def test_the_gradient_does_not_depend_on_the_accumulation(kind):
    the_gradient_does_not_depend_on_the_accumulation(lambda: adapted(kind, balance_weight=WEIGHT))
    with_loss, without = (second_step(adapted(kind, balance_weight=weight), 1) for weight in (WEIGHT, 0.0))
    routed = [name for name in with_loss if "router" in name]
    assert all(float((with_loss[name] - without[name]).norm()) > 1e-3 for name in routed), "the loss reaches them"


@pytest.mark.parametrize("kind", BALANCED)
def test_a_loss_in_full_for_each_micro_batch_fails_that_law(kind, monkeypatch):
    monkeypatch.setattr(ForwardPass, "_share_of_step", lambda self, labels, number: torch.tensor(1.0), raising=True)
    with pytest.raises(AssertionError):
        the_gradient_does_not_depend_on_the_accumulation(lambda: adapted(kind, balance_weight=WEIGHT))


@pytest.mark.parametrize("kind", BALANCED)
def test_shares_of_the_micro_batch_itself_fail_that_law(kind, monkeypatch):
    plain = RouterLoad.add

    def add(self, probabilities, chosen, weights, balanced):
        plain(self, probabilities, chosen, weights, balanced)
        self.shares = chosen.mean(0)

    monkeypatch.setattr(RouterLoad, "add", add)
    with pytest.raises(AssertionError):
        the_gradient_does_not_depend_on_the_accumulation(lambda: adapted(kind, balance_weight=WEIGHT))


def test_the_value_is_n_sum_f_p_over_the_tokens_that_predict_learnt_ones():
    model, data = adapted("moe-lora", balance_weight=2.0, num_experts=4), batch()
    model.train()
    forward_pass_of(model).adds_to_loss = False
    loads = dict(routers(model))
    for load in loads.values():
        load.shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
    seen = {}
    for name, module in model.named_modules():
        if name.removeprefix("base_model.model.") in loads:
            module.register_forward_hook(lambda m, args, _, n=name: seen.update({n: (m, args[0])}))
    model(**data)
    counted = data["labels"][:, 1:] != -100
    expected = 0.0
    for layer, x in seen.values():
        P = (x @ layer.mixture_router["default"].T).softmax(-1)[:, :-1][counted].mean(0)
        expected += 2.0 * 4 * (torch.tensor([0.4, 0.3, 0.2, 0.1]) * P).sum().item() / len(seen)
    assert balance_loss(model).item() == pytest.approx(expected, rel=1e-5)
    assert balance_loss(model) is None, "it is returned once"


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_counts_nothing_twice(kind):
    settings = {"balance_weight": WEIGHT} if kind in BALANCED else {}
    plain, saving = adapted(kind, **settings), adapted(kind, **settings)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    saving.enable_input_require_grads()
    expected = second_step(plain, 2)
    for name, gradient in second_step(saving, 2).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)
    for (name, load), (_, other) in zip(routers(plain), routers(saving), strict=True):
        torch.testing.assert_close(load.counts, other.counts, msg=name)


@pytest.mark.parametrize(("kind", "weight"), [("moe-lora", 1.0), ("milora-moe", 1.0), ("milora-moe", 0.0)])
def test_reentrant_checkpointing_is_refused(kind, weight):
    model = adapted(kind, balance_weight=weight).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(InputError, match="use_reentrant"):
        model(**batch()).loss.backward()


def test_without_a_balance_loss_a_router_of_tokens_works_with_reentrant_checkpointing():
    gradients = []
    for reentrant in (None, True):
        model = adapted("moe-lora", balance_weight=0.0).train()
        if reentrant:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
            model.enable_input_require_grads()
        model(**batch()).loss.backward()
        gradients.append({name: p.grad for name, p in trained(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_without_labels_the_loss_is_for_the_caller_and_forgetting_it_warns():
    model, data = adapted("moe-lora").train(), batch()
    inputs = {key: data[key] for key in ("input_ids", "attention_mask")}
    model(**inputs)
    assert balance_loss(model).requires_grad
    model(**inputs)
    with pytest.warns(UserWarning, match="balance loss of the routers was not used"):
        model(**inputs)
    model.eval()(**inputs)
    assert balance_loss(model) is None
    with pytest.raises(InputError, match="has no mixture of experts"):
        balance_loss(base())


def test_a_model_is_copied_between_two_passes_with_its_loads():
    model = adapted("malora", balance_weight=WEIGHT)
    second_step(model, 2)
    model(**batch())
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied.eval()(**batch()).logits, model.eval()(**batch()).logits)
    first, second = second_step(model, 2), second_step(copied, 1)
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_routing_is_recorded_on_request(kind):
    model, data = adapted(kind), batch()
    with record_routing(model) as statistics:
        model(**data)
    assert len(statistics) == (2 if kind == "milora-moe" else 14)
    for entry in statistics.values():
        assert sum(entry["load"]) == pytest.approx(1)
        assert 0 <= entry["entropy"] <= torch.tensor(8.0).log() + 1e-5
        assert entry["items"] == int((data["labels"][:, 1:] != -100).sum())
    assert all(load.counts is None for _, load in routers(model))


def test_weights_of_tokens():
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, 5, 6, -100], [-100, 7, -100, -100]])
    assert token_weights(mask, labels).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    rows = token_weights(mask, torch.tensor([2, -100]))
    torch.testing.assert_close(rows, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0]]))
    assert token_weights(mask, None).tolist() == mask.tolist()
    assert token_weights(None, None) is None


@pytest.mark.parametrize("pieces", [1, 2])
def test_in_transformers_trainer(pieces, tmp_path):
    """The balance loss is in the loss that the Trainer logs, divided as the task's."""
    data = batch(8)
    rows = [{key: value[i] for key, value in data.items()} for i in range(8)]
    model = adapted("moe-lora", balance_weight=WEIGHT)
    expected = float(adapted("moe-lora", balance_weight=0.0)(**data).loss) + WEIGHT
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8 // pieces,
        gradient_accumulation_steps=pieces,
        max_steps=1,
        learning_rate=0.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)
