"""The facts of a task: where its rows come from, and how they are batched, prompted, trained and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from kasatune.data.readers.hub import HUB

if TYPE_CHECKING:
    from kasatune.data.tasks.dataset import TaskData, TaskSettings

TaskKind = Literal["classification", "regression", "generation"]
RowFormat = Literal["labelled", "completion", "chat", "mixture", "pairs"]
EngineName = Literal["trainer", "sft", "preference", "reward"]

_KINDS_OF_FORMAT: Mapping[str, tuple[str, ...]] = {
    "labelled": ("classification", "regression"),
    "completion": ("generation",),
    "chat": ("generation",),
    "mixture": ("generation",),
    "pairs": ("generation", "regression"),
}


class RetrievedPassage(NamedTuple):
    """A passage in a prompt: the name of its document, its text, and its score for the question."""

    document: str
    text: str
    score: float


class RetrievedPrompt(NamedTuple):
    """A prompt with the passages in it, best first."""

    text: str
    passages: tuple[RetrievedPassage, ...]


Prompter = Callable[[str], RetrievedPrompt]
"""Makes the prompt of an input with passages that it retrieves."""


@dataclass(frozen=True)
class TaskInfo:
    """One task: the facts that loading, batching, training, scoring and reports read.

    Attributes:
        name: value of `task.name` in a recipe.
        title: description in a few words.
        kind: output of the model: a label, a number or text.
        metrics: names of the scores, in the order in which tables show them.
        primary: score that selects the best epoch; one of `metrics`, or "loss" where text is generated, because text is
            generated only once, after training.
        paper_metric: score that the KaSA paper reports for this task; None if the paper does not use the task.
        source: where the rows come from, in words.
        module: import path of the module that loads the rows, with the functions of `TaskModule`.
        keys: keys of the recipe's `task` section that say where the rows are. ("data", "revision"): a benchmark, from a
            folder or the hub. With "train" and "validation": the user's files. ("parts",): other tasks. (): the task
            makes its rows itself.
        hub_names: whether `train` and `validation` also take a data set of the hub, as hub:NAME:SPLIT.
        label_names: the labels in the order of their numbers; None if there are none or they follow from the rows.
        rows: form of the rows, which decides how batches are made: "labelled" text (`tokenize.encode`), a prompt with
            its "completion" (`prompt_completion.encode_rows`), a "chat" (`chat_template.encode_chats`), a "mixture" of
            the last two, or "pairs" of a chosen and a rejected answer to a chat (`tokenize_pairs.encode_pairs`).
        prompt: prompt of the task as a format string with one {} for the input; None if the input is the prompt.
        prompter: "module:function" that makes a `Prompter` from the recipe's `task` section, for tasks with
            retrieved passages in the prompt; None for the others, whose prompts `render` makes.
        scorer: "module:function" that scores generated text, see `evaluation.text_scores.Scorer`; None if generated
            text is not scored, and for labelled rows, which are scored by `kind`.
        decoding: defaults of the recipe's `generation` section, where they differ from the section's own.
        engine: what trains a run on this task: "trainer" (transformers' Trainer), "sft" (TRL's SFTTrainer),
            "preference" (its DPOTrainer) or "reward" (its RewardTrainer).
    """

    name: str
    title: str
    kind: TaskKind
    metrics: tuple[str, ...]
    primary: str
    paper_metric: str | None
    source: str
    module: str
    keys: tuple[str, ...] = ("data", "revision")
    hub_names: bool = False
    label_names: tuple[str, ...] | None = None
    rows: RowFormat = "labelled"
    prompt: str | None = None
    prompter: str | None = None
    scorer: str | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineName = "trainer"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS_OF_FORMAT[self.rows]:
            expected = " or ".join(_KINDS_OF_FORMAT[self.rows])
            raise ValueError(f"task {self.name}: kind {self.kind!r} with rows {self.rows!r}; expected {expected}")

    @property
    def headline(self) -> str:
        """The score that reports show first: the one that selects, or the paper's if that is the loss."""
        return self.paper_metric or self.metrics[0] if self.kind == "generation" else self.primary

    @property
    def uses_chat_template(self) -> bool:
        """Whether the rows are conversations, which the model reads through its chat template."""
        return self.rows in ("chat", "pairs")

    @property
    def compares_with_reference(self) -> bool:
        """Whether the loss compares the model with what it was when training started."""
        return self.rows == "pairs" and self.kind == "generation"

    @property
    def reads_own_files(self) -> bool:
        """Whether the rows are the user's own, named by `task.train` and `task.validation`."""
        return "train" in self.keys

    def reads_hub(self, settings: TaskSettings) -> bool:
        """Whether these settings take the rows from the hub, so that reading them needs a network.

        For a mixture ask about its parts, see `mixture_parts.reads_hub`.
        """
        if self.reads_own_files:
            return self.hub_names and any(str(name).startswith(HUB) for name in (settings.train, settings.validation))
        return "data" in self.keys and settings.data is None

    def render(self, text: str) -> str:
        """The prompt for `text`."""
        return text if self.prompt is None else self.prompt.format(text)

    def load_prompter(self, settings: TaskSettings) -> Prompter | None:
        """The function that makes prompts with retrieved passages; None for tasks without retrieval.

        Raises:
            InputError: the corpus is missing, unreadable or without text.
        """
        if self.prompter is None:
            return None
        module, _, function = self.prompter.partition(":")
        return getattr(import_module(module), function)(settings)

    def load_module(self) -> TaskModule:
        """Import the module of the task."""
        return cast("TaskModule", import_module(self.module))


class TaskModule(Protocol):
    """The functions of a task's module."""

    def load(self, info: TaskInfo, settings: TaskSettings) -> TaskData:
        """Read the rows that `settings` name, with the splits "train" and "validation" at least.

        Raises:
            DataError: the data is missing, unreadable or inconsistent.
            WorkError: the hub cannot be reached.
        """
        ...

    def load_evaluation(
        self, info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None
    ) -> TaskData:
        """Read other rows of the task, as the split "validation"; not called for a task with no `keys`.

        Args:
            info: row of the task.
            settings: what the model was trained with.
            data: file or folder, in the form that the task's documentation names.
            label_names: labels that the model was trained on, in the order of their numbers.

        Raises:
            DataError: the data is missing, unreadable or inconsistent, or has a label that is not in `label_names`.
        """
        ...
