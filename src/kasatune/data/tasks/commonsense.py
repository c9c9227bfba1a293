"""The commonsense tasks: eight question sets in LLM-Adapters' form, and the mixture that the paper trains on.

A file is a list of {"instruction", "input", "output", "answer"}. Scored rows are those of test.json; validation rows
are held out from the training rows, as in LLM-Adapters.

Source: Hu et al., LLM-Adapters, arXiv 2304.01933; AGI-Edgerunners/LLM-Adapters, commit 8166572.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kasatune.data.readers.faults import Faults
from kasatune.data.readers.hub import wrap_hub_errors
from kasatune.data.readers.tables import MAX_JSON_BYTES
from kasatune.data.readers.text_files import read_text, require_folder
from kasatune.data.tasks.commonsense_prompts import TRAINING_PROMPT, read_instruction
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError
from kasatune.wording import counted

MIXTURE = "commonsense"
VALIDATION_ROWS = 120
"""Training rows held out for validation, as many as LLM-Adapters holds out; a tenth of small files."""

FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "boolq": "boolq",
        "piqa": "piqa",
        "social_i_qa": "social_i_qa",
        "hellaswag": "hellaswag",
        "winogrande": "winogrande",
        "arc-easy": "ARC-Easy",
        "arc-challenge": "ARC-Challenge",
        "openbookqa": "openbookqa",
    }
)
"""The folder of each task in LLM-Adapters."""

_COMMIT = "816657208af4db747803f87ba40a4c71383fed7a"
_URL = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters"
_MIXTURE_FILE = "ft-training_set/commonsense_170k.json"
_KEYS = ("instruction", "output", "answer")
_ORDER_SEED = 42


@dataclass(frozen=True)
class _Files:
    """The rows of a task's files, by split, and where they were read."""

    train: list[dict[str, str]]
    tests: dict[str, list[dict[str, str]]]
    source: str
    commit: str | None = None
    notes: tuple[str, ...] = ()


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read a task from the folder `settings.data`, or from LLM-Adapters' repository at a fixed commit if that is None.

    The folder holds the task's train.json and test.json, or folders of these names. The mixture `commonsense` trains on
    commonsense_170k.json, or if that is missing on the training rows of every task in the folder; its further splits
    are named after the tasks. Training rows are shuffled with a fixed seed.

    Raises:
        DataError: a file is missing, unreadable or not in the form that its name indicates.
        WorkError: the repository cannot be reached.
    """
    if settings.data is None:
        files = _download(info.name, settings.revision or _COMMIT)
    else:
        files = _read_folder(info.name, Path(settings.data))
    order = list(range(len(files.train)))
    random.Random(_ORDER_SEED).shuffle(order)
    held_out = max(1, min(VALIDATION_ROWS, len(order) // 10))
    parts = {"train": order[held_out:], "validation": order[:held_out]}
    if not parts["train"]:
        raise DataError(f"{files.source}: {len(order)} training row; at least two are needed")
    splits = {
        name: _rows([files.train[index] for index in indices], TRAINING_PROMPT) for name, indices in parts.items()
    }
    splits |= {name: _rows(rows, info.prompt) for name, rows in files.tests.items()}
    note = f"validation: {held_out:,} of {counted(len(order), 'training row')}, drawn with a fixed seed"
    return make_task_data(
        info, settings, splits, source=files.source, notes=[note, *files.notes], pins={"revision": files.commit}
    )


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read the rows of one file, or of test.json in a folder, with the prompt of the evaluation.

    Raises:
        DataError: it is missing, unreadable or in another form.
    """
    path = Path(data)
    rows = _rows(_read(path / "test.json" if path.is_dir() else path), info.prompt)
    return make_task_data(info, settings, {"validation": rows}, source=data)


def _rows(rows: Sequence[Mapping[str, str]], prompt: str | None) -> Rows:
    template = prompt or "{}"
    return Rows([template.format(row["instruction"]) for row in rows], None, [row["output"] for row in rows])


def _read_folder(name: str, folder: Path) -> _Files:
    require_folder(folder)
    task = name.partition("/")[2]
    return _read_task(name, task, folder) if task else _read_mixture(folder)


