"""Write docs/layout.md: the layers of the package and its files, one line each, from their docstrings.

`make tree` runs it; tests/test_layout_page.py fails when the page is out of date.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "layout.md"
PACKAGE = "src/kasatune"
WIDTH = 116

FOLDERS = {
    "src/kasatune/recipes/library": "recipes that ship with the package",
    "benchmarks": "speed and memory against other libraries; their results are in docs/results",
    "docker": "images for the CPU and for NVIDIA GPUs, and the locks of torch",
    "docs": "the documentation site, results and decisions included",
    "peer_tests": "PEFT's own test suite on the tuners of this project; writes docs/results/peft-suite.md",
    "scripts": "checks and generators that are run by hand or by make",
    "soak": "long tests: killed runs, disk faults, several processes, fuzzing; they write docs/reliability.md",
    "tests": "one folder for each package of src/kasatune; witnesses/ compares with independent implementations",
}
NOT_PYTHON = {
    "page.html": "the template of report.html",
    "page.css": "the style sheet of report.html, light and dark",
    "comparison.html": "the template of a comparison's report.html",
    "comparison.css": "the styles of a comparison beyond those of a run",
    "report.html": "the template of a SimRAG report",
    "card.md": "the template of a run's README.md",
    "adapter_card.md": "the template of an adapter's README.md",
    "run.css": "the styles of a run beyond those of page.css: classes, layers",
    "ui.css": "the styles of the web page, light and dark",
    "py.typed": "tells type checkers that the package is typed",
}

_HEAD = """# Source layout

Each package imports only packages below it. `make check` enforces this with import-linter, from the contract in
`pyproject.toml`. Packages on one line are independent of each other.

"""


def page() -> str:
    """The text of docs/layout.md."""
    layers = "\n".join(f"{number}. {line}" for number, line in enumerate(_layers(), 1))
    tree = "\n".join(_tree())
    note = "Every file, with the first line of its docstring (written by `make tree`):"
    return f"{_HEAD}{layers}\n\n{note}\n\n```text\n{tree}\n```\n"


def _layers() -> Iterator[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for layer in settings["tool"]["importlinter"]["contracts"][0]["layers"]:
        yield ", ".join(f"`{name.strip()}`" for name in layer.split("|"))


def _tree() -> Iterator[str]:
    yield f"{PACKAGE}/"
    yield from _folder(ROOT / PACKAGE, depth=1)
    for folder in sorted(FOLDERS):
        if "/" not in folder:
            yield _entry(f"{folder}/", FOLDERS[folder], depth=0)


def _folder(folder: Path, depth: int) -> Iterator[str]:
    entries = [path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__"))]
    for path in sorted(entries, key=lambda entry: (entry.is_dir(), entry.name)):
        name = str(path.relative_to(ROOT))
        if path.is_dir() and name in FOLDERS:
            yield _entry(f"{path.name}/", FOLDERS[name], depth)
        elif path.is_dir():
            init = path / "__init__.py"
            yield _entry(f"{path.name}/", summary(init) if init.is_file() and init.stat().st_size else "", depth)
            yield from _folder(path, depth + 1)
        elif path.name != "__init__.py" or depth == 1:
            yield _entry(path.name, summary(path), depth)


def summary(path: Path) -> str:
    """What a file is for: the first sentence of its docstring, or of the function or class it is named after."""
    if path.suffix != ".py":
        if path.name not in NOT_PYTHON:
            raise SystemExit(
                f"{path.relative_to(ROOT)}: add a line for {path.name} to NOT_PYTHON in {Path(__file__).name}"
            )
        return NOT_PYTHON[path.name]
    module = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(module) or _main_docstring(module, path.stem)
    if not text:
        raise SystemExit(
            f"{path.relative_to(ROOT)}: no docstring; write one whose first line says what the file is for"
        )
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z)\]])[.;] |\.$", paragraph)[0].rstrip(".:")


def _main_docstring(module: ast.Module, stem: str) -> str | None:
    """The docstring of the function named like the file, else of the first function, else of the first class."""
    public = [
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]
    public.sort(key=lambda node: (isinstance(node, ast.ClassDef), node.name != stem))
    return ast.get_docstring(public[0]) if public else None


def _entry(name: str, purpose: str, depth: int) -> str:
    line = f"{'  ' * depth}{name:<{28 - 2 * depth}} {purpose}".rstrip()
    if len(line) <= WIDTH:
        return line
    # Too long: cut at a clause in the second half, else at a word.
    clause = max(line.rfind(mark, WIDTH // 2, WIDTH) for mark in (", ", ": ", "; ", " ("))
    if clause > 0 and line[:clause].count("(") > line[:clause].count(")"):
        clause = line.rfind(" (", 0, clause)
    return line[:clause] if clause > 0 else line[: WIDTH - 4].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
