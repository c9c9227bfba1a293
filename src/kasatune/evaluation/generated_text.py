"""Generate text for the rows of a split after training, and score it: of a mixture, each part as its own task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kasatune.data.tasks.dataset import ChatRows, PairRows, Rows
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.text_scores import GeneratedText, group_by_prompt, load_scorer, prompt_numbers

if TYPE_CHECKING:
    from kasatune.evaluation.task_model import TaskModel
    from kasatune.recipes.schema import GenerationSection

SAMPLES = 8
"""Answers that are generated as samples where generated text is not scored."""

Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _Written:
    """Generated text and its scores.

    Attributes:
        metrics: of the task's scorer; empty if it has none.
        inputs: prompts.
        labels: references of each prompt.
        texts: generated for each prompt.
        details: of the scorer, for each prompt; empty if there are none.
        messages: the conversation before each answer; None for prompts that are no conversations.
    """

    metrics: dict[str, float]
    inputs: list[str]
    labels: list[list[Any]]
    texts: list[str]
    details: list[Any]
    messages: list[Messages] | None


def add_generated_text(task_model: TaskModel, scores: Scores, rows: Rows, split: str) -> Scores:
    """Add generated text of a split, and its scores, to the losses that `scores` holds.

    If a task has no scorer, only the first `SAMPLES` rows are answered, as samples to read.
    """
    losses = {**(scores.losses or {}), "prompt": prompt_numbers(rows)}
    if not isinstance(rows, MixtureRows):
        own = _write(task_model, task_model.info, rows, split, task_model.generation)
        metrics = {**own.metrics, **scores.metrics}
        details = scores.scores if isinstance(rows, PairRows) else own.details  # the rewards of all pairs
        return Scores(metrics, own.labels, own.texts, details, own.inputs, messages=own.messages, losses=losses)
    infos, decoding = task_model.part_infos, task_model.part_generation
    written = {
        part: _write(task_model, infos[part], rows.of_part(part), split.removeprefix(f"{part}/"), decoding[part])
        for part in rows.indices()
    }
    metrics = {name: value for name, value in scores.metrics.items() if "/" not in name}
    for part, each in written.items():
        prefix = f"{part}/"
        metrics |= {f"{prefix}{name}": value for name, value in each.metrics.items()}
        metrics |= {name: value for name, value in scores.metrics.items() if name.startswith(prefix)}
    every = list(written.values())
    result = Scores(
        metrics,
        labels=[label for each in every for label in each.labels],
        predictions=[text for each in every for text in each.texts],
        scores=[detail for each in every for detail in (each.details or [None] * len(each.texts))],
        inputs=[prompt for each in every for prompt in each.inputs],
        losses=losses,
        parts=[part for part, each in written.items() for _ in each.texts],
        part_tasks={part: infos[part].name for part in written},
    )
    if any(each.messages is not None for each in every):
        messages = [chat for each in every for chat in (each.messages or [None] * len(each.texts))]
        result = replace(result, messages=messages)
    return result


def _write(task_model: TaskModel, info: TaskInfo, rows: Rows, split: str, settings: GenerationSection) -> _Written:
    scorer = load_scorer(info)
    if scorer is None:
        samples = rows.head(SAMPLES)
        labels = [[label] for label in samples.labels]
        if isinstance(samples, ChatRows):
            messages: list[Messages] = [chat[:-1] for chat in samples.chats]
            texts = task_model.answer(messages, settings)
            return _Written({}, samples.first, labels, texts, [], messages)
        if isinstance(samples, PairRows):
            asked: list[Messages] = [pair.prompt for pair in samples.pairs]
            return _Written({}, samples.first, samples.labels, task_model.answer(asked, settings), [], asked)
        return _Written({}, samples.first, labels, task_model.generate(samples.first, settings), [], None)
    prompts, references = group_by_prompt(rows)
    if isinstance(rows, ChatRows):
        chats = {prompt: chat[:-1] for prompt, chat in zip(rows.first, rows.chats, strict=True)}
        texts = task_model.answer([chats[prompt] for prompt in prompts], settings)
    else:
        texts = task_model.generate(prompts, settings)
    result = scorer(info, GeneratedText(split, prompts, texts, references), task_model.log_likelihoods)
    return _Written(result.metrics, prompts, references, texts, result.details, None)
