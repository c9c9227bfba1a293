"""Which parameters are penalized: several models, optimizers and adapters in one process."""

import copy

import peft
import pytest
import torch

from kasatune import KasaConfig, regularization
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


def test_two_models_in_one_process_keep_their_own_weights():
    models = [adapted(beta=beta) for beta in (1.0, 100.0)]
    task = train(adapted(penalty="none"), steps=1)
    shared = torch.optim.SGD([p for model in models for p in trainable(model)], lr=0.0)
    probes = [Probe(model) for model in models]
    for model in models:
        model(**batch()).loss.backward()
    shared.step()
    for model, probe, beta in zip(models, probes, (1.0, 100.0), strict=True):
        probe.record(torch.optim.SGD(trainable(model), lr=0.0), (), {})
        assert_penalized_once(probe.steps, task, beta=beta)
    with no_warning():
        for model, beta in zip(models, (1.0, 100.0), strict=True):
            model.zero_grad()
            assert_penalized_once(train(model, steps=1), task, beta=beta)


def test_an_optimizer_of_sigma_alone_penalizes_sigma_alone():
    model = adapted()
    sigmas = {n: p for n, p in model.named_parameters() if "kasa_sigma" in n}
    optimizer = torch.optim.SGD(sigmas.values(), lr=0.0)
    model(**batch()).loss.backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with no_warning():
        optimizer.step()
    for name, gradient in before.items():
        wanted = gradient + 2 * BETA * sigmas[name] if name in sigmas else gradient
        torch.testing.assert_close(model.get_parameter(name).grad, wanted)


def test_optimizers_that_share_the_factors_add_up_to_the_penalty():
    model = adapted()
    matrices = [p for n, p in model.named_parameters() if p.requires_grad and "kasa_sigma" not in n]
    sigmas = [p for n, p in model.named_parameters() if "kasa_sigma" in n]
    first, second = torch.optim.SGD(matrices, lr=0.0), torch.optim.Adam(sigmas, lr=0.0)
    model(**batch()).loss.backward()
    first.step()
    second.step()
    probe = Probe(model)
    probe.record(torch.optim.SGD(trainable(model), lr=0.0), (), {})
    assert_penalized_once(probe.steps, train(adapted(penalty="none"), steps=1))


@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_an_optimizer_of_some_layers_gives_them_what_they_get_in_the_whole(convention):
    model = adapted(convention=convention)
    groups = [[p for n, p in model.named_parameters() if p.requires_grad and f"layer.{i}." in n] for i in (0, 1)]
    optimizers = [torch.optim.SGD(group, lr=0.0) for group in groups]
    model(**batch()).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    probe = Probe(model)
    probe.record(torch.optim.SGD(trainable(model), lr=0.0), (), {})
    task = train(adapted(convention=convention, penalty="none"), steps=1)
    assert_penalized_once(probe.steps, task, convention)


def test_frozen_adapters_are_left_alone():
    model = adapted(modules_to_save=["classifier"])
    for name, parameter in model.named_parameters():
        if "kasa_" in name:
            parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with no_warning():
        model(**batch()).loss.backward()
        optimizer.step()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients and not [name for name in gradients if "kasa_" in name]


def test_a_half_frozen_adapter_is_penalized_where_it_is_trained():
    model = adapted()
    for name, parameter in model.named_parameters():
        if "kasa_A" in name:
            parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model(**batch()).loss.backward()
    task = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    penalty = expected_penalty({n: p for n, p in model.named_parameters() if "kasa_" in n and "tail" not in n})
    for name, parameter in model.named_parameters():
        if "kasa_A" in name:
            assert parameter.grad is None
        elif name in task:
            torch.testing.assert_close(parameter.grad, task[name] + penalty.get(name, 0))


def test_only_the_adapter_that_is_switched_on_is_penalized():
    model = adapted()
    model.add_adapter("second", KasaConfig(r=3, beta=7.0, gamma=0.0, target_modules=["query"]))
    scatter(model)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "kasa_" in n], lr=0.0)
    for name, other, beta, gamma in (("second", "default", 7.0, 0.0), ("default", "second", BETA, GAMMA)):
        model.set_adapter(name)
        model.zero_grad()
        model(**batch()).loss.backward()
        task = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        values = {n: p.detach() for n, p in model.named_parameters() if n.endswith(f".{name}") and "tail" not in n}
        penalty = expected_penalty({n: v for n, v in values.items() if "kasa_" in n}, beta, gamma)
        for key, parameter in model.named_parameters():
            if key in penalty:
                torch.testing.assert_close(parameter.grad, task[key] + penalty[key])
            elif key.endswith(f".{other}"):
                assert parameter.grad is None, key
    assert regularization(model, "second").item() == pytest.approx(
        sum(7.0 * float(p.square().sum()) for n, p in model.named_parameters() if "kasa_sigma.second" in n), rel=1e-5
    )


def test_a_model_with_its_adapters_switched_off_is_not_penalized():
    model = adapted()
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    with model.disable_adapter():
        optimizer.step()
    assert all(p.grad is None for p in model.parameters())


def test_a_copied_model_keeps_the_penalty_and_the_first_one_its_own():
    model = adapted()
    twin = copy.deepcopy(model)
    task = train(adapted(penalty="none"))
    assert_penalized_once(train(twin), task)
    assert all(p.grad is None for p in model.parameters())
    assert_penalized_once(train(model), task)


def test_a_reloaded_model_keeps_the_penalty(tmp_path):
    adapted().save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True)
    assert_penalized_once(train(model), train(adapted(penalty="none")))
