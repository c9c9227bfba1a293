"""The rows of a mixture of tasks, each with its part, and what a recipe says of the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from kasatune.data.readers.conversations import Chat
from kasatune.data.tasks.dataset import ChatRows, Rows, TaskSettings, unlearnt_answers


class PartSettings(TaskSettings, Protocol):
    """What a mixture reads of one of its parts: the settings of its task, with a name and a weight."""

    @property
    def part_name(self) -> str:
        """The name of the part in scores."""
        ...

    @property
    def weight(self) -> float:
        """Its share of the training rows, relative to the weights of the other parts; above 0."""
        ...


class MixtureSettings(TaskSettings, Protocol):
    """What the task `mixture` reads from a recipe."""

    @property
    def parts(self) -> Sequence[PartSettings] | None:
        """The tasks that are mixed."""
        ...

    @property
    def draw_seed(self) -> int:
        """The seed of the draw of training rows."""
        ...


@dataclass(frozen=True)
class MixtureRows(Rows):
    """Rows of several tasks that write text.

    Attributes:
        parts: the part that each row belongs to.
        chats: the conversation of each row; None for a prompt with its completion.
    """

    parts: list[str] = field(default_factory=list[str])
    chats: list[Chat | None] = field(default_factory=list[Chat | None])

    @classmethod
    def join(cls, rows: Mapping[str, Rows]) -> MixtureRows:
        """The rows of all parts, by part, one part after another."""
        return cls(
            first=[text for own in rows.values() for text in own.first],
            second=None,
            labels=[label for own in rows.values() for label in own.labels],
            parts=[part for part, own in rows.items() for _ in range(len(own))],
            chats=[
                chat
                for own in rows.values()
                for chat in (own.chats if isinstance(own, ChatRows) else [None] * len(own))
            ],
        )

    def pick(self, indices: Sequence[int]) -> Self:
        """The rows at `indices`."""
        parts, chats = [self.parts[index] for index in indices], [self.chats[index] for index in indices]
        return replace(super().pick(indices), parts=parts, chats=chats)

    def further_facts(self) -> list[Any]:
        """The part of each row, and the answers that are not learnt."""
        return [self.parts, unlearnt_answers(self.chats)]

    def sample(self, number: int) -> Self:
        """About `number` rows, the first ones of each part."""
        groups = self.indices()
        each = -(-number // len(groups)) if groups else 0
        return self.pick(sorted(index for group in groups.values() for index in group[:each]))

    def indices(self) -> dict[str, list[int]]:
        """The indices of the rows of each part, in the order in which the parts first occur."""
        groups: dict[str, list[int]] = {}
        for index, part in enumerate(self.parts):
            groups.setdefault(part, []).append(index)
        return groups

    def of_part(self, part: str) -> Rows:
        """The rows of one part as those of its own task: `ChatRows`, or prompts with completions."""
        indices = self.indices().get(part, [])
        chats = [chat for index in indices if (chat := self.chats[index]) is not None]
        first, labels = [self.first[index] for index in indices], [self.labels[index] for index in indices]
        return ChatRows(first, None, labels, chats) if chats else Rows(first, None, labels)


@dataclass(frozen=True)
class PartRows:
    """How many rows a part contributes to a mixture.

    Attributes:
        name: name of the part.
        task: name of its task.
        weight: as in the recipe.
        train_rows: the training rows that it has.
        drawn: its rows in one epoch.
        validation_rows: the rows that it is scored on.
        pins: see `TaskData.pins`.
    """

    name: str
    task: str
    weight: float
    train_rows: int
    drawn: int
    validation_rows: int
    pins: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for metrics.json and plans."""
        return {
            "task": self.task,
            "weight": self.weight,
            "train_rows": self.train_rows,
            "drawn": self.drawn,
            "validation_rows": self.validation_rows,
        }
