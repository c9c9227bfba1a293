"""The laws that every method obeys. Each raises AssertionError if a method breaks it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kasatune.errors import ModelError
from kasatune.methods.shared.trained_parameters import trainable, within
from tests.contract.bases import on_meta, tiny_config, tiny_model
from tests.contract.facts import FACTS, RANKS_FROM_WEIGHTS, Shape
from tests.contract.harness import Case, logits, trained

Law = Callable[[Case], None]
_CLOSE = 2e-5


def starts_as_the_base_unless_documented(case: Case) -> None:
    """Training starts from the base's outputs, unless `info.start` names a difference, which must then exist."""
    same = bool(torch.allclose(logits(case.attached()), logits(tiny_model(case.base)), atol=_CLOSE, rtol=0))
    assert same == (case.method.info.start == "")


def trains_exactly_the_documented_parameters(case: Case) -> None:
    """The formula's number of parameters outside the head, and the complete head, are trained; nothing else moves."""
    run = trained(case, steps=2)
    names = set(trainable(run.model))
    head = {name for name in names if within(name, case.new_modules)}
    sizes = {name: value.numel() for name, value in run.before.items()}
    assert sum(sizes[name] for name in names - head) == expected_count(case)
    base_head = dict(tiny_model(case.base).get_submodule(case.new_modules[0]).named_parameters())
    assert sum(sizes[name] for name in head) == sum(parameter.numel() for parameter in base_head.values())
    after = dict(run.model.named_parameters())
    moved = {name for name, value in run.before.items() if not torch.equal(value, after[name])}
    assert moved <= names


def plans_the_count_that_it_trains(case: Case) -> None:
    """The count from shapes equals that of the model with weights; it is None only if the weights determine it."""
    real = case.attached()
    counted = sum(p.numel() for name, p in trainable(real).items() if not within(name, case.new_modules))
    config = tiny_config(case.base)
    config.num_labels = 3
    planned = case.method.trained_parameters(on_meta(config), case.settings, "classification", case.new_modules)
    assert planned == counted or (planned is None and case.method.info.name in RANKS_FROM_WEIGHTS)


def gradients_reach_every_trained_tensor(case: Case) -> None:
    """Within a few steps, every trained tensor gets a nonzero gradient."""
    run = trained(case, steps=FACTS[case.method.info.name].steps)
    missing = set(trainable(run.model)) - run.reached
    assert not missing


def switched_off_it_equals_the_base(case: Case) -> None:
    """Switched off, the loaded model gives the base's outputs bit for bit, and afterwards its own; or it refuses."""
    loaded = case.saved_and_loaded(case.shaken())
    own = logits(loaded)
    assert not torch.allclose(own, logits(tiny_model(case.base)), atol=1e-3)
    if case.method.info.disable:
        with contextlib.suppress(ModelError), case.method.disabled(loaded):
            assert torch.equal(logits(loaded), logits(tiny_model(case.base)))
        with pytest.raises(ModelError, match=r"cannot be switched off"), case.method.disabled(case.shaken()):
            pass
    else:
        for model in (loaded, case.shaken()):
            with case.method.disabled(model):
                assert torch.equal(logits(model), logits(tiny_model(case.base)))
    assert torch.equal(logits(loaded), own)


def loading_restores_the_outputs(case: Case) -> None:
    """The saved files on an untouched base give the model's outputs."""
    model = case.shaken()
    torch.testing.assert_close(logits(case.saved_and_loaded(model)), logits(model), atol=_CLOSE, rtol=0)


def stores_the_planned_numbers(case: Case) -> None:
    """Each folder holds the planned number of values and those of the head."""
    shape = Shape(case.base, d=16, f=24, L=2)
    planned = case.method.stored_numbers(expected_count(case), shape.targets, case.settings)
    head = sum(p.numel() for p in tiny_model(case.base).get_submodule(case.new_modules[0]).parameters())
    with tempfile.TemporaryDirectory() as folder:
        case.method.save(case.shaken(), Path(folder), "some/base")
        stored: dict[str, int] = {}
        for path in Path(folder).rglob("*.safetensors"):
            values = sum(tensor.numel() for tensor in load_file(path).values())
            stored[path.parent.name] = stored.get(path.parent.name, 0) + values - head
    assert stored == planned or case.method.info.name in RANKS_FROM_WEIGHTS


def merging_keeps_the_outputs(case: Case) -> None:
    """The merged model is a plain transformers model with the same outputs, or merging is refused with the reason."""
    model = case.saved_and_loaded(case.shaken())
    expected = logits(model)
    if case.method.info.merge:
        with pytest.raises(ModelError, match="cannot be merged"):
            case.method.merge(model)
        return
    merged = case.method.merge(model)
    plain = tiny_model(case.base)
    assert type(merged) is type(plain)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}
    torch.testing.assert_close(logits(merged.eval()), expected, atol=5e-5, rtol=0)


def the_same_seed_gives_the_same_bits(case: Case) -> None:
    """Two runs with the same seed give the same bits."""
    first, second = (dict(trained(case, steps=2).model.named_parameters()) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def works_in_bfloat16(case: Case) -> None:
    """On a base in bfloat16, outputs and gradients are finite, and the saved files reproduce the outputs."""
    model = case.shaken(torch.bfloat16)
    assert set(trainable(model)) == set(trainable(case.attached()))
    outputs = logits(model)
    assert bool(outputs.isfinite().all())
    torch.testing.assert_close(outputs, logits(case.shaken()), atol=0.1, rtol=0.05)
    model.train()
    batch = torch.arange(3, 13).view(2, 5)
    model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.float().square().sum().backward()
    gradients = [p.grad for p in trainable(model).values() if p.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
    again = logits(case.saved_and_loaded(model.eval(), torch.bfloat16))
    torch.testing.assert_close(again, outputs, atol=0.1, rtol=0.05)


def the_gradient_does_not_depend_on_the_accumulation(case: Case) -> None:
    """The gradient of the first step is the same for 1 x 8 and 2 x 4 rows."""
    one_piece, two_pieces = (trained(case, pieces=pieces).first for pieces in (1, 2))
    assert one_piece.keys() == two_pieces.keys()
    for name, gradient in one_piece.items():
        torch.testing.assert_close(two_pieces[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


LAWS: tuple[Law, ...] = (
    starts_as_the_base_unless_documented,
    trains_exactly_the_documented_parameters,
    plans_the_count_that_it_trains,
    gradients_reach_every_trained_tensor,
    switched_off_it_equals_the_base,
    loading_restores_the_outputs,
    stores_the_planned_numbers,
    merging_keeps_the_outputs,
    the_same_seed_gives_the_same_bits,
    works_in_bfloat16,
    the_gradient_does_not_depend_on_the_accumulation,
)


def expected_count(case: Case) -> int:
    """The formula's number of trained parameters outside the head."""
    formula = FACTS[case.method.info.name].trained
    model = tiny_model(case.base)
    if formula is None:
        return sum(p.numel() for name, p in model.named_parameters() if not within(name, case.new_modules))
    return formula(Shape(case.base, d=16, f=24, L=2))
