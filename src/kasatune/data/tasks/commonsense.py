"""Commonsense reasoning in the form of LLM-Adapters: eight tasks, and the mixture that the paper trains on.

A file is a list of {"instruction", "input", "output", "answer"}. The rows that are scored are those of test.json;
validation rows are kept back from the training rows, as LLM-Adapters does.

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
from kasatune.data.readers.hub import told_of
from kasatune.data.readers.tables import MAX_JSON_BYTES
from kasatune.data.readers.text_files import read_text
from kasatune.data.tasks.commonsense_prompts import TRAINING_PROMPT, evaluation_prompt, read_instruction
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.table import TaskInfo
from kasatune.errors import DataError

MIXTURE = "commonsense"
HELD_BACK = 120
"""Training rows that are kept for validation, as many as LLM-Adapters keeps; a tenth where there are few."""

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
_ADDRESS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters"
_MIXTURE_FILE = "ft-training_set/commonsense_170k.json"
_KEYS = ("instruction", "output", "answer")
_ORDER_SEED = 42


@dataclass(frozen=True)
class _Files:
    """What there is of a task: the rows of its files, by split, and where they were read."""

    train: list[dict[str, str]]
    tests: dict[str, list[dict[str, str]]]
    source: str
    commit: str | None = None
    notes: tuple[str, ...] = ()


def load_commonsense(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """A task from the folder `settings.data`, or from LLM-Adapters' repository at a fixed commit where that is None.

    The folder holds the task's train.json and test.json, or folders of these names. The mixture `commonsense` trains on
    commonsense_170k.json, or where that is missing on the training rows of every task that is there; its further
    splits are named after the tasks. Training rows are put in an order drawn with a fixed seed.

    Raises:
        DataError: a file is missing, unreadable or not in the form that its name tells.
        WorkError: the repository cannot be reached.
    """
    if settings.data is None:
        files = _from_web(info.name, settings.revision or _COMMIT)
    else:
        files = _from_folder(info.name, Path(settings.data))
    order = list(range(len(files.train)))
    random.Random(_ORDER_SEED).shuffle(order)
    held = max(1, min(HELD_BACK, len(order) // 10))
    parts = {"validation": order[:held], "train": order[held:]}
    if not parts["train"]:
        raise DataError(f"{files.source}: {len(order)} training row; two at least are needed")
    splits = {
        name: _rows([files.train[index] for index in parts[name]], training=True) for name in ("train", "validation")
    }
    splits |= {name: _rows(rows, training=False) for name, rows in files.tests.items()}
    return make_task_data(
        info,
        splits,
        label_names=None,
        source=files.source,
        notes=[f"validation: {held:,} of {len(order):,} training rows, drawn with a fixed seed", *files.notes],
        max_train=settings.max_train,
        max_eval=settings.max_eval,
        pins={"revision": files.commit},
    )


def read_commonsense(path: Path) -> Rows:
    """The rows of one file, with the prompt of the evaluation.

    Args:
        path: a file, or a folder with test.json.

    Raises:
        DataError: it is missing, unreadable or in another form.
    """
    return _rows(_read(path / "test.json" if path.is_dir() else path), training=False)


def _rows(rows: Sequence[Mapping[str, str]], *, training: bool) -> Rows:
    prompts = [
        TRAINING_PROMPT.format(row["instruction"]) if training else evaluation_prompt(row["instruction"])
        for row in rows
    ]
    return Rows(prompts, None, [row["output"] for row in rows])


def _from_folder(name: str, folder: Path) -> _Files:
    if not folder.is_dir():
        what = "this is a file; name its folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what} (relative paths start at {Path.cwd()})")
    task = name.partition("/")[2]
    if task:
        place = _task_folder(folder, task) or folder
        missing = [file for file in ("train.json", "test.json") if not (place / file).is_file()]
        if missing:
            raise DataError(f"{place}: no {', '.join(missing)}; {name} needs both, as LLM-Adapters has them")
        return _Files(_read(place / "train.json"), {"test": _read(place / "test.json")}, str(folder))
    there = {task: place for task in FOLDERS if (place := _task_folder(folder, task)) is not None}
    tests = {task: _read(place / "test.json") for task, place in there.items() if (place / "test.json").is_file()}
    absent = [task for task in FOLDERS if task not in tests]
    notes = [f"no test.json of {', '.join(absent)}: no split of that name"] if absent else []
    whole = next((one for one in (folder / _MIXTURE_FILE, folder / Path(_MIXTURE_FILE).name) if one.is_file()), None)
    if whole is not None:
        return _Files(_read(whole), tests, str(folder), notes=tuple(notes))
    parts = {task: place / "train.json" for task, place in there.items() if (place / "train.json").is_file()}
    if not parts:
        raise DataError(f"{folder}: no {Path(_MIXTURE_FILE).name}, and no train.json of a task; one of them is needed")
    notes.append(f"no {Path(_MIXTURE_FILE).name}: the training rows are those of {', '.join(parts)}")
    return _Files([row for path in parts.values() for row in _read(path)], tests, str(folder), notes=tuple(notes))


def _task_folder(folder: Path, task: str) -> Path | None:
    """The folder of a task within `folder`, by LLM-Adapters' name or by the one in recipes."""
    names = (FOLDERS[task], task)
    places = [folder / parent / name for parent in ("", "dataset") for name in names]
    return next((place for place in places if place.is_dir()), None)


def _read(path: Path) -> list[dict[str, str]]:
    try:
        content = json.loads(read_text(path, MAX_JSON_BYTES))
    except ValueError as fault:
        raise DataError(f"{path}: no JSON ({fault}); LLM-Adapters' files are lists of objects") from None
    return _checked(content, str(path))


def _checked(content: Any, place: str) -> list[dict[str, str]]:
    """The rows of a file, each with its texts and an instruction in the form of its task."""
    if not isinstance(content, list) or not content:
        raise DataError(f"{place}: holds no rows; a list of objects with {', '.join(_KEYS)} is expected")
    faults = Faults(place)
    for number, row in enumerate(content, start=1):
        lack = [key for key in _KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key]]
        if lack:
            faults.add(f"row {number}: no {', '.join(lack)}")
        elif row.get("input"):
            faults.add(f"row {number}: it has an input; the commonsense tasks have none")
        elif (question := read_instruction(row["instruction"])) is None:
            faults.add(f"row {number}: the instruction has no 'Answer format: ...' with its answers above")
        elif row["answer"] not in question.answers or row["answer"] not in row["output"]:
            faults.add(f"row {number}: the answer {row['answer']!r} is none of {', '.join(question.answers)}")
    faults.raise_any()
    return content


def _from_web(name: str, commit: str) -> _Files:
    import datasets

    task = name.partition("/")[2]
    tests = {"test": task} if task else {one: one for one in FOLDERS}
    train = f"dataset/{FOLDERS[task]}/train.json" if task else _MIXTURE_FILE
    paths = {"train": train} | {split: f"dataset/{FOLDERS[one]}/test.json" for split, one in tests.items()}
    found = {}
    for split, path in paths.items():
        address = f"{_ADDRESS}/{commit}/{path}"
        with told_of(address, "check the network, or give a folder of LLM-Adapters' files as task.data"):
            loaded: Any = datasets.load_dataset("json", data_files=address, split="train")
        found[split] = _checked(loaded.to_list(), path)
    train_rows = found.pop("train")
    return _Files(train_rows, found, f"AGI-Edgerunners/LLM-Adapters@{commit[:7]}", commit)
