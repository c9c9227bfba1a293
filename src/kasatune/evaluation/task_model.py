"""Everything that a run needs in memory before its first step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from kasatune import methods
from kasatune.data.chat_template import encode_chats, prompt_of_chat
from kasatune.data.collate import PaddedBatch
from kasatune.data.prompt_completion import TextCollator, encode_rows
from kasatune.data.readers.conversations import Chat
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tasks.instruction import ChatRows
from kasatune.data.tokenize import Examples, encode
from kasatune.errors import DataError, ModelError
from kasatune.evaluation.causal_loss import text_loss, text_metrics
from kasatune.evaluation.generate import generate, generation_config, unused_settings
from kasatune.evaluation.loglikelihood import log_likelihoods
from kasatune.evaluation.multiple_choice import answer_scores, has_choices
from kasatune.evaluation.scoring import Scores, logits, score
from kasatune.evaluation.text_scores import asked, text_scores
from kasatune.io.progress import ProgressReporter
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.trained_parameters import count_trained, trainable
from kasatune.models.device import find_device
from kasatune.models.load import Base, load_base
from kasatune.recipes.schema import Recipe

if TYPE_CHECKING:
    from kasatune.recipes.schema import GenerationSection

SAMPLES = 8


@dataclass(frozen=True)
class TaskModel:
    """A recipe's model, ready to be trained or asked.

    Attributes:
        recipe: what it was made from.
        kind: "classification", "regression" or "generation".
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

    @classmethod
    def for_training(cls, recipe: Recipe, data: TaskData, *, on_cpu: bool = False) -> TaskModel:
        """Load the base and attach the recipe's method, with every random draw made from the recipe's seed.

        Args:
            recipe: recipe of the run.
            data: rows of its task.
            on_cpu: keep the model in CPU memory, for models that are too large for one device.

        Raises:
            InputError: the model, a target of the method, the device or the precision is not available.
        """

        def attach(method: Method, base: Base) -> nn.Module:
            return _attached(method, base, recipe, data.kind)

        return cls._load(recipe, data.kind, data.label_names, attach, on_cpu=on_cpu)

    @classmethod
    def for_saved_run(
        cls, recipe: Recipe, kind: str, label_names: tuple[str, ...] | None, run_dir: Path, *, on_cpu: bool = False
    ) -> TaskModel:
        """Load the trained model from the files of a run.

        Args:
            recipe: recipe of the run.
            kind: "classification", "regression" or "generation".
            label_names: labels of a classification, in the order of their numbers.
            run_dir: directory of the run.
            on_cpu: keep the model in CPU memory, for models that are too large for one device.

        Raises:
            InputError: the model or the files of the run are missing or damaged.
        """

        def load(method: Method, base: Base) -> nn.Module:
            return method.load(base.model, run_dir, recipe.method)

        return cls._load(recipe, kind, label_names, load, on_cpu=on_cpu)

    @classmethod
    def _load(
        cls,
        recipe: Recipe,
        kind: str,
        label_names: tuple[str, ...] | None,
        make: Callable[[Method, Base], nn.Module],
        *,
        on_cpu: bool,
    ) -> TaskModel:
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
        if not on_cpu:
            model = model.to(device)
        return cls(recipe, kind, base, method, model, batch_maker(base, kind), seconds)

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
        task = self.recipe.task
        if self.kind == "generation":
            loss_on = task.loss_on or "completion"
            if isinstance(rows, ChatRows):
                return self._known(encode_chats(self.base.tokenizer, rows.chats, task.max_length, loss_on))
            return self._known(encode_rows(self.base.tokenizer, rows.first, rows.labels, task.max_length, loss_on))
        return self.tokenize(rows.first, rows.second, rows.labels)

    def tokenize(self, first: Sequence[str], second: Sequence[str] | None, labels: Sequence[Any] | None) -> Examples:
        """Texts, or pairs of texts, as the model takes them.

        Raises:
            ModelError: a token has a number that the model has no embedding for.
        """
        return self._known(encode(self.base.tokenizer, first, second, labels, self.recipe.task.max_length))

    def _known(self, examples: Examples) -> Examples:
        module: Any = self.base.model.get_input_embeddings()
        embeddings = getattr(module, "num_embeddings", math.inf)
        largest = max((max(row["input_ids"], default=0) for row in examples.rows), default=0)
        if largest >= embeddings:
            token = self.base.tokenizer.convert_ids_to_tokens(largest)
            raise ModelError(
                f"model.name: {self.recipe.model.name}: its tokenizer gives {token!r} the number {largest}, and the"
                f" model has embeddings for {embeddings} words; give the tokenizer that belongs to the model"
            )
        return examples

    def score(self, examples: Examples, data: TaskData) -> Scores:
        """The scores of the model as it is on tokenized rows; of a language model its loss, and nothing is written."""
        if self.kind == "generation":
            training = self.recipe.training
            size, precision = training.eval_batch_size, training.precision
            loss = text_loss(self.model, examples, self.collate, size, precision)
            return Scores(text_metrics(loss), [], [], [])
        return score(self.logits(examples), examples.labels, self.kind, data.metric_names)

    def final_score(self, examples: Examples, data: TaskData, split: str) -> Scores:
        """`score`, and where text is written that of the whole split and its scores too.

        Answers to instructions have no score of their own here: a few are written, to be looked at.
        """
        scores = self.score(examples, data)
        if self.kind != "generation":
            return scores
        rows = data.splits[split]
        if isinstance(rows, ChatRows):
            shown = rows.pick(range(len(rows))[:SAMPLES])
            texts = self.answer([chat[:-1] for chat in shown.chats])
            return Scores(scores.metrics, [[label] for label in shown.labels], texts, [], shown.first)
        prompts, references = asked(data.splits[split])
        texts = self.generate(prompts)
        if has_choices(data.name):
            answered = answer_scores(data.name, split, prompts, texts, references, self.log_likelihoods)
            return Scores({**answered.metrics, **scores.metrics}, references, texts, answered.answers, prompts)
        metrics = text_scores(data.name, data.metric_names, prompts, texts, references)
        return Scores({**metrics, **scores.metrics}, references, texts, [], prompts)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """What the model makes of (context, continuation) pairs; see `ranking.log_likelihoods`."""
        training = self.recipe.training
        return log_likelihoods(
            self.model, self.base.tokenizer, pairs, training.eval_batch_size, precision=training.precision
        )

    def answer(self, chats: Sequence[Chat]) -> list[str]:
        """What the model answers to each conversation, through its chat template."""
        return self.generate([prompt_of_chat(self.base.tokenizer, chat) for chat in chats])

    def generate(self, prompts: Sequence[str] | Sequence[list[int]]) -> list[str]:
        """What the model writes after each prompt, by the recipe's section `generation`."""
        recipe = self.recipe
        return generate(
            self.model,
            self.base.tokenizer,
            prompts,
            self._decoding,
            recipe.training.eval_batch_size,
            max_length=recipe.task.max_length,
            precision=recipe.training.precision,
        )

    def decoding(self) -> dict[str, Any]:
        """How text is written, for metrics.json: the settings, and what the model's own of them were not heeded."""
        config = generation_config(self.model, self.base.tokenizer, self._decoding)
        return {
            **self._decoding.model_dump(),
            "do_sample": False,
            "early_stopping": config.early_stopping,
            "eos_token_id": config.eos_token_id,
            "batch_size": self.recipe.training.eval_batch_size,
            "model_settings_not_used": unused_settings(self.model),
        }

    @property
    def _decoding(self) -> GenerationSection:
        if self.recipe.generation is None:
            raise DataError(f"task.name: {self.recipe.task.name} writes no text")
        return self.recipe.generation

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
        return count_trained(self.model, self.base.new_modules)


def batch_maker(base: Base, kind: str) -> Callable[[list[dict[str, Any]]], Any]:
    """What makes batches of tokenized rows."""
    return TextCollator(base.tokenizer) if kind == "generation" else PaddedBatch(base.tokenizer)


def _attached(method: Method, base: Base, recipe: Recipe, kind: Any) -> nn.Module:
    set_seed(recipe.training.seed)
    model = method.attach(base.model, recipe.method, kind, base.new_modules)
    if recipe.training.precision != "float32":
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()  # mixed precision keeps what it trains in float32
    return model


def report_truncation(display: ProgressReporter, split: str, examples: Examples, max_length: int) -> None:
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
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it no product of matrices on a GPU is
    options.fill_uninitialized_memory = False  # it finds faults of code, at the price of speed
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        options.fill_uninitialized_memory = fill