def _read_task(name: str, task: str, folder: Path) -> _Files:
    task_folder = _task_folder(folder, task) or folder
    missing = [file for file in ("train.json", "test.json") if not (task_folder / file).is_file()]
    if missing:
        raise DataError(f"{task_folder}: no {', '.join(missing)}; {name} needs both, as in LLM-Adapters")
    return _Files(_read(task_folder / "train.json"), {"test": _read(task_folder / "test.json")}, str(folder))


def _read_mixture(folder: Path) -> _Files:
    folders = {task: path for task in FOLDERS if (path := _task_folder(folder, task)) is not None}
    tests = {task: _read(path / "test.json") for task, path in folders.items() if (path / "test.json").is_file()}
    absent = [task for task in FOLDERS if task not in tests]
    notes = [f"no test.json of {', '.join(absent)}: no split of that name"] if absent else []
    candidates = (folder / _MIXTURE_FILE, folder / Path(_MIXTURE_FILE).name)
    mixture = next((path for path in candidates if path.is_file()), None)
    if mixture is not None:
        return _Files(_read(mixture), tests, str(folder), notes=tuple(notes))
    parts = {task: path / "train.json" for task, path in folders.items() if (path / "train.json").is_file()}
    if not parts:
        raise DataError(f"{folder}: no {Path(_MIXTURE_FILE).name}, and no train.json of a task; one of them is needed")
    notes.append(f"no {Path(_MIXTURE_FILE).name}: the training rows are those of {', '.join(parts)}")
    return _Files([row for path in parts.values() for row in _read(path)], tests, str(folder), notes=tuple(notes))


def _task_folder(folder: Path, task: str) -> Path | None:
    """The folder of a task within `folder`, by LLM-Adapters' name or by the one in recipes."""
    names = (FOLDERS[task], task)
    candidates = [folder / parent / name for parent in ("", "dataset") for name in names]
    return next((path for path in candidates if path.is_dir()), None)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        content = json.loads(read_text(path, MAX_JSON_BYTES))
    except ValueError as fault:
        raise DataError(f"{path}: not JSON ({fault}); LLM-Adapters' files are lists of objects") from None
    return _checked(content, str(path))


def _checked(content: Any, place: str) -> list[dict[str, str]]:
    """The rows of a file, each with its texts and an instruction in the form of its task."""
    if not isinstance(content, list) or not content:
        raise DataError(f"{place}: holds no rows; a list of objects with {', '.join(_KEYS)} is expected")
    faults = Faults(place)
    for number, row in enumerate(content, start=1):
        missing = [
            key for key in _KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key]
        ]
        if missing:
            faults.add(f"row {number}: no {', '.join(missing)}")
        elif row.get("input"):
            faults.add(f"row {number}: it has an input; the commonsense tasks have none")
        elif (question := read_instruction(row["instruction"])) is None:
            faults.add(f"row {number}: the instruction has no 'Answer format: ...' with its answers above")
        elif row["answer"] not in question.answers or row["answer"] not in row["output"]:
            faults.add(f"row {number}: the answer {row['answer']!r} is none of {', '.join(question.answers)}")
    faults.raise_any()
    return content


def _download(name: str, commit: str) -> _Files:
    import datasets

    task = name.partition("/")[2]
    tests = {"test": task} if task else {task: task for task in FOLDERS}
    train = f"dataset/{FOLDERS[task]}/train.json" if task else _MIXTURE_FILE
    paths = {"train": train} | {split: f"dataset/{FOLDERS[task]}/test.json" for split, task in tests.items()}
    splits = {}
    for split, path in paths.items():
        url = f"{_URL}/{commit}/{path}"
        with wrap_hub_errors(url, "check the network, or give a folder of LLM-Adapters' files as task.data"):
            loaded: Any = datasets.load_dataset("json", data_files=url, split="train")
        splits[split] = _checked(loaded.to_list(), path)
    train_rows = splits.pop("train")
    return _Files(train_rows, splits, f"AGI-Edgerunners/LLM-Adapters@{commit[:7]}", commit)
