"""The task `demo`: which library does a piece of documentation belong to?

Real text that is on every machine: the documentation strings of packages that kasatune installs anyway, read from
their source. The libraries' names and what gives them away at once (`np.`, `DataFrame`) are masked. What is held out
comes from other source files than what is trained on, and nothing in it is nearly a copy of a training row. The rows
are the same wherever the same versions are installed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import version

from kasatune.data.readers.docstrings import Docstring, digest, docstrings, mask
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.table import TaskInfo
from kasatune.errors import DataError

LIBRARIES = {
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
SHORTEST, LONGEST = 14, 48  # words
TRAINED, HELD_OUT = 400, 200  # rows of each library, at most
COPIED = 0.5  # of the word triples of a row, from which on it counts as nearly a copy

_A_FILE = 20
_FEWEST = 60
_GIVE_AWAY = (
    "numpy",
    "scipy",
    "scikit",
    "sklearn",
    "pandas",
    "matplotlib",
    "torch",
    "sympy",
    "networkx",
    "transformers",
)
_GIVE_AWAY += ("ndarray", "dataframe", "pyplot", "hugging face", "huggingface")
_PREFIXES = ("np", "pd", "plt", "mpl", "nx", "sp")

Labelled = tuple[str, Docstring]


def load_demo(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Training rows and held-out rows ("validation") of the demo, in an order in which the libraries are mixed.

    Raises:
        DataError: one of the packages is not installed, or its source is not there.
    """
    names = mask(_GIVE_AWAY, _PREFIXES)
    parts: dict[bool, list[Labelled]] = {False: [], True: []}
    for held_out, row in _without_shared([row for library in LIBRARIES for row in _harvest(library, names)]):
        parts[held_out].append(row)
    train = _at_most(parts[False], TRAINED)
    validation = _at_most(_without_copies(parts[True], train), HELD_OUT)
    for part, rows in (("train", train), ("validation", validation)):
        short = [library for library, number in _counts(rows).items() if number < _FEWEST]
        if short:
            raise DataError(
                f"the demo finds too few documentation strings for {part} in {', '.join(short)}:"
                " are the packages installed with their source files?"
            )
    return make_task_data(
        info,
        {"train": _rows(train), "validation": _rows(validation)},
        label_names=tuple(LIBRARIES),
        source="documentation strings of " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        max_train=settings.max_train,
        max_eval=settings.max_eval,
    )


def _harvest(library: str, names: re.Pattern[str]) -> list[tuple[bool, Labelled]]:
    """Rows of a library, each with whether its file is held out; a third of the files is."""
    wanted = {False: 3 * TRAINED // 2, True: 3 * HELD_OUT // 2}  # copies are dropped later
    found: list[tuple[bool, Labelled]] = []
    for string in docstrings(LIBRARIES[library], names, SHORTEST, LONGEST, _A_FILE):
        held_out = int(digest(string.module), 16) % 3 == 0
        if wanted[held_out]:
            wanted[held_out] -= 1
            found.append((held_out, (library, string)))
        elif not any(wanted.values()):
            break
    return found


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _without_shared(rows: Sequence[tuple[bool, Labelled]]) -> list[tuple[bool, Labelled]]:
    """One row of each text, and none of a text that two libraries have."""
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
    """The rows that share fewer than `COPIED` of their word triples with any one row that is trained on."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, (_, string) in enumerate(trained):
        for triple in _triples(string.text):
            holders[triple].append(index)
    kept = []
    for row in rows:
        triples = _triples(row[1].text)
        shared = Counter(index for triple in triples for index in holders.get(triple, ()))
        if not shared or max(shared.values()) < COPIED * len(triples):
            kept.append(row)
    return kept


def _at_most(rows: Sequence[Labelled], number: int) -> list[Labelled]:
    """At most `number` rows of each library, in the order of their digest, which mixes the libraries."""
    taken: Counter[str] = Counter()
    kept = []
    for library, string in sorted(rows, key=lambda row: digest(row[1].text)):
        if taken[library] < number:
            taken[library] += 1
            kept.append((library, string))
    return kept


def _counts(rows: Sequence[Labelled]) -> dict[str, int]:
    counts = Counter(library for library, _ in rows)
    return {library: counts[library] for library in LIBRARIES}


def _rows(rows: Sequence[Labelled]) -> Rows:
    numbers = {library: number for number, library in enumerate(LIBRARIES)}
    return Rows([string.text for _, string in rows], None, [numbers[library] for library, _ in rows])
