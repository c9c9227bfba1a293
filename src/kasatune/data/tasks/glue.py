"""GLUE: nine tasks, read from the hub or from a folder of the release, with the quirks of each file.

In the release values are separated by tabs and never quoted: a quotation mark is a letter of the text. CoLA has no
header. MRPC comes split, or as Microsoft's download with `dev_ids.tsv`, and may begin with a byte order mark. MNLI has
two development sets. Some rows of QQP are cut short in the release itself; like the hub's copy, they are left out, and
counted. The test sets have no labels and are not read.

Source: Wang et al., GLUE, ICLR 2019 (arXiv 1804.07461).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, nearest, show
from kasatune.data.readers.hub import HubData, read_hub
from kasatune.data.readers.text_files import read_lines, require_folder
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError
from kasatune.wording import counted

HUB_NAME = "nyu-mll/glue"

_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_MRPC_ALL, _MRPC_DEV_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"
_MAX_SIMILARITY = 5.0  # of STS-B


@dataclass(frozen=True)
class GlueColumns:
    """Where a task of GLUE keeps its texts and labels.

    Attributes:
        folder: its folder in the release.
        columns: of the text or texts, in the release's header.
        label: column of the label, in the release's header.
        hub_columns: of the text or texts on the hub.
        words: content of the release's label column, by label number; None if it holds the numbers themselves.
        validation: development files of the release, by split.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    hub_columns: tuple[str, ...]
    words: tuple[str, ...] | None = None
    validation: tuple[tuple[str, str], ...] = (("validation", "dev.tsv"),)


_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ANSWER = ("question", "sentence")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: Mapping[str, GlueColumns] = {
    "glue/cola": GlueColumns("CoLA", ("sentence",), "label", ("sentence",)),
    "glue/sst2": GlueColumns("SST-2", ("sentence",), "label", ("sentence",)),
    "glue/mrpc": GlueColumns("MRPC", ("#1 String", "#2 String"), "Quality", _PAIR),
    "glue/stsb": GlueColumns("STS-B", _PAIR, "score", _PAIR),
    "glue/qqp": GlueColumns("QQP", _QUESTIONS, "is_duplicate", _QUESTIONS),
    "glue/mnli": GlueColumns(
        "MNLI",
        _PAIR,
        "gold_label",
        ("premise", "hypothesis"),
        words=("entailment", "neutral", "contradiction"),
        validation=(("validation", "dev_matched.tsv"), ("validation_mismatched", "dev_mismatched.tsv")),
    ),
    "glue/qnli": GlueColumns("QNLI", _ANSWER, "label", _ANSWER, words=_ENTAILMENT),
    "glue/rte": GlueColumns("RTE", _PAIR, "label", _PAIR, words=_ENTAILMENT),
    "glue/wnli": GlueColumns("WNLI", _PAIR, "label", _PAIR),
}


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read a task of GLUE from the folder `settings.data`, or from the hub if that is None.

    Raises:
        DataError: the folder or a file in it is not as in the release.
        WorkError: the hub cannot be reached, or has the data in another form.
    """
    if settings.data is None:
        hub_data = read_hub(
            HUB_NAME,
            info.name.partition("/")[2],
            revision=settings.revision,
            instead="give a folder of the GLUE release as task.data",
        )
        splits, notes = _hub_splits(info.name, hub_data), hub_data.notes
        source, commit = hub_data.source, hub_data.commit
    else:
        splits, notes = _read_release(info, Path(settings.data), train=True)
        source, commit = settings.data, None
    return make_task_data(
        info,
        settings,
        splits,
        label_names=info.label_names,
        source=source,
        notes=notes,
        pins={"revision": commit},
    )


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read the development set of a folder of the release.

    Raises:
        DataError: the folder or a file in it is not as in the release.
    """
    splits, notes = _read_release(info, Path(data), train=False)
    return make_task_data(info, settings, splits, label_names=label_names, source=data, notes=notes)


def _hub_splits(name: str, hub_data: HubData) -> dict[str, Rows]:
    validation = [split for split in hub_data.tables if split.startswith("validation")]
    hub_split = {"train": "train"}
    hub_split |= {("validation" if split == "validation_matched" else split): split for split in validation}
    return {split: _hub_rows(GLUE[name], hub_data.tables[theirs]) for split, theirs in hub_split.items()}


def _hub_rows(columns: GlueColumns, table: Any) -> Rows:
    texts = [list(table[column]) for column in columns.hub_columns]
    return Rows(texts[0], texts[1] if len(texts) == 2 else None, list(table["label"]))


