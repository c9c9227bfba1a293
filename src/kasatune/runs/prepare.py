"""Everything that a run needs in memory before its first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from kasatune import methods
from kasatune.errors import DataError
from kasatune.methods.base import Method, trainable, within
from kasatune.runs.display import Display
from kasatune.runs.examples import Examples, collator, encode
from kasatune.runs.models import Base, load_base
from kasatune.runs.recipe import Recipe
from kasatune.runs.scoring import Scores, logits, score
from kasatune.runs.trainer import find_device
from kasatune.tasks import TaskData


@dataclass(frozen=True)
class Prepared:
    """A recipe's model, ready to be trained or asked.

    Attributes:
        recipe: what it was made from.
        kind: "classification" or "regression".
        base: the model that `model` is or wraps, its tokenizer and its newly made modules.
        method: the recipe's.
        model: what the method made of the base, on the recipe's device.
        collate: makes batches of tokenized rows.
        attach_seconds: time that the method took to make `model` of the base.
    """

    recipe: Recipe
    kind: str
    base: Base
    method: Method
    model: nn.Module
    collate: Callable[[list[dict[str, Any]]], Any]
    attach_seconds: float = 0.0

    def encode(self, data: TaskData, split: str) -> Examples:
        """The rows of a split, tokenized.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if split not in data.splits:
            raise DataError(f"task {data.name} has no split {split!r}; it has: {', '.join(data.splits)}")
        rows = data.splits[split]
        if not rows.first:
            raise DataError(f"the split {split!r} of task {data.name} is empty: it needs one row at least")
        return encode(self.base.tokenizer, rows.first, rows.second, rows.labels, self.recipe.task.max_length)

    def score(self, examples: Examples, data: TaskData) -> Scores:
        """The scores of the model as it is on tokenized rows."""
        return score(self.logits(examples), examples.labels, self.kind, data.metric_names)

    def logits(self, examples: Examples) -> Any:
        """The logits of tokenized rows, (rows, labels), in the precision of the recipe."""
        training = self.recipe.training
        return logits(self.model, examples, self.collate, training.eval_batch_size, training.precision)

    def batches(self, examples: Examples) -> Iterator[dict[str, Tensor]]:
        """Every row once, as large a piece at a time as training computes at once, in an order of the recipe's seed."""
        training = self.recipe.training
        size = max(1, training.batch_size // training.gradient_accumulation)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(training.seed)).tolist()
        device = next(self.model.parameters()).device
        for start in range(0, len(order), size):
            batch = self.collate([examples[index] for index in order[start : start + size]])
            yield {name: value.to(device) for name, value in batch.items()}

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of trained parameters: outside the newly made modules, and within them."""
        counts = {True: 0, False: 0}
        for name, parameter in trainable(self.model).items():
            counts[within(name, self.base.new_modules)] += parameter.numel()
        return counts[False], counts[True]


def prepare_training(recipe: Recipe, data: TaskData) -> Prepared:
    """The base with the recipe's method attached, every draw made from the recipe's seed.

    Raises:
        InputError: the model, a target of the method, the device or the precision is not to be had.
    """
    return _prepare(
        recipe, data.kind, data.label_names, lambda method, base: _attached(method, base, recipe, data.kind)
    )


def prepare_saved(recipe: Recipe, kind: str, label_names: tuple[str, ...] | None, run_dir: Path) -> Prepared:
    """The trained model from the files of a run.

    Raises:
        InputError: the model or the run's files are missing or damaged.
    """
    return _prepare(recipe, kind, label_names, lambda method, base: method.load(base.model, run_dir, recipe.method))


def _prepare(
    recipe: Recipe,
    kind: str,
    label_names: tuple[str, ...] | None,
    make: Callable[[Method, Base], nn.Module],
) -> Prepared:
    device = find_device(recipe.training)
    method = methods.load(recipe.method.name)
    base = load_base(
        recipe.model,
        kind=kind,
        label_names=label_names,
        seed=recipe.training.seed,
        max_length=recipe.task.max_length,
        float32_head=recipe.training.precision != "float32",
    )
    start = time.perf_counter()
    model = make(method, base)
    seconds = time.perf_counter() - start
    return Prepared(recipe, kind, base, method, model.to(device), collator(base.tokenizer), seconds)


def _attached(method: Method, base: Base, recipe: Recipe, kind: Any) -> nn.Module:
    set_seed(recipe.training.seed)
    model = method.attach(base.model, recipe.method, kind, base.new_modules)
    if recipe.training.precision != "float32":
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()  # mixed precision keeps what it trains in float32
    return model


def report_truncation(display: Display, split: str, examples: Examples, max_length: int) -> None:
    """Tell how many rows were cut, if any were."""
    cut = len(examples.truncated)
    if cut:
        display.message(f"{split}: {cut} of {len(examples)} rows are longer than {max_length} tokens and were cut")


@contextmanager
def deterministic() -> Iterator[None]:
    """Have torch choose algorithms whose result does not vary from run to run, where it has them."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic
    fill = options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    options.fill_uninitialized_memory = False  # it finds faults of code, at the price of speed
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        options.fill_uninitialized_memory = fill
