"""The files of the GLUE release, each with its own quirks.

Values are parted by tabs and never quoted: a quotation mark is a letter of the text. CoLA has no header. MRPC comes
split, or as Microsoft's download with `dev_ids.tsv`, and may begin with a byte order mark. MNLI has two development
sets. Some rows of QQP are cut short in the release itself; like the hub's copy, they are left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, nearest, show
from kasatune.data.readers.text_files import read_lines
from kasatune.data.tasks.dataset import Rows
from kasatune.data.tasks.glue import GLUE, GlueTask
from kasatune.errors import DataError

_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_MRPC_ALL, _MRPC_DEV_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"
_MOST_POINTS = 5.0  # of STS-B


def read_release(name: str, folder: Path, train: bool) -> tuple[dict[str, Rows], list[str]]:
    """The labelled splits of a task in a folder of the GLUE release, and what was odd in them.

    Args:
        name: of the task, as "glue/rte".
        folder: the task's folder, or the one that holds it under the release's name ("RTE").
        train: whether to read the training rows too.

    Raises:
        DataError: a file is missing, or has a wrong header, a row of a wrong width, or a label that the task has not.
    """
    task = GLUE[name]
    folder = _task_folder(folder, task)
    if name == "glue/mrpc" and not (folder / "train.tsv").is_file() and (folder / _MRPC_ALL).is_file():
        splits, notes = _microsoft(folder, task)
        return (splits if train else {"validation": splits["validation"]}), notes
    files = ([("train", "train.tsv")] if train else []) + list(task.validation)
    missing = [file for _, file in files if not (folder / file).is_file()]
    if missing:
        other = f", or {_MRPC_ALL} and {_MRPC_DEV_IDS}" if name == "glue/mrpc" else ""
        needed = ", ".join(file for _, file in files)
        raise DataError(f"{folder}: no {', '.join(missing)}; {name} needs {needed}{other}, as in the GLUE release")
    splits, notes = {}, []
    for split, file in files:
        splits[split], skipped = _rows(folder / file, task)
        if skipped:
            notes.append(f"{split}: {skipped:,} rows of {file} are cut short in the release and were left out")
    return splits, notes


def _task_folder(folder: Path, task: GlueTask) -> Path:
    if not folder.is_dir():
        what = "this is a file; name its folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what} (relative paths start at {Path.cwd()})")
    inner = folder / task.folder
    return inner if inner.is_dir() else folder


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the tab-parted values of each line that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip("\r\n"):
            yield number, line.rstrip("\r\n").split("\t")


def _rows(path: Path, task: GlueTask) -> tuple[Rows, int]:
    """The rows of a file, and how many were left out because the release has them cut short."""
    cells = _cells(path)
    header: Sequence[str] = _COLA_COLUMNS if task.folder == "CoLA" else next(cells, (1, []))[1]
    indices = [_column(path, name, header) for name in (*task.columns, task.label)]
    texts: list[list[str]] = [[] for _ in task.columns]
    labels: list[Any] = []
    faults, skipped = Faults(str(path)), 0
    for row, (line, values) in enumerate(cells, start=1):
        place = f"row {row} (line {line})"
        if task.folder == "QQP" and len(values) < len(header):
            skipped += 1
        elif len(values) != len(header):
            expected = f"{len(header)} parted by tabs are expected: {', '.join(header)}"
            faults.add(f"{place}: {len(values)} columns; {expected}")
        else:
            label = _label(values[indices[-1]], task)
            if label is None:
                faults.add(f"{place}, column {task.label!r}: {show(values[indices[-1]])}; expected {_expected(task)}")
            labels.append(label)
            for kept, index in zip(texts, indices, strict=False):
                kept.append(values[index])
    faults.raise_any()
    if not labels:
        raise DataError(f"{path}: the file holds no rows")
    return Rows(texts[0], texts[1] if len(texts) == 2 else None, labels), skipped


def _column(path: Path, name: str, header: Sequence[str]) -> int:
    if name not in header:
        shown = ", ".join(map(show, header[:20]))
        raise DataError(f"{path}, line 1: no column {name!r}{nearest(name, header)} (columns: {shown})")
    return list(header).index(name)


def _label(value: str, task: GlueTask) -> int | float | None:
    """The label number, or STS-B's score; None for what is neither."""
    value = value.strip()
    if task.label_names is None:
        try:
            score = float(value)
        except ValueError:
            return None
        return score if 0 <= score <= _MOST_POINTS else None
    known = task.words or tuple(map(str, range(len(task.label_names))))
    return known.index(value) if value in known else None


def _expected(task: GlueTask) -> str:
    if task.label_names is None:
        return f"a number from 0 to {_MOST_POINTS:g}"
    if task.words:
        return " or ".join(task.words)
    return " or ".join(f"{number} ({name})" for number, name in enumerate(task.label_names))


def _microsoft(folder: Path, task: GlueTask) -> tuple[dict[str, Rows], list[str]]:
    """MRPC as Microsoft gives it: one training file, of which `dev_ids.tsv` lists the development rows by both ids."""
    ids_file, path = folder / _MRPC_DEV_IDS, folder / _MRPC_ALL
    if not ids_file.is_file():
        raise DataError(
            f"{folder}: {_MRPC_ALL} is here and {_MRPC_DEV_IDS} is not, which tells GLUE's development rows; add it,"
            " or give train.tsv and dev.tsv"
        )
    development = {tuple(value.strip() for value in values) for _, values in _cells(ids_file)}
    rows, _ = _rows(path, task)
    cells = _cells(path)
    header = next(cells)[1]
    first, second = _column(path, "#1 ID", header), _column(path, "#2 ID", header)
    held = [(values[first], values[second]) in development for _, values in cells]
    if sum(held) != len(development):
        raise DataError(f"{ids_file}: {len(development):,} pairs of ids, of which {sum(held):,} are in {_MRPC_ALL}")
    splits = {
        "train": rows.pick([index for index, out in enumerate(held) if not out]),
        "validation": rows.pick([index for index, out in enumerate(held) if out]),
    }
    return splits, []
