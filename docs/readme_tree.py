"""Write the file tree of README.md: one line a file, from the first line of what the file says of itself.

Run by `make tree`; a test holds README.md against it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/kasatune"
BEGIN, END = "<!-- tree: written by `make tree` -->\n", "<!-- end of tree -->"
WIDTH = 116

FOLDERS = {
    "src/kasatune/recipes/library": "recipes that come with the package",
    "benchmarks": "speed and memory, with machine and date",
    "docs": "concepts, how-to pages, deviations from the paper, decisions",
    "scripts": "checks and generators that are run by hand or by make",
    "soak": "what takes minutes to show: runs killed, faults, several processes; writes docs/reliability.md",
    "tests": "one folder for each package of src/kasatune, and witnesses/: the same result computed by others",
}
OTHERS = {
    "page.html": "the template of report.html",
    "page.css": "the style sheet of report.html, light and dark",
    "comparison.html": "the template of a comparison's report.html",
    "comparison.css": "what its style sheet has beside that of a run",
    "unrelated_sentences.txt": "plain sentences to measure forgetting on",
    "card.md": "the template of a run's README.md",
    "adapter_card.md": "the template of an adapter's README.md",
    "py.typed": "tells type checkers that the package is typed",
}


def says(path: Path) -> str:
    """What a file is for: the first sentence of its docstring, or of the function or class that it is about."""
    if path.suffix != ".py":
        return OTHERS[path.name]
    module = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(module) or _main_docstring(module, path.stem)
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)}: no docstring says what the file is for; write one")
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


def lines() -> Iterator[str]:
    """The lines of the tree."""
    yield f"{PACKAGE}/"
    yield from _folder(ROOT / PACKAGE, depth=1)
    for folder in sorted(FOLDERS):
        if "/" not in folder and any((ROOT / folder).glob("*")):
            yield _entry(f"{folder}/", FOLDERS[folder], depth=0)


def _folder(folder: Path, depth: int) -> Iterator[str]:
    entries = [path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__"))]
    for path in sorted(entries, key=lambda entry: (entry.is_dir(), entry.name)):
        name = str(path.relative_to(ROOT))
        if path.is_dir() and name in FOLDERS:
            yield _entry(f"{path.name}/", FOLDERS[name], depth)
        elif path.is_dir():
            init = path / "__init__.py"
            purpose = says(init) if init.is_file() and init.stat().st_size else ""
            yield _entry(f"{path.name}/", purpose, depth)
            yield from _folder(path, depth + 1)
        elif path.name != "__init__.py" or depth == 1:
            yield _entry(path.name, says(path), depth)


def _entry(name: str, purpose: str, depth: int) -> str:
    line = f"{'  ' * depth}{name:<{28 - 2 * depth}} {purpose}".rstrip()
    if len(line) <= WIDTH:
        return line
    # Too long: end with a clause where there is one in the second half, else with a word.
    clause = max(line.rfind(mark, WIDTH // 2, WIDTH) for mark in (", ", ": ", "; ", " ("))
    if clause > 0 and line[:clause].count("(") > line[:clause].count(")"):
        clause = line.rfind(" (", 0, clause)
    return line[:clause] if clause > 0 else line[: WIDTH - 4].rsplit(" ", 1)[0] + " ..."


def with_tree(readme: str) -> str:
    """README.md with the tree as it is now."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}```\n{chr(10).join(lines())}\n```\n{END}{after}"


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
