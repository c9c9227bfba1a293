"""Hooks of the documentation site: add the generated reference, the notebooks and the pages that lie outside docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))
import reference_pages

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}
LONGEST_OUTPUT = 60
"""Lines of a notebook cell's output that are shown."""


def on_config(config: MkDocsConfig) -> None:
    """List every decision in the navigation."""
    pages = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs" / "decisions").glob("0*.md"))
    project = next(part["Project"] for part in config.nav or [] if "Project" in part)
    next(entry["Decisions"] for entry in project if "Decisions" in entry).extend(pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated to the files of the site."""
    for name, make in {**reference_pages.PAGES, **reference_pages.FILES}.items():
        files.append(File.generated(config, name, content=make()))
    for name, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_from_inside(text)))
    for path in sorted((ROOT / "docs").rglob("*.ipynb")):
        name = str(path.relative_to(ROOT / "docs").with_suffix(".md"))
        files.append(File.generated(config, name, content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Make links to a notebook, which are right in the repository, lead to its page on the site."""
    return re.sub(r"\]\(([^)]*)\.ipynb\)", r"](\1.md)", markdown)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and the text that its cells printed."""
    notebook = nbformat.read(path, as_version=4)
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        printed = "".join(_printed(output) for output in cell.outputs).rstrip()
        if printed:
            lines = printed.splitlines()
            shown = [*lines[:LONGEST_OUTPUT], "..."] if len(lines) > LONGEST_OUTPUT else lines
            parts.append("```text\n" + "\n".join(shown) + "\n```")
    title, *rest = parts
    heading, _, introduction = title.partition("\n")
    note = f'<a href="{path.name}" download>Download this page as a notebook</a>. Continuous integration executes it.'
    return "\n\n".join([heading, note, introduction.strip(), *rest]) + "\n"


def _printed(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    return output.get("data", {}).get("text/plain", "") + "\n" if "data" in output else ""


def _from_inside(text: str) -> str:
    """Links of a page at the repository's root, as they are from inside docs/."""
    for name, source in OUTSIDE.items():
        text = text.replace(f"]({source}", f"]({name}")
    return re.sub(r"\]\(docs/", "](", text)
