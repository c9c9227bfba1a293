"""E2E, WebNLG and DART: from facts to a sentence, in the form of LoRA's experiments.

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
from kasatune.data.readers.text_files import read_lines, read_text
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.prompts import render
from kasatune.data.tasks.table import TaskInfo
from kasatune.errors import DataError, WorkError

Pair = tuple[str, str]
"""Facts and one sentence that tells them."""

_SPLITS = ("train", "validation", "test")
_E2E_NAMES = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_E2E_FACT = re.compile(r"([^\[\],]+)\[([^\]]*)\]")
_JOINED = re.compile(r"(?<=£)(?=\S)|(?<=\d)(?=-\d)|(?<=\d-)(?=\d)")  # where LoRA's form has blanks


@dataclass(frozen=True)
class Source:
    """Where the rows of a task lie.

    Attributes:
        forms: files of the splits train, validation and test, for each form in which the set is handed around; the
            first form that is there is read.
        hub: name and configuration on the hub.
        hub_pairs: the pairs in a row of the hub's table.
        hub_note: how the hub's rows differ from those of the published results.
    """

    forms: tuple[tuple[str, str, str], ...]
    hub: tuple[str, str | None]
    hub_pairs: Callable[[Mapping[str, Any]], list[Pair]]
    hub_note: str = ""


def e2e_facts(meaning: str) -> str:
    """`name[The Punter], eatType[pub]` as LoRA's form has it: `name : The Punter | Type : pub`."""
    facts = [(name.strip(), value.strip()) for name, value in _E2E_FACT.findall(meaning)]
    return " | ".join(f"{_E2E_NAMES.get(name, name)} : {_JOINED.sub(' ', value)}" for name, value in facts)


def _triples(triples: Any) -> str:
    return " | ".join(" : ".join(str(part) for part in triple) for triple in triples)


def _lowered(triples: Any) -> str:
    return _triples((subject, str(relation).lower(), object_) for subject, relation, object_ in triples)


def _each_reference(facts: str, row: Mapping[str, Any]) -> list[Pair]:
    """The pairs of a row of GEM: one of training has a target, one of evaluation all of its references as well.

    An input that nobody has written a sentence for has an empty target; there is nothing to score on it.
    """
    sentences = dict.fromkeys([row["target"], *row["references"]])
    return [(facts, sentence) for sentence in sentences if sentence.strip()]


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "e2e": Source(
            (("train.txt", "valid.txt", "test.txt"), ("trainset.csv", "devset.csv", "testset_w_refs.csv")),
            ("tuetschek/e2e_nlg", None),
            lambda row: [(e2e_facts(row["meaning_representation"]), row["human_reference"])],
        ),
        "webnlg": Source(
            (("train.json", "dev.json", "test.json"), ("train.txt", "valid.txt", "test.txt")),
            ("GEM/web_nlg", "en"),
            lambda row: _each_reference(_triples(fact.split(" | ") for fact in row["input"]), row),
            "WebNLG 2020 (version 3); published results of LoRA and KaSA's rivals are on the challenge of 2017",
        ),
        "dart": Source(
            (
                ("dart-v1.1.1-full-train.json", "dart-v1.1.1-full-dev.json", "dart-v1.1.1-full-test.json"),
                ("train.txt", "valid.txt", "test.txt"),
            ),
            ("GEM/dart", None),
            lambda row: _each_reference(_lowered(row["tripleset"]), row),
        ),
    }
)


def load_data_to_text(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """A task from the folder `settings.data`, or from the hub where that is None.

    Raises:
        DataError: a file is missing, unreadable or not in the form that its name tells.
        WorkError: the hub cannot be reached, or has the data in another form.
    """
    source = SOURCES[info.name]
    if settings.data is None:
        found = read_hub(*source.hub, revision=settings.revision, instead="give a folder of its files as task.data")
        splits, where, commit = _hub_splits(info.name, source, found), found.source, found.commit
        notes = [*found.notes, *([f"{where}: {source.hub_note}"] if source.hub_note else [])]
    else:
        files = _files(info.name, source, Path(settings.data))
        splits, where = {split: read_pairs(info.name, path) for split, path in files.items()}, settings.data
        commit = None
        notes = [f"{settings.data}: no {source.forms[0][2]}, so no split test"] if "test" not in files else []
    return make_task_data(
        info,
        splits,
        label_names=None,
        source=where,
        notes=notes,
        max_train=settings.max_train,
        max_eval=settings.max_eval,
        pins={"revision": commit},
    )


def read_pairs(task: str, path: Path) -> Rows:
    """The rows of one file: `facts||sentence` a line (.txt), the E2E challenge's CSV, WebNLG's or DART's JSON.

    Raises:
        DataError: it is missing, unreadable or in no such form.
    """
    ending = path.suffix.lower()
    if ending == ".txt":
        pairs = _lines(path)
    elif ending == ".csv" and task == "e2e":
        table = read_table(path, ["mr", "ref"])
        pairs = ((e2e_facts(mr), ref) for mr, ref in zip(table.columns["mr"], table.columns["ref"], strict=True))
    elif ending == ".json" and task in ("webnlg", "dart"):
        pairs = _json_pairs(task, path)
    else:
        forms = {"e2e": ".txt or .csv", "webnlg": ".json or .txt", "dart": ".json or .txt"}[task]
        raise DataError(f"{path}: {task} is read from {forms} files")
    return _rows(task, str(path), list(pairs))


def _rows(task: str, place: str, pairs: list[Pair]) -> Rows:
    faults = Faults(place)
    for number, (facts, sentence) in enumerate(pairs, start=1):
        for what, text in (("facts", facts), ("sentence", sentence)):
            if not isinstance(text, str) or not text.strip():
                faults.add(f"row {number}: no {what}")
    faults.raise_any()
    if not pairs:
        raise DataError(f"{place}: holds no rows")
    return Rows([render(task, facts.strip()) for facts, _ in pairs], None, [text.strip() for _, text in pairs])


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
        triples = [(one["subject"], one["property"], one["object"]) for one in example["modifiedtripleset"]]
        for sentence in example["lexicalisations"]:
            if sentence["comment"] == "good":
                yield _triples(triples), sentence["lex"]


def _dart(content: Any) -> Iterator[Pair]:
    for example in content:
        for sentence in example["annotations"]:
            yield _lowered(example["tripleset"]), sentence["text"]


def _files(task: str, source: Source, folder: Path) -> dict[str, Path]:
    """The file of each split, in the first form of which training and validation rows are there."""
    if not folder.is_dir():
        what = "this is a file; name its folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what} (relative paths start at {Path.cwd()})")
    for names in source.forms:
        found = {split: folder / name for split, name in zip(_SPLITS, names, strict=True) if (folder / name).is_file()}
        if {"train", "validation"} <= set(found):
            return found
    needed = "; or ".join(f"{train} and {validation}" for train, validation, _ in source.forms)
    raise DataError(f"{folder}: {task} needs {needed}")


def _hub_splits(task: str, source: Source, found: HubData) -> dict[str, Rows]:
    try:
        pairs = {split: [pair for row in found.tables[split] for pair in source.hub_pairs(row)] for split in _SPLITS}
    except (KeyError, TypeError, ValueError) as fault:
        raise WorkError(
            f"{found.source} is in another form than {task} is read in ({type(fault).__name__}: {fault});"
            " give a folder of its files as task.data"
        ) from fault
    return {split: _rows(task, f"{found.source}, {split}", one) for split, one in pairs.items()}
