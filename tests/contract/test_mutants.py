"""Deliberately broken methods, each of which must fail the law that it breaks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import TrainerCallback

from kasatune.methods.info import MethodInfo
from kasatune.methods.lora import Lora
from kasatune.methods.shared.method import Method
from tests.contract import laws
from tests.contract.harness import Case

BASE = "base_model.model.bert."


class StartsElsewhere(Lora):
    """B does not start at zero."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        for layer in layers(model):
            nn.init.constant_(layer.lora_B["default"].weight, 0.1)
        return model


class DocumentsAFalseDifference(Lora):
    """It documents a difference from the base that does not exist."""

    info = MethodInfo(**{**vars(Lora.info), "start": "it does not"})


class TrainsMore(Lora):
    """A bias of the base is trained too."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        model.get_parameter(f"{BASE}pooler.dense.bias").requires_grad_(True)
        return model


class TrainsLess(Lora):
    """The A of one layer is frozen."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        layers(model)[0].lora_A["default"].requires_grad_(False)
        return model


class MovesTheBase(Lora):
    """A frozen weight changes in training."""

    def callbacks(self, model: nn.Module, settings: Any) -> list[TrainerCallback]:
        class Move(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                with torch.no_grad():
                    model.get_parameter(f"{BASE}pooler.dense.bias").add_(1e-3)

        return [Move()]


class PlansFewerParameters(Lora):
    """The plan omits a layer."""

    def trained_parameters(self, *args: Any) -> int:
        return super().trained_parameters(*args) - 64


class Saddle(Lora):
    """A and B both start at zero: neither ever gets a gradient."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        for layer in layers(model):
            nn.init.zeros_(layer.lora_A["default"].weight)
        return model


class ChangesTheBaseOnAttach(Lora):
    """Attaching changes a weight of the base a little."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        with torch.no_grad():
            layers(model)[0].get_base_layer().weight.mul_(1 + 1e-6)
        return model


class StaysOff(Lora):
    """Once switched off, it stays off."""

    def disabled(self, model: nn.Module) -> Any:
        model.base_model.disable_adapter_layers()  # type: ignore[union-attr,operator]
        return contextlib.nullcontext()


class LoadsAnotherScaling(Lora):
    """The loaded adapter has another scaling than the saved one."""

    def load(self, *args: Any) -> nn.Module:
        model = super().load(*args)
        for layer in layers(model):
            layer.scaling["default"] /= 2
        return model


class WritesTwice(Lora):
    """It stores twice what it plans."""

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        super().save(model, run_dir, base_name)
        super().save(model, run_dir / "again", base_name)


class MergesNothing(Lora):
    """Merging discards the update."""

    def merge(self, model: nn.Module) -> nn.Module:
        return model.unload()  # type: ignore[operator]


class MergesDespiteRefusal(Lora):
    """It claims that it cannot be merged, and merges."""

    info = MethodInfo(**{**vars(Lora.info), "merge": "it is not linear"})

    def merge(self, model: nn.Module) -> nn.Module:
        return model.merge_and_unload()  # type: ignore[operator]


class UnseededDraw(Lora):
    """A is drawn from a generator without a fixed seed."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        generator = torch.Generator()
        generator.seed()
        for layer in layers(model):
            nn.init.normal_(layer.lora_A["default"].weight, generator=generator)
        return model


class TrainsMoreIn16Bits(Lora):
    """Another set of parameters is trained on a base in bfloat16."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        bias = model.get_parameter(f"{BASE}pooler.dense.bias")
        bias.requires_grad_(bias.dtype == torch.bfloat16)
        return model


class Overflows(Lora):
    """It overflows on a base in 16 bits."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        weight = layers(model)[0].get_base_layer().weight
        if weight.dtype == torch.bfloat16:
            with torch.no_grad():
                weight.mul_(float("inf"))
        return model


class PenaltyInEveryMicroBatch(Lora):
    """Its penalty is added in every micro-batch, as one in the model's own loss would be."""

    def attach(self, *args: Any) -> nn.Module:
        model = super().attach(*args)
        for layer in layers(model):
            weight = layer.lora_A["default"].weight
            if not weight.is_meta:
                weight.register_hook(lambda gradient, weight=weight: gradient + 0.1 * weight.detach())
        return model


MUTANTS: list[tuple[type[Method], laws.Law]] = [
    (StartsElsewhere, laws.starts_as_the_base_unless_documented),
    (DocumentsAFalseDifference, laws.starts_as_the_base_unless_documented),
    (TrainsMore, laws.trains_exactly_the_documented_parameters),
    (TrainsLess, laws.trains_exactly_the_documented_parameters),
    (MovesTheBase, laws.trains_exactly_the_documented_parameters),
    (PlansFewerParameters, laws.plans_the_count_that_it_trains),
    (Saddle, laws.gradients_reach_every_trained_tensor),
    (ChangesTheBaseOnAttach, laws.switched_off_it_equals_the_base),
    (StaysOff, laws.switched_off_it_equals_the_base),
    (LoadsAnotherScaling, laws.loading_restores_the_outputs),
    (WritesTwice, laws.stores_the_planned_numbers),
    (MergesNothing, laws.merging_keeps_the_outputs),
    (MergesDespiteRefusal, laws.merging_keeps_the_outputs),
    (UnseededDraw, laws.the_same_seed_gives_the_same_bits),
    (TrainsMoreIn16Bits, laws.works_in_bfloat16),
    (Overflows, laws.works_in_bfloat16),
    (PenaltyInEveryMicroBatch, laws.the_gradient_does_not_depend_on_the_accumulation),
]


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda item: item.__name__)
def test_a_broken_method_fails_the_law_that_it_breaks(mutant, law):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law(Case(mutant(), "bert"))


def test_every_law_has_its_mutant():
    assert {law for _, law in MUTANTS} == set(laws.LAWS)
