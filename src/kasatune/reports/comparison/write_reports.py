"""Write the reports of a comparison: Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.io.atomic import write_text
from kasatune.io.run_layout import REPORT
from kasatune.reports.comparison.comparison_formats import as_csv, as_latex, as_markdown
from kasatune.reports.comparison.comparison_page import render


def write_reports(comparison: Mapping[str, Any], out: Path, *, running: bool = False) -> None:
    """Write comparison.md, comparison.csv, comparison.tex and report.html into `out`.

    Args:
        comparison: the content of comparison.json.
        out: directory of the comparison.
        running: whether it is in progress; report.html then reloads itself.

    Raises:
        OutputError: `out` cannot be written.
    """
    texts = {
        "comparison.md": as_markdown(comparison),
        "comparison.csv": as_csv(comparison),
        "comparison.tex": as_latex(comparison),
        REPORT: render(comparison, running=running),
    }
    for name, text in texts.items():
        write_text(out / name, text)
