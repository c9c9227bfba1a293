from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.io.atomic import write_text
from kasatune.reports.comparison.answer import answer
from kasatune.reports.comparison.page import render
from kasatune.reports.comparison.tables import as_csv, as_latex, as_markdown


def write_comparison(found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write comparison.json, .md, .csv and .tex and report.html into `out`.

    Args:
        found: the content of comparison.json.
        out: the directory of the comparison.

    Returns:
        `found` with the answer in words.

    Raises:
        OutputError: `out` cannot be written.
    """
    whole = {"answer": answer(found), **found}
    texts = {
        "comparison.json": json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "comparison.md": as_markdown(whole),
        "comparison.csv": as_csv(whole),
        "comparison.tex": as_latex(whole),
        "report.html": render(whole),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return whole
