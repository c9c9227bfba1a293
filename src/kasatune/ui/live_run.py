"""Progress of a run in another process: loss, learning rate, tokens per second and time left, from history.jsonl."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kasatune.io.run_layout import HISTORY

_RECENT = 20  # steps over which the speed is measured
_MOST_FILES = 16


@dataclass
class HistoryTail:
    """The events of a history.jsonl that grows; each call of `read` parses only what was added.

    Attributes:
        path: the file.
        events: the events so far.
    """

    path: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    _inode: int = 0
    _offset: int = 0

    def read(self) -> list[dict[str, Any]]:
        """All events; a damaged or incomplete line is skipped."""
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                if status.st_ino != self._inode or status.st_size < self._offset:  # a resumed run rewrites it
                    self.events, self._inode, self._offset = [], status.st_ino, 0
                file.seek(self._offset)
                *lines, _ = file.read().split(b"\n")
        except OSError:
            self.events, self._inode, self._offset = [], 0, 0
            return []
        for line in lines:
            self._offset += len(line) + 1
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("step", 0), int):
                self.events.append(event)
        return self.events


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: optimizer steps so far.
        total_steps: of the complete run; None if unknown.
        epoch: epochs so far.
        loss: training loss of the last step; None before the first.
        learning_rate: of the last step.
        grad_norm: of the last step.
        tokens_per_second: over the last steps; None if unknown.
        seconds_left: of training, at the speed of the last steps; None if unknown.
        scores: of the last evaluation.
    """

    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


class LiveRuns:
    """Reads the histories of several runs, each from where it stopped."""

    def __init__(self) -> None:
        self._tails: OrderedDict[Path, HistoryTail] = OrderedDict()

    def events(self, run_dir: Path) -> list[dict[str, Any]]:
        """The events of a run so far."""
        tail = self._tails.setdefault(run_dir, HistoryTail(run_dir / HISTORY))
        self._tails.move_to_end(run_dir)
        while len(self._tails) > _MOST_FILES:
            self._tails.popitem(last=False)
        return tail.read()


def progress_of(events: list[dict[str, Any]]) -> Progress:
    """The progress that the events of a run tell."""
    steps = [event for event in events if event.get("event") == "train"]
    evaluations = [event for event in events if event.get("event") == "evaluate"]
    metrics = evaluations[-1].get("metrics") if evaluations else None
    scores = {str(name): float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}
    if not steps:
        return Progress(scores=scores)
    last = steps[-1]
    before = steps[-_RECENT - 1] if len(steps) > _RECENT else {"step": 0, "seconds": 0.0}
    recent = steps[-_RECENT:]
    seconds = (last.get("seconds") or 0.0) - (before.get("seconds") or 0.0)
    done = last["step"] - before["step"]
    tokens = sum(event.get("tokens") or 0 for event in recent)
    total = last.get("total_steps")
    left = None if not total or seconds <= 0 or done <= 0 else max(0, total - last["step"]) * seconds / done
    return Progress(
        step=last["step"],
        total_steps=total,
        epoch=last.get("epoch") or 0.0,
        loss=last.get("loss"),
        learning_rate=last.get("learning_rate"),
        grad_norm=last.get("grad_norm"),
        tokens_per_second=tokens / seconds if tokens and seconds > 0 else None,
        seconds_left=left,
        scores=scores,
    )
