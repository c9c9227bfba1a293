"""Read the documentation strings of installed packages from their source files, without importing them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kasatune.errors import DataError

_MAX_BYTES = 1_000_000  # larger source files are generated
_MAX_LETTERS_PER_WORD = 20  # longer text is cut before it is cleaned
_SKIPPED = re.compile(r"^(tests?|testing|conftest\.py|test_.*|.*_test\.py|_?vendor(ed)?|extern(als?)?|array_api_.*)$")

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo"})
_NOTHING = re.compile(r"(?!)")
_MOST_WORDS = 200
_MAX_PER_MODULE = 8


@dataclass(frozen=True)
class Docstring:
    """A documentation string.

    Attributes:
        module: its source file, relative to the folder that holds the package.
        text: the text after `clean`.
    """

    module: str
    text: str


def digest(text: str) -> str:
    """A sort key that gives a fixed random order, the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def package_folder(package: str) -> Path:
    """The folder of an installed package.

    Raises:
        DataError: it is not installed as a folder.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed, and its documentation strings are needed; install it")
    return Path(next(iter(spec.submodule_search_locations)))


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(path relative to the parent of `root`, file) of the Python files of a package, in the order of `digest`.

    Tests and vendored packages are skipped.
    """
    modules = {path.relative_to(root.parent).as_posix(): path for path in root.rglob("*.py")}
    for module in sorted(modules, key=digest):
        if not any(_SKIPPED.match(part) for part in module.split("/")[1:]):
            yield module, modules[module]


def docstrings(
    package: str, names: re.Pattern[str], min_words: int, max_words: int, max_per_file: int
) -> Iterator[Docstring]:
    """The cleaned documentation strings of a package, files and strings in the order of `digest`.

    Tests, vendored packages, files that are not Python and files above 1 MB are skipped.

    Args:
        package: import name of the package.
        names: pattern of the words to mask.
        min_words: shorter strings are skipped.
        max_words: longer strings are cut to this many words.
        max_per_file: most strings of one file.

    Raises:
        DataError: the package is not installed.
    """
    for module, path in source_files(package_folder(package)):
        texts = {clean(text, names, max_words) for text in _strings(path)}
        long_enough = sorted((text for text in texts if len(text.split()) >= min_words), key=digest)
        for text in long_enough[:max_per_file]:
            yield Docstring(module, text)


def standard_library_docstrings(min_words: int, number: int) -> list[str]:
    """Cleaned documentation strings of Python's standard library, the first `number` in the order of `digest`.

    Files and strings are taken in a fixed random order, equal wherever the same version of Python is installed.

    Args:
        min_words: shorter strings are skipped.
        number: most strings to return.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    texts: dict[str, None] = {}
    for name in sorted(files, key=digest):
        if any(_SKIPPED.match(part) or part in _NOT_LIBRARY for part in name.split("/")):
            continue
        cleaned = {clean(text, _NOTHING, _MOST_WORDS) for text in _strings(files[name])}
        own = sorted((text for text in cleaned if len(text.split()) >= min_words), key=digest)
        texts.update(dict.fromkeys(own[:_MAX_PER_MODULE]))
        if len(texts) >= number:
            break
    return list(texts)[:number]


def _strings(path: Path) -> list[str]:
    """Every documentation string of a source file; none if it cannot be parsed."""
    if path.stat().st_size > _MAX_BYTES:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in foreign source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [text for node in _documented(tree) if (text := ast.get_docstring(node))]


def _documented(node: ast.Module | ast.ClassDef) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """A module or class with its classes and functions, recursively; nothing inside functions."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _documented(child)
        elif isinstance(child, ast.FunctionDef):
            yield child


def clean(text: str, names: re.Pattern[str], max_words: int) -> str:
    """A docstring as prose on one line: up to its first example, without rulers and URLs, `names` masked as "_".

    At most `max_words` words are returned.
    """
    text = text.partition(">>>")[0]
    text = re.sub(r"https?://\S+|([^\w\s])\1{2,}", " ", text[: _MAX_LETTERS_PER_WORD * max_words])
    return " ".join(names.sub("_", text).split()[:max_words])


def mask(names: Sequence[str], prefixes: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches `names`, and `prefixes` before a dot, with their attributes: "numpy.linalg", "np.add"."""
    anywhere, before = "|".join(map(re.escape, names)), "|".join(map(re.escape, prefixes))
    return re.compile(rf"(?i)(?:{anywhere})[\w.-]*|\b(?:{before})\.[\w.]*")
