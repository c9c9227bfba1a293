"""The tasks `e2e`, `webnlg` and `dart`: sentences that state given facts, in the form of LoRA's experiments.

A row is a prompt and one of its sentences; rows of one prompt are one input with several references.

Source: Hu et al., LoRA, arXiv 2106.09685, appendix F, and the converters of microsoft/LoRA, examples/NLG.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.hub import HubData, read_hub
from kasatune.data.readers.tables import MAX_JSON_BYTES, read_table
from kasatune.data.readers.text_files import read_lines, read_text, require_folder
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError, WorkError

Pair = tuple[str, str]
"""Facts and one sentence that states them."""

_SPLITS = ("train", "validation", "test")
_E2E_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_E2E_FACT = re.compile(r"([^\[\],]+)\[([^\]]*)\]")
_JOINED = re.compile(r"(?<=£)(?=\S)|(?<=\d)(?=-\d)|(?<=\d-)(?=\d)")  # where LoRA's form has spaces


@dataclass(frozen=True)
class DataToTextSource:
    """Files and hub data set of a task.

    Attributes:
        forms: files of the splits train, validation and test, for each form in which the data set is distributed; the
            first form that the folder has is read.
        hub: name and configuration on the hub.
        hub_pairs: gives the pairs in a row of the hub's table.
        hub_note: how the hub's rows differ from those of the published results.
    """

    forms: tuple[tuple[str, str, str], ...]
    hub: tuple[str, str | None]
    hub_pairs: Callable[[Mapping[str, Any]], list[Pair]]
    hub_note: str = ""


def e2e_facts(meaning: str) -> str:
    """`name[The Punter], eatType[pub]` in LoRA's form: `name : The Punter | Type : pub`."""
    facts = [(name.strip(), value.strip()) for name, value in _E2E_FACT.findall(meaning)]
    return " | ".join(f"{_E2E_NAMES.get(name, name)} : {_JOINED.sub(' ', value)}" for name, value in facts)


def _triples(triples: Any) -> str:
    return " | ".join(" : ".join(str(part) for part in triple) for triple in triples)


def _lowered(triples: Any) -> str:
    return _triples((subject, str(relation).lower(), object_) for subject, relation, object_ in triples)


