"""Score generated text by its references, and the interface of the scorers that tasks name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, cast

from kasatune.data.tasks.dataset import Rows
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.metrics.generation import generation_scores

LogLikelihoods = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
"""Log-likelihoods of (context, continuation) pairs under the model, see `loglikelihood.log_likelihoods`."""


@dataclass(frozen=True)
class GeneratedText:
    """Text that a model generated for the prompts of a split.

    Attributes:
        split: name of the split.
        prompts: complete prompts, each once.
        texts: generated text for each prompt.
        references: right answers to each prompt, one or more.
    """

    split: str
    prompts: Sequence[str]
    texts: Sequence[str]
    references: Sequence[Sequence[str]]


@dataclass(frozen=True)
class TextScores:
    """Result of a scorer.

    Attributes:
        metrics: scores by name.
        details: what the scores come from, for each prompt; empty if a scorer has nothing to add to the text.
    """

    metrics: dict[str, float]
    details: list[Any] = field(default_factory=list[Any])


class Scorer(Protocol):
    """A function that scores generated text; `TaskInfo.scorer` names one as "module:function"."""

    def __call__(self, info: TaskInfo, generated: GeneratedText, log_likelihoods: LogLikelihoods) -> TextScores:
        """Score `generated`; `log_likelihoods` asks the same model."""
        ...


def load_scorer(info: TaskInfo) -> Scorer | None:
    """Import the scorer of a task; None if its generated text is not scored."""
    if info.scorer is None:
        return None
    module, _, function = info.scorer.partition(":")
    return cast("Scorer", getattr(import_module(module), function))


def score_by_references(info: TaskInfo, generated: GeneratedText, log_likelihoods: LogLikelihoods) -> TextScores:
    """The task's metrics of the generated texts against their references (BLEU, NIST, METEOR, ROUGE-L, CIDEr)."""
    return TextScores(generation_scores(info.metrics, generated.texts, generated.references))


def group_by_prompt(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """The distinct prompts in the order of their first rows, and for each the completions of all its rows."""
    groups: dict[str, list[str]] = {}
    for prompt, completion in zip(rows.first, rows.labels, strict=True):
        groups.setdefault(prompt, []).append(str(completion))
    return list(groups), list(groups.values())


def prompt_numbers(rows: Rows) -> list[int]:
    """For each row the index of its prompt among the distinct prompts of its part, in the order of their first rows."""
    numbers: dict[tuple[str, str], int] = {}
    parts = rows.parts if isinstance(rows, MixtureRows) else [""] * len(rows)
    return [numbers.setdefault(pair, len(numbers)) for pair in zip(parts, rows.first, strict=True)]
