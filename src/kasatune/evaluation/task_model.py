"""The model of a recipe with its tokenizer and method: load it for training or from a saved run, score it, ask it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from kasatune import methods
from kasatune.data.chat_template import AnswerEnd, answer_end, encode_chats, prompt_of_chat, set_chat_template
from kasatune.data.collate import Collator, collator_for
from kasatune.data.prompt_completion import encode_rows, ends_prompts
from kasatune.data.tasks.dataset import ChatRows, PairRows, Rows, TaskData
from kasatune.data.tasks.mixture_parts import infos_by_part, reads_chats
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import Prompter, TaskInfo, TaskKind
from kasatune.data.tokenize import Examples, encode
from kasatune.data.tokenize_pairs import PairCollator, all_tokens, encode_pairs, encode_scored_answers
from kasatune.errors import DataError
from kasatune.evaluation.batches import to_device
from kasatune.evaluation.causal_loss import text_loss, text_metrics
from kasatune.evaluation.generate import end_tokens, generate, generation_config, longest_prompt, unused_settings
from kasatune.evaluation.generated_text import add_generated_text
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.evaluation.loglikelihood import log_likelihoods
from kasatune.evaluation.mixture import encode_mixture, part_metrics
from kasatune.evaluation.preference import PairValues, implicit_rewards, log_probabilities, rewards, score_pairs
from kasatune.evaluation.scoring import Scores, logits, score
from kasatune.evaluation.starting_adapter import check_base
from kasatune.io.run_layout import ADAPTER, CHECKPOINT
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.trained_parameters import count_trained, trainable
from kasatune.models.device import find_device
from kasatune.models.load import Base, Pretrained, load_base
from kasatune.models.moved_base import base_errors, recorded_fingerprint, require_same_base, with_base
from kasatune.models.precision import with_precision
from kasatune.models.saved_tokenizer import save_tokenizer
from kasatune.recipes.schema import Recipe

if TYPE_CHECKING:
    from kasatune.recipes.schema import GenerationSection


@dataclass(frozen=True)
class TaskModel:
    """The model of a recipe, ready to be trained, scored or asked.

    Attributes:
        recipe: the recipe that it was loaded from.
        base: the base model that `model` is or wraps, its tokenizer and its newly initialized modules.
        method: the recipe's method.
        model: the base with the method applied, on the recipe's device.
        attach_seconds: time that the method took to make `model` from the base.
        template_note: which chat template is used, where that is not simply the model's own; otherwise "".
    """

    recipe: Recipe
    base: Base
    method: Method
    model: nn.Module
    attach_seconds: float = 0.0
    template_note: str = ""

    @classmethod
    def for_training(
        cls,
        recipe: Recipe,
        data: TaskData,
        *,
        pretrained: Pretrained | None = None,
        device: torch.device | None = None,
        on_cpu: bool = False,
    ) -> TaskModel:
        """Load the base and attach the recipe's method, with every random draw made from the recipe's seed.

        Args:
            recipe: recipe of the run.
            data: rows of its task.
            pretrained: the recipe's model, already located; None to locate it now.
            device: the device that the recipe asks for, already found; None to find it now.
            on_cpu: keep the model in CPU memory, for models that are too large for one device.

        Raises:
            InputError: the model, a target of the method, the device or the precision is not available.
        """

        def attach(method: Method, base: Base) -> nn.Module:
            return _attached(method, base, recipe)

        return cls._load(recipe, data.label_names, attach, pretrained=pretrained, device=device, on_cpu=on_cpu)

    @classmethod
    def for_saved_run(
        cls,
        recipe: Recipe,
        label_names: tuple[str, ...] | None,
        run_dir: Path,
        *,
        base: str | None = None,
        device: torch.device | None = None,
        on_cpu: bool = False,
    ) -> TaskModel:
        """Load the trained model from the files of a run.

        Args:
            recipe: recipe of the run.
            label_names: labels of a classification, in the order of their numbers.
            run_dir: directory of the run.
            base: where the base model is now, if not where the recipe says; it must be the same model.
            device: the device that the recipe asks for, already found; None to find it now.
            on_cpu: keep the model in CPU memory, for models that are too large for one device.

        Raises:
            InputError: the model or the files of the run are missing or damaged.
        """

        def load(method: Method, loaded: Base) -> nn.Module:
            if base is not None:
                require_same_base(loaded, recipe, recorded_fingerprint(run_dir), base)
            return method.load(loaded.model, run_dir, recipe.method)

        with base_errors(base):
            return cls._load(with_base(recipe, base), label_names, load, device=device, on_cpu=on_cpu)

    @classmethod
    def for_base(cls, recipe: Recipe, label_names: tuple[str, ...] | None) -> TaskModel:
        """Load the base without any method, to score it untouched.

        Raises:
            InputError: the model or the device is not available.
        """
        return cls._load(recipe, label_names, lambda method, base: base.model, device=None, on_cpu=False)

    @classmethod
    def _load(
        cls,
        recipe: Recipe,
        label_names: tuple[str, ...] | None,
        make: Callable[[Method, Base], nn.Module],
        *,
        pretrained: Pretrained | None = None,
        device: torch.device | None,
        on_cpu: bool,
    ) -> TaskModel:
        recipe, _ = with_precision(recipe)
        device = device or find_device(recipe.training)
        method = methods.load(recipe.method.name)
        base = load_base(
            recipe.model,
            kind=TASKS[recipe.task.name].kind,
            label_names=label_names,
            seed=recipe.training.seed,
            max_length=recipe.task.max_length,
            float32_head=recipe.training.precision != "float32",
            pretrained=pretrained,
        )
        note = ""
        if reads_chats(recipe.task):
            note = set_chat_template(base.tokenizer, recipe.task.template)
        start = time.perf_counter()
        model = make(method, base)
        seconds = time.perf_counter() - start
        if not on_cpu:
            model = model.to(device)
        return cls(recipe, base, method, model, seconds, note)

    @property
    def info(self) -> TaskInfo:
        """The row of the recipe's task."""
        return TASKS[self.recipe.task.name]

    @property
    def kind(self) -> TaskKind:
        """The kind of the recipe's task: "classification", "regression" or "generation"."""
        return self.info.kind

    @cached_property
    def prompter(self) -> Prompter | None:
        """Makes prompts with retrieved passages; None for tasks without retrieval. Reads the corpus when first used."""
        return self.info.load_prompter(self.recipe.task)

    @cached_property
    def answer_end(self) -> AnswerEnd | None:
        """What the chat template writes after an answer; None for rows that are no chats, or where it is unknown."""
        return answer_end(self.base.tokenizer) if reads_chats(self.recipe.task) else None

    @property
    def end_of_turn(self) -> int | None:
        """The chat template's token at which an answer ends, if it has one."""
        return None if self.answer_end is None else self.answer_end.token

    @cached_property
    def collate(self) -> Collator:
        """Makes a batch of tokenized rows."""
        if self.info.rows == "pairs":
            return PairCollator(self.base.tokenizer, regression=self.kind == "regression")
        return collator_for(self.info.rows, self.base.tokenizer)

    def encode(self, data: TaskData, split: str) -> Examples:
        """Tokenize the rows of a split.

        Raises:
            DataError: there is no such split, or it is empty.
            ModelError: a token id is beyond the model's embeddings.
        """
        rows = data.require_split(split)
        if isinstance(rows, PairRows):
            return self._checked(encode_pairs(self.base.tokenizer, rows.pairs, self.recipe.task.max_length))
        if isinstance(rows, MixtureRows):
            return self._checked(encode_mixture(rows, self._encode_text))
        if self.kind == "generation":
            return self._checked(self._encode_text(rows))
        return self.tokenize(rows.first, rows.second, rows.labels)

    def _encode_text(self, rows: Rows) -> Examples:
        """Tokenize conversations, or prompts with completions."""
        tokenizer, task = self.base.tokenizer, self.recipe.task
        loss_on = task.loss_on or "completion"
        if isinstance(rows, ChatRows):
            return encode_chats(tokenizer, rows.chats, task.max_length, loss_on)
        return encode_rows(tokenizer, rows.first, rows.labels, task.max_length, loss_on)

    def tokenize(self, first: Sequence[str], second: Sequence[str] | None, labels: Sequence[Any] | None) -> Examples:
        """Tokenize texts, or pairs of texts; for a reward, prompts and answers.

        Raises:
            ModelError: a token id is beyond the model's embeddings.
        """
        tokenizer, max_length = self.base.tokenizer, self.recipe.task.max_length
        if self.info.rows == "pairs":
            return self._checked(encode_scored_answers(tokenizer, first, second or (), max_length))
        return self._checked(encode(tokenizer, first, second, labels, max_length))

    def _checked(self, examples: Examples) -> Examples:
        rows = map(all_tokens, examples.rows)
        require_known_tokens(self.base.model, self.base.tokenizer, rows, self.recipe.model.base_name)
        return examples

    def score(self, examples: Examples, data: TaskData) -> Scores:
        """Scores of the current model on tokenized rows; for a language model its loss, without generating text."""
        if self.info.rows == "pairs":
            return score_pairs(self._rewards(examples))
        if self.kind == "generation":
            training = self.recipe.training
            size, precision = training.eval_batch_size, training.precision
            loss = text_loss(self.model, examples, self.collate, size, precision)
            losses: dict[str, list[Any]] = {"sum": loss.sums, "tokens": loss.tokens}
            if examples.parts:
                losses["part"] = list(examples.parts)
            metrics = {**text_metrics(loss.mean), **part_metrics(examples.parts, loss)}
            return Scores(metrics, [], [], [], losses=losses)
        return score(self.logits(examples), examples.labels, self.kind, data.metric_names)

    def _rewards(self, examples: Examples) -> PairValues:
        training = self.recipe.training
        if self.recipe.preference is None:
            return rewards(self.model, examples, self.collate, training.eval_batch_size, training.precision)
        return implicit_rewards(self.log_probabilities(examples), examples, self.recipe.preference.beta)

    def log_probabilities(self, examples: Examples) -> PairValues:
        """Log-probabilities of the answers of pairs, see `preference.log_probabilities`."""
        training, preference = self.recipe.training, self.recipe.preference
        ld_alpha = None if preference is None else preference.ld_alpha
        return log_probabilities(
            self.model, examples, self.collate, training.eval_batch_size, training.precision, ld_alpha
        )

    def final_score(self, examples: Examples, data: TaskData, split: str) -> Scores:
        """The result of `score`, and for a language model the generated text of the split, see `add_generated_text`."""
        scores = self.score(examples, data)
        return add_generated_text(self, scores, data.splits[split], split) if self.kind == "generation" else scores

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Log-likelihoods of (context, continuation) pairs, see `loglikelihood.log_likelihoods`."""
        training = self.recipe.training
        return log_likelihoods(
            self.model, self.base.tokenizer, pairs, training.eval_batch_size, precision=training.precision
        )

    def answer(
        self, chats: Sequence[Sequence[tuple[str, str]]], settings: GenerationSection | None = None
    ) -> list[str]:
        """The model's answer to each conversation, through its chat template; see `generate`."""
        return self.generate([prompt_of_chat(self.base.tokenizer, chat) for chat in chats], settings)

    def generate(
        self, prompts: Sequence[str] | Sequence[list[int]], settings: GenerationSection | None = None
    ) -> list[str]:
        """Generate one text for each prompt, with the recipe's section `generation` unless `settings` are given."""
        recipe = self.recipe
        return generate(
            self.model,
            self.base.tokenizer,
            prompts,
            settings or self.generation,
            recipe.training.eval_batch_size,
            max_length=recipe.task.max_length,
            precision=recipe.training.precision,
            end_of_turn=self.end_of_turn,
        )

    def decoding(self) -> dict[str, Any]:
        """Settings of generation for metrics.json, with those of the model's own that are ignored."""
        config = generation_config(self.model, self.base.tokenizer, self.generation, self.end_of_turn)
        parts = {name: settings.model_dump() for name, settings in self.part_generation.items()}
        return {
            **self.generation.model_dump(),
            **({"parts": parts} if parts else {}),
            "do_sample": False,
            "early_stopping": config.early_stopping,
            "eos_token_id": config.eos_token_id,
            "batch_size": self.recipe.training.eval_batch_size,
            "max_prompt_tokens": longest_prompt(self.model, self.generation, self.recipe.task.max_length),
            "tokenizer_ends_prompts": ends_prompts(self.base.tokenizer),
            "model_settings_not_used": unused_settings(self.model),
        }

    def save_tokenizer(self, run_dir: Path) -> None:
        """Save tokenizer, chat template and end tokens with the stock adapter, or the complete checkpoint, of a run."""
        ends = end_tokens(self.base.model, self.base.tokenizer, self.end_of_turn)
        for folder, marker in ((ADAPTER, "adapter_config.json"), (CHECKPOINT, "config.json")):
            if (run_dir / folder / marker).is_file():
                save_tokenizer(self.base.tokenizer, self.base.model, ends, run_dir / folder)

    @property
    def part_infos(self) -> dict[str, TaskInfo]:
        """The row of the task of each part of a mixture, by the part's name; of another task, its own row."""
        return infos_by_part(self.recipe.task)

    @property
    def part_generation(self) -> dict[str, GenerationSection]:
        """The decoding of each part of a mixture; empty for other tasks."""
        return {part.part_name: part.generation or self.generation for part in self.recipe.task.parts or ()}

    @property
    def generation(self) -> GenerationSection:
        """The recipe's section `generation`.

        Raises:
            DataError: the task does not generate text.
        """
        if self.recipe.generation is None:
            raise DataError(f"task.name: {self.recipe.task.name} does not generate text")
        return self.recipe.generation

    def logits(self, examples: Examples) -> Any:
        """The logits of tokenized rows, (rows, labels), in the precision of the recipe."""
        training = self.recipe.training
        return logits(self.model, examples, self.collate, training.eval_batch_size, training.precision)

    def batches(self, examples: Examples) -> Iterator[dict[str, Tensor]]:
        """Every row once, in batches of training's micro-batch size, in an order drawn from the recipe's seed."""
        training = self.recipe.training
        size = max(1, training.batch_size // training.gradient_accumulation)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(training.seed)).tolist()
        device = next(self.model.parameters()).device
        for start in range(0, len(order), size):
            yield to_device(self.collate([examples[index] for index in order[start : start + size]]), device)

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of trained parameters: outside the newly initialized modules, and inside them."""
        return count_trained(self.model, self.base.new_modules)


def _attached(method: Method, base: Base, recipe: Recipe) -> nn.Module:
    check_base(recipe, base)
    set_seed(recipe.training.seed)
    model = method.attach(base.model, recipe.method, TASKS[recipe.task.name].kind, base.new_modules)
    if recipe.training.precision != "float32":
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()  # mixed precision keeps trained parameters in float32
    return model


@contextmanager
def deterministic() -> Generator[None]:
    """Use deterministic algorithms inside this context where torch has them, so that results repeat bit for bit."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic
    fill = options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required for deterministic matrix products on a GPU
    options.fill_uninitialized_memory = False  # only helps to find bugs, and costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        options.fill_uninitialized_memory = fill
