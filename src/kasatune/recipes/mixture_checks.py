"""Checks of a mixture of tasks in a recipe: its parts, their names and weights, and messages that name the part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from kasatune.data.tasks.mixture_parts import MIXTURE
from kasatune.data.tasks.table import TASKS
from kasatune.recipes.messages import did_you_mean, show
from kasatune.recipes.sections import PartSection, RecipeSections, TaskSection

_FEWEST = 2


def mixable_tasks() -> list[str]:
    """The tasks that can be parts of a mixture: those that write text from rows that the keys of a part name."""
    keys = set(PartSection.model_fields)
    return [info.name for info in TASKS.values() if info.rows in ("completion", "chat") and keys.issuperset(info.keys)]


def row_sections(recipe: RecipeSections) -> list[tuple[str, TaskSection | PartSection]]:
    """(place in the recipe, section) of the task and of each part of a mixture that may be one: all may name rows."""
    parts = (recipe.task.parts or ()) if recipe.task.name == MIXTURE else ()
    mixable = mixable_tasks() if parts else []
    return [
        ("task", recipe.task),
        *((f"task.parts[{part.part_name}]", part) for part in parts if part.name in mixable),
    ]


def mixture_faults(recipe: RecipeSections) -> Iterator[str]:
    """One sentence for each fault of the list of parts."""
    task = recipe.task
    if task.name != MIXTURE:
        if task.parts is not None and task.name in TASKS:
            yield f"task.parts: {counted_parts(task.parts)} received; only {MIXTURE} has parts; leave it out"
        if task.draw_seed and task.name in TASKS:
            yield f"task.draw_seed: {task.draw_seed} received; only {MIXTURE} draws rows; leave it out"
        return
    if task.parts is None:
        yield (
            f"task.parts: missing; {MIXTURE} trains on several tasks: write a list such as"
            " [{name: e2e, data: path/to/e2e, weight: 1}, {name: instruction, train: a.jsonl, validation: 0.1}]"
        )
        return
    if len(task.parts) < _FEWEST:
        yield (
            f"task.parts: {counted_parts(task.parts)} received; a mixture has {_FEWEST} or more; give another part,"
            f" or write the task alone: task.name: {task.parts[0].name}"
        )
    for part in task.parts:
        yield from _name_faults(part)
    names = Counter(part.part_name for part in task.parts)
    for name, count in names.items():
        if count > 1:
            yield f"task.parts: {count} parts are called {name}; give each another title, such as {name}-2"
    for name in names:
        inner = next((other for other in names if other.startswith(f"{name}/")), None)
        if inner is not None:  # the scores and splits of one would look like those of the other
            yield f"task.parts: {inner} reads like a part of {name}; give one of them another title"


def counted_parts(parts: list[PartSection]) -> str:
    """The number of parts in words."""
    return "1 part" if len(parts) == 1 else f"{len(parts)} parts"


def _name_faults(part: PartSection) -> Iterator[str]:
    place = f"task.parts[{part.part_name}]"
    mixable = mixable_tasks()
    if part.name == MIXTURE:
        yield f"{place}: a mixture cannot be a part of a mixture; list its parts here"
    elif part.name not in TASKS:
        near = did_you_mean(part.name, mixable) or f"; choose one of {', '.join(mixable)}"
        yield f"{place}.name: {show(part.name)} is not a task{near}"
    elif part.name not in mixable:
        why = "writes no text" if TASKS[part.name].kind != "generation" else "reads more than rows"
        yield f"{place}.name: {show(part.name)} received; it {why}: choose one of {', '.join(mixable)}"