def _read_release(info: TaskInfo, folder: Path, train: bool) -> tuple[dict[str, Rows], list[str]]:
    """The labelled splits of a task in a folder of the release, and notes about what was left out.

    Args:
        info: row of the task.
        folder: the task's folder, or the one that holds it under the release's name ("RTE").
        train: whether to read the training rows too.

    Raises:
        DataError: a file is missing, or has a wrong header, a row of a wrong width, or a label that the task lacks.
    """
    require_folder(folder)
    columns = GLUE[info.name]
    inner = folder / columns.folder
    folder = inner if inner.is_dir() else folder
    is_mrpc = columns.folder == "MRPC"
    if is_mrpc and not (folder / "train.tsv").is_file() and (folder / _MRPC_ALL).is_file():
        splits = _read_microsoft(folder, info)
        return (splits if train else {"validation": splits["validation"]}), []
    files = ([("train", "train.tsv")] if train else []) + list(columns.validation)
    missing = [file for _, file in files if not (folder / file).is_file()]
    if missing:
        other = f", or {_MRPC_ALL} and {_MRPC_DEV_IDS}" if is_mrpc else ""
        needed = ", ".join(file for _, file in files)
        raise DataError(f"{folder}: no {', '.join(missing)}; {info.name} needs {needed}{other}, as in the GLUE release")
    splits, notes = {}, []
    for split, file in files:
        splits[split], skipped = _read_rows(folder / file, info)
        if skipped:
            notes.append(f"{split}: {counted(skipped, 'row')} of {file} left out, cut short in the release")
    return splits, notes


def _read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and tab-separated values of each line that is not blank."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip("\r\n"):
            yield number, line.rstrip("\r\n").split("\t")


def _read_rows(path: Path, info: TaskInfo) -> tuple[Rows, int]:
    """The rows of a file, and how many were left out because the release has them cut short."""
    columns = GLUE[info.name]
    cells = _read_cells(path)
    header: Sequence[str] = _COLA_COLUMNS if columns.folder == "CoLA" else next(cells, (1, []))[1]
    indices = [_find_column(path, name, header) for name in (*columns.columns, columns.label)]
    texts: list[list[str]] = [[] for _ in columns.columns]
    labels: list[Any] = []
    faults, skipped = Faults(str(path)), 0
    for row, (line, values) in enumerate(cells, start=1):
        place = f"row {row} (line {line})"
        if columns.folder == "QQP" and len(values) < len(header):
            skipped += 1
        elif len(values) != len(header):
            expected = f"{len(header)} separated by tabs are expected: {', '.join(header)}"
            faults.add(f"{place}: {counted(len(values), 'column')}; {expected}")
        else:
            label = _parse_label(values[indices[-1]], info)
            if label is None:
                shown = show(values[indices[-1]])
                faults.add(f"{place}, column {columns.label!r}: {shown}; expected {_expected_labels(info)}")
            labels.append(label)
            for column, index in zip(texts, indices, strict=False):
                column.append(values[index])
    faults.raise_any()
    if not labels:
        raise DataError(f"{path}: the file holds no rows")
    return Rows(texts[0], texts[1] if len(texts) == 2 else None, labels), skipped


def _find_column(path: Path, name: str, header: Sequence[str]) -> int:
    if name not in header:
        shown = ", ".join(map(show, header[:20]))
        raise DataError(f"{path}, line 1: no column {name!r}{nearest(name, header)} (columns: {shown})")
    return list(header).index(name)


def _parse_label(value: str, info: TaskInfo) -> int | float | None:
    """The label number, or STS-B's score; None if it is neither."""
    value = value.strip()
    if info.label_names is None:
        try:
            score = float(value)
        except ValueError:
            return None
        return score if 0 <= score <= _MAX_SIMILARITY else None
    known = GLUE[info.name].words or tuple(map(str, range(len(info.label_names))))
    return known.index(value) if value in known else None


def _expected_labels(info: TaskInfo) -> str:
    if info.label_names is None:
        return f"a number from 0 to {_MAX_SIMILARITY:g}"
    words = GLUE[info.name].words
    if words:
        return " or ".join(words)
    return " or ".join(f"{number} ({name})" for number, name in enumerate(info.label_names))


def _read_microsoft(folder: Path, info: TaskInfo) -> dict[str, Rows]:
    """MRPC as Microsoft gives it: one training file, of which `dev_ids.tsv` lists the development rows by both ids."""
    ids_file, path = folder / _MRPC_DEV_IDS, folder / _MRPC_ALL
    if not ids_file.is_file():
        raise DataError(
            f"{folder}: {_MRPC_ALL} needs {_MRPC_DEV_IDS}, which lists GLUE's development rows and is missing; add it,"
            " or give train.tsv and dev.tsv"
        )
    development = {tuple(value.strip() for value in values) for _, values in _read_cells(ids_file)}
    rows, _ = _read_rows(path, info)
    cells = _read_cells(path)
    header = next(cells)[1]
    first, second = _find_column(path, "#1 ID", header), _find_column(path, "#2 ID", header)
    in_development = [(values[first], values[second]) in development for _, values in cells]
    if sum(in_development) != len(development):
        raise DataError(
            f"{ids_file}: {counted(len(development), 'pair')} of ids, of which {sum(in_development):,} are in "
            f"{_MRPC_ALL}"
        )
    return {
        "train": rows.pick([index for index, held_out in enumerate(in_development) if not held_out]),
        "validation": rows.pick([index for index, held_out in enumerate(in_development) if held_out]),
    }
