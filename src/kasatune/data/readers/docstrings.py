"""Documentation strings of installed packages, read from their source files without importing them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kasatune.errors import DataError

_MOST_BYTES = 1_000_000  # larger source files are generated
_MOST_LETTERS = 20  # a word; what is longer is cut before it is cleaned
_PASSED_OVER = re.compile(
    r"^(tests?|testing|conftest\.py|test_.*|.*_test\.py|_?vendor(ed)?|extern(als?)?|array_api_.*)$"
)


@dataclass(frozen=True)
class Docstring:
    """A documentation string.

    Attributes:
        module: the source file it is in, relative to the folder that holds the package.
        text: as `clean` leaves it.
    """

    module: str
    text: str


def digest(text: str) -> str:
    """A fixed random order: sorting by it draws without a generator, and equally on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def package_folder(package: str) -> Path:
    """Where an installed package lies.

    Raises:
        DataError: it is not installed as a folder.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed, and its documentation strings are needed")
    return Path(next(iter(spec.submodule_search_locations)))


def docstrings(package: str, names: re.Pattern[str], shortest: int, longest: int, a_file: int) -> Iterator[Docstring]:
    """The cleaned documentation strings of a package, files and strings in the order of `digest`.

    Tests and bundled foreign packages are passed over, and so are files that are not Python's or above 1 MB.

    Args:
        package: import name of the package.
        names: what to mask.
        shortest: strings of fewer words are passed over.
        longest: words to keep.
        a_file: strings to take from one file at most.

    Raises:
        DataError: the package is not installed.
    """
    root = package_folder(package)
    modules = {path.relative_to(root.parent).as_posix(): path for path in root.rglob("*.py")}
    for module in sorted(modules, key=digest):
        if any(_PASSED_OVER.match(part) for part in module.split("/")[1:]):
            continue
        texts = {clean(text, names, longest) for text in _strings(modules[module])}
        long_enough = sorted((text for text in texts if len(text.split()) >= shortest), key=digest)
        for text in long_enough[:a_file]:
            yield Docstring(module, text)


def _strings(path: Path) -> list[str]:
    """Every documentation string of a source file; none where it cannot be parsed."""
    if path.stat().st_size > _MOST_BYTES:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their escapes, which are not ours to mend
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [text for node in _documented(tree) if (text := ast.get_docstring(node))]


def _documented(node: ast.Module | ast.ClassDef) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """A module or class, and the classes and functions directly in it, and so on; not what is within functions."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child)
        elif isinstance(child, ast.FunctionDef):
            yield child


def clean(text: str, names: re.Pattern[str], longest: int) -> str:
    """A string as prose on one line: up to its first example, without rules and addresses, `names` masked as "_".

    At most `longest` words are kept.
    """
    text = text.partition(">>>")[0]
    text = re.sub(r"https?://\S+|([^\w\s])\1{2,}", " ", text[: _MOST_LETTERS * longest])
    return " ".join(names.sub("_", text).split()[:longest])


def mask(names: Sequence[str], prefixes: Sequence[str]) -> re.Pattern[str]:
    """A pattern of `names` and of `prefixes` before a point, each with what hangs on it: "numpy.linalg", "np.add"."""
    anywhere, before = "|".join(map(re.escape, names)), "|".join(map(re.escape, prefixes))
    return re.compile(rf"(?i)(?:{anywhere})[\w.-]*|\b(?:{before})\.[\w.]*")
