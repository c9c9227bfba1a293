"""The task `function-summary`: the first sentence of a Python function's documentation string, from its signature.

Real text that is on every machine: the functions of packages that kasatune depends on, read from their source without
importing them. Held-out rows come from other source files than training rows, and no summary is in both. The rows are
the same wherever the same versions are installed.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from kasatune.data.readers.docstrings import digest, package_folder, source_files
from kasatune.data.tasks.dataset import ChatRows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError

LIBRARIES = {"networkx": "networkx", "numpy": "numpy", "scikit-learn": "sklearn", "scipy": "scipy", "torch": "torch"}
MAX_TRAIN, MAX_HELD_OUT = 200, 40  # rows of each library
REQUEST = "Summarize this Python function of {library} in one sentence.\n\n{signature}"

_MAX_PER_FILE = 6
_MIN_ROWS = 20  # of each library, in each part
_MIN_WORDS, _MAX_WORDS = 4, 30  # of a summary
_MAX_SIGNATURE = 160  # characters
_SECTION = re.compile(r" (?:Args|Arguments|Parameters|Returns?|Raises|Example)s?:")
_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)


class _Function(NamedTuple):
    library: str
    module: str
    signature: str
    summary: str


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Training rows and held-out rows ("validation"), in an order that mixes the libraries.

    Raises:
        DataError: one of the packages is not installed, or its source files are missing.
    """
    parts: dict[bool, list[_Function]] = {False: [], True: []}
    for library, package in LIBRARIES.items():
        missing = {False: MAX_TRAIN, True: MAX_HELD_OUT}
        for function in _functions(library, package):
            held_out = int(digest(function.module), 16) % 4 == 0
            if missing[held_out]:
                missing[held_out] -= 1
                parts[held_out].append(function)
            elif not any(missing.values()):
                break
        if MAX_TRAIN - missing[False] < _MIN_ROWS or MAX_HELD_OUT - missing[True] < _MIN_ROWS:
            raise DataError(
                f"found fewer than {_MIN_ROWS} documented functions in {library}; install it with its source files"
            )
    trained = {function.summary for function in parts[False]}
    held_out = [function for function in parts[True] if function.summary not in trained]
    return make_task_data(
        info,
        settings,
        {"train": _rows(parts[False]), "validation": _rows(held_out)},
        source="functions of " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    )


def _rows(functions: list[_Function]) -> ChatRows:
    mixed = sorted(functions, key=lambda function: digest(function.signature + function.summary))
    return ChatRows.of(
        [
            (("user", REQUEST.format(library=each.library, signature=each.signature)), ("assistant", each.summary))
            for each in mixed
        ]
    )


def _functions(library: str, package: str) -> Iterator[_Function]:
    """The documented functions of a package outside private folders, one of each summary, in the order of `digest`."""
    summaries: set[str] = set()
    root = package_folder(package)
    for module, path in source_files(root):
        if any(part.startswith("_") for part in module.split("/")[:-1]):
            continue
        functions = sorted(_of_file(path), key=lambda each: digest(each[0]))
        for signature, summary in functions[:_MAX_PER_FILE]:
            if summary not in summaries:
                summaries.add(summary)
                yield _Function(library, module, signature, summary)


def _of_file(path: Path) -> Iterator[tuple[str, str]]:
    """(signature, first sentence of the documentation string) of the public functions at the top of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in foreign source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        signature = f"def {node.name}({ast.unparse(node.args)})"
        summary = first_sentence(ast.get_docstring(node) or "")
        if summary and len(signature) <= _MAX_SIGNATURE:
            yield signature, summary


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph as plain text on one line; "" if it is too short or too long."""
    paragraph = _SECTION.split(" ".join(docstring.strip().split("\n\n")[0].split()))[0]
    sentence = _SENTENCE.match(paragraph)
    words = (sentence[1] if sentence else paragraph).split()
    text = " ".join(words)
    plain = not re.search(r">>>|\b\w+\([^)]*\)\s*->|[\\{}|]|::|:\w+:`|\.\. ", text)
    return text if plain and _MIN_WORDS <= len(words) <= _MAX_WORDS else ""
