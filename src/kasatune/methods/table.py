"""The methods that a recipe can name, as plain data: nothing here imports torch, transformers or peft."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method without importing it.

    Attributes:
        name: the name in recipes and on the command line.
        title: the name in the field.
        paper: arXiv number or citation of its source.
        trains: what it trains, in words; the newly made head is trained by every method and not named.
        bases: the kinds of base model it works on, in words.
        implemented_by: the library whose code computes it.
        module: the module of kasatune that holds its `METHOD` object.
        reconstructed: true where the paper leaves out something essential and the gap was filled here.
    """

    name: str
    title: str
    paper: str
    trains: str
    bases: str
    implemented_by: str
    module: str
    reconstructed: bool = False


_ROWS = (
    MethodInfo(
        name="kasa",
        title="KaSA",
        paper="arXiv 2412.06071",
        trains="A, B and sigma of the targeted layers; their r smallest singular triplets are dropped",
        bases="layers Linear and Conv1D",
        implemented_by="kasatune",
        module="kasatune.methods.kasa",
    ),
    MethodInfo(
        name="peft-kasa",
        title="KaSA as in PEFT",
        paper="arXiv 2412.06071",
        trains="A, B and sigma of the targeted layers; their r smallest singular triplets are dropped",
        bases="layers Linear, not quantised",
        implemented_by="peft",
        module="kasatune.methods.peft_kasa",
    ),
    MethodInfo(
        name="lora",
        title="LoRA",
        paper="arXiv 2106.09685",
        trains="A and B of the targeted layers",
        bases="layers Linear and Conv1D",
        implemented_by="peft",
        module="kasatune.methods.lora",
    ),
    MethodInfo(
        name="full",
        title="Full fine-tuning",
        paper="none",
        trains="every weight",
        bases="any, not quantised",
        implemented_by="transformers",
        module="kasatune.methods.full",
    ),
    MethodInfo(
        name="head",
        title="Frozen model, fitted head",
        paper="none",
        trains="nothing but a linear head, fitted to convergence on the frozen model's features",
        bases="models with a sequence classification head",
        implemented_by="scikit-learn",
        module="kasatune.methods.head",
    ),
    MethodInfo(
        name="bitfit",
        title="BitFit",
        paper="arXiv 2106.10199",
        trains="every bias that the model has",
        bases="models with biases",
        implemented_by="kasatune",
        module="kasatune.methods.bitfit",
    ),
)

METHODS: dict[str, MethodInfo] = {row.name: row for row in _ROWS}