def _each_reference(facts: str, row: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a row of GEM: a training row has a target, an evaluation row has all its references as well.

    An input without any written sentence has an empty target and gives no pair.
    """
    sentences = dict.fromkeys([row["target"], *row["references"]])
    return [(facts, sentence) for sentence in sentences if sentence.strip()]


SOURCES: Mapping[str, DataToTextSource] = MappingProxyType(
    {
        "e2e": DataToTextSource(
            (("train.txt", "valid.txt", "test.txt"), ("trainset.csv", "devset.csv", "testset_w_refs.csv")),
            ("tuetschek/e2e_nlg", None),
            lambda row: [(e2e_facts(row["meaning_representation"]), row["human_reference"])],
        ),
        "webnlg": DataToTextSource(
            (("train.json", "dev.json", "test.json"), ("train.txt", "valid.txt", "test.txt")),
            ("GEM/web_nlg", "en"),
            lambda row: _each_reference(_triples(fact.split(" | ") for fact in row["input"]), row),
            "WebNLG 2020 (version 3); published results of LoRA and KaSA's rivals are on the challenge of 2017",
        ),
        "dart": DataToTextSource(
            (
                ("dart-v1.1.1-full-train.json", "dart-v1.1.1-full-dev.json", "dart-v1.1.1-full-test.json"),
                ("train.txt", "valid.txt", "test.txt"),
            ),
            ("GEM/dart", None),
            lambda row: _each_reference(_lowered(row["tripleset"]), row),
        ),
    }
)


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read a task from the folder `settings.data`, or from the hub if that is None.

    Raises:
        DataError: a file is missing, unreadable or not in the form that its name indicates.
        WorkError: the hub cannot be reached, or has the data in another form.
    """
    task = SOURCES[info.name]
    if settings.data is None:
        hub_data = read_hub(*task.hub, revision=settings.revision, instead="give a folder of its files as task.data")
        splits, source, commit = _hub_splits(info, task, hub_data), hub_data.source, hub_data.commit
        notes = [*hub_data.notes, *([f"{source}: {task.hub_note}"] if task.hub_note else [])]
    else:
        files = _find_files(info.name, task, Path(settings.data))
        splits, source, commit = {split: read_pairs(info, path) for split, path in files.items()}, settings.data, None
        notes = [f"{settings.data}: no {task.forms[0][2]}, so no split test"] if "test" not in files else []
    return make_task_data(info, settings, splits, source=source, notes=notes, pins={"revision": commit})


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read the rows of one file.

    Raises:
        DataError: it is missing, unreadable or not in a form of the task.
    """
    return make_task_data(info, settings, {"validation": read_pairs(info, Path(data))}, source=data)


def read_pairs(info: TaskInfo, path: Path) -> Rows:
    """The rows of one file: `facts||sentence` a line (.txt), the E2E challenge's CSV, WebNLG's or DART's JSON.

    Raises:
        DataError: it is missing, unreadable or not in such a form.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        pairs = _lines(path)
    elif suffix == ".csv" and info.name == "e2e":
        table = read_table(path, ["mr", "ref"])
        pairs = ((e2e_facts(mr), ref) for mr, ref in zip(table.columns["mr"], table.columns["ref"], strict=True))
    elif suffix == ".json" and info.name in ("webnlg", "dart"):
        pairs = _json_pairs(info.name, path)
    else:
        forms = {"e2e": ".txt or .csv", "webnlg": ".json or .txt", "dart": ".json or .txt"}[info.name]
        raise DataError(f"{path}: {info.name} is read from {forms} files")
    return _rows(info, str(path), list(pairs))


def _rows(info: TaskInfo, place: str, pairs: list[Pair]) -> Rows:
    faults = Faults(place)
    for number, (facts, sentence) in enumerate(pairs, start=1):
        for what, text in (("facts", facts), ("sentence", sentence)):
            if not isinstance(text, str) or not text.strip():
                faults.add(f"row {number}: no {what}")
    faults.raise_any()
    if not pairs:
        raise DataError(f"{place}: holds no rows")
    return Rows([info.render(facts.strip()) for facts, _ in pairs], None, [text.strip() for _, text in pairs])


def _lines(path: Path) -> Iterator[Pair]:
    faults = Faults(str(path))
    for number, line in enumerate(read_lines(path), start=1):
        facts, bars, sentence = line.rstrip("\r\n").partition("||")
        if not bars:
            faults.add(f"line {number}: {show(line.strip())} has no '||' between facts and sentence")
        yield facts, sentence
    faults.raise_any()


def _json_pairs(task: str, path: Path) -> list[Pair]:
    text = read_text(path, MAX_JSON_BYTES)
    try:
        content = json.loads(text)
        return list(_webnlg(content) if task == "webnlg" else _dart(content))
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"{path}: not in the form of the {task} release ({type(fault).__name__}: {fault})") from None


def _webnlg(content: Any) -> Iterator[Pair]:
    for entry in content["entries"]:
        (example,) = entry.values()
        triples = [(fact["subject"], fact["property"], fact["object"]) for fact in example["modifiedtripleset"]]
        for sentence in example["lexicalisations"]:
            if sentence["comment"] == "good":
                yield _triples(triples), sentence["lex"]


def _dart(content: Any) -> Iterator[Pair]:
    for example in content:
        for sentence in example["annotations"]:
            yield _lowered(example["tripleset"]), sentence["text"]


def _find_files(task: str, source: DataToTextSource, folder: Path) -> dict[str, Path]:
    """The file of each split, in the first form that has training and validation rows."""
    require_folder(folder)
    for names in source.forms:
        files = {split: folder / name for split, name in zip(_SPLITS, names, strict=True) if (folder / name).is_file()}
        if {"train", "validation"} <= set(files):
            return files
    needed = "; or ".join(f"{train} and {validation}" for train, validation, _ in source.forms)
    raise DataError(f"{folder}: {task} needs {needed}")


def _hub_splits(info: TaskInfo, task: DataToTextSource, hub_data: HubData) -> dict[str, Rows]:
    try:
        pairs = {split: [pair for row in hub_data.tables[split] for pair in task.hub_pairs(row)] for split in _SPLITS}
    except (KeyError, TypeError, ValueError) as fault:
        raise WorkError(
            f"{hub_data.source} is not in the form in which {info.name} is read ({type(fault).__name__}: {fault});"
            " give a folder of its files as task.data"
        ) from fault
    return {split: _rows(info, f"{hub_data.source}, {split}", own) for split, own in pairs.items()}
