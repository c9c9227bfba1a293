"""The task `mixture`: training rows of several tasks that write text, drawn by weight; each part has its own scores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import cast

from kasatune.data.readers.faults import nearest
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, rows_sha256
from kasatune.data.tasks.mixture_rows import MixtureRows, MixtureSettings, PartRows, PartSettings
from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError
from kasatune.wording import agree, counted

_TRAIN, _VALIDATION = "train", "validation"


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the rows of every part, and draw the training rows of one epoch.

    An epoch has `max_train` rows, by default as many as all parts together; a part of weight w has w / sum of weights
    of them, see `draw`. The splits are "train", "validation" with the validation rows of every part, and each part's
    own: PART for its validation rows, PART/SPLIT for the others. `max_eval` limits the rows of each part.

    Raises:
        DataError: a part is not a task that writes text, its rows are missing, unreadable or inconsistent, or an epoch
            has fewer rows than there are parts.
        WorkError: the hub cannot be reached.
    """
    mixture = cast("MixtureSettings", settings)
    parts = {part.part_name: part for part in _parts(mixture)}
    data = {name: TASKS[part.name].load_module().load(TASKS[part.name], part) for name, part in parts.items()}
    sizes = [len(each.require_split(_TRAIN)) for each in data.values()]
    rows = mixture.max_train or sum(sizes)
    drawn = draw(sizes, [part.weight for part in parts.values()], rows, mixture.draw_seed)
    validation = {name: _head(each.require_split(_VALIDATION), mixture.max_eval) for name, each in data.items()}
    counts = [sum(number == part for number, _ in drawn) for part in range(len(sizes))]
    notes = [f"{name}: {note}" for name, each in data.items() for note in each.notes]
    notes += [
        _draw_note(name, size, count, mixture.draw_seed) for name, size, count in zip(data, sizes, counts, strict=True)
    ]
    notes += [
        f"{name}: the first {counted(len(validation[name]), 'validation row')} (max_eval)"
        for name, each in data.items()
        if len(validation[name]) < len(each.splits[_VALIDATION])
    ]
    notes += _shared_notes(data, validation)
    own = {
        _TRAIN: _pick([(name, each.splits[_TRAIN]) for name, each in data.items()], drawn),
        _VALIDATION: MixtureRows.join(validation),
    }
    further = {
        f"{name}/{split}": MixtureRows.join({name: _head(split_rows, mixture.max_eval)})
        for name, each in data.items()
        for split, split_rows in each.splits.items()
        if split not in own
    }
    by_part = {name: MixtureRows.join({name: part_rows}) for name, part_rows in validation.items()}
    return TaskData(
        name=info.name,
        kind=info.kind,
        label_names=None,
        splits={**own, **by_part, **further},
        metric_names=info.metrics,
        primary=info.primary,
        paper_metric=info.paper_metric,
        text_fields=1,
        sha256=rows_sha256({**own, **further}),
        source="; ".join(f"{name}: {each.source}" for name, each in data.items()),
        notes=tuple(notes),
        parts=tuple(
            PartRows(name, part.name, part.weight, size, count, len(validation[name]), data[name].pins)
            for (name, part), size, count in zip(parts.items(), sizes, counts, strict=True)
        ),
    )


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Refuse rows of which the part is not known; see `load_evaluation_of_part`.

    Raises:
        DataError: always.
    """
    names = ", ".join(part.part_name for part in _parts(cast("MixtureSettings", settings)))
    raise DataError(f"{data}: the run was trained on a mixture; name the part whose rows these are ({names}): --part")


def load_evaluation_of_part(info: TaskInfo, settings: MixtureSettings, part: str, data: str) -> TaskData:
    """Read other rows of one part; their only split is "validation".

    Raises:
        DataError: there is no such part, or the rows are missing, unreadable or in another form.
    """
    parts = {each.part_name: each for each in _parts(settings)}
    if part not in parts:
        raise DataError(
            f"{part!r} is not a part of the mixture{nearest(part, list(parts))} (parts: {', '.join(parts)})"
        )
    own = TASKS[parts[part].name]
    read = own.load_module().load_evaluation(own, parts[part], data, None)
    splits = {_VALIDATION: MixtureRows.join({part: _head(read.require_split(_VALIDATION), settings.max_eval)})}
    return TaskData(
        name=info.name,
        kind=info.kind,
        label_names=None,
        splits=splits,
        metric_names=info.metrics,
        primary=info.primary,
        paper_metric=info.paper_metric,
        text_fields=1,
        sha256=rows_sha256(splits),
        source=f"{part}: {read.source}",
        notes=read.notes,
    )


def draw(sizes: Sequence[int], weights: Sequence[float], rows: int, seed: int) -> list[tuple[int, int]]:
    """Draw `rows` rows of several parts by weight: (part, index) each, in random order.

    Part i has rows w_i / sum w of them, rounded by the largest remainders, and at least one. Within a part every row is
    drawn once before any is drawn again. The result depends on the arguments alone.

    Args:
        sizes: number of rows of each part, at least 1.
        weights: of each part, above 0.
        rows: number of rows to draw.
        seed: of the draw.

    Raises:
        DataError: there are more parts than rows.
    """
    if rows < len(sizes):
        raise DataError(
            f"task.max_train: {rows} received; a mixture of {counted(len(sizes), 'part')} needs at least as many rows"
        )
    drawn: list[tuple[int, int]] = []
    for part, (size, quota) in enumerate(zip(sizes, _quotas(weights, rows), strict=True)):
        order = random.Random(f"{seed}/{part}")
        indices: list[int] = []
        while len(indices) < quota:
            indices += order.sample(range(size), min(size, quota - len(indices)))
        drawn += [(part, index) for index in indices]
    random.Random(seed).shuffle(drawn)
    return drawn


def _quotas(weights: Sequence[float], rows: int) -> list[int]:
    """`rows` divided in proportion to `weights`, by largest remainders, at least 1 each."""
    largest = max(weights)
    shares = [weight / largest for weight in weights]  # sums of very large or small weights stay finite
    total = sum(shares)
    exact = [rows * share / total for share in shares]
    quotas = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda part: int(exact[part]) - exact[part])
    for part in by_remainder:
        if sum(quotas) < rows:
            quotas[part] += 1
    while sum(quotas) > rows:
        quotas[quotas.index(max(quotas))] -= 1
    return quotas


def _parts(settings: MixtureSettings) -> Sequence[PartSettings]:
    parts = settings.parts or ()
    names = [part.part_name for part in parts]
    if len(parts) < 2 or len(set(names)) < len(names):
        raise DataError("task.parts: a mixture needs at least two parts with different names")
    for part in parts:
        if part.name not in TASKS or TASKS[part.name].rows not in ("completion", "chat") or TASKS[part.name].prompter:
            raise DataError(f"task.parts: {part.name!r} is not a task that writes text")
        if not part.weight > 0:
            raise DataError(f"task.parts: the weight {part.weight} of {part.part_name} received; must be above 0")
    return parts


def _shared_notes(data: Mapping[str, TaskData], validation: Mapping[str, Rows]) -> list[str]:
    """How many validation rows of each part have a text that another part trains on; each part notes its own."""
    trained = {name: set(each.splits[_TRAIN].texts()) for name, each in data.items()}
    notes = []
    for name, rows in validation.items():
        elsewhere = set[tuple[str, ...]]().union(*(texts for other, texts in trained.items() if other != name))
        shared = sum(text in elsewhere and text not in trained[name] for text in rows.texts())
        if shared:
            notes.append(
                f"{name}: {shared:,} of {counted(len(rows), 'validation row')} {agree(shared, 'has', 'have')} the text"
                " of a training row of another part"
            )
    return notes


def _head(rows: Rows, limit: int | None) -> Rows:
    return rows if limit is None else rows.head(limit)


def _pick(parts: Sequence[tuple[str, Rows]], drawn: Sequence[tuple[int, int]]) -> MixtureRows:
    """The drawn rows of the parts, in the order of the draw."""
    joined = MixtureRows.join(dict(parts))
    starts = [sum(len(rows) for _, rows in parts[:part]) for part in range(len(parts))]
    return joined.pick([starts[part] + index for part, index in drawn])


def _draw_note(part: str, size: int, count: int, seed: int) -> str:
    if count <= size:
        return f"{part}: {count:,} of {counted(size, 'training row')} drawn with seed {seed}"
    times = str(count // size) if count % size == 0 else f"{count // size} or {count // size + 1}"
    return f"{part}: {counted(size, 'training row')}, each drawn {times} times: {counted(count, 'row')} in an epoch"
