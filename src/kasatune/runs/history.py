"""history.jsonl of a run: the typed events, and their only writer and reader."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from kasatune.errors import InputError
from kasatune.io.atomic import finite, write_text
from kasatune.runs.schema_version import require_known_version

SCHEMA_VERSION = 1


class HistoryEvent(BaseModel, frozen=True, extra="allow"):
    """One line of history.jsonl.

    Attributes:
        event: its kind.
        schema_version: version of this form; 1 for lines that were written without it.
        step: optimizer steps so far.
        epoch: epochs so far.
    """

    event: str
    schema_version: int = SCHEMA_VERSION
    step: int = 0
    epoch: float = 0.0


class TrainEvent(HistoryEvent, frozen=True):
    """An optimizer step. The penalties of the method are further entries, by name.

    With bi-level training, `held_back` is 1 for a step on held-back rows, which trains the outer parameters, else 0.

    Attributes:
        loss: loss of the task; None if it was not finite.
        learning_rate: of the step.
        grad_norm: Euclidean norm of the gradient of the task loss, before it is clipped; None where it is not measured
            (float16, DeepSpeed) and in runs of earlier versions, as are the next three.
        tokens: tokens that the step processed, without padding, over all processes.
        seconds: time spent in training so far, without evaluations.
        total_steps: optimizer steps of the complete run.
    """

    event: Literal["train"] = "train"
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    total_steps: int | None = None


class EvaluateEvent(HistoryEvent, frozen=True):
    """An evaluation.

    Attributes:
        split: the rows that were scored.
        metrics: scores by name; None if not finite.
        seconds: time that it took.
    """

    event: Literal["evaluate"] = "evaluate"
    split: str = "validation"
    metrics: dict[str, float | None] = {}
    seconds: float | None = None


class SigmaEvent(HistoryEvent, frozen=True):
    """The learnt singular values.

    Attributes:
        layers: values by layer name.
    """

    event: Literal["sigma"] = "sigma"
    layers: dict[str, list[float | None]] = {}


class RoutingEvent(HistoryEvent, frozen=True):
    """What the routers of a mixture chose in training since the event before.

    Attributes:
        routers: by router, `load`, the share of each expert, `entropy` in nats and `items`, the tokens or prompts.
        parts: for a mixture of tasks, the same on the first validation rows of each part, by its name.
    """

    event: Literal["routing"] = "routing"
    routers: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, dict[str, Any]]] = {}


_KINDS: dict[str, type[HistoryEvent]] = {
    "train": TrainEvent,
    "evaluate": EvaluateEvent,
    "sigma": SigmaEvent,
    "routing": RoutingEvent,
}

_REMEDY = "remove that line, or train again"


def read_history(path: Path) -> list[HistoryEvent]:
    """The events of a history.jsonl in order; none if there is no such file.

    A last line that a kill cut off is skipped.

    Raises:
        InputError: another line is damaged, or one has a newer schema version.
    """
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    events = [_parse(line, f"{path}, line {number},") for number, line in enumerate(lines, 1) if line.strip()]
    with suppress(InputError):
        events.append(_parse(rest, f"{path}, the last line,"))
    return events


class History:
    """history.jsonl: one event per line, flushed before the run continues.

    Args:
        path: the file.
        writes: false for a process that shares the run with the one that writes.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self._path = path
        self._writes = writes

    def add(self, event: HistoryEvent) -> None:
        """Append an event."""
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(event))
            file.flush()

    def events(self) -> list[HistoryEvent]:
        """All events so far; see `read_history`."""
        return read_history(self._path)

    def rewind(self, step: int) -> None:
        """Drop the events after optimizer step `step`, which a resumed run repeats."""
        if self._writes:
            write_text(self._path, "".join(_line(event) for event in self.events() if event.step <= step))


def _line(event: HistoryEvent) -> str:
    return json.dumps(finite(event.model_dump()), ensure_ascii=False, allow_nan=False) + "\n"


def _parse(line: bytes, place: str) -> HistoryEvent:
    try:
        content: Any = json.loads(line.decode("utf-8"))
        require_known_version(content, SCHEMA_VERSION, place)
        return _KINDS.get(content["event"], HistoryEvent).model_validate(content)
    except ValidationError as fault:
        wrong = dict.fromkeys(str(error["loc"][0]) for error in fault.errors())
        raise InputError(f"{place} is damaged (wrong or missing: {', '.join(wrong)}); {_REMEDY}") from fault
    except (ValueError, TypeError, KeyError) as fault:
        raise InputError(f"{place} is damaged (not an event as JSON: {fault}); {_REMEDY}") from fault
