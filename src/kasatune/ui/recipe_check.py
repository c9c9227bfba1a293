"""Check a recipe before a run: its first rows, the faults of its data, and the plan with its memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from kasatune.data.tasks.table import TASKS
from kasatune.errors import KasatuneError
from kasatune.redaction import printable
from kasatune.reports import formatting
from kasatune.ui.page import facts, listing, notice
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.data.tasks.dataset import TaskData
    from kasatune.recipes.schema import Recipe
    from kasatune.training.plan import Plan

SHOWN_ROWS = 8
_LONGEST_CELL = 300
_MOST_LABELS = 12


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        head: names of the columns of `rows`.
        rows: the first training rows as text.
        summary: plan, notes and faults as HTML.
        can_start: whether the run would start.
    """

    head: list[str]
    rows: list[list[str]]
    summary: Markup
    can_start: bool


def check(recipe: Recipe) -> Checked:
    """Read the rows of a recipe and plan its run; the same checks as `kasatune plan`."""
    from kasatune.training.plan import make_plan

    head, rows, described = _rows(recipe)
    plan = make_plan(recipe)
    title = "This run would fail" if plan.problems else "Ready to start"
    problems = listing(title, plan.problems, "fault") if plan.problems else notice(f"{title}.", "good")
    summary = Markup("").join([problems, facts(_plan_facts(plan)), described, listing("Notes", plan.notes)])
    return Checked(head, rows, summary, not plan.problems)


def rows_of(data: TaskData, split: str = "train", most: int = SHOWN_ROWS) -> tuple[list[str], list[list[str]]]:
    """The first rows of a split as text: the texts and the label or answer of each."""
    rows = data.splits[split].head(most)
    names = ["text"] if data.text_fields == 1 else ["first text", "second text"]
    answer = "label"
    if data.kind == "generation":
        names, answer = ["prompt"], "answer"
    labels = rows.labels if data.label_names is None else [data.label_names[label] for label in rows.labels]
    cells = [[*texts, str(label)] for texts, label in zip(rows.texts(), labels, strict=True)]
    return [*names, answer], [[_cell(cell) for cell in row] for row in cells]


def _rows(recipe: Recipe) -> tuple[list[str], list[list[str]], Markup]:
    """The first rows, and how many there are; neither if they are on the hub or have faults, which the plan reports."""
    from kasatune.data.tasks import load_task

    if TASKS[recipe.task.name].reads_hub(recipe.task):
        return ["rows"], [], notice("The rows are on the hub: training downloads them.")
    try:
        data = load_task(recipe.task)
    except KasatuneError:
        return ["rows"], [], Markup("")
    head, rows = rows_of(data)
    counts = ", ".join(f"{counted(len(part), f'{split} row')}" for split, part in data.splits.items())
    lines = [f"{counts}."]
    if data.label_names is not None:
        numbers = Counter(data.splits["train"].labels)
        shares = [
            f"{printable(name)}: {numbers[number]:,}" for number, name in enumerate(data.label_names[:_MOST_LABELS])
        ]
        more = len(data.label_names) - _MOST_LABELS
        lines.append(f"Training rows by label: {', '.join(shares)}{f', and {more} more labels' if more > 0 else ''}.")
    return head, rows, listing("Rows", lines)


def _cell(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LONGEST_CELL else f"{shown[:_LONGEST_CELL]} ..."


def _plan_facts(plan: Plan) -> list[tuple[str, str]]:
    memory: dict[str, Any] = dict(plan.memory_bytes or {})
    free = free_memory()
    pairs = [
        ("parameters", formatting.count(plan.model.get("parameters"))),
        ("trained", formatting.count(plan.trainable_parameters)),
        ("adapted layers", formatting.count(len(plan.layers))),
        ("training rows", formatting.count(plan.rows)),
        ("steps", formatting.count(plan.steps)),
        ("memory (estimate)", formatting.size(memory.get("total"))),
    ]
    return [*pairs, ("memory available", formatting.size(free))] if free is not None else pairs


def free_memory() -> int | None:
    """Free memory of the first accelerator, or of the machine; None where the system does not tell."""
    import torch

    from kasatune.io.environment import available_memory

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return available_memory()
