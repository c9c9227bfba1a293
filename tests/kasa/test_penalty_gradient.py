"""The penalty's gradient reaches the optimizer exactly once per step: hand-written loops."""

import pytest
import torch

from kasatune import regularization
from kasatune.kasa import KasaLayer, oracle, regularization_terms
from kasatune.kasa.functional import Factors
from tests.kasa.penalty_probe import (
    BETA,
    GAMMA,
    PARTS,
    Probe,
    adapted,
    assert_penalized_once,
    batch,
    bert,
    expected_penalty,
    gpt2,
    llama,
    no_warning,
    train,
    trainable,
)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_an_optimizer_sees_the_task_gradient_and_the_penalty_once(make, accumulation):
    with no_warning():
        seen = train(adapted(make), make, accumulation=accumulation)
    assert_penalized_once(seen, train(adapted(make, penalty="none"), make, accumulation=accumulation))


@pytest.mark.parametrize("core", ["diagonal", "dense"])
@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_the_gradient_is_that_of_the_oracle(convention, core):
    model = adapted(convention=convention, core=core)
    task = train(adapted(convention=convention, core=core, penalty="none"))
    seen = train(model)
    assert_penalized_once(seen, task, convention)
    layers = {n: m.factors("default") for n, m in model.named_modules() if isinstance(m, KasaLayer)}
    wide = {n: Factors(*(f.detach().double().requires_grad_() for f in layer)) for n, layer in layers.items()}
    oracle.penalty(list(wide.values()), BETA, GAMMA, convention).backward()
    for name, factors in wide.items():
        for part, field in PARTS.items():
            key = f"{name}.{part}.default"
            penalty = seen[0].gradients[key] - task[0].gradients[key]
            wanted = getattr(factors, field).grad.float()
            torch.testing.assert_close(penalty, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("make_optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_training_goes_where_the_penalty_in_the_loss_leads(make_optimizer, convention):
    by_step = adapted(convention=convention)
    in_loss = adapted(convention=convention, penalty="loss")
    for model in (by_step, in_loss):
        optimizer = make_optimizer(trainable(model), lr=1e-3)
        for step in range(6):
            loss = model(**batch(seed=step)).loss
            if model is in_loss:
                loss = loss + regularization(model)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    moved = dict(adapted(convention=convention).named_parameters())
    for (name, got), wanted in zip(by_step.named_parameters(), in_loss.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6, msg=name)
        assert not got.requires_grad or not torch.equal(got, moved[name])


@pytest.mark.parametrize("penalty", ["loss", "none"])
def test_other_modes_leave_the_gradients_alone(penalty):
    model = adapted(penalty=penalty)
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    with no_warning():
        model(**batch()).loss.backward()
        before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    for name, gradient in before.items():
        assert torch.equal(model.get_parameter(name).grad, gradient), name


def test_regularization_in_the_loss_gives_the_same_gradient():
    model = adapted(penalty="loss")
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    probe = Probe(model, optimizer)
    (model(**batch()).loss + regularization(model)).backward()
    optimizer.step()
    assert_penalized_once(probe.steps, train(adapted(penalty="none"), steps=1))


def test_regularization_in_the_loss_is_named_where_the_optimizer_adds_it_too():
    model = adapted()
    with no_warning():
        assert regularization(model).item() > 100
        model(**batch()).loss.backward()
    with pytest.warns(UserWarning, match=r"the KaSA penalty is applied twice.*penalty='loss'"):
        (model(**batch()).loss + regularization(model)).backward()
    for penalty in ("loss", "none"):
        with no_warning():
            regularization(adapted(penalty=penalty)).backward()


@pytest.mark.parametrize("make", [bert, gpt2])
def test_the_model_s_loss_is_the_task_s_in_every_mode(make):
    models = [adapted(make, penalty=penalty) for penalty in ("step", "loss", "none")]
    for mode in (True, False):
        losses = [model.train(mode)(**batch(make)).loss.item() for model in models]
        assert losses[0] == losses[1] == losses[2] < 20
    assert regularization(models[0]).item() > 100


def test_both_terms_are_there_to_be_logged():
    model = adapted()
    terms = regularization_terms(model)
    layers = [layer.factors("default") for layer in model.modules() if isinstance(layer, KasaLayer)]
    sigma = sum(BETA * oracle.sigma_penalty(f).item() for f in layers)
    orthogonality = sum(GAMMA * oracle.orthogonality_penalty(f, "paper").item() for f in layers)
    assert terms.sigma.item() == pytest.approx(sigma, rel=1e-5)
    assert terms.orthogonality.item() == pytest.approx(orthogonality, rel=1e-5)
    assert regularization(model).item() == pytest.approx(sigma + orthogonality, rel=1e-5)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_every_step_is_penalized_whether_gradients_are_dropped_or_zeroed(set_to_none):
    seen = train(adapted(), steps=3, set_to_none=set_to_none)
    assert_penalized_once(seen, train(adapted(penalty="none"), steps=3, set_to_none=set_to_none))


def test_a_second_step_on_the_same_gradients_adds_nothing_more():
    model = adapted()
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    probe = Probe(model, optimizer)
    model(**batch()).loss.backward()
    optimizer.step()
    optimizer.step()
    assert_penalized_once([probe.steps[1]], train(adapted(penalty="none"), steps=1))


def test_layers_of_different_rank_and_shape_are_penalized_alike():
    config = {"rank_pattern": {"layers.0.self_attn.q_proj": 3}}
    seen = train(adapted(llama, **config), llama)
    assert len({v.shape for n, v in seen[0].values.items() if "kasa_A" in n}) == 3
    assert_penalized_once(seen, train(adapted(llama, penalty="none", **config), llama))


def test_a_factor_without_task_gradient_is_penalized_too():
    model = adapted()
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    probe = Probe(model, optimizer)
    optimizer.step()
    seen = probe.steps[0]
    for name, wanted in expected_penalty(seen.values).items():
        torch.testing.assert_close(seen.gradients[name], wanted)


def test_regularization_names_what_is_missing():
    with pytest.raises(ValueError, match="no layer of the model has an active KaSA adapter"):
        regularization(bert())
    with pytest.raises(ValueError, match="a KaSA adapter named 'other'"):
        regularization(adapted(), "other")
