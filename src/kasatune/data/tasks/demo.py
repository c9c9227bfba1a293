"""The task `demo`: predict which library a documentation string belongs to.

Real text that is on every machine: the documentation strings of packages that kasatune depends on, read from their
source. The names of the libraries and words that identify them at once (`np.`, `ndarray`) are masked. Held-out rows
come from other source files than training rows, and none is nearly a copy of a training row. The rows are the same
wherever the same versions are installed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import version

from kasatune.data.readers.docstrings import Docstring, digest, docstrings, mask
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError

LIBRARIES = {
    "huggingface-hub": "huggingface_hub",
    "networkx": "networkx",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
MIN_WORDS, MAX_WORDS = 14, 48  # of a row
MAX_TRAIN, MAX_HELD_OUT = 400, 200  # rows of each library
COPY_SHARE = 0.5  # share of a row's word triples from which on it counts as nearly a copy

_MAX_PER_FILE = 20
_MIN_ROWS = 60  # of each library, in each part
_MASKED_WORDS = (
    "numpy",
    "scipy",
    "scikit",
    "sklearn",
    "torch",
    "sympy",
    "networkx",
    "transformers",
    "pydantic",
    "ndarray",
    "basemodel",
    "hugging face",
    "huggingface",
)
_MASKED_PREFIXES = ("np", "nx", "sp")

Labelled = tuple[str, Docstring]
"""A library and one of its documentation strings."""


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Training rows and held-out rows ("validation") of the demo, in an order that mixes the libraries.

    Raises:
        DataError: one of the packages is not installed, or its source files are missing.
    """
    names = mask(_MASKED_WORDS, _MASKED_PREFIXES)
    parts: dict[bool, list[Labelled]] = {False: [], True: []}
    for held_out, row in _without_shared([row for library in LIBRARIES for row in _harvest(library, names)]):
        parts[held_out].append(row)
    train = _at_most(parts[False], MAX_TRAIN)
    validation = _at_most(_without_copies(parts[True], train), MAX_HELD_OUT)
    for part, rows in (("train", train), ("validation", validation)):
        short = [library for library, number in _counts(rows).items() if number < _MIN_ROWS]
        if short:
            raise DataError(
                f"the demo found fewer than {_MIN_ROWS} documentation strings for {part} in {', '.join(short)};"
                " install these packages with their source files"
            )
    return make_task_data(
        info,
        settings,
        {"train": _rows(train), "validation": _rows(validation)},
        label_names=tuple(LIBRARIES),
        source="documentation strings of " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    )


def _harvest(library: str, names: re.Pattern[str]) -> list[tuple[bool, Labelled]]:
    """Rows of a library, each with whether its file is held out, as a third of the files are."""
    missing = {False: 3 * MAX_TRAIN // 2, True: 3 * MAX_HELD_OUT // 2}  # more, because copies are dropped later
    rows: list[tuple[bool, Labelled]] = []
    for string in docstrings(LIBRARIES[library], names, MIN_WORDS, MAX_WORDS, _MAX_PER_FILE):
        held_out = int(digest(string.module), 16) % 3 == 0
        if missing[held_out]:
            missing[held_out] -= 1
            rows.append((held_out, (library, string)))
        elif not any(missing.values()):
            break
    return rows


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _without_shared(rows: Sequence[tuple[bool, Labelled]]) -> list[tuple[bool, Labelled]]:
    """One row of each text, and no row of a text that occurs in two libraries."""
    libraries: dict[str, set[str]] = defaultdict(set)
    first: dict[str, tuple[bool, Labelled]] = {}
    for row in rows:
        library, string = row[1]
        plain = _plain(string.text)
        libraries[plain].add(library)
        first.setdefault(plain, row)
    return [row for plain, row in first.items() if len(libraries[plain]) == 1]


def _triples(text: str) -> set[tuple[str, ...]]:
    words = _plain(text).split()
    return set(zip(words, words[1:], words[2:], strict=False))


def _without_copies(rows: Sequence[Labelled], trained: Sequence[Labelled]) -> list[Labelled]:
    """The rows that share less than `COPY_SHARE` of their word triples with every single training row."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, (_, string) in enumerate(trained):
        for triple in _triples(string.text):
            holders[triple].append(index)
    originals = []
    for row in rows:
        triples = _triples(row[1].text)
        shared = Counter(index for triple in triples for index in holders.get(triple, ()))
        if not shared or max(shared.values()) < COPY_SHARE * len(triples):
            originals.append(row)
    return originals


def _at_most(rows: Sequence[Labelled], number: int) -> list[Labelled]:
    """At most `number` rows of each library, in the order of their digest, which mixes the libraries."""
    taken: Counter[str] = Counter()
    chosen = []
    for library, string in sorted(rows, key=lambda row: digest(row[1].text)):
        if taken[library] < number:
            taken[library] += 1
            chosen.append((library, string))
    return chosen


def _counts(rows: Sequence[Labelled]) -> dict[str, int]:
    counts = Counter(library for library, _ in rows)
    return {library: counts[library] for library in LIBRARIES}


def _rows(rows: Sequence[Labelled]) -> Rows:
    numbers = {library: number for number, library in enumerate(LIBRARIES)}
    return Rows([string.text for _, string in rows], None, [numbers[library] for library, _ in rows])
