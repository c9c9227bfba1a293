"""Optimizers that compute their gradients inside the step: warned about by name, and penalized."""

import warnings

import pytest
import torch

from kasatune import regularization
from kasatune.kasa.layer import LIVE_LAYERS
from tests.kasa.penalty_probe import Probe, Seen, adapted, assert_penalized_once, batch, no_warning, train, trainable


@pytest.fixture(autouse=True)
def no_model_waits_for_a_step():
    # Models of other tests may still be alive.
    for layer in LIVE_LAYERS:
        layer.needs_step = False


def closure_of(model, optimizer, returned=lambda loss: loss, in_loss=False):
    """What Lightning and LBFGS users write: zero, forward, backward, loss."""

    def closure():
        optimizer.zero_grad()
        loss = model(**batch()).loss
        if in_loss:
            loss = loss + regularization(model)
        loss.backward()
        return returned(loss)

    return closure


def step(optimizer, closure, keyword):
    return optimizer.step(closure=closure) if keyword else optimizer.step(closure)


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
def test_a_closure_is_named_and_its_gradients_are_penalized(keyword):
    model = adapted()
    optimizer = torch.optim.Adam(trainable(model), lr=0.0)
    with pytest.warns(UserWarning, match=r"Adam was given a closure.*penalty='loss'.*regularization\(model\)"):
        step(optimizer, closure_of(model, optimizer), keyword)
    probe = Probe(model)
    probe.record(optimizer, (), {})
    assert_penalized_once(probe.steps, train(adapted(penalty="none"), steps=1))


def test_the_warning_comes_once():
    model = adapted()
    optimizer = torch.optim.Adam(trainable(model), lr=0.0)
    with pytest.warns(UserWarning, match="was given a closure"):
        optimizer.step(closure_of(model, optimizer))
    with no_warning():
        optimizer.step(closure_of(model, optimizer))


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("LBFGS", {"lr": 0.01, "max_iter": 4, "line_search_fn": "strong_wolfe"}, 2),
        ("LBFGS", {"lr": 0.001, "max_iter": 3}, 2),
        ("Adam", {"lr": 1e-3}, 4),
        ("SGD", {"lr": 1e-4, "momentum": 0.9}, 4),
    ],
)
def test_training_by_closure_goes_where_the_penalty_in_the_loss_leads(name, settings, steps):
    trained = {}
    for penalty in ("step", "loss"):
        # A line search magnifies every rounding error.
        model = adapted(penalty=penalty).double()
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer = getattr(torch.optim, name)(trainable(model), **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            losses = [optimizer.step(closure_of(model, optimizer, in_loss=penalty == "loss")) for _ in range(steps)]
        trained[penalty] = (model, torch.stack([loss.detach() for loss in losses]))
        assert any(not torch.equal(p, start[n]) for n, p in model.named_parameters() if "kasa_B" in n)
    torch.testing.assert_close(trained["step"][1], trained["loss"][1], rtol=1e-8, atol=0)
    pairs = zip(trained["step"][0].named_parameters(), trained["loss"][0].parameters(), strict=True)
    for (parameter_name, got), wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8, msg=parameter_name)


@pytest.mark.filterwarnings("ignore:.*was given a closure")
def test_a_closure_may_return_a_number_or_nothing():
    model = adapted(penalty="loss")
    total = (model(**batch()).loss + regularization(model)).item()
    for returned, wanted in ((lambda loss: loss.item(), pytest.approx(total, rel=1e-5)), (lambda loss: None, None)):
        model = adapted()
        optimizer = torch.optim.SGD(trainable(model), lr=0.0)
        assert optimizer.step(closure_of(model, optimizer, returned=returned)) == wanted
        probe = Probe(model)
        probe.record(optimizer, (), {})
        assert_penalized_once(probe.steps, train(adapted(penalty="none"), steps=1))


@pytest.mark.filterwarnings("ignore:.*was given a closure")
def test_the_model_s_own_loss_stays_the_task_s_inside_a_closure():
    model = adapted()
    task = model(**batch()).loss.item()
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    inside = []
    optimizer.step(closure_of(model, optimizer, returned=lambda loss: inside.append(loss.item()) or loss))
    assert inside == [pytest.approx(task, rel=1e-6)]


@pytest.mark.filterwarnings("ignore:Adam was given a closure")
def test_an_optimizer_of_the_head_after_a_closure_is_no_cause_for_alarm():
    model = adapted(modules_to_save=["classifier"])
    head = [p for n, p in model.named_parameters() if p.requires_grad and "kasa_" not in n]
    factors = [p for n, p in model.named_parameters() if p.requires_grad and "kasa_" in n]
    first, second = torch.optim.Adam(factors, lr=0.0), torch.optim.SGD(head, lr=0.0)
    first.step(closure_of(model, first))
    with no_warning():
        second.step()


def test_without_penalty_a_closure_is_left_as_it_is():
    model = adapted(penalty="none")
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    with no_warning():
        loss = optimizer.step(closure_of(model, optimizer))
    assert loss.requires_grad


def flat_copy(model):
    """What an engine with flat partitions does: one float32 parameter that holds copies of all factors."""
    return torch.nn.Parameter(torch.cat([p.detach().reshape(-1).float() for p in trainable(model)]))


class PartitionedAdam(torch.optim.Adam):
    """An engine's own optimizer."""


def flat_step(model, optimizer, flat):
    model(**batch()).loss.backward()
    flat.grad = torch.cat([p.grad.reshape(-1) for p in trainable(model) if p.grad is not None])
    flat.grad = torch.nn.functional.pad(flat.grad, (0, flat.numel() - flat.grad.numel()))
    optimizer.step()
    model.zero_grad()


def test_an_engine_that_flattens_parameters_is_named_at_its_first_step():
    model = adapted()
    flat = flat_copy(model)
    optimizer = PartitionedAdam([flat], lr=0.0)
    with pytest.warns(UserWarning, match=r"PartitionedAdam .* no KaSA parameters of the 4 layers.*penalty='loss'"):
        flat_step(model, optimizer, flat)
    with no_warning():
        flat_step(model, optimizer, flat)


@pytest.mark.parametrize("penalty", ["loss", "none"])
def test_an_engine_that_flattens_parameters_goes_unnamed_where_nothing_is_missed(penalty):
    model = adapted(penalty=penalty)
    flat = flat_copy(model)
    with no_warning():
        flat_step(model, PartitionedAdam([flat], lr=0.0), flat)


def test_another_model_s_optimizer_is_no_cause_for_alarm():
    model = adapted()
    train(model, steps=1)
    model.eval()(**batch())
    other = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with no_warning():
        other(torch.ones(1, 2)).sum().backward()
        optimizer.step()


class Sharpness(torch.optim.Optimizer):
    """An optimizer around another one, as sharpness-aware minimization is written: two closures, one inner step."""

    def __init__(self, parameters, inner, **settings):
        super().__init__(parameters, {})
        self.inner = inner(self.param_groups, **settings)

    def step(self, closure):
        with torch.enable_grad():
            closure()
            closure()
        self.inner.step()


@pytest.mark.filterwarnings("ignore:.*was given a closure")
def test_an_optimizer_inside_another_one_adds_the_penalty_once():
    model = adapted()
    optimizer = Sharpness(trainable(model), torch.optim.SGD, lr=0.0)
    probe = Probe(model, optimizer.inner)
    optimizer.step(closure_of(model, optimizer))
    task = train(adapted(penalty="none"), steps=1)
    assert_penalized_once([Seen(*step) for step in probe.steps], task)
